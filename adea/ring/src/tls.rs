//! Certificates for the links between pods.
//!
//! The ring has one certificate authority whose key is made from the ring's secret, so each pod issues its own
//! certificate at each start and there is nothing to hand out, to renew or to lose. Both sides of a link show one: who
//! has none of this ring is refused in the handshake, and a caller learns whom it has reached. TLS 1.3 only.
//!
//! A certificate proves that its holder knows the ring's secret; which pod it is, is its own word.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, date_time_ymd,
};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::member::PodId;
use crate::secret::RingSecret;

/// What is spoken over a link.
const ALPN: &[u8] = b"h2";
/// The name of the ring's authority. With the key it is all that trust is by.
const CA_NAME: &str = "Adea ring";
/// What the names of pods in certificates end in.
const SUFFIX: &str = ".pod.adea";
/// Bytes of an id in one label of a name, which may have 63.
const LABEL_BYTES: usize = 32;
/// An ed25519 private key as PKCS#8, up to the 32 bytes of the key itself (RFC 8410, section 7).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// Certificates hold from and until the starts of these years. Clocks of pods may be wrong; what is trusted is the
/// ring's secret, which a date adds nothing to.
const YEARS: (i32, i32) = (2020, 2120);

/// Why there are no credentials. It says nothing of any key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A key or a certificate could not be made.
    #[error("the certificate could not be made: {0}")]
    Issue(#[from] rcgen::Error),
    /// The certificate can't be used.
    #[error("the certificate can't be used: {0}")]
    Use(#[from] rustls::Error),
    /// The authority can't be used.
    #[error("the ring's authority can't be used: {0}")]
    Authority(#[from] rustls::server::VerifierBuilderError),
}

/// What one pod shows to the others, and checks them by.
#[derive(Clone)]
pub struct Credentials {
    me: PodId,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.me)
    }
}

impl Credentials {
    /// Makes a key and a certificate for a pod.
    ///
    /// # Errors
    /// When the system gives no random bytes, in practice.
    pub fn issue(secret: &RingSecret, me: &PodId) -> Result<Self, TlsError> {
        let (authority, root) = authority(secret)?;
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate = pod_params(me)?.signed_by(&key, &authority)?;
        let mut roots = RootCertStore::empty();
        roots.add(root)?;
        let (roots, chain) = (Arc::new(roots), vec![certificate.der().clone()]);
        let key = PrivatePkcs8KeyDer::from(key);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(Self {
            me: me.clone(),
            server: Arc::new(server(&provider, &roots, chain.clone(), key.clone_key())?),
            client: Arc::new(client(&provider, &roots, chain, key)?),
        })
    }

    /// Which pod these are of.
    pub fn me(&self) -> &PodId {
        &self.me
    }

    /// For who is called: it refuses callers without a certificate of this ring.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For who calls, with [`server_name`] as the name to check.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }
}

/// The name in a pod's certificate.
///
/// A label of a name neither begins nor ends with a hyphen and has at most 63 bytes, which holds for few of an id's
/// possible forms: so an id goes in pieces, each between two `x`.
pub fn server_name(pod: &PodId) -> ServerName<'static> {
    // An id is of letters, digits and hyphens, at most 64: the name is a valid one of at most 77 bytes.
    ServerName::try_from(dns_name(pod)).expect("a pod's id makes a name")
}

/// The pod that a certificate is for; the chain is what the other side showed, after the handshake has checked it.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Option<PodId> {
    let certificate = webpki::EndEntityCert::try_from(chain.first()?).ok()?;
    let mut names = certificate.valid_dns_names();
    let (name, None) = (names.next()?, names.next()) else { return None };
    let labels = name.strip_suffix(SUFFIX)?.split('.');
    let pieces: Option<String> = labels.map(|label| label.strip_prefix('x')?.strip_suffix('x')).collect();
    let pod: PodId = pieces?.parse().ok()?;
    (dns_name(&pod) == name).then_some(pod)
}

fn dns_name(pod: &PodId) -> String {
    let id = pod.as_str();
    let mut name = String::with_capacity(id.len() + SUFFIX.len() + 8);
    for start in (0..id.len()).step_by(LABEL_BYTES) {
        let piece = &id[start..id.len().min(start + LABEL_BYTES)];
        let dot = if start == 0 { "" } else { "." };
        name.extend([dot, "x", piece, "x"]);
    }
    name + SUFFIX
}

/// The ring's authority and its certificate. The certificate differs from pod to pod in its number, which nobody looks
/// at: trust is by name and key.
pub(crate) fn authority(secret: &RingSecret) -> Result<(Issuer<'static, KeyPair>, CertificateDer<'static>), TlsError> {
    let mut pkcs8 = PKCS8_ED25519.to_vec();
    pkcs8.extend_from_slice(&secret.key("ca"));
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ED25519)?;
    let mut params = params(CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key)?.der().clone();
    Ok((Issuer::new(params, key), certificate))
}

fn pod_params(pod: &PodId) -> Result<CertificateParams, TlsError> {
    let mut params = params(pod.as_str());
    params.subject_alt_names = CertificateParams::new(vec![dns_name(pod)])?.subject_alt_names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(YEARS.0, 1, 1);
    params.not_after = date_time_ymd(YEARS.1, 1, 1);
    params
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key.into())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Links stay open for days: tickets for coming back would only be one more thing to hold.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(Arc::clone(roots))
        .with_client_auth_cert(chain, key.into())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests;
