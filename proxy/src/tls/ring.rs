//! A certificate from the ring's own authority ([`adea_ring::web_tls`]): made at the start, and anew while the pod runs.

use std::sync::Arc;
use std::time::Duration;

use adea_ring::RingSecret;
use adea_ring::public_tls::PublicTlsError;
use adea_ring::web_tls::{RENEW_AFTER, WebAuthority};
use parking_lot::Mutex;

use super::TlsError;
use super::certificates::{Certificates, Pair, PairError};
use crate::clock;

/// How often is looked whether it is time. A timer of a month would not notice that the clock was set.
const LOOK: Duration = Duration::from_secs(3600);

/// The authority, and whom it names.
pub struct Ring {
    authority: WebAuthority,
    names: Vec<String>,
    certificates: Arc<Certificates>,
    issued_at_ms: Mutex<u64>,
}

impl Ring {
    /// Makes the first certificate.
    ///
    /// # Errors
    /// When there is no name, or one can't be one.
    pub fn issue(secret: &RingSecret, names: &[String], certificates: Arc<Certificates>) -> Result<Self, TlsError> {
        if names.is_empty() {
            let problem = "must be the names and addresses by which clients reach this pod".to_owned();
            return Err(PublicTlsError { key: "ring.names", problem }.into());
        }
        let authority = WebAuthority::new(secret)?;
        let ring = Self { authority, names: names.to_vec(), certificates, issued_at_ms: Mutex::default() };
        ring.renew()?;
        Ok(ring)
    }

    /// Makes the next ones in time.
    pub async fn keep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            ticks.tick().await;
            let age_ms = clock::now_ms().saturating_sub(*self.issued_at_ms.lock());
            if u128::from(age_ms) > RENEW_AFTER.as_millis()
                && let Err(error) = self.renew()
            {
                self.certificates.not_renewed();
                tracing::error!(%error, "the certificate could not be renewed");
            }
        }
    }

    fn renew(&self) -> Result<(), TlsError> {
        let now_ms = clock::now_ms();
        let issued = self.authority.issue(&self.names, now_ms / 1000)?;
        let pair = Pair::new(issued.chain, issued.key).map_err(|error| {
            let (PairError::Certificate(problem) | PairError::Key(problem)) = error;
            rustls::Error::General(problem)
        })?;
        self.certificates.set(pair);
        *self.issued_at_ms.lock() = now_ms;
        Ok(())
    }
}
