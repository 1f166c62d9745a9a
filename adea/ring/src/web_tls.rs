//! The ring's authority for the public ports of its pods, where nobody has a public name to get a certificate for.
//!
//! As the authority of the links ([`tls`](crate::tls)) it is made from the ring's secret, so all pods have the same, and a
//! client that trusts it once trusts every pod, also those that come later. It is another one, because browsers don't take
//! the signatures of that one, and so that no certificate of the one is ever good for the other.
//!
//! Whoever trusts it trusts whoever has the ring's secret, for any name. That is no more than a user of the ring does with
//! their data; a browser that is used for other things should rather be given a certificate of the web's authorities.

use std::time::Duration;

use p256::elliptic_curve::sec1::ToSec1Point;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};

use crate::secret::RingSecret;
use crate::tls::TlsError;

/// The authority's name, in which a part of the key's hash tells rings apart.
const CA_NAME: &str = "Adea ring";
/// The authority holds from and until the starts of these years: it lives as long as the ring's secret.
const CA_YEARS: (i32, i32) = (2020, 2120);
/// How long a pod's certificate holds. Some clients take none that holds longer than 398 days.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// It holds from this long before it was made, for clocks that are late.
const EARLIER: Duration = Duration::from_secs(24 * 3600);
/// How old a certificate may get before the next one is made.
pub const RENEW_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// The authority.
pub struct WebAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate with its chain, and its key.
pub struct Issued {
    /// The pod's own first, then the authority's, so that a client can be shown whom it is asked to trust.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
}

impl WebAuthority {
    /// The authority of a ring.
    ///
    /// # Errors
    /// When the system gives no random bytes, in practice.
    pub fn new(secret: &RingSecret) -> Result<Self, TlsError> {
        let key = ca_key(secret)?;
        let mark = Sha256::digest(key.public_key_raw());
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{CA_NAME} {}", hex::encode(&mark[..4])));
        params.serial_number = Some(SerialNumber::from_slice(&positive(&mark[4..20])));
        (params.not_before, params.not_after) = (date_time_ymd(CA_YEARS.0, 1, 1), date_time_ymd(CA_YEARS.1, 1, 1));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Ok(Self { issuer: Issuer::new(params, key), certificate: der, pem })
    }

    /// The authority's certificate, PEM: what clients are to trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate for these host names and addresses, made `now_s` seconds after 1970.
    ///
    /// # Errors
    /// When a name can't be one.
    pub fn issue(&self, names: &[String], now_s: u64) -> Result<Issued, TlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names.iter().map(|name| alt_name(name)).collect::<Result<_, _>>()?;
        let now = date_time_ymd(1970, 1, 1) + Duration::from_secs(now_s);
        (params.not_before, params.not_after) = (now - EARLIER, now + LIFETIME);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        Ok(Issued { chain, key: PrivatePkcs8KeyDer::from(key).into() })
    }
}

fn alt_name(name: &str) -> Result<SanType, TlsError> {
    Ok(match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(Ia5String::try_from(name)?),
    })
}

/// A serial number is positive and at most 20 bytes (RFC 5280, 4.1.2.2).
fn positive(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    bytes
}

/// The key: a number that the ring's secret gives, on P-256, as PKCS#8 (RFC 5208, RFC 5915).
fn ca_key(secret: &RingSecret) -> Result<KeyPair, TlsError> {
    // One in 2^32 secrets gives a number that is too large for the curve: then the next one is taken.
    let scalar = (0..8).find_map(|n| p256::SecretKey::from_slice(&secret.key(&format!("web-ca-{n}"))).ok());
    let scalar = scalar.ok_or(rcgen::Error::RingUnspecified)?;
    let point = scalar.public_key().to_sec1_point(false);
    let pkcs8 = pkcs8(&scalar.to_bytes(), point.as_bytes());
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ECDSA_P256_SHA256)?)
}

fn pkcs8(scalar: &[u8], point: &[u8]) -> Vec<u8> {
    /// `SEQUENCE { id-ecPublicKey, prime256v1 }`.
    const ALGORITHM: [u8; 21] = [
        0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d,
        0x03, 0x01, 0x07,
    ];
    // All lengths are below 128 but that of the whole, which is 138.
    let bits = [&[0x00], point].concat();
    let public = tagged(0xa1, &tagged(0x03, &bits));
    let key = tagged(0x30, &[&[0x02, 0x01, 0x01][..], &tagged(0x04, scalar), &public].concat());
    let body = [&[0x02, 0x01, 0x00][..], &ALGORITHM, &tagged(0x04, &key)].concat();
    tagged(0x30, &body)
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    // Nothing here comes near 256 bytes.
    let length = u8::try_from(content.len()).unwrap_or(u8::MAX);
    let head: &[u8] = if length < 0x80 { &[tag, length] } else { &[tag, 0x81, length] };
    [head, content].concat()
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{ServerName, UnixTime};
    use webpki::EndEntityCert;

    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn authority(digits: &str) -> WebAuthority {
        WebAuthority::new(&RingSecret::from_hex(&digits.repeat(32)).unwrap()).unwrap()
    }

    fn is_trusted(by: &CertificateDer<'_>, issued: &Issued, at_s: u64) -> bool {
        let anchor = webpki::anchor_from_trusted_cert(by).unwrap();
        let certificate = EndEntityCert::try_from(&issued.chain[0]).unwrap();
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(at_s));
        let usage = webpki::KeyUsage::server_auth();
        certificate.verify_for_usage(algorithms.all, &[anchor], &issued.chain[1..], time, usage, None, None).is_ok()
    }

    #[test]
    fn all_pods_of_a_ring_have_one_authority() {
        let (one, two, other) = (authority("5a"), authority("5a"), authority("5b"));
        let names = ["pod-1.lan".to_owned(), "10.0.0.1".to_owned(), "::1".to_owned()];
        let issued = one.issue(&names, NOW_S).unwrap();
        assert!(is_trusted(one.certificate(), &issued, NOW_S) && is_trusted(two.certificate(), &issued, NOW_S));
        assert!(!is_trusted(other.certificate(), &issued, NOW_S));
        assert!(!is_trusted(one.certificate(), &issued, NOW_S + 91 * 24 * 3600));
        let certificate = EndEntityCert::try_from(&issued.chain[0]).unwrap();
        for name in names {
            let name = ServerName::try_from(name).unwrap();
            assert!(certificate.verify_is_valid_for_subject_name(&name).is_ok(), "{name:?}");
        }
        let wrong = ServerName::try_from("pod-2.lan").unwrap();
        assert!(certificate.verify_is_valid_for_subject_name(&wrong).is_err());
        let until_s = crate::certificate::validity_s(&issued.chain[0]).unwrap().1;
        assert_eq!(until_s, i64::try_from(NOW_S + LIFETIME.as_secs()).unwrap());
    }

    #[test]
    fn its_certificates_open_no_link() {
        let secret = RingSecret::from_hex(&"5a".repeat(32)).unwrap();
        let issued = authority("5a").issue(&["x".to_owned()], NOW_S).unwrap();
        assert_eq!(crate::tls::peer_id(&issued.chain), None);
        let (_, certificate) = crate::tls::authority(&secret).unwrap();
        assert!(!is_trusted(&certificate, &issued, NOW_S));
    }
}
