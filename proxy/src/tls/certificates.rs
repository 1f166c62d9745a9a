//! The certificate in use.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use adea_ring::certificate::validity_s;
use adea_ring::trust;
use parking_lot::RwLock;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use webpki::EndEntityCert;

use crate::metrics::Metrics;

/// The certificate that is shown to clients, and changed while they come.
pub struct Certificates {
    current: RwLock<Option<Arc<CertifiedKey>>>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificates(..)")
    }
}

impl Certificates {
    /// None yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { current: RwLock::default(), metrics }
    }

    /// Shows this one from now on.
    pub fn set(&self, certificate: Pair) {
        self.metrics.certificate_until_s.store(certificate.until_s, Relaxed);
        *self.current.write() = Some(Arc::new(certificate.key));
    }

    /// Counts that there should be another one and isn't.
    pub fn not_renewed(&self) {
        self.metrics.renewal_failures.fetch_add(1, Relaxed);
    }

    /// Whether there is one, and it is for this host. Without one nobody can say.
    pub fn is_for(&self, host: &str) -> bool {
        let current = self.current.read().clone();
        let Some(current) = current else { return true };
        let Ok(name) = ServerName::try_from(host) else { return false };
        let certificate = current.end_entity_cert().ok().and_then(|der| EndEntityCert::try_from(der).ok());
        certificate.is_some_and(|certificate| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().clone()
    }
}

/// A certificate with its chain and its key, checked against each other.
pub struct Pair {
    /// Both.
    pub key: CertifiedKey,
    /// From when it holds, in seconds since 1970.
    pub from_s: i64,
    /// Until when it holds.
    pub until_s: i64,
}

/// A certificate and a key that don't make a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairError {
    /// What is wrong with the certificate.
    Certificate(String),
    /// What is wrong with the key.
    Key(String),
}

impl Pair {
    /// From DER.
    ///
    /// # Errors
    /// When they can't be used, or not together.
    pub fn new(
        chain: Vec<rustls::pki_types::CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, PairError> {
        let first = chain.first().ok_or_else(|| PairError::Certificate("there is no certificate".to_owned()))?;
        let validity = validity_s(first).filter(|_| EndEntityCert::try_from(first).is_ok());
        let (from_s, until_s) =
            validity.ok_or_else(|| PairError::Certificate("the first certificate can't be read".to_owned()))?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                PairError::Key("it is not the key of the first certificate".to_owned())
            }
            other => PairError::Key(format!("it is no key that can be used (RSA, ECDSA or Ed25519): {other}")),
        })?;
        Ok(Self { key, from_s, until_s })
    }

    /// From PEM.
    ///
    /// # Errors
    /// When they can't be used, or not together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, PairError> {
        let chain = trust::certificates(chain).map_err(PairError::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| PairError::Key("there is no private key in it (PEM, without a password)".to_owned()))?;
        Self::new(chain, key)
    }
}

/// The cryptography of all of this.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
