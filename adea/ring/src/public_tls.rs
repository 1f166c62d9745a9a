//! How the public port comes to its certificate, as configurations say it: `proxy.tls` of the agent's file, `--tls` of the
//! proxy. The agent checks it before it starts anything; the proxy acts by it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

/// Where certificates are ordered when no other directory is named (<https://letsencrypt.org/docs/acme-protocol-updates/>).
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Names in one certificate: Let's Encrypt takes no more (<https://letsencrypt.org/docs/rate-limits/>).
const MAX_NAMES: usize = 100;
/// Bytes of a name (RFC 1035, 2.3.4), and of one label of it.
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// Where the certificate of the public port comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PublicTls {
    /// From files that somebody else keeps up to date.
    Files {
        /// The chain, PEM, the pod's own certificate first.
        certificate: PathBuf,
        /// The private key, PEM.
        key: PathBuf,
    },
    /// From the ring's own authority, which clients have to be told to trust. In JSON `"ring"` alone stands for no names
    /// of its own: the agent puts in the host of `ring.url`.
    Ring {
        /// Host names and addresses that it is for.
        names: Vec<String>,
    },
    /// From an authority that speaks ACME (RFC 8555) and looks at the public port itself (TLS-ALPN-01, RFC 8737).
    Acme(Acme),
}

/// What is ordered from which ACME authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// The names of the certificate. Each must lead to this pod, at port 443.
    pub domains: Vec<String>,
    /// Whom the authority may write to: `mailto:` addresses.
    #[serde(default)]
    pub contact: Vec<String>,
    /// The authority's directory.
    #[serde(default = "lets_encrypt")]
    pub directory: String,
    /// A file with the certificate of who signs the directory's own, if that is none of the web's authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The folder for the account and the certificate; the agent has one in its data folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

/// A configuration that can't be used; it names the key below `tls`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {problem}")]
pub struct PublicTlsError {
    /// The key.
    pub key: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl PublicTls {
    /// The files that are read from outside of the pod's data folder, with the keys that name them.
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        match self {
            Self::Files { certificate, key } => vec![("files.certificate", certificate), ("files.key", key)],
            Self::Ring { .. } => Vec::new(),
            Self::Acme(acme) => acme.ca.iter().map(|ca| ("acme.ca", ca.as_path())).collect(),
        }
    }

    /// Whether it can work, as far as that can be said without looking at files.
    ///
    /// # Errors
    /// The first key that can't be used.
    pub fn check(&self) -> Result<(), PublicTlsError> {
        let wrong = |key, problem: String| Err(PublicTlsError { key, problem });
        for (key, file) in self.files() {
            if file.as_os_str().is_empty() {
                return wrong(key, "must name a file".to_owned());
            }
        }
        match self {
            Self::Files { .. } => Ok(()),
            Self::Ring { names } => {
                let bad = names.iter().find(|name| !is_dns_name(name) && name.parse::<IpAddr>().is_err());
                match bad {
                    Some(name) => wrong("ring.names", format!("{name:?} is neither a host name nor an address")),
                    None if names.len() > MAX_NAMES => wrong("ring.names", format!("are more than {MAX_NAMES}")),
                    None => Ok(()),
                }
            }
            Self::Acme(acme) => acme.check(),
        }
    }
}

impl Acme {
    fn check(&self) -> Result<(), PublicTlsError> {
        let wrong = |key, problem: String| Err(PublicTlsError { key, problem });
        if !(1..=MAX_NAMES).contains(&self.domains.len()) {
            return wrong("acme.domains", format!("must be 1 to {MAX_NAMES} names"));
        }
        for domain in &self.domains {
            if domain.starts_with("*.") {
                return wrong("acme.domains", format!("{domain:?}: only names without `*` can be proved by this port"));
            }
            if !is_dns_name(domain) || !domain.contains('.') {
                return wrong("acme.domains", format!("{domain:?} is no public host name"));
            }
        }
        if !self.contact.iter().all(|contact| contact.starts_with("mailto:")) {
            return wrong("acme.contact", "must each start with mailto:".to_owned());
        }
        if !self.directory.starts_with("https://") {
            return wrong("acme.directory", "must start with https://".to_owned());
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for PublicTls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if value == "ring" {
            return Ok(Self::Ring { names: Vec::new() });
        }
        if !value.is_object() {
            let problem = "`tls` must be \"ring\" or an object with one of `files`, `ring`, `acme`";
            return Err(de::Error::custom(problem));
        }
        Ok(match Form::deserialize(value).map_err(de::Error::custom)? {
            Form::Files { certificate, key } => Self::Files { certificate, key },
            Form::Ring { names } => Self::Ring { names },
            Form::Acme(acme) => Self::Acme(acme),
        })
    }
}

/// As [`PublicTls`] is written in full.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Form {
    Files {
        certificate: PathBuf,
        key: PathBuf,
    },
    Ring {
        #[serde(default)]
        names: Vec<String>,
    },
    Acme(Acme),
}

fn lets_encrypt() -> String {
    LETS_ENCRYPT.to_owned()
}

/// Whether a text can be a host's name: labels of letters, digits and hyphens (RFC 1123, 2.1), and no address.
pub fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits makes it an address, or nothing.
    let last_is_number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= MAX_NAME_BYTES && text.split('.').all(label) && !last_is_number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PublicTls, String> {
        let tls: PublicTls = serde_json::from_str(text).map_err(|error| error.to_string())?;
        tls.check().map_err(|error| error.to_string())?;
        Ok(tls)
    }

    #[test]
    fn the_three_forms_are_read() {
        let files = read(r#"{"files":{"certificate":"/c","key":"/k"}}"#).unwrap();
        assert_eq!(files.files(), [("files.certificate", Path::new("/c")), ("files.key", Path::new("/k"))]);
        assert_eq!(read(r#""ring""#).unwrap(), PublicTls::Ring { names: Vec::new() });
        let named = read(r#"{"ring":{"names":["pod-1.lan","10.0.0.1","::1"]}}"#).unwrap();
        let PublicTls::Acme(acme) = read(r#"{"acme":{"domains":["a.example"],"contact":["mailto:a@b"]}}"#).unwrap()
        else {
            panic!("no acme")
        };
        assert_eq!(acme.directory, LETS_ENCRYPT);
        for form in [files, named, PublicTls::Acme(acme)] {
            assert_eq!(read(&serde_json::to_string(&form).unwrap()), Ok(form));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, told) in [
            (r#""rong""#, "`tls`"),
            ("true", "`tls`"),
            (r#"{"files":{"certificate":"/c"}}"#, "key"),
            (r#"{"files":{"certificate":"","key":"/k"}}"#, "files.certificate"),
            (r#"{"files":{"certificate":"/c","key":"/k","kee":1}}"#, "kee"),
            (r#"{"ring":{"names":["a b"]}}"#, "ring.names"),
            (r#"{"ring":{"names":["1.2.3"]}}"#, "ring.names"),
            (r#"{"acme":{"domains":[]}}"#, "acme.domains"),
            (r#"{"acme":{"domains":["*.a.example"]}}"#, "`*`"),
            (r#"{"acme":{"domains":["localhost"]}}"#, "acme.domains"),
            (r#"{"acme":{"domains":["10.0.0.1"]}}"#, "acme.domains"),
            (r#"{"acme":{"domains":["a.example"],"contact":["a@b"]}}"#, "acme.contact"),
            (r#"{"acme":{"domains":["a.example"],"directory":"http://x"}}"#, "acme.directory"),
            (r#"{"acme":{"domains":["a.example"],"staging":true}}"#, "staging"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
