//! Which paths the proxy lets through: pure functions of a method and a path.
//!
//! A path goes to rean as it came. So these rules look at it as rean would: percent-decoded, segment by segment.

use std::borrow::Cow;
use std::collections::BTreeMap;

use adea_ring::NodeConfig;
use adea_ring::node_config::{CLOSED, MAINTENANCE, NODE_CONFIG_ID, WRITE_ONLY};
use http::Method;
use percent_encoding::percent_decode_str;

use crate::error::Refusal;

/// What may be done with a database during maintenance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing, not even by administrators: closed means closed.
    Closed,
    /// Writing, and what a replicator needs to write.
    WriteOnly,
}

impl Access {
    /// Reads a rule.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            CLOSED => Some(Self::Closed),
            WRITE_ONLY => Some(Self::WriteOnly),
            _ => None,
        }
    }
}

/// The databases that are closed or write-only. A rule for `notes` holds for `notes--me` and `notes--<signature>` too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    databases: BTreeMap<String, Access>,
}

impl Rules {
    /// Rules for these databases.
    pub fn new(databases: BTreeMap<String, Access>) -> Self {
        Self { databases }
    }

    /// These rules, and those that administrators have set by `_node/_local/_config/maintenance/DB`. What the proxy's own
    /// file says of a database stands before them; a value that is no rule is none.
    pub fn with_settings(&self, settings: &NodeConfig) -> Self {
        let set = settings.sections.get(MAINTENANCE).into_iter().flatten();
        let mut databases: BTreeMap<String, Access> =
            set.filter_map(|(name, value)| Some((name.clone(), Access::parse(value)?))).collect();
        databases.extend(self.databases.iter().map(|(name, access)| (name.clone(), *access)));
        Self { databases }
    }

    /// Whether the request may go on.
    ///
    /// # Errors
    /// `NotFound` for what is inside a pod, `Closed` and `WriteOnly` by the maintenance rules.
    pub fn check(&self, method: &Method, path: &str) -> Result<(), Refusal> {
        if is_internal(path) {
            return Err(Refusal::NotFound);
        }
        if self.databases.is_empty() {
            return Ok(());
        }
        let segments: Vec<_> = segments(path).collect();
        let Some(database) = segments.first() else { return Ok(()) };
        let app = database.split_once("--").map_or(&**database, |(app, _)| app);
        match self.databases.get(&**database).or_else(|| self.databases.get(app)) {
            Some(Access::Closed) => Err(Refusal::Closed),
            Some(Access::WriteOnly) if reads(method, &segments[1..]) => Err(Refusal::WriteOnly),
            _ => Ok(()),
        }
    }
}

impl Rules {
    /// The databases that may not be read, parted by commas: for feeds, whose databases no path names. It goes into a header:
    /// a name that no database can have, and no header either, is not to keep the others out of it.
    pub fn unreadable(&self) -> String {
        let is_name = |name: &&str| name.bytes().all(|byte| byte.is_ascii_graphic());
        let names: Vec<&str> = self.databases.keys().map(String::as_str).filter(is_name).collect();
        names.join(",")
    }
}

/// A change of a user or a session that passes through this proxy.
#[derive(Debug, PartialEq, Eq)]
pub enum AccountWrite {
    /// The `_users` document of this account.
    User(String),
    /// The session with this id.
    Session(String),
    /// The server settings.
    Settings,
}

/// What account a writing request is about, if its path says so.
pub fn account_write(method: &Method, path: &str) -> Option<AccountWrite> {
    if method == Method::GET || method == Method::HEAD || is_plain(path) {
        return None;
    }
    let mut segments = segments(path);
    let (database, id) = (segments.next()?, segments.next()?);
    match &*database {
        "_node" => segments.next().filter(|third| third == "_config").map(|_| AccountWrite::Settings),
        "_ring" if id == NODE_CONFIG_ID => Some(AccountWrite::Settings),
        "_users" => id.strip_prefix("org.couchdb.user:").map(|name| AccountWrite::User(name.to_owned())),
        "_ring" => id.strip_prefix("session:").map(|id| AccountWrite::Session(id.to_owned())),
        _ => None,
    }
}

/// Whether the answer is a feed that stays open: a changes feed, followed live.
pub fn is_feed(path: &str, query: Option<&str>) -> bool {
    let Some(query) = query else { return false };
    if !query.contains("feed=") && !query.contains('%') {
        return false;
    }
    let live = query.split(['&', ';']).any(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        &*decoded(key) == "feed" && matches!(&*decoded(value), "continuous" | "live" | "longpoll" | "eventsource")
    });
    live && segments(path).last().is_some_and(|last| matches!(&*last, "_changes" | "_db_updates"))
}

/// The quick way for nearly all requests: a document or database whose name begins with a plain letter.
pub fn is_plain(path: &str) -> bool {
    path.as_bytes().get(1).is_some_and(u8::is_ascii_alphanumeric)
}

/// rean's own namespace for the programs of its pod. `_pods` is a database like any other.
fn is_internal(path: &str) -> bool {
    let dots = path.contains("..") || path.contains("%2e") || path.contains("%2E");
    if is_plain(path) && !dots {
        return false;
    }
    let inside = |segment: &str| segment.starts_with("_pod") && segment != "_pods";
    let mut all = segments(path);
    if segments(path).any(|segment| segment == "..") {
        // A server that resolved the dots could end up anywhere.
        return all.any(|segment| inside(&segment));
    }
    all.next().is_some_and(|segment| inside(&segment))
}

/// Whether a request reads documents; `within` is the path below the database.
fn reads(method: &Method, within: &[Cow<'_, str>]) -> bool {
    const READING_POSTS: [&str; 8] =
        ["_all_docs", "_bulk_get", "_changes", "_design_docs", "_explain", "_find", "_local_docs", "_partition"];
    // The database itself, that is how many documents it has, is open: a replicator asks for it before it writes.
    let Some(first) = within.first() else { return false };
    // Its name may be a segment of its own, or not.
    let is_design = first == "_design" || first.starts_with("_design/");
    match *method {
        // A replicator's checkpoints.
        Method::GET | Method::HEAD => first != "_local",
        Method::POST if is_design => true,
        // An update handler answers with what it likes, the document among it.
        Method::PUT => is_design && within.iter().skip(1).any(|segment| segment == "_update"),
        Method::POST => READING_POSTS.contains(&&**first),
        // COPY reads what it copies, but shows nothing of it.
        _ => false,
    }
}

/// The path's segments, percent-decoded; empty ones are left out, as a doubled slash is no name.
pub fn segments(path: &str) -> impl Iterator<Item = Cow<'_, str>> {
    path.split('/').filter(|segment| !segment.is_empty()).map(decoded)
}

/// As rean does it: `+` is a space.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: Access, method: Method, path: &str) -> Result<(), Refusal> {
        Rules::new(BTreeMap::from([("notes".to_owned(), rule)])).check(&method, path)
    }

    #[test]
    fn a_name_that_makes_no_sense_opens_nothing_else() {
        let all = ["notes", "sch\u{f6}n", "a b"].map(|name| (name.to_owned(), Access::Closed));
        assert_eq!(Rules::new(BTreeMap::from(all)).unreadable(), "notes");
    }

    #[test]
    fn the_pods_own_namespace_is_not_there() {
        let rules = Rules::default();
        for path in
            ["/_pod", "/_pod/x", "//_pod/x", "/%5Fpod/x", "/%5fp%6Fd", "/_pod-x", "/a/../_pod/x", "/a/%2e%2E/_pod"]
        {
            assert_eq!(rules.check(&Method::GET, path), Err(Refusal::NotFound), "{path}");
        }
        for path in ["/", "/_pods", "/_pods/_changes", "/_all_dbs", "/a/_pod", "/pod", "/a/..", "/..a/b", "/%"] {
            assert_eq!(rules.check(&Method::GET, path), Ok(()), "{path}");
        }
    }

    #[test]
    fn closed_means_the_app_and_all_that_is_made_from_it() {
        for path in ["/notes", "/notes/a", "/%6eotes/a", "/notes--me/_changes", "/notes--0123/x", "//notes"] {
            assert_eq!(check(Access::Closed, Method::PUT, path), Err(Refusal::Closed), "{path}");
        }
        for path in ["/", "/notes2", "/other--notes", "/_up"] {
            assert_eq!(check(Access::Closed, Method::PUT, path), Ok(()), "{path}");
        }
    }

    #[test]
    fn write_only_lets_a_replicator_push() {
        for (method, path) in [
            (Method::GET, "/notes"),
            (Method::PUT, "/notes/a"),
            (Method::POST, "/notes/_bulk_docs"),
            (Method::POST, "/notes/_revs_diff"),
            (Method::GET, "/notes/_local/x"),
            (Method::PUT, "/notes/_design/d"),
            (Method::GET, "/other/a"),
        ] {
            assert_eq!(check(Access::WriteOnly, method, path), Ok(()), "{path}");
        }
        for (method, path) in [
            (Method::GET, "/notes/a"),
            (Method::HEAD, "/notes/a"),
            (Method::GET, "/notes--me/_changes"),
            (Method::POST, "/notes/_find"),
            (Method::POST, "/notes/_bulk%5Fget"),
            (Method::POST, "/notes/_partition/p/_find"),
            (Method::POST, "/notes/_design/d/_view/v"),
            (Method::POST, "/notes/_design%2Fd/_view/v"),
            (Method::POST, "/notes/_design/d/_update/f"),
            (Method::PUT, "/notes/_design%2Fd/_update/f/a"),
        ] {
            assert_eq!(check(Access::WriteOnly, method, path), Err(Refusal::WriteOnly), "{path}");
        }
    }

    #[test]
    fn what_is_set_joins_what_the_file_says() {
        let file = Rules::new(BTreeMap::from([("notes".to_owned(), Access::Closed)]));
        let set = serde_json::json!({"sections": {"maintenance": {"notes": "write-only", "a": "closed", "b": "zork"}}});
        let rules = file.with_settings(&NodeConfig::parse(&set).expect("good"));
        assert_eq!(rules.check(&Method::PUT, "/notes/x"), Err(Refusal::Closed));
        assert_eq!(rules.check(&Method::PUT, "/a/x"), Err(Refusal::Closed));
        assert_eq!(rules.check(&Method::GET, "/b/x"), Ok(()));
        assert_eq!(rules.unreadable(), "a,notes");
        assert_eq!(file.with_settings(&NodeConfig::default()), file);
    }

    #[test]
    fn feeds_are_known_however_they_are_spelled() {
        for (path, query) in [
            ("/db/_changes", "since=0;feed=continuous"),
            ("/a/_changes", "feed=continuous"),
            ("/a/_change%73", "x=1&feed=longpoll"),
            ("/a/_changes/", "f%65ed=%65ventsource"),
            // rean takes it for `continuous`: a session that ends must end it too.
            ("/a/_changes", "feed=live"),
            ("/_db_updates", "feed=continuous&timeout=1"),
        ] {
            assert!(is_feed(path, Some(query)), "{path}?{query}");
        }
        for (path, query) in [
            ("/a/_changes", Some("feed=normal")),
            ("/a/_changes", None),
            ("/a/_changes", Some("xfeed=continuous")),
            ("/a/x", Some("feed=continuous")),
        ] {
            assert!(!is_feed(path, query), "{path}?{query:?}");
        }
    }

    #[test]
    fn writes_of_accounts_are_seen() {
        let user = |name: &str| Some(AccountWrite::User(name.to_owned()));
        assert_eq!(account_write(&Method::PUT, "/_users/org.couchdb.user:ann"), user("ann"));
        assert_eq!(account_write(&Method::DELETE, "/_users/org.couchdb.user%3A%C3%BC"), user("ü"));
        assert_eq!(account_write(&Method::PUT, "/_users/org.couchdb.user:a+b%2Bc"), user("a b+c"));
        assert_eq!(account_write(&Method::GET, "/_users/org.couchdb.user:ann"), None);
        assert_eq!(account_write(&Method::PUT, "/notes/org.couchdb.user:ann"), None);
        let session = account_write(&Method::DELETE, "/_ring/session:ab");
        assert_eq!(session, Some(AccountWrite::Session("ab".to_owned())));
        for path in ["/_node/_local/_config/cors/origins", "/%5fnode/x/_confi%67/a/b", "/_ring/node_config"] {
            assert_eq!(account_write(&Method::PUT, path), Some(AccountWrite::Settings), "{path}");
        }
        assert_eq!(account_write(&Method::PUT, "/_node/_local/_restart"), None);
    }
}
