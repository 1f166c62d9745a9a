//! The pass of an operator on a pod's own machine: who can read the ring's secret there needs no password.
//!
//! A pass is a name and a password for Basic credentials, made from the secret without asking anybody, so it serves also
//! where the ring has no write master or rean is down. It holds for one pod and an hour at most: a program that listens in
//! the pod's place learns nothing that opens another pod.

use hmac::Mac;
use subtle::ConstantTimeEq;

use crate::member::PodId;
use crate::secret::{RingSecret, keyed};

/// What the names begin with. No account's name begins with `_`.
pub const NAME_PREFIX: &str = "_operator-";
/// The longest life of a pass, in milliseconds: an hour, which is a command that takes its time.
pub const MAX_LIFE_MS: u64 = 3_600_000;

/// Makes and checks passes of one ring.
#[derive(Clone)]
pub struct OperatorKey([u8; 32]);

impl std::fmt::Debug for OperatorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OperatorKey(..)")
    }
}

impl OperatorKey {
    /// The key of a ring.
    pub fn new(secret: &RingSecret) -> Self {
        Self(secret.key("operator"))
    }

    /// Name and password for a pod, until a time in milliseconds since 1970, at most [`MAX_LIFE_MS`] away.
    pub fn pass(&self, pod: &PodId, expires_at_ms: u64) -> (String, String) {
        let name = format!("{NAME_PREFIX}{pod}-{expires_at_ms}");
        let password = hex::encode(self.tag(&name));
        (name, password)
    }

    /// Until when a name and password hold for this pod, if they do now. Takes the same time whatever the password is.
    pub fn check(&self, pod: &PodId, name: &str, password: &str, now_ms: u64) -> Option<u64> {
        let mut given = [0; 32];
        hex::decode_to_slice(password, &mut given).ok()?;
        let fits = bool::from(self.tag(name).ct_eq(&given));
        let (of, expires) = name.strip_prefix(NAME_PREFIX)?.rsplit_once('-')?;
        let expires_at_ms: u64 = expires.parse().ok()?;
        let is_now = now_ms < expires_at_ms && expires_at_ms - now_ms <= MAX_LIFE_MS;
        (fits && of == pod.as_str() && is_now).then_some(expires_at_ms)
    }

    fn tag(&self, name: &str) -> [u8; 32] {
        let mut mac = keyed(&self.0);
        mac.update(name.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_LIFE_MS, OperatorKey};
    use crate::{PodId, RingSecret};

    #[test]
    fn a_pass_holds_for_one_pod_and_a_while() {
        let key = OperatorKey::new(&RingSecret::random());
        let pod = |id: &str| -> PodId { id.parse().expect("a pod's id") };
        let (here, other) = (pod("pod-1"), pod("pod-1-2"));
        let (name, password) = key.pass(&here, 10_000);
        assert_eq!(key.check(&here, &name, &password, 9_999), Some(10_000));
        assert_eq!(key.check(&here, &name, &password, 10_000), None);
        assert_eq!(key.check(&other, &name, &password, 9_999), None);
        assert_eq!(key.check(&here, &name.replace("10000", "10001"), &password, 9_999), None);
        assert_eq!(key.check(&here, &name, &"00".repeat(32), 9_999), None);
        assert_eq!(key.check(&here, &name, "", 9_999), None);
        assert_eq!(OperatorKey::new(&RingSecret::random()).check(&here, &name, &password, 9_999), None);
        let (name, password) = key.pass(&here, MAX_LIFE_MS + 2);
        assert_eq!(key.check(&here, &name, &password, 1), None, "too long a life");
        assert_eq!(key.check(&here, &name, &password, 2), Some(MAX_LIFE_MS + 2));
    }
}
