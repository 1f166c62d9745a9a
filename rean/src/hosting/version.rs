//! The versions of an app, out of its design documents.
//!
//! `_design/app:VERSION` with the member `app` is a version: its files are the attachments whose names begin with
//! [`FOLDER`] (an attachment's own name can't begin with an underscore, and what bundlers make often does). The member
//! `app` of `_design/app` tells who gets which; without it the newest is for everyone.

use std::collections::{BTreeMap, HashMap};

use http::{HeaderName, HeaderValue};
use rean_store::Attachment;
use serde::Deserialize;
use serde_json::Value;

use crate::hosting::split::{Bucket, Seed};

/// The document that tells who gets which version.
pub const ROUTING: &str = "_design/app";
/// What the ids of versions begin with.
pub const PREFIX: &str = "_design/app:";
/// The member that makes a design document one of these.
pub const MEMBER: &str = "app";
/// What the names of the attachments begin with that are files of the app.
pub const FOLDER: &str = "www/";
/// A compressed form of a file is the attachment with this behind the file's name.
pub const GZIPPED: &str = ".gz";
/// The page of a folder, unless the version says another.
const INDEX: &str = "index.html";
/// Bytes of a version's name.
const MAX_NAME_BYTES: usize = 64;
/// Versions of an app that are looked at: some are compared, and some kept for pages that are still open.
pub const MAX_VERSIONS: usize = 32;
/// Folders that a version may name as never changing.
const MAX_FOLDERS: usize = 32;
/// Bytes of a header's value: long policies have some hundred.
const MAX_HEADER_BYTES: usize = 4 << 10;
/// The largest share: people write percents, or counts.
const MAX_SHARE: u32 = 1_000_000;
/// Headers that a version may set: what concerns its own pages and nothing else on this origin.
const HEADERS: [&str; 8] = [
    "content-security-policy",
    "content-security-policy-report-only",
    "cross-origin-embedder-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "permissions-policy",
    "referrer-policy",
    "x-frame-options",
];

/// The member `app` of a version.
#[derive(Debug, Default, Deserialize)]
struct Manifest {
    version: Option<String>,
    index: Option<String>,
    fallback: Option<String>,
    #[serde(default)]
    immutable: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// The member `app` of the routing document.
#[derive(Debug, Deserialize)]
struct Routing {
    versions: BTreeMap<String, u32>,
}

/// The shares of the versions, in the order of their names.
pub type Shares = BTreeMap<String, u32>;

/// A database's app.
pub struct App {
    /// The newest first.
    versions: Vec<Version>,
}

/// One version of it.
pub struct Version {
    name: String,
    /// The part of the visitors that get it, beside those of the others; 0: nobody.
    share: u32,
    seed: Seed,
    index: String,
    fallback: Option<String>,
    immutable: Vec<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// By path.
    files: HashMap<Box<str>, Attachment>,
}

/// Reads the shares of the routing document's member `app`.
///
/// # Errors
/// What is wrong with it.
pub fn shares(member: &Value) -> Result<Shares, String> {
    let routing = Routing::deserialize(member).map_err(|error| format!("`app`: {error}"))?;
    for (name, share) in &routing.versions {
        if !is_name(name) {
            return Err(format!("`app.versions`: {name:?} can't be a version's name"));
        }
        if *share > MAX_SHARE {
            return Err(format!("`app.versions.{name}`: a share is at most {MAX_SHARE}"));
        }
    }
    Ok(routing.versions)
}

/// Whether a version may have this name.
pub fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    name.len() <= MAX_NAME_BYTES
        && name.bytes().all(fits)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

impl App {
    /// The app of these versions; `None` if there are none. Without shares the newest version is for everyone.
    pub fn new(mut versions: Vec<Version>, shares: Option<&Shares>) -> Option<Self> {
        versions.sort_by(|a, b| natural(&b.name).cmp(&natural(&a.name)));
        match shares {
            Some(shares) => versions.iter_mut().for_each(|version| {
                version.share = shares.get(&version.name).copied().unwrap_or_default();
            }),
            None => versions.iter_mut().take(1).for_each(|version| version.share = 1),
        }
        (!versions.is_empty()).then_some(Self { versions })
    }

    /// The version with this name.
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }

    /// A visitor's version; `None` where nobody is to get any.
    pub fn choose(&self, bucket: Bucket) -> Option<&Version> {
        let draw = |version: &Version| version.seed.draw(bucket, version.share);
        self.versions.iter().filter(|version| version.share > 0).min_by(|a, b| draw(a).total_cmp(&draw(b)))
    }

    /// Whether some visitors get another version than others.
    pub fn is_split(&self) -> bool {
        self.versions.iter().filter(|version| version.share > 0).nth(1).is_some()
    }

    /// All of them, the newest first.
    pub fn versions(&self) -> impl Iterator<Item = &Version> {
        self.versions.iter()
    }

    /// How many files there are in all versions.
    pub fn file_count(&self) -> usize {
        self.versions.iter().map(|version| version.files.len()).sum()
    }
}

impl Version {
    /// Reads the version `name` of a database: its member `app`, and its attachments.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(db_name: &str, name: &str, member: &Value, attachments: Vec<Attachment>) -> Result<Self, String> {
        if !is_name(name) {
            return Err(format!("{name:?} can't be a version's name: letters, digits, `.`, `_` and `-`, at most 64"));
        }
        let manifest = Manifest::deserialize(member).map_err(|error| format!("`app`: {error}"))?;
        // A document that was copied to start a version from isn't that version yet.
        if manifest.version.as_deref().is_some_and(|own| own != name) {
            return Err("`app.version` is another one than the document's id says".to_owned());
        }
        if manifest.immutable.len() > MAX_FOLDERS {
            return Err(format!("`app.immutable` names at most {MAX_FOLDERS} folders"));
        }
        let in_folder = |mut one: Attachment| {
            let path = one.name.strip_prefix(FOLDER)?.into();
            one.name = String::new();
            Some((path, one))
        };
        Ok(Self {
            name: name.to_owned(),
            share: 0,
            seed: Seed::of(db_name, name),
            index: manifest.index.unwrap_or_else(|| INDEX.to_owned()),
            fallback: manifest.fallback,
            immutable: manifest.immutable,
            headers: manifest.headers.iter().map(|(name, value)| header(name, value)).collect::<Result<_, _>>()?,
            files: attachments.into_iter().filter_map(in_folder).collect(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file at a path.
    pub fn file(&self, path: &str) -> Option<&Attachment> {
        self.files.get(path)
    }

    /// The page of a folder, whose path is empty or ends with a slash, if it has one.
    pub fn index_of(&self, folder: &str) -> Option<String> {
        let slash = if folder.is_empty() || folder.ends_with('/') { "" } else { "/" };
        Some(format!("{folder}{slash}{}", self.index)).filter(|path| self.files.contains_key(path.as_str()))
    }

    /// The page for paths of the app's own making.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Whether it names a path as one that never gets another content.
    pub fn is_immutable(&self, path: &str) -> bool {
        self.immutable.iter().any(|folder| !folder.is_empty() && path.starts_with(folder.as_str()))
    }

    /// The headers that it sets.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let known = HEADERS.iter().find(|known| known.eq_ignore_ascii_case(name));
    let known =
        known.ok_or_else(|| format!("`app.headers`: {name:?} can't be set; these can: {}", HEADERS.join(", ")))?;
    if value.len() > MAX_HEADER_BYTES {
        return Err(format!("`app.headers.{name}`: at most {MAX_HEADER_BYTES} bytes"));
    }
    let value = HeaderValue::from_str(value).map_err(|_| format!("`app.headers.{name}`: not a header's value"))?;
    Ok((HeaderName::from_static(known), value))
}

/// An order in which v10 is newer than v9: words and numbers one after the other.
fn natural(name: &str) -> Vec<(u128, &str)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let words = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = rest[words..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |end| words + end);
        // A number that is longer than any counter is as large as can be.
        let number = if words == digits { 0 } else { rest[words..digits].parse().unwrap_or(u128::MAX) };
        parts.push((0, &rest[..words]));
        parts.push((number, ""));
        rest = &rest[digits..];
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::{App, Version, natural, shares};
    use crate::hosting::split::Bucket;
    use serde_json::json;

    fn version(name: &str) -> Version {
        Version::read("notes", name, &json!({}), Vec::new()).expect("a version")
    }

    #[test]
    fn the_newest_is_for_everyone_unless_shares_say_otherwise() {
        let names = ["v9", "v10", "v1.2"];
        let app = App::new(names.map(version).into(), None).expect("an app");
        let bucket = Bucket::of_user("notes", "ann");
        assert_eq!(app.choose(bucket).expect("one").name(), "v10");
        assert!(!app.is_split());
        let shares = shares(&json!({"versions": {"v9": 3, "v10": 0, "gone": 5}})).expect("good");
        let app = App::new(names.map(version).into(), Some(&shares)).expect("an app");
        assert_eq!(app.choose(bucket).expect("one").name(), "v9");
        assert!(app.version("v10").is_some() && app.version("gone").is_none());
        let none = App::new(names.map(version).into(), Some(&super::Shares::new())).expect("an app");
        assert!(none.choose(bucket).is_none());
        assert!(App::new(Vec::new(), None).is_none());
        assert!(natural("2024-10-1") > natural("2024-9-30") && natural("v1.2") < natural("v1.10"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (member, names) in [
            (json!(5), "app"),
            (json!({"version": "v2"}), "app.version"),
            (json!({"headers": {"Set-Cookie": "a=b"}}), "Set-Cookie"),
            (json!({"headers": {"Referrer-Policy": "a\nb"}}), "Referrer-Policy"),
            (json!({"immutable": vec!["a"; 33]}), "immutable"),
        ] {
            let error = Version::read("notes", "v1", &member, Vec::new()).err().expect("refused");
            assert!(error.contains(names), "{error}");
        }
        assert!(Version::read("notes", "a/b", &json!({}), Vec::new()).is_err());
        for member in [json!({}), json!({"versions": {"v1": -1}}), json!({"versions": {"../x": 1}})] {
            assert!(shares(&member).is_err(), "{member}");
        }
    }
}
