//! Who sends a request, told by the proxy to rean in signed headers.
//!
//! The form is CouchDB's proxy authentication (<https://docs.couchdb.org/en/stable/api/server/authn.html#proxy-authentication>)
//! with two differences: the token covers the roles as well as the name, and it is there for anonymous requests too,
//! so that a program that finds its way to rean's port without the ring's secret gets nothing at all.

use std::net::{IpAddr, Ipv6Addr};

use hmac::{Hmac, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::secret::{RingSecret, keyed};

/// The header that carries the percent-encoded name.
pub const USER_NAME_HEADER: &str = "x-auth-couchdb-username";
/// The header that carries the roles: each percent-encoded, separated by commas.
pub const ROLES_HEADER: &str = "x-auth-couchdb-roles";
/// The header that carries the hexadecimal HMAC over the two others.
pub const TOKEN_HEADER: &str = "x-auth-couchdb-token";
/// What all headers of this kind start with; none is ever accepted from outside.
pub const HEADER_PREFIX: &str = "x-auth-couchdb-";
/// The header with the client's address, as the proxy sees it. It is no part of the identity, and is told only where that
/// is; like all of [`PRIVATE_PREFIX`], it is never accepted from outside.
pub const PEER_HEADER: &str = "x-adea-peer";
/// What the headers start with that the programs of a ring have among themselves.
pub const PRIVATE_PREFIX: &str = "x-adea-";

/// What counts as one client's address: whoever has one of IPv6 has 2^64 of them.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

/// The role of a server administrator.
pub const ADMIN_ROLE: &str = "_admin";
/// The name under which the programs of a pod speak to one another.
pub const SYSTEM_NAME: &str = "_pod";

/// A name needs no encoding of these; commas, newlines, `%` and all that is no header text do.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Who sends a request. Nobody in particular has no name and no roles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// The account's name; `None` for an anonymous request.
    pub name: Option<String>,
    /// The account's roles, as its document has them.
    pub roles: Vec<String>,
}

impl Identity {
    /// Whether this is a server administrator (role `_admin`).
    pub fn is_admin(&self) -> bool {
        self.roles.iter().any(|role| role == ADMIN_ROLE)
    }

    /// The pod itself: its programs and workers.
    pub fn system() -> Self {
        Self { name: Some(SYSTEM_NAME.to_owned()), roles: vec![ADMIN_ROLE.to_owned()] }
    }

    /// A request without credentials.
    pub fn anonymous() -> Self {
        Self::default()
    }
}

/// Why headers name no one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There is no token.
    #[error("the identity token is missing")]
    NoToken,
    /// The token does not fit the name and the roles.
    #[error("the identity token does not fit")]
    BadToken,
    /// The name or a role is empty or not percent-encoded UTF-8.
    #[error("the identity headers are malformed")]
    Malformed,
}

/// Makes and checks identity headers.
#[derive(Clone)]
pub struct Signer {
    /// HMAC with the key already taken in: a clone of it is cheaper than a new start.
    mac: Hmac<Sha256>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer(..)")
    }
}

impl Signer {
    /// A signer for the programs of one ring.
    pub fn new(secret: &RingSecret) -> Self {
        Self { mac: keyed(&secret.key("identity")) }
    }

    /// The headers for this identity: the token always, the name and the roles where there are any.
    pub fn headers(&self, identity: &Identity) -> Vec<(&'static str, String)> {
        let name = identity.name.as_deref().map(encode);
        let roles = identity.roles.iter().map(|role| encode(role)).collect::<Vec<_>>().join(",");
        let token = hex::encode(self.tag(name.as_deref().unwrap_or(""), &roles));
        let mut headers = Vec::with_capacity(3);
        if let Some(name) = name {
            headers.push((USER_NAME_HEADER, name));
        }
        if !roles.is_empty() {
            headers.push((ROLES_HEADER, roles));
        }
        headers.push((TOKEN_HEADER, token));
        headers
    }

    /// Who the given header values name. The comparison takes the same time whatever the token is.
    ///
    /// # Errors
    /// When the token is missing or does not fit, or a value is malformed.
    pub fn verify(
        &self,
        name: Option<&str>,
        roles: Option<&str>,
        token: Option<&str>,
    ) -> Result<Identity, IdentityError> {
        let mut given = [0u8; 32];
        hex::decode_to_slice(token.ok_or(IdentityError::NoToken)?, &mut given).map_err(|_| IdentityError::BadToken)?;
        let expected = self.tag(name.unwrap_or(""), roles.unwrap_or(""));
        if !bool::from(expected.ct_eq(&given)) {
            return Err(IdentityError::BadToken);
        }
        let name = name.map(decode).transpose()?;
        let roles = match roles {
            None | Some("") => Vec::new(),
            Some(list) => list.split(',').map(decode).collect::<Result<_, _>>()?,
        };
        Ok(Identity { name, roles })
    }

    fn tag(&self, name: &str, roles: &str) -> [u8; 32] {
        let mut mac = self.mac.clone();
        mac.update(name.as_bytes());
        mac.update(b"\n");
        mac.update(roles.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// An empty text is malformed: an empty name would have the token of an anonymous request.
fn decode(text: &str) -> Result<String, IdentityError> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| IdentityError::Malformed)?;
    if decoded.is_empty() { Err(IdentityError::Malformed) } else { Ok(decoded.into_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        Signer::new(&RingSecret::from_hex(&"5a".repeat(32)).expect("64 digits"))
    }

    fn verify(signer: &Signer, headers: &[(&'static str, String)]) -> Result<Identity, IdentityError> {
        let get = |key| headers.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str());
        signer.verify(get(USER_NAME_HEADER), get(ROLES_HEADER), get(TOKEN_HEADER))
    }

    #[test]
    fn identities_go_there_and_back() {
        let signer = signer();
        for identity in [
            Identity::anonymous(),
            Identity::system(),
            Identity { name: Some("ü x,\n:%".into()), roles: vec!["a,b".into(), "ç".into(), "_r-1".into()] },
        ] {
            let headers = signer.headers(&identity);
            assert!(headers.iter().all(|(_, v)| v.bytes().all(|b| b.is_ascii_graphic())));
            assert_eq!(verify(&signer, &headers), Ok(identity));
        }
        assert_eq!(signer.headers(&Identity::anonymous()).len(), 1);
    }

    #[test]
    fn a_changed_header_is_refused() {
        let signer = signer();
        let good = signer.headers(&Identity { name: Some("ann".into()), roles: vec!["staff".into()] });
        for (at, value) in [(0, "bob".to_owned()), (1, "_admin".to_owned()), (2, "00".repeat(32)), (2, "x".into())] {
            let mut bad = good.clone();
            bad[at].1 = value;
            assert_eq!(verify(&signer, &bad), Err(IdentityError::BadToken));
        }
        assert_eq!(verify(&signer, &good[..2]), Err(IdentityError::NoToken));
        assert_eq!(verify(&signer, &good[2..]), Err(IdentityError::BadToken));
        let other = Signer::new(&RingSecret::random());
        assert_eq!(verify(&other, &good), Err(IdentityError::BadToken));
    }

    #[test]
    fn an_empty_name_is_not_anonymous() {
        let signer = signer();
        let headers = signer.headers(&Identity::anonymous());
        assert_eq!(signer.verify(Some(""), None, Some(&headers[0].1)), Err(IdentityError::Malformed));
        assert_eq!(signer.verify(None, Some(""), Some(&headers[0].1)), Ok(Identity::anonymous()));
    }

    #[test]
    fn only_the_admin_role_is_admin() {
        assert!(Identity::system().is_admin());
        assert!(!Identity::anonymous().is_admin());
        assert!(!Identity { name: Some("_admin".into()), roles: vec!["admin".into()] }.is_admin());
    }
}
