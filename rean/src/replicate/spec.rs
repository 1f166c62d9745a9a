//! What is to be replicated: the object that `_replicate` and the documents of `_replicator` hold
//! (<https://docs.couchdb.org/en/stable/json-structure.html#replication-settings>).

use adea_ring::Identity;
use adea_ring::identity::SYSTEM_NAME;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::node_config::{InForce, known};

/// Changes of one round; CouchDB's `worker_batch_size`.
const BATCH_ROWS: u64 = 500;
/// The most that may be asked for: the answer of one `_revs_diff` stays small.
const MAX_BATCH_ROWS: u64 = 2_000;
/// Time between two checkpoints, in ms, so that a busy replication doesn't write more checkpoints than documents.
/// CouchDB's default is 30 s; a shorter one costs little and saves much after a break.
const CHECKPOINT_INTERVAL_MS: u64 = 5_000;
/// Headers of one end.
const MAX_HEADERS: usize = 32;
/// Hex digits of an id.
const ID_DIGITS: usize = 32;

/// A checked replication.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Where from.
    pub source: Endpoint,
    /// Where to.
    pub target: Endpoint,
    /// Whether it goes on with changes to come.
    pub continuous: bool,
    /// Whether the target is made if it isn't there, and with which parameters.
    pub create_target: Option<Vec<(String, String)>>,
    /// Which documents.
    pub filter: Filter,
    /// Only the winners, without conflicts.
    pub winners_only: bool,
    /// Where to begin, whatever the checkpoints say.
    pub since: Option<Value>,
    /// Whether checkpoints are read and written.
    pub checkpoints: bool,
    /// The shortest time between two of them, in ms.
    pub checkpoint_interval_ms: u64,
    /// Changes of one round.
    pub batch_rows: u64,
    /// As whom ends on this server are used, if not as who started it.
    pub user_ctx: Option<Identity>,
}

/// One end of a replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A database of this server.
    Local(String),
    /// One of another server.
    Remote(Remote),
}

/// A database of another server.
#[derive(Clone, PartialEq, Eq)]
pub struct Remote {
    /// Its address, without a log-in and without a slash at the end.
    pub url: String,
    /// The name of the log-in: with another one the same address may show other documents.
    pub user: Option<String>,
    /// What is sent with each request; this may hold secrets.
    pub headers: HeaderMap,
}

/// Which documents are replicated.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// All.
    All,
    /// These.
    DocIds(Vec<String>),
    /// Those that match.
    Selector(Value),
    /// Those that a function of the source's lets through, with its parameters.
    Function(String, Vec<(String, String)>),
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("url", &self.url).field("user", &self.user).finish_non_exhaustive()
    }
}

impl Spec {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong, naming the member.
    pub fn parse(object: &Map<String, Value>) -> Result<Self, String> {
        let end = |name: &str| -> Result<Endpoint, String> {
            let value = object.get(name).ok_or_else(|| format!("`{name}` must be given"))?;
            Endpoint::parse(value).map_err(|why| format!("`{name}` {why}"))
        };
        let create_target = if flag(object, "create_target")? {
            Some(pairs(object.get("create_target_params"), "create_target_params")?)
        } else {
            None
        };
        Ok(Self {
            source: end("source")?,
            target: end("target")?,
            continuous: flag(object, "continuous")?,
            create_target,
            filter: filter(object)?,
            winners_only: flag(object, "winning_revs_only")?,
            since: object.get("since_seq").filter(|since| !since.is_null()).cloned(),
            checkpoints: object.get("use_checkpoints") != Some(&Value::Bool(false)),
            checkpoint_interval_ms: number(object, "checkpoint_interval")?.unwrap_or(CHECKPOINT_INTERVAL_MS),
            batch_rows: number(object, "worker_batch_size")?.unwrap_or(BATCH_ROWS).clamp(1, MAX_BATCH_ROWS),
            user_ctx: user_ctx(object.get("user_ctx"))?,
        })
    }

    /// Reads one, with what administrators have set for all replications that don't say otherwise
    /// (<https://docs.couchdb.org/en/stable/config/replicator.html>).
    ///
    /// # Errors
    /// As [`Spec::parse`].
    pub fn parse_with(settings: &InForce, object: &Map<String, Value>) -> Result<Self, String> {
        let mut object = object.clone();
        for member in ["use_checkpoints", "checkpoint_interval", "worker_batch_size"] {
            let set = settings.config.get("replicator", member).filter(|text| known::fits("replicator", member, text));
            if let Some(value) = set.and_then(|text| serde_json::from_str(text).ok())
                && object.get(member).is_none_or(Value::is_null)
            {
                object.insert(member.to_owned(), value);
            }
        }
        Self::parse(&object)
    }

    /// The id under which its checkpoints lie on both sides: the same for the same ends, users and filter, and another
    /// one for another server's.
    pub fn checkpoint_id(&self, server: &str, who: &Identity) -> String {
        let name = self.user_ctx.as_ref().unwrap_or(who).name.as_deref();
        let filter = match &self.filter {
            Filter::All => Value::Null,
            Filter::DocIds(ids) => {
                let mut ids = ids.clone();
                ids.sort();
                json!(["doc_ids", ids])
            }
            Filter::Selector(selector) => json!(["selector", selector]),
            Filter::Function(name, parameters) => json!(["filter", name, parameters]),
        };
        let all = json!([
            server,
            self.source.identity(name),
            self.target.identity(name),
            filter,
            self.winners_only,
            self.since
        ]);
        hex::encode(Sha256::digest(all.to_string()))[..ID_DIGITS].to_owned()
    }

    /// The id of the job: that of its checkpoints, and whether it goes on.
    pub fn job_id(&self, checkpoint_id: &str) -> String {
        let mut id = checkpoint_id.to_owned();
        if self.continuous {
            id.push_str("+continuous");
        }
        if self.create_target.is_some() {
            id.push_str("+create_target");
        }
        id
    }
}

impl Endpoint {
    fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Self::of_text(text, HeaderMap::new(), None),
            Value::Object(object) => {
                let url = object.get("url").and_then(Value::as_str).ok_or("must have a `url`")?;
                Self::of_text(url, headers(object.get("headers"))?, login(object.get("auth"))?)
            }
            _ => Err("must be a URL, the name of a database or an object with a `url`".to_owned()),
        }
    }

    fn of_text(text: &str, headers: HeaderMap, login: Option<(String, String)>) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is empty".to_owned());
        }
        let Some((scheme, _)) = text.split_once("://") else {
            return Ok(Self::Local(text.to_owned()));
        };
        match scheme {
            "http" | "https" => Remote::parse(scheme, text, headers, login).map(Self::Remote),
            _ => Err("must be an http or https address".to_owned()),
        }
    }

    /// For people and for lists: without anything secret.
    pub fn shown(&self) -> &str {
        match self {
            Self::Local(name) => name,
            Self::Remote(remote) => &remote.url,
        }
    }

    /// What makes it this end and not another one.
    fn identity(&self, user: Option<&str>) -> Value {
        match self {
            Self::Local(name) => json!(["local", name, user]),
            Self::Remote(remote) => json!(["remote", remote.url, remote.user]),
        }
    }
}

impl Remote {
    fn parse(
        scheme: &str,
        text: &str,
        mut headers: HeaderMap,
        login: Option<(String, String)>,
    ) -> Result<Self, String> {
        // What the parser says could repeat the password.
        let uri: Uri = text.parse().map_err(|_| "is no address".to_owned())?;
        if uri.query().is_some() {
            return Err("must be an address without parameters".to_owned());
        }
        let authority = uri.authority().ok_or("is no address")?.as_str();
        let (user_info, host) = match authority.rsplit_once('@') {
            Some((user_info, host)) => (Some(user_info), host),
            None => (None, authority),
        };
        let path = uri.path().trim_end_matches('/');
        if host.is_empty() || path.is_empty() {
            return Err("must be the address of a database".to_owned());
        }
        let login = login.or_else(|| user_info.map(split_user_info));
        if let Some((name, password)) = &login {
            let value = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
            let mut value = HeaderValue::try_from(value).map_err(|_| "has a log-in that can't be sent".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(Self { url: format!("{scheme}://{host}{path}"), user: login.map(|(name, _)| name), headers })
    }
}

fn split_user_info(text: &str) -> (String, String) {
    let (name, password) = text.split_once(':').unwrap_or((text, ""));
    let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
    (decode(name), decode(password))
}

fn login(auth: Option<&Value>) -> Result<Option<(String, String)>, String> {
    let Some(auth) = auth.filter(|auth| !auth.is_null()) else {
        return Ok(None);
    };
    let basic = auth.get("basic").ok_or("has an `auth` that isn't `basic`")?;
    let text = |name: &str| basic.get(name).and_then(Value::as_str).map(str::to_owned);
    match (text("username"), text("password")) {
        (Some(name), Some(password)) => Ok(Some((name, password))),
        _ => Err("must have `username` and `password` in `auth.basic`".to_owned()),
    }
}

fn headers(value: Option<&Value>) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(map);
    };
    let object = value.as_object().filter(|object| object.len() <= MAX_HEADERS).ok_or("has `headers` that are none")?;
    for (name, value) in object {
        let header = HeaderName::try_from(name.as_str()).ok();
        let text = value.as_str().and_then(|text| HeaderValue::try_from(text).ok());
        let (Some(header), Some(mut text)) = (header, text) else {
            return Err(format!("has a header {:?} that can't be sent", name.chars().take(80).collect::<String>()));
        };
        text.set_sensitive(true);
        map.insert(header, text);
    }
    // These are the connection's and the body's.
    for name in [http::header::HOST, http::header::CONTENT_LENGTH, http::header::TRANSFER_ENCODING] {
        map.remove(name);
    }
    Ok(map)
}

fn filter(object: &Map<String, Value>) -> Result<Filter, String> {
    let given = |name: &str| object.get(name).filter(|value| !value.is_null());
    match (given("doc_ids"), given("selector"), given("filter")) {
        (None, None, None) => Ok(Filter::All),
        (Some(ids), None, None) => {
            let ids: Option<Vec<String>> =
                ids.as_array().and_then(|ids| ids.iter().map(|id| id.as_str().map(str::to_owned)).collect());
            ids.map(Filter::DocIds).ok_or_else(|| "`doc_ids` must be a list of strings".to_owned())
        }
        (None, Some(selector), None) => {
            rean_store::selector::Selector::parse(selector).map_err(|error| format!("`selector`: {error}"))?;
            Ok(Filter::Selector(selector.clone()))
        }
        (None, None, Some(filter)) => {
            let name = filter.as_str().ok_or("`filter` must be a string")?;
            Ok(Filter::Function(name.to_owned(), pairs(given("query_params"), "query_params")?))
        }
        _ => Err("only one of `doc_ids`, `selector` and `filter` can be given".to_owned()),
    }
}

/// The members of an object as parameters; what isn't text is JSON.
fn pairs(value: Option<&Value>, name: &str) -> Result<Vec<(String, String)>, String> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(object)) => Ok(object
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect()),
        Some(_) => Err(format!("`{name}` must be an object")),
    }
}

fn flag(object: &Map<String, Value>, name: &str) -> Result<bool, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(format!("`{name}` must be true or false")),
    }
}

fn number(object: &Map<String, Value>, name: &str) -> Result<Option<u64>, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| format!("`{name}` must be a whole number")),
    }
}

fn user_ctx(value: Option<&Value>) -> Result<Option<Identity>, String> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let name = value.get("name").and_then(Value::as_str).map(str::to_owned);
    let roles = match value.get("roles") {
        None => Some(Vec::new()),
        Some(roles) => roles
            .as_array()
            .and_then(|roles| roles.iter().map(|role| role.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()),
    };
    match (name, roles) {
        // What comes as the pod is believed to have been checked by another pod, whichever server it is from.
        (Some(name), _) if name == SYSTEM_NAME => Err(format!("`user_ctx` can't be {SYSTEM_NAME}, the pod itself")),
        (Some(name), Some(roles)) => Ok(Some(Identity { name: Some(name), roles })),
        _ => Err("`user_ctx` must have a `name` and a list of `roles`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use adea_ring::Identity;
    use serde_json::{Value, json};

    use super::{Endpoint, Filter, Spec};

    fn parse(value: &Value) -> Result<Spec, String> {
        Spec::parse(value.as_object().expect("an object"))
    }

    fn remote(end: &Value) -> super::Remote {
        match parse(&json!({"source": end, "target": "t"})).expect("a spec").source {
            Endpoint::Remote(remote) => remote,
            Endpoint::Local(name) => panic!("{name}"),
        }
    }

    #[test]
    fn a_log_in_is_taken_out_of_the_address_and_never_printed() {
        let in_url = remote(&json!("http://ann:p%40ss@host:5984/db%2Fx/"));
        assert_eq!((in_url.url.as_str(), in_url.user.as_deref()), ("http://host:5984/db%2Fx", Some("ann")));
        assert_eq!(in_url.headers["authorization"], "Basic YW5uOnBAc3M=");
        let apart =
            remote(&json!({"url": "http://host/db", "auth": {"basic": {"username": "ann", "password": "p@ss"}}}));
        assert_eq!(apart.headers["authorization"], "Basic YW5uOnBAc3M=");
        for shown in [format!("{in_url:?}"), format!("{apart:?}"), format!("{:?}", in_url.headers)] {
            assert!(!shown.contains("YW5u") && !shown.contains("p@ss") && !shown.contains("p%40ss"), "{shown}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_without_the_password() {
        for (object, word) in [
            (json!({}), "source"),
            (json!({"source": 5, "target": "b"}), "source"),
            (json!({"source": "a", "target": "ftp://ann:sesame@h/b"}), "https"),
            (json!({"source": "a", "target": "http://ann:sesame@h h/b"}), "target"),
            (json!({"source": "a", "target": "http://ann:sesame@h/"}), "target"),
            (json!({"source": "a", "target": "b", "continuous": 1}), "continuous"),
            (json!({"source": "a", "target": "b", "doc_ids": "x"}), "doc_ids"),
            (json!({"source": "a", "target": "b", "selector": {"$no": 1}}), "selector"),
            (json!({"source": "a", "target": "b", "doc_ids": [], "filter": "a/b"}), "one of"),
            (json!({"source": "a", "target": "b", "user_ctx": {"name": "_pod", "roles": ["_admin"]}}), "user_ctx"),
            (json!({"source": "a", "target": "b", "user_ctx": {"name": "_pod"}}), "user_ctx"),
        ] {
            let why = parse(&object).expect_err("refused");
            assert!(why.contains(word) && !why.contains("sesame"), "{why}");
        }
    }

    #[test]
    fn the_id_follows_ends_users_and_filter_but_no_password() {
        let ann = Identity { name: Some("ann".to_owned()), roles: Vec::new() };
        let id = |value: Value| parse(&value).expect("a spec").checkpoint_id("server", &ann);
        let first = id(json!({"source": "http://u:1@h/a", "target": "b"}));
        assert_eq!(first, id(json!({"source": "http://u:2@h/a/", "target": "b", "continuous": true})));
        assert_ne!(first, id(json!({"source": "http://v:1@h/a", "target": "b"})));
        assert_ne!(first, id(json!({"source": "http://u:1@h/a", "target": "b", "doc_ids": ["x"]})));
        assert_ne!(
            first,
            parse(&json!({"source": "http://u:1@h/a", "target": "b"})).expect("a spec").checkpoint_id("other", &ann)
        );
        let both = json!({"source": "a", "target": "b", "filter": "d/f", "query_params": {"n": 1, "t": "x"}});
        let pairs = vec![("n".to_owned(), "1".to_owned()), ("t".to_owned(), "x".to_owned())];
        assert_eq!(parse(&both).expect("a spec").filter, Filter::Function("d/f".to_owned(), pairs));
    }
}
