//! The proxy's configuration: a JSON file and the environment become one validated struct before anything binds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adea_ring::public_tls::PublicTls;
use adea_ring::{PodId, RingSecret};
use argon2::password_hash::phc::PasswordHash;
use http::HeaderValue;
use serde_json::{Map, Value};

use crate::host_port::{HostPort, HostPortError};
use crate::rules::{Access, Rules};

/// The environment variable with the ring's secret, as 64 hexadecimal digits.
pub const SECRET_VARIABLE: &str = "ADEA_RING_SECRET";

/// Everything that the proxy needs to know. `Debug` shows neither the secret nor the administrator's hash.
#[derive(Debug, Clone)]
pub struct Config {
    /// The public address. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where rean listens.
    pub rean: HostPort,
    /// The secret that identity headers are signed with.
    pub ring_secret: RingSecret,
    /// The server administrator, if there is one.
    pub admin: Option<Admin>,
    /// Which pod it is of; without it, passes of operators on its machine count for nothing.
    pub pod_id: Option<PodId>,
    /// Bounds and time limits.
    pub limits: Limits,
    /// What browsers from other origins may do.
    pub cors: Cors,
    /// How long a session lasts that is not prolonged.
    pub session_lifetime: Duration,
    /// How long after its log-in a session can be prolonged at the most.
    pub session_max_age: Duration,
    /// Whether a log-in gives CouchDB's cookie.
    pub cookie: bool,
    /// Whether 401 answers carry `WWW-Authenticate` (see `stack`).
    pub www_authenticate: bool,
    /// Whether `/_metrics` answers without a log-in.
    pub open_metrics: bool,
    /// Where the access log goes.
    pub access_log: AccessLogTarget,
    /// Databases that are closed or write-only.
    pub rules: Rules,
    /// Where the public port's certificate comes from; `None`: it speaks plain HTTP.
    pub tls: Option<PublicTls>,
    /// Where plain HTTP is answered by the https address. Only with TLS.
    pub redirect: Option<SocketAddr>,
    /// The public port as clients see it, where that is another one.
    pub public_port: Option<u16>,
    /// For how long browsers shall use nothing but https for this host (RFC 6797), in seconds; `None`: that is not said.
    pub hsts_s: Option<u64>,
}

/// The server administrator of the configuration.
#[derive(Clone)]
pub struct Admin {
    /// The name to log in with.
    pub name: String,
    /// The password's argon2id hash as a PHC string.
    pub hash: String,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where access log lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AccessLogTarget {
    /// Nowhere.
    #[default]
    Off,
    /// To the program's log, under the target `access`.
    Log,
    /// Appended to this file.
    File(PathBuf),
}

/// Bounds and time limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open connections; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// Open connections of one address; further ones are closed.
    pub max_connections_per_address: usize,
    /// Header bytes of a request; more is 431.
    pub max_header_bytes: usize,
    /// Bytes of a URI; more is 414.
    pub max_uri_bytes: usize,
    /// Body bytes of a JSON request; more is 413.
    pub max_json_body_bytes: u64,
    /// Body bytes of any other request, attachments above all; more is 413.
    pub max_body_bytes: u64,
    /// How long a request's header may take to arrive, and how long a connection may stay idle.
    pub header_timeout: Duration,
    /// How long a body may pause, and how long a client may leave an answer unread.
    pub idle_timeout: Duration,
    /// What a client must send of a body in a second, on average over `body_window`; 0: anything goes.
    pub body_bytes_per_s: u64,
    /// How long a body may take before that counts.
    pub body_grace: Duration,
    /// Over how long that is looked at, and so the longest pause of who was quick before.
    pub body_window: Duration,
    /// How long rean may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long requests may go on once the proxy is to stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // About 1 GB of idle connections at the most.
            max_connections: 50_000,
            // Generous: behind a load balancer or on one machine everything comes from one address.
            max_connections_per_address: 10_000,
            max_header_bytes: 64 * 1024,
            // Room for the long `keys` and `doc_ids` that some clients put into a URI.
            max_uri_bytes: 32 * 1024,
            max_json_body_bytes: 64 * 1024 * 1024,
            max_body_bytes: 4 * 1024 * 1024 * 1024,
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            // Below what the slowest mobile networks carry: who is slower has gone, or holds up others on purpose.
            body_bytes_per_s: 1024,
            // Networks that change over, and clients that pack while they send, pause at the start most of all.
            body_grace: Duration::from_secs(20),
            body_window: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            drain: Duration::from_secs(10),
        }
    }
}

/// What browsers from other origins may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// The origins that may use this pod; `*` is any.
    pub origins: Vec<String>,
    /// How long a browser may remember a preflight's answer, in seconds.
    pub max_age_s: u64,
    /// Whether their requests may have credentials.
    pub credentials: bool,
    /// The methods that they may use; `None`: all.
    pub methods: Option<HeaderValue>,
    /// The headers that they may send; `None`: those that they ask for.
    pub headers: Option<HeaderValue>,
}

impl Default for Cors {
    fn default() -> Self {
        // Chrome keeps no answer longer than two hours.
        Self { origins: vec!["*".to_owned()], max_age_s: 7200, credentials: true, methods: None, headers: None }
    }
}

/// Why a configuration is refused; it names the key and never the value of a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not JSON.
    #[error("the configuration is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A key is missing, unknown or out of range.
    #[error("configuration key `{key}`: {problem}")]
    Key {
        /// The key, with the sections it is in.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// A configuration with default limits and no administrator.
    pub fn new(listen: SocketAddr, rean: impl Into<HostPort>, ring_secret: RingSecret) -> Self {
        Self {
            listen,
            rean: rean.into(),
            ring_secret,
            admin: None,
            pod_id: None,
            limits: Limits::default(),
            cors: Cors::default(),
            session_lifetime: Duration::from_secs(24 * 3600),
            // Who has stolen a session has it no longer than this, however they go on; and a person types a password a month.
            session_max_age: Duration::from_secs(30 * 86_400),
            cookie: false,
            www_authenticate: false,
            open_metrics: false,
            access_log: AccessLogTarget::Off,
            rules: Rules::default(),
            tls: None,
            redirect: None,
            public_port: None,
            hsts_s: None,
        }
    }

    /// Reads a file, and the ring's secret from the environment when the file names none.
    ///
    /// # Errors
    /// When the file can't be read or a key is bad.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        Self::parse(&text, std::env::var(SECRET_VARIABLE).ok().as_deref())
    }

    /// Reads the text of a configuration file; `secret` stands in when it has no `ring_secret_file`.
    ///
    /// # Errors
    /// When the text is not JSON or a key is missing, unknown or out of range.
    pub fn parse(text: &str, secret: Option<&str>) -> Result<Self, ConfigError> {
        let mut root = Section::root(text)?;
        let listen = root.address("listen")?.ok_or_else(|| root.missing("listen"))?;
        let rean = root.host_port("rean")?.ok_or_else(|| root.missing("rean"))?;
        let secret = match root.string("ring_secret_file")? {
            Some(file) => Some(read(Path::new(&file))?),
            None => secret.map(str::to_owned),
        };
        let secret =
            secret.ok_or_else(|| root.bad("ring_secret_file", format!("missing, and {SECRET_VARIABLE} is not set")))?;
        let secret = RingSecret::from_hex(&secret).map_err(|error| root.bad("ring_secret_file", error.to_string()))?;
        let mut config = Self::new(listen, rean, secret);
        config.admin = admin(&mut root)?;
        config.limits = limits(&mut root)?;
        config.cors = cors(&mut root)?;
        if let Some(mut session) = root.section("session")? {
            // A session of a year is a password; one under a minute ends before it is used.
            let lifetime = session.number("lifetime_s", 60..=366 * 86_400)?;
            config.session_lifetime = lifetime.map_or(config.session_lifetime, Duration::from_secs);
            let max_age = session.number("max_age_s", 60..=366 * 86_400)?;
            config.session_max_age = max_age.map_or(config.session_max_age, Duration::from_secs);
            config.cookie = session.boolean("cookie")?.unwrap_or(false);
            session.finish()?;
        }
        config.www_authenticate = root.boolean("www_authenticate")?.unwrap_or(false);
        config.open_metrics = root.boolean("open_metrics")?.unwrap_or(false);
        config.access_log = match root.string("access_log")?.as_deref() {
            None | Some("off") => AccessLogTarget::Off,
            Some("log") => AccessLogTarget::Log,
            Some(file) => AccessLogTarget::File(file.into()),
        };
        config.rules = rules(&mut root)?;
        config.tls = tls(&mut root)?;
        config.redirect = root.address("redirect")?;
        if config.redirect.is_some() && config.tls.is_none() {
            return Err(root.bad("redirect", "needs `tls`: there is no https address to send anybody to".to_owned()));
        }
        let port = root.number("public_port", 1..=u64::from(u16::MAX))?;
        config.public_port = port.and_then(|port| u16::try_from(port).ok());
        // Ten years are for ever.
        config.hsts_s = root.number("hsts_s", 0..=10 * 366 * 86_400)?;
        root.finish()?;
        Ok(config)
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

fn admin(root: &mut Section) -> Result<Option<Admin>, ConfigError> {
    let Some(mut section) = root.section("admin")? else { return Ok(None) };
    let name = section.string("name")?.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| section.missing("name"))?;
    let hash = section.string("hash")?.ok_or_else(|| section.missing("hash"))?;
    let parsed = PasswordHash::new(&hash);
    if !parsed.is_ok_and(|parsed| parsed.algorithm.as_str() == "argon2id") {
        return Err(section.bad("hash", "not an argon2id PHC string".to_owned()));
    }
    section.finish()?;
    Ok(Some(Admin { name, hash }))
}

fn limits(root: &mut Section) -> Result<Limits, ConfigError> {
    let mut limits = Limits::default();
    let Some(mut section) = root.section("limits")? else { return Ok(limits) };
    let size = |section: &mut Section, key, range, target: &mut usize| {
        if let Some(number) = section.number(key, range)? {
            *target = usize::try_from(number).unwrap_or(usize::MAX);
        }
        Ok::<_, ConfigError>(())
    };
    size(&mut section, "max_connections", 1..=1_000_000, &mut limits.max_connections)?;
    let per_address = &mut limits.max_connections_per_address;
    size(&mut section, "max_connections_per_address", 1..=1_000_000, per_address)?;
    // Below 8 KiB hyper's read buffer is larger than the limit.
    size(&mut section, "max_header_bytes", 8192..=1 << 20, &mut limits.max_header_bytes)?;
    size(&mut section, "max_uri_bytes", 256..=60_000, &mut limits.max_uri_bytes)?;
    let bytes = 1..=1 << 50;
    if let Some(number) = section.number("max_json_body_bytes", bytes.clone())? {
        limits.max_json_body_bytes = number;
    }
    if let Some(number) = section.number("max_body_bytes", bytes)? {
        limits.max_body_bytes = number;
    }
    // 1 GiB/s is more than any client has.
    if let Some(number) = section.number("body_bytes_per_s", 0..=1 << 30)? {
        limits.body_bytes_per_s = number;
    }
    for (key, target) in [
        ("body_grace_ms", &mut limits.body_grace),
        ("body_window_ms", &mut limits.body_window),
        ("header_timeout_ms", &mut limits.header_timeout),
        ("idle_timeout_ms", &mut limits.idle_timeout),
        ("connect_timeout_ms", &mut limits.connect_timeout),
        ("drain_ms", &mut limits.drain),
    ] {
        if let Some(number) = section.number(key, 1..=3_600_000)? {
            *target = Duration::from_millis(number);
        }
    }
    section.finish()?;
    Ok(limits)
}

fn cors(root: &mut Section) -> Result<Cors, ConfigError> {
    let mut cors = Cors::default();
    let Some(mut section) = root.section("cors")? else { return Ok(cors) };
    match section.take("origins") {
        None => {}
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|value| value.as_str().map(str::to_owned));
            cors.origins = texts
                .collect::<Option<_>>()
                .ok_or_else(|| section.bad("origins", "must be an array of strings".to_owned()))?;
        }
        Some(_) => return Err(section.bad("origins", "must be an array of strings".to_owned())),
    }
    if let Some(number) = section.number("max_age_s", 0..=86_400)? {
        cors.max_age_s = number;
    }
    section.finish()?;
    Ok(cors)
}

fn rules(root: &mut Section) -> Result<Rules, ConfigError> {
    let Some(section) = root.section("databases")? else { return Ok(Rules::default()) };
    let mut databases = BTreeMap::new();
    for (name, value) in &section.map {
        let access = value.as_str().and_then(Access::parse);
        let access = access.ok_or_else(|| section.bad(name, "must be \"closed\" or \"write-only\"".to_owned()))?;
        databases.insert(name.clone(), access);
    }
    Ok(Rules::new(databases))
}

fn tls(root: &mut Section) -> Result<Option<PublicTls>, ConfigError> {
    let Some(value) = root.take("tls") else { return Ok(None) };
    let tls: PublicTls = serde_json::from_value(value).map_err(|error| root.bad("tls", error.to_string()))?;
    tls.check().map_err(|error| root.bad("tls", error.to_string()))?;
    Ok(Some(tls))
}

/// One object of the file. Keys are taken out; what is left at the end is unknown.
struct Section {
    path: String,
    map: Map<String, Value>,
}

impl Section {
    fn root(text: &str) -> Result<Self, ConfigError> {
        match serde_json::from_str(text)? {
            Value::Object(map) => Ok(Self { path: String::new(), map }),
            _ => Err(ConfigError::Key { key: ".".into(), problem: "must be an object".into() }),
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    fn section(&mut self, key: &str) -> Result<Option<Self>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { path: format!("{}{key}.", self.path), map })),
            Some(_) => Err(self.bad(key, "must be an object".to_owned())),
        }
    }

    fn string(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(key, "must be a string".to_owned())),
        }
    }

    fn boolean(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.bad(key, "must be true or false".to_owned())),
        }
    }

    fn number(&mut self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let (low, high) = range.into_inner();
                Err(self.bad(key, format!("must be a whole number from {low} to {high}")))
            }
        }
    }

    fn address(&mut self, key: &str) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(text) = self.string(key)? else { return Ok(None) };
        let address = text.parse();
        address.map(Some).map_err(|_| self.bad(key, "must be an address like 127.0.0.1:5984".into()))
    }

    fn host_port(&mut self, key: &str) -> Result<Option<HostPort>, ConfigError> {
        let Some(text) = self.string(key)? else { return Ok(None) };
        text.parse().map(Some).map_err(|error: HostPortError| self.bad(key, error.to_string()))
    }

    fn missing(&self, key: &str) -> ConfigError {
        self.bad(key, "missing".to_owned())
    }

    fn bad(&self, key: &str, problem: String) -> ConfigError {
        ConfigError::Key { key: format!("{}{key}", self.path), problem }
    }

    fn finish(&self) -> Result<(), ConfigError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.bad(key, "unknown".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#""listen":"127.0.0.1:0","rean":"127.0.0.1:1""#;

    fn parse(more: &str) -> Result<Config, ConfigError> {
        Config::parse(&format!("{{{BASE}{more}}}"), Some(&"5a".repeat(32)))
    }

    #[test]
    fn the_shortest_configuration_has_defaults() {
        let config = parse("").expect("valid");
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.cors, Cors::default());
        assert_eq!(config.access_log, AccessLogTarget::Off);
        assert!(config.admin.is_none() && !config.www_authenticate && !config.open_metrics);
    }

    #[test]
    fn all_keys_are_read() {
        let config = parse(
            r#","admin":{"name":"a","hash":"$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Ng"},
            "limits":{"max_connections":5,"idle_timeout_ms":70,"body_bytes_per_s":0,"body_grace_ms":8},"cors":{"origins":["https://a"],"max_age_s":1},
            "session":{"lifetime_s":60,"max_age_s":90,"cookie":true},"www_authenticate":true,"open_metrics":true,"access_log":"/x",
            "databases":{"notes":"closed"},"tls":{"ring":{"names":["a"]}},"redirect":"127.0.0.1:80",
            "public_port":443,"hsts_s":5"#,
        )
        .expect("valid");
        assert_eq!(config.admin.as_ref().map(|admin| admin.name.as_str()), Some("a"));
        assert_eq!(config.limits.max_connections, 5);
        assert_eq!(config.limits.idle_timeout, Duration::from_millis(70));
        assert_eq!((config.limits.body_bytes_per_s, config.limits.body_grace), (0, Duration::from_millis(8)));
        assert_eq!(config.cors.origins, ["https://a"]);
        assert_eq!(config.session_lifetime, Duration::from_secs(60));
        assert_eq!(config.session_max_age, Duration::from_secs(90));
        assert!(config.cookie);
        assert_eq!(config.tls, Some(PublicTls::Ring { names: vec!["a".to_owned()] }));
        assert!(config.redirect.is_some());
        assert_eq!((config.public_port, config.hsts_s), (Some(443), Some(5)));
        assert_eq!(config.access_log, AccessLogTarget::File("/x".into()));
        let shown = format!("{config:?}");
        assert!(!shown.contains("argon2id") && !shown.contains("5a5a"), "{shown}");
    }

    #[test]
    fn a_bad_configuration_names_the_key() {
        for (more, key) in [
            (r#","zork":1"#, "zork"),
            (r#","limits":{"max_connections":0}"#, "limits.max_connections"),
            (r#","limits":{"zork":0}"#, "limits.zork"),
            (r#","admin":{"name":"a"}"#, "admin.hash"),
            (r#","admin":{"name":"a","hash":"secret-text"}"#, "admin.hash"),
            (r#","cors":{"origins":[1]}"#, "cors.origins"),
            (r#","databases":{"notes":"shut"}"#, "databases.notes"),
            (r#","www_authenticate":"yes""#, "www_authenticate"),
            (r#","tls":"rong""#, "tls"),
            (r#","tls":{"acme":{"domains":["*.a.example"]}}"#, "tls"),
            (r#","redirect":"127.0.0.1:80""#, "redirect"),
        ] {
            let error = parse(more).expect_err(more).to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
            assert!(!error.contains("secret-text"), "{error}");
        }
        let error = Config::parse(&format!("{{{BASE}}}"), None).expect_err("no secret").to_string();
        assert!(error.contains("ring_secret_file"), "{error}");
        let error = Config::parse("{}", None).expect_err("no address").to_string();
        assert!(error.contains("`listen`"), "{error}");
    }
}
