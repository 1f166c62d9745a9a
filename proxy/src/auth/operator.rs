//! Passes of operators on this pod's machine ([`adea_ring::operator`]): whoever can read the ring's secret there is the
//! administrator without a password.

use adea_ring::identity::ADMIN_ROLE;
use adea_ring::operator::{NAME_PREFIX, OperatorKey};
use adea_ring::{Identity, PodId};

use super::Credentials;
use crate::config::Config;

/// Checks the passes for one pod.
pub struct Passes {
    key: OperatorKey,
    pod: PodId,
    /// As whom they act: the administrator of the configuration.
    name: String,
}

impl Passes {
    /// None where the proxy doesn't know which pod it is of, or there is no administrator to act as.
    pub fn new(config: &Config) -> Option<Self> {
        let name = config.admin.as_ref()?.name.clone();
        Some(Self { key: OperatorKey::new(&config.ring_secret), pod: config.pod_id.clone()?, name })
    }

    /// Whom a pass makes of a request at this time, and until when: both in milliseconds since 1970. None when it is none.
    pub fn check(&self, credentials: &Credentials, now_ms: u64) -> Option<(Identity, u64)> {
        let ends_at_ms = self.key.check(&self.pod, &credentials.name, &credentials.password, now_ms)?;
        Some((Identity { name: Some(self.name.clone()), roles: vec![ADMIN_ROLE.to_owned()] }, ends_at_ms))
    }
}

/// Whether a name is that of a pass, which no account's is.
pub fn is_pass(name: &str) -> bool {
    name.starts_with(NAME_PREFIX)
}
