//! Whom a program trusts when it speaks TLS to a server that may be anybody's: another CouchDB, a pod's public port, an
//! ACME authority. The links between pods have rules of their own ([`tls`](crate::tls)).
//!
//! The authorities are those of the web, which come with the program, as a container has none, and those of the file that
//! `SSL_CERT_FILE` names, as other programs know it. It is the one file that this crate reads.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// The environment variable that names a file with more authorities.
pub const CA_FILE_VARIABLE: &str = "SSL_CERT_FILE";
/// Certificates of one file: what Debian has for the whole web are about 150.
const MAX_CERTIFICATES: usize = 1000;

/// The authorities whose word counts for a server's name.
#[derive(Debug, Clone)]
pub struct Trust {
    roots: RootCertStore,
}

/// Why authorities can't be taken in.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file can't be read.
    #[error("can't read the authorities' certificates in {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text has no certificates of authorities, or what it has is none.
    #[error("{0}")]
    Pem(String),
}

impl Trust {
    /// The web's authorities.
    pub fn web() -> Self {
        Self { roots: RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() } }
    }

    /// The web's authorities and those of `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// When the file is named and can't be used.
    pub fn system() -> Result<Self, TrustError> {
        match std::env::var_os(CA_FILE_VARIABLE).filter(|name| !name.is_empty()) {
            None => Ok(Self::web()),
            Some(name) => Self::web().with_file(Path::new(&name)),
        }
    }

    /// Nobody yet; for who trusts one authority and no other.
    pub fn nobody() -> Self {
        Self { roots: RootCertStore::empty() }
    }

    /// These authorities as well, PEM.
    ///
    /// # Errors
    /// When there are none in it, or one can't be used.
    pub fn with_pem(mut self, pem: &[u8]) -> Result<Self, TrustError> {
        let certificates = certificates(pem).map_err(TrustError::Pem)?;
        if certificates.len() > MAX_CERTIFICATES {
            return Err(TrustError::Pem(format!("more than {MAX_CERTIFICATES} certificates")));
        }
        for certificate in certificates {
            self.roots.add(certificate).map_err(|error| TrustError::Pem(format!("no usable certificate: {error}")))?;
        }
        Ok(self)
    }

    /// The authorities in a file as well.
    ///
    /// # Errors
    /// When it can't be read, or there are none in it.
    pub fn with_file(self, path: &Path) -> Result<Self, TrustError> {
        let pem = std::fs::read(path).map_err(|source| TrustError::Read { path: path.to_owned(), source })?;
        self.with_pem(&pem).map_err(|error| TrustError::Pem(format!("{}: {error}", path.display())))
    }

    /// For who calls and wants to speak one of these protocols, the best first. TLS 1.2 and 1.3.
    pub fn client_config(&self, protocols: &[&[u8]]) -> Arc<ClientConfig> {
        let roots = self.roots.clone();
        let mut config = builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }
}

/// For who calls and can't know whom: any certificate will do. Only for exchanges that prove by themselves who is at the
/// other end and hide what they carry.
pub fn unverified_client_config(protocols: &[&[u8]]) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Anybody(provider));
    let mut config = builder().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// The certificates of a PEM text, of which there is at least one.
///
/// # Errors
/// What is wrong, for people.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err("there is no certificate in it (PEM: -----BEGIN CERTIFICATE-----)".to_owned())
        }
        Ok(found) => Ok(found),
        Err(error) => Err(format!("it is no PEM: {error}")),
    }
}

/// What is wrong with a server's certificate and what to do, if an error or what is behind it says so.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    match find(error)? {
        rustls::Error::InvalidCertificate(problem) => Some(about_certificate(problem)),
        rustls::Error::InvalidMessage(_) => {
            Some("what answers there speaks no TLS: is it http and not https?".to_owned())
        }
        other => Some(format!("TLS: {other}")),
    }
}

/// TLS's error in an error. An `io::Error` does not count as the source of what it wraps.
fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next: Option<&'a (dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn about_certificate(problem: &CertificateError) -> String {
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: it must be renewed there (or the clock here is wrong)".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate does not hold yet: one of the two clocks is wrong".to_owned()
        }
        CertificateError::NotValidForName => "its certificate is for another name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<String> = presented.iter().take(5).map(|name| plain_name(name)).collect();
            format!("its certificate is not for {} but for {}", expected.to_str(), names.join(", "))
        }
        CertificateError::UnknownIssuer => format!(
            "its certificate is signed by an authority that is not trusted here: name that authority's certificate with \
             {CA_FILE_VARIABLE}=FILE"
        ),
        other => format!("its certificate can't be trusted: {other}"),
    }
}

/// webpki gives names as `DnsName("a")`.
fn plain_name(shown: &str) -> String {
    let inner = shown.split_once("(\"").and_then(|(_, rest)| rest.split_once('"'));
    inner.map_or(shown, |(name, _)| name).chars().take(100).collect()
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    // ring has suites for both versions; `rustls` asks for nothing else here.
    builder.with_safe_default_protocol_versions().expect("ring speaks TLS 1.2 and 1.3")
}

/// Takes any certificate whose holder has its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_certificates_is_no_authority() {
        for text in [&b""[..], b"zork", b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"] {
            assert!(Trust::nobody().with_pem(text).is_err());
        }
        let missing = Trust::web().with_file(Path::new("/nowhere/ca.pem")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/ca.pem"), "{missing}");
        assert!(Trust::web().roots.len() > 50);
    }

    #[test]
    fn errors_are_explained() {
        let wrapped = |problem| std::io::Error::other(rustls::Error::InvalidCertificate(problem));
        let told = explain(&wrapped(CertificateError::UnknownIssuer)).unwrap();
        assert!(told.contains(CA_FILE_VARIABLE), "{told}");
        let told = explain(&wrapped(CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("a.example").unwrap(),
            presented: vec!["DnsName(\"b.example\")".to_owned()],
        }));
        assert_eq!(told.unwrap(), "its certificate is not for a.example but for b.example");
        assert_eq!(explain(&std::io::Error::from(std::io::ErrorKind::NotFound)), None);
    }
}
