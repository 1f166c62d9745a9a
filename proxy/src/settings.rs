//! What administrators have set by `_node/_local/_config`, as far as it is the proxy's: cross-origin rules, log-ins, the
//! cookie, administrators.
//!
//! The settings are one document of `_ring` ([`adea_ring::node_config`]), which the proxy reads at its first request and
//! whenever it hears of a change. What nobody has set is as the proxy's own file says. A value that makes no sense counts
//! as not set: rean takes none, but a document can be written in other ways.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adea_ring::node_config::{ADMINS, NODE_CONFIG_ID};
use adea_ring::{NodeConfig, log_level};
use http::{HeaderValue, Method, StatusCode};
use parking_lot::RwLock;
use serde_json::Value;

use crate::auth::cookie::{CookieRules, SameSite};
use crate::config::{Config, Cors as CorsConfig};
use crate::cors::{Cors, HEADERS, METHODS};
use crate::rules::Rules;
use crate::upstream::{Upstream, UpstreamError};

/// What CouchDB calls the handler of cookies in `chttpd/authentication_handlers`.
const COOKIE_HANDLER: &str = "cookie_authentication_handler";
const WITH_COOKIE: &str = "{chttpd_auth, cookie_authentication_handler}, {chttpd_auth, default_authentication_handler}";
const WITHOUT_COOKIE: &str = "{chttpd_auth, default_authentication_handler}";

/// The settings in force.
pub struct Settings {
    file: Config,
    /// What rean is told of the file.
    file_header: HeaderValue,
    current: RwLock<Arc<InForce>>,
    loaded: AtomicBool,
}

/// What a reload has changed that others have to act on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Administrators whose log-ins have to be looked at again.
    pub admins: Vec<String>,
    /// Whether other databases are in maintenance than before.
    pub rules: bool,
}

/// The settings of one moment.
#[derive(Debug)]
pub struct InForce {
    /// The rules for other origins.
    pub cors: Cors,
    /// How cookies are given out; `None`: not at all.
    pub cookie: Option<CookieRules>,
    /// How long any other session lasts that is not prolonged, in milliseconds.
    pub session_ms: u64,
    /// How long after its log-in a session of either kind can be prolonged, in milliseconds.
    pub session_max_age_ms: u64,
    /// Whether nobody in particular may do nothing.
    pub require_valid_user: bool,
    /// Body bytes of a request that isn't JSON.
    pub max_body_bytes: u64,
    /// What a client must send of a body in a second; 0: anything goes.
    pub body_bytes_per_s: u64,
    /// Databases in maintenance.
    pub rules: Rules,
    config: NodeConfig,
}

impl InForce {
    /// The hash of an administrator's password, for one that was made by a setting.
    pub fn admin(&self, name: &str) -> Option<&str> {
        self.config.admins.get(name).map(String::as_str)
    }

    fn of(config: NodeConfig, file: &Config) -> Self {
        let text = |section: &str, key: &str| config.get(section, key);
        let flag = |section: &str, key: &str| match text(section, key) {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => None,
        };
        let number = |section: &str, key: &str| text(section, key).and_then(|value| value.parse::<u64>().ok());
        let handlers = text("chttpd", "authentication_handlers");
        let has_cookie = handlers.map_or(file.cookie, |handlers| handlers.contains(COOKIE_HANDLER));
        let defaults = CookieRules::default();
        // CouchDB 3 still reads the older section.
        let timeout_s = number("chttpd_auth", "timeout").or_else(|| number("couch_httpd_auth", "timeout"));
        let cookie = CookieRules {
            timeout_s: timeout_s.filter(|seconds| *seconds > 0).unwrap_or(defaults.timeout_s),
            persistent: flag("chttpd_auth", "allow_persistent_cookies").unwrap_or(defaults.persistent),
            same_site: match text("chttpd_auth", "same_site") {
                Some("none") => SameSite::None,
                Some("lax") => SameSite::Lax,
                _ => SameSite::Strict,
            },
            domain: text("chttpd_auth", "cookie_domain").filter(|domain| is_domain(domain)).map(str::to_owned),
        };
        let strict = flag("chttpd", "require_valid_user").or_else(|| flag("chttpd_auth", "require_valid_user"));
        let millis = |key: &str, file: Duration| {
            let seconds = number("chttpd_auth", key).filter(|seconds| *seconds > 0).map(Duration::from_secs);
            u64::try_from(seconds.unwrap_or(file).as_millis()).unwrap_or(u64::MAX)
        };
        // `/_up` answers everyone here, so the setting that leaves only that open is the same.
        let but_up = flag("chttpd", "require_valid_user_except_for_up");
        Self {
            cors: Cors::new(&cors(&config, &file.cors)),
            cookie: has_cookie.then_some(cookie),
            session_ms: millis("session_timeout", file.session_lifetime),
            session_max_age_ms: millis("max_session_age", file.session_max_age),
            require_valid_user: strict.unwrap_or(false) || but_up.unwrap_or(false),
            max_body_bytes: number("chttpd", "max_http_request_size").unwrap_or(file.limits.max_body_bytes),
            body_bytes_per_s: number("chttpd", "body_bytes_per_second").unwrap_or(file.limits.body_bytes_per_s),
            rules: file.rules.with_settings(&config),
            config,
        }
    }
}

fn cors(config: &NodeConfig, file: &CorsConfig) -> CorsConfig {
    let list = |key: &str| config.get("cors", key).map(|text| text.split(',').map(str::trim));
    let header = |key: &str| {
        let text = config.get("cors", key).filter(|text| !text.is_empty() && *text != "*")?;
        HeaderValue::from_str(text).ok()
    };
    let mut origins = match list("origins") {
        Some(origins) => origins.filter(|origin| !origin.is_empty()).map(str::to_owned).collect(),
        None => file.origins.clone(),
    };
    if config.get("chttpd", "enable_cors").or_else(|| config.get("httpd", "enable_cors")) == Some("false") {
        origins = Vec::new();
    }
    CorsConfig {
        origins,
        max_age_s: config.get("cors", "max_age").and_then(|age| age.parse().ok()).unwrap_or(file.max_age_s),
        credentials: config.get("cors", "credentials").map_or(file.credentials, |value| value == "true"),
        methods: header("methods").or_else(|| file.methods.clone()),
        headers: header("headers").or_else(|| file.headers.clone()),
    }
}

/// It goes into a header as it is.
fn is_domain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
}

impl Settings {
    /// What the file says.
    pub fn new(config: &Config) -> Self {
        Self {
            file: config.clone(),
            file_header: file_header(config),
            current: RwLock::new(Arc::new(InForce::of(NodeConfig::default(), config))),
            loaded: AtomicBool::new(false),
        }
    }

    /// The settings of this moment.
    pub fn get(&self) -> Arc<InForce> {
        Arc::clone(&self.current.read())
    }

    /// What rean is told of the file, with requests for settings.
    pub fn file_header(&self) -> HeaderValue {
        self.file_header.clone()
    }

    /// Whether the document was read since the start.
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Reads the document anew; what others have to act on.
    ///
    /// # Errors
    /// When rean does not answer. The settings stay as they were.
    pub async fn reload(&self, upstream: &Upstream) -> Result<Changed, UpstreamError> {
        let (status, body) = upstream.ask(Method::GET, &format!("/_ring/{NODE_CONFIG_ID}"), None).await?;
        let doc = match status {
            StatusCode::OK => serde_json::from_slice(&body)?,
            StatusCode::NOT_FOUND => Value::Object(serde_json::Map::new()),
            other => return Err(UpstreamError::Unexpected(other)),
        };
        let changed = match NodeConfig::parse(&doc) {
            Ok(config) => self.put_in_force(config),
            Err(error) => {
                tracing::error!(%error, "the server settings can't be read; those before them stay in force");
                Changed::default()
            }
        };
        self.loaded.store(true, Ordering::Release);
        Ok(changed)
    }

    fn put_in_force(&self, config: NodeConfig) -> Changed {
        log_level::set(config.get("log", "level"));
        let next = Arc::new(InForce::of(config, &self.file));
        let before = std::mem::replace(&mut *self.current.write(), Arc::clone(&next));
        let names = before.config.admins.keys().chain(next.config.admins.keys());
        let mut admins: Vec<String> = names.filter(|name| before.admin(name) != next.admin(name)).cloned().collect();
        admins.sort_unstable();
        admins.dedup();
        Changed { admins, rules: before.rules != next.rules }
    }
}

/// The file's settings by CouchDB's names. An administrator's password is in no form among them.
fn file_header(config: &Config) -> HeaderValue {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let flag = |value: bool| if value { "true" } else { "false" }.to_owned();
    let cookie = CookieRules::default();
    let handlers = if config.cookie { WITH_COOKIE } else { WITHOUT_COOKIE };
    let rows = [
        ("chttpd", "authentication_handlers", handlers.to_owned()),
        ("chttpd", "body_bytes_per_second", config.limits.body_bytes_per_s.to_string()),
        ("chttpd", "bind_address", config.listen.ip().to_string()),
        ("chttpd", "enable_cors", flag(!config.cors.origins.is_empty())),
        ("chttpd", "max_http_request_size", config.limits.max_body_bytes.to_string()),
        ("chttpd", "port", config.listen.port().to_string()),
        ("chttpd", "require_valid_user", flag(false)),
        ("chttpd", "require_valid_user_except_for_up", flag(false)),
        ("chttpd_auth", "allow_persistent_cookies", flag(cookie.persistent)),
        ("chttpd_auth", "max_session_age", config.session_max_age.as_secs().to_string()),
        ("chttpd_auth", "same_site", "strict".to_owned()),
        ("chttpd_auth", "session_timeout", config.session_lifetime.as_secs().to_string()),
        ("chttpd_auth", "timeout", cookie.timeout_s.to_string()),
        ("cors", "credentials", flag(config.cors.credentials)),
        ("cors", "headers", text(config.cors.headers.as_ref().unwrap_or(&HEADERS))),
        ("cors", "max_age", config.cors.max_age_s.to_string()),
        ("cors", "methods", text(config.cors.methods.as_ref().unwrap_or(&METHODS))),
        ("cors", "origins", config.cors.origins.join(", ")),
    ];
    let mut sections: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
    for (section, key, value) in rows {
        sections.entry(section).or_default().insert(key, value);
    }
    if let Some(admin) = &config.admin {
        sections.entry(ADMINS).or_default().insert(&admin.name, String::new());
    }
    let json = serde_json::json!(sections).to_string();
    // A name with letters beyond ASCII is UTF-8 there, which a header's value may be.
    HeaderValue::from_bytes(json.as_bytes()).unwrap_or(HeaderValue::from_static("{}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use adea_ring::RingSecret;
    use serde_json::json;

    fn settings(cookie: bool) -> Settings {
        let any = ([127, 0, 0, 1], 0).into();
        let mut config = Config::new(any, any, RingSecret::random());
        config.cookie = cookie;
        config.admin = Some(crate::config::Admin { name: "root".to_owned(), hash: "$argon2id$secret".to_owned() });
        Settings::new(&config)
    }

    fn set(settings: &Settings, doc: &Value) -> Vec<String> {
        settings.put_in_force(NodeConfig::parse(doc).expect("good")).admins
    }

    #[test]
    fn what_log_ins_last_is_the_files_until_it_is_set() {
        let settings = settings(false);
        let lasts = || (settings.get().session_ms, settings.get().session_max_age_ms);
        let of_file = (86_400_000, 30 * 86_400_000);
        assert_eq!(lasts(), of_file);
        set(&settings, &json!({"sections": {"chttpd_auth": {"session_timeout": "60", "max_session_age": "3600"}}}));
        assert_eq!(lasts(), (60_000, 3_600_000));
        set(&settings, &json!({"sections": {"chttpd_auth": {"session_timeout": "0", "max_session_age": "long"}}}));
        assert_eq!(lasts(), of_file);
        let told: Value = serde_json::from_slice(settings.file_header().as_bytes()).expect("JSON");
        let told = &told["chttpd_auth"];
        assert_eq!((&told["session_timeout"], &told["max_session_age"]), (&json!("86400"), &json!("2592000")));
    }

    #[test]
    fn maintenance_comes_and_goes() {
        let settings = settings(false);
        let put = |doc: Value| settings.put_in_force(NodeConfig::parse(&doc).expect("good")).rules;
        let closed = || settings.get().rules.check(&Method::GET, "/notes/x").is_err();
        assert!(!closed());
        let doc = json!({"sections": {"maintenance": {"notes": "closed"}}});
        assert!(put(doc.clone()) && closed());
        assert!(!put(doc) && closed());
        assert!(put(json!({})) && !closed());
    }

    #[test]
    fn the_file_counts_until_something_is_set() {
        let settings = settings(false);
        let at_first = settings.get();
        assert!(at_first.cookie.is_none() && !at_first.require_valid_user);
        let doc = json!({"sections": {
            "chttpd": {"authentication_handlers": WITH_COOKIE, "require_valid_user": "true"},
            "chttpd_auth": {"timeout": "30", "same_site": "lax", "cookie_domain": "x; Domain=evil"},
        }});
        assert!(set(&settings, &doc).is_empty());
        let now = settings.get();
        let cookie = now.cookie.as_ref().expect("switched on");
        assert_eq!((cookie.timeout_s, cookie.same_site), (30, SameSite::Lax));
        assert_eq!(cookie.domain, None);
        assert!(now.require_valid_user);
        set(&settings, &json!({"sections": {"chttpd": {"require_valid_user": "zork"}}}));
        assert!(!settings.get().require_valid_user && settings.get().cookie.is_none());
    }

    #[test]
    fn the_cookie_can_be_switched_off_again() {
        let settings = settings(true);
        assert_eq!(settings.get().cookie, Some(CookieRules::default()));
        set(&settings, &json!({"sections": {"chttpd": {"authentication_handlers": WITHOUT_COOKIE}}}));
        assert!(settings.get().cookie.is_none());
    }

    #[test]
    fn other_origins_are_as_set() {
        let settings = settings(false);
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::ORIGIN, HeaderValue::from_static("https://a.example"));
        let allowed = |doc: Value| {
            set(&settings, &doc);
            settings.get().cors.origin(&headers).is_some()
        };
        assert!(allowed(json!({})));
        assert!(allowed(json!({"sections": {"cors": {"origins": "https://b.example, https://a.example"}}})));
        assert!(!allowed(json!({"sections": {"cors": {"origins": "https://b.example"}}})));
        assert!(!allowed(json!({"sections": {"chttpd": {"enable_cors": "false"}}})));
    }

    #[test]
    fn administrators_that_changed_are_named() {
        let settings = settings(false);
        let both = json!({"admins": {"ann": "$argon2id$1", "bob": "$argon2id$1"}});
        assert_eq!(set(&settings, &both), ["ann", "bob"]);
        assert_eq!(set(&settings, &json!({"admins": {"ann": "$argon2id$2", "bob": "$argon2id$1"}})), ["ann"]);
        assert_eq!(settings.get().admin("bob"), Some("$argon2id$1"));
        assert_eq!(set(&settings, &json!({"admins": {"ann": "$argon2id$2"}})), ["bob"]);
        assert_eq!(settings.get().admin("bob"), None);
    }

    #[test]
    fn rean_is_told_of_the_file_but_of_no_hash() {
        let header = settings(true).file_header();
        let told: Value = serde_json::from_slice(header.as_bytes()).expect("JSON");
        assert_eq!(told["cors"]["origins"], "*");
        assert_eq!(told["chttpd"]["authentication_handlers"], WITH_COOKIE);
        assert_eq!(told["admins"], json!({"root": ""}));
        assert!(!told.to_string().contains("argon2id"));
    }
}
