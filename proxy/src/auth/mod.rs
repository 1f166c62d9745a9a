//! Who sends a request: Basic credentials of the administrator, of a user, or of a session.
//!
//! The quick way is a look-up in [`cache`]. The slow way asks rean for the document, checks the secret ([`password`])
//! and is slowed down after failures ([`throttle`]). [`follow`] hears of changed accounts and ended sessions, and then
//! [`Authenticator::changed`] makes both the cache and the open feeds forget them.

pub mod accounts;
pub mod by_cookie;
pub mod cache;
pub mod cookie;
pub mod follow;
pub mod knocks;
pub mod operator;
pub mod password;
pub mod prolong;
pub mod throttle;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use adea_ring::{Identity, Signer, identity::ADMIN_ROLE};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::OnceCell;

use crate::clock;
use crate::config::{Admin, Config};
use crate::error::Refusal;
use crate::feeds::Feeds;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::upstream::{Upstream, UpstreamError, identity_headers};
use accounts::SessionDoc;
use cache::{Cache, Change, Digest, Epoch};
use password::{Passwords, Stored};
use throttle::{Throttle, Wait};

/// What names of sessions begin with.
pub const SESSION_PREFIX: &str = "session-";
/// Digits of a session's id: 128 bits, so that nobody meets one by chance.
const SESSION_ID_DIGITS: usize = 32;

/// Somebody who has shown who they are, or nobody in particular.
#[derive(Debug)]
pub struct Login {
    /// The account's name; empty for nobody in particular.
    pub account: Arc<str>,
    /// Name and roles.
    pub identity: Identity,
    /// The headers that tell rean so: made once, sent with every request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The revision of the `_users` document, where the account has one.
    pub user_rev: Option<String>,
    /// The session, if it was one's credentials.
    pub session: Option<Session>,
    /// Whether that came as a cookie.
    pub by_cookie: bool,
    /// When it ends if nobody ends it before, in milliseconds since 1970: its session, as that was when it was looked up,
    /// or its pass. `None` for a password, which holds until it is changed.
    pub ends_at_ms: Option<u64>,
    /// Of what the password was checked against (see [`Stored::fingerprint`]); empty where none was.
    pub password_sha256: String,
    revoked: AtomicBool,
}

/// The session of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The session's id, without prefix.
    pub id: Box<str>,
    /// The revision of its document.
    pub rev: String,
    /// When it began, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: u64,
}

impl Login {
    fn new(signer: &Signer, identity: Identity, user_rev: Option<String>, session: Option<Session>) -> Self {
        Self {
            account: identity.name.as_deref().unwrap_or("").into(),
            headers: identity_headers(signer, &identity),
            identity,
            user_rev,
            ends_at_ms: session.as_ref().map(|session| session.expires_at_ms),
            session,
            by_cookie: false,
            password_sha256: String::new(),
            revoked: AtomicBool::new(false),
        }
    }

    /// Marks a login that counts no more.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }

    /// Whether it counts no more.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Nobody in particular, for the tests of other modules.
    #[cfg(test)]
    pub fn anonymous_for_tests() -> Self {
        Self::new(&Signer::new(&adea_ring::RingSecret::random()), Identity::anonymous(), None, None)
    }
}

/// A name and what is to prove it.
pub struct Credentials {
    /// The account's or the session's name.
    pub name: String,
    /// The password or the session's secret.
    pub password: String,
}

type Outcome = Result<Arc<Login>, Refusal>;

/// Finds out who sends a request.
pub struct Authenticator {
    admin: Option<Admin>,
    passes: Option<operator::Passes>,
    signer: Signer,
    anonymous: Arc<Login>,
    cache: Cache,
    throttle: Throttle,
    passwords: Passwords,
    /// The same credentials are checked once, however many requests bring them at the same moment. Bounded by the
    /// number of open connections.
    checking: Mutex<HashMap<Digest, Arc<OnceCell<Outcome>>>>,
    /// The sessions that are being prolonged. Bounded by the number of open connections.
    renewing: Mutex<HashSet<Box<str>>>,
    /// How many of the two databases' changes can't be seen now.
    blind: [AtomicBool; 2],
    settings: Arc<Settings>,
    upstream: Arc<Upstream>,
    feeds: Arc<Feeds>,
    metrics: Arc<Metrics>,
}

impl Authenticator {
    /// An authenticator that asks rean through `upstream`. Takes some 20 ms, for the dummy hash.
    pub fn new(
        config: &Config,
        signer: Signer,
        settings: Arc<Settings>,
        upstream: Arc<Upstream>,
        feeds: Arc<Feeds>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            admin: config.admin.clone(),
            passes: operator::Passes::new(config),
            anonymous: Arc::new(Login::new(&signer, Identity::anonymous(), None, None)),
            signer,
            cache: Cache::default(),
            throttle: Throttle::default(),
            passwords: Passwords::new(),
            checking: Mutex::default(),
            renewing: Mutex::default(),
            blind: [AtomicBool::new(true), AtomicBool::new(true)],
            settings,
            upstream,
            feeds,
            metrics,
        }
    }

    /// Who the request's credentials name; without any, nobody in particular.
    ///
    /// # Errors
    /// `BadCredentials` without telling what is wrong, `Throttled`, `Busy`, or why rean could not be asked.
    pub async fn authenticate(&self, headers: &HeaderMap, peer: IpAddr) -> Outcome {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Ok(Arc::clone(&self.anonymous));
        };
        let digest = self.cache.digest(value.as_bytes());
        if let Some(login) = self.cached(&digest) {
            return Ok(login);
        }
        let Some(credentials) = basic(value.as_bytes())? else {
            return Ok(Arc::clone(&self.anonymous));
        };
        if operator::is_pass(&credentials.name) {
            return self.check_pass(&credentials);
        }
        self.metrics.auth_misses.fetch_add(1, Ordering::Relaxed);
        // Boxed: the slow way's state is large, and every request would carry it.
        Box::pin(self.check_once(digest, credentials, peer)).await
    }

    /// Nobody in particular.
    pub fn anonymous(&self) -> Arc<Login> {
        Arc::clone(&self.anonymous)
    }

    fn cached(&self, digest: &Digest) -> Option<Arc<Login>> {
        let blind = self.blind.iter().any(|blind| blind.load(Ordering::Acquire));
        let login = self.cache.get(digest, blind, clock::now_ms)?;
        self.metrics.auth_hits.fetch_add(1, Ordering::Relaxed);
        Some(login)
    }

    /// Checks a name and password that came in a body: an account's, not a session's.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`].
    pub async fn log_in(&self, credentials: Credentials, peer: IpAddr) -> Outcome {
        let text = STANDARD.encode(format!("{}:{}", credentials.name, credentials.password));
        // The same digest as the header's, so that a locked account's owner passes here as well.
        let digest = self.cache.digest(format!("Basic {text}").as_bytes());
        self.check_once(digest, credentials, peer).await
    }

    /// Counts a new session of an account.
    ///
    /// # Errors
    /// `Throttled`, when the account has made too many.
    pub fn new_session(&self, account: &str) -> Result<(), Refusal> {
        self.throttle.new_session(account).map_err(|wait| self.throttled(wait))
    }

    /// Makes a changed account or session count at once: for further requests, and for open feeds.
    pub fn changed(&self, change: Change) {
        self.cache.change(change.clone());
        match &change {
            Change::User { name, .. } | Change::Admin { name } => self.feeds.end(name, |login| change.hits(login)),
            Change::Session { id, rev: None } => self.feeds.end_session(id),
            // A session's first revision, whose feeds are only just being opened; or it was prolonged, which is looked up
            // when the feeds would end.
            Change::Session { .. } => {}
        }
    }

    /// Says whether the changes of a database (0: users, 1: sessions) can be seen.
    pub fn set_blind(&self, database: usize, blind: bool) {
        self.blind[database].store(blind, Ordering::Release);
    }

    /// Changes were missed: everybody has to show anew who they are.
    pub fn forget(&self) {
        self.cache.clear();
        self.feeds.end_all();
    }

    /// Checked each time: that is as quick as the look-up would be, and so a pass ends when it ends. So do its feeds.
    fn check_pass(&self, credentials: &Credentials) -> Outcome {
        let passes = self.passes.as_ref();
        let found = passes.and_then(|passes| passes.check(credentials, clock::now_ms()));
        if found.is_none() {
            self.metrics.auth_failures.fetch_add(1, Ordering::Relaxed);
        }
        let (identity, ends_at_ms) = found.ok_or(Refusal::BadCredentials)?;
        Ok(Arc::new(Login { ends_at_ms: Some(ends_at_ms), ..Login::new(&self.signer, identity, None, None) }))
    }

    async fn check_once(&self, digest: Digest, credentials: Credentials, peer: IpAddr) -> Outcome {
        self.once(digest, self.check(digest, credentials, peer)).await
    }

    /// Waits for a check; of several of the same credentials one is done.
    async fn once(&self, digest: Digest, check: impl Future<Output = Outcome>) -> Outcome {
        let cell = Arc::clone(self.checking.lock().entry(digest).or_default());
        let outcome = cell.get_or_init(|| check).await.clone();
        let mut checking = self.checking.lock();
        if checking.get(&digest).is_some_and(|found| Arc::ptr_eq(found, &cell)) {
            checking.remove(&digest);
        }
        outcome
    }

    async fn check(&self, digest: Digest, credentials: Credentials, peer: IpAddr) -> Outcome {
        let epoch = self.cache.now();
        let session = credentials.name.strip_prefix(SESSION_PREFIX).map(str::to_owned);
        let outcome = match session {
            Some(id) => self.check_session(&id, &credentials.password, &digest, peer).await,
            None => self.check_account(credentials, &digest, peer).await,
        };
        if outcome.as_ref().is_err_and(|refusal| *refusal == Refusal::BadCredentials) {
            self.metrics.auth_failures.fetch_add(1, Ordering::Relaxed);
        }
        outcome.map(|login| self.keep(login, digest, epoch))
    }

    fn keep(&self, login: Login, digest: Digest, epoch: Epoch) -> Arc<Login> {
        let login = Arc::new(login);
        self.cache.put(digest, &login, epoch);
        login
    }

    /// An administrator: that of the configuration comes first, as in CouchDB, and then those of the settings.
    fn admin(&self, name: &str) -> Option<Admin> {
        let of_file = self.admin.as_ref().filter(|admin| admin.name == name).cloned();
        of_file.or_else(|| {
            let hash = self.settings.get().admin(name)?.to_owned();
            Some(Admin { name: name.to_owned(), hash })
        })
    }

    async fn check_account(&self, credentials: Credentials, digest: &Digest, peer: IpAddr) -> Result<Login, Refusal> {
        let Credentials { name, password } = credentials;
        self.throttle.begin(&name, peer, digest).map_err(|wait| self.throttled(wait))?;
        let checked = self.look_up(&name, password).await;
        match &checked {
            Ok(_) => self.throttle.right(&name, *digest),
            Err(Refusal::BadCredentials) => self.throttle.wrong(peer, digest),
            Err(_) => self.throttle.unknown(&name),
        }
        checked
    }

    /// Administrators come before accounts.
    async fn look_up(&self, name: &str, password: String) -> Result<Login, Refusal> {
        let (identity, rev, stored) = if let Some(admin) = self.admin(name) {
            (admin_identity(&admin), None, Stored::Argon2(admin.hash))
        } else {
            match accounts::user(&self.upstream, name).await.map_err(|e| asking_failed(&e))? {
                Some(user) => {
                    let identity = Identity { name: Some(name.to_owned()), roles: user.roles };
                    (identity, Some(user.rev), user.stored)
                }
                None => (Identity::anonymous(), None, Stored::Nothing),
            }
        };
        let password_sha256 = stored.fingerprint();
        let is_foreign = stored.is_foreign();
        match self.passwords.check(password.clone(), stored).await {
            Ok(true) => {}
            Ok(false) => return Err(Refusal::BadCredentials),
            Err(password::Busy) => return Err(Refusal::Busy),
        }
        if is_foreign && let Some(old_rev) = &rev {
            return Ok(self.adopt(name, old_rev, &password, identity, password_sha256).await);
        }
        Ok(Login { password_sha256, ..Login::new(&self.signer, identity, rev, None) })
    }

    /// The login of an account whose hash another server has made: replaced by one of ours now that the password is known.
    /// It is done before the log-in is answered, because sessions end with the hash that they were begun with. If it can't
    /// be done, the old one serves on.
    async fn adopt(&self, name: &str, rev: &str, password: &str, identity: Identity, password_sha256: String) -> Login {
        let rehashed = accounts::rehash(&self.upstream, name, rev, password).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "an account's hash from another server could not be replaced");
            None
        });
        let now = match &rehashed {
            Some(_) => accounts::user(&self.upstream, name).await.ok().flatten(),
            None => None,
        };
        match now {
            // Only what the replacing has made: another change may mean another password.
            Some(user) if Some(&user.rev) == rehashed.as_ref() => {
                let password_sha256 = user.stored.fingerprint();
                Login { password_sha256, ..Login::new(&self.signer, identity, Some(user.rev), None) }
            }
            _ => Login { password_sha256, ..Login::new(&self.signer, identity, Some(rev.to_owned()), None) },
        }
    }

    async fn check_session(&self, id: &str, secret: &str, digest: &Digest, peer: IpAddr) -> Result<Login, Refusal> {
        self.throttle.begin_session(peer).map_err(|wait| self.throttled(wait))?;
        let checked = self.look_up_session(id, secret, false).await;
        if checked.as_ref().is_err_and(|refusal| *refusal == Refusal::BadCredentials) {
            self.throttle.wrong(peer, digest);
        }
        checked
    }

    /// `cookie`: as what it came. A session begun as one is none as the other, or a stolen one could be prolonged for ever.
    async fn look_up_session(&self, id: &str, secret: &str, cookie: bool) -> Result<Login, Refusal> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if id.len() != SESSION_ID_DIGITS || !id.bytes().all(hex) {
            return Err(Refusal::BadCredentials);
        }
        let doc = accounts::session(&self.upstream, id).await.map_err(|e| asking_failed(&e))?;
        let doc = doc.ok_or(Refusal::BadCredentials)?;
        let right = hash_secret(secret).as_bytes().ct_eq(doc.secret_sha256.as_bytes());
        if !bool::from(right) || doc.expires_at_ms <= clock::now_ms() || doc.cookie != cookie {
            return Err(Refusal::BadCredentials);
        }
        let rev = doc.rev.unwrap_or_default();
        let session =
            Session { id: id.into(), rev, created_at_ms: doc.created_at_ms, expires_at_ms: doc.expires_at_ms };
        // With the roles that the account has now, not those of the time of the log-in.
        let same_password = |stored: &Stored| {
            let now = stored.fingerprint();
            !now.is_empty() && now == doc.password_sha256
        };
        let login =
            |identity, rev| Login { by_cookie: cookie, ..Login::new(&self.signer, identity, rev, Some(session)) };
        if let Some(admin) = self.admin(&doc.user) {
            let identity = admin_identity(&admin);
            let is_same = same_password(&Stored::Argon2(admin.hash));
            return is_same.then(|| login(identity, None)).ok_or(Refusal::BadCredentials);
        }
        let user = accounts::user(&self.upstream, &doc.user).await.map_err(|e| asking_failed(&e))?;
        let user = user.filter(|user| same_password(&user.stored)).ok_or(Refusal::BadCredentials)?;
        let identity = Identity { name: Some(doc.user), roles: user.roles };
        Ok(login(identity, Some(user.rev)))
    }

    fn throttled(&self, wait: Wait) -> Refusal {
        self.metrics.throttled.fetch_add(1, Ordering::Relaxed);
        Refusal::Throttled { retry_after_s: wait.seconds }
    }
}

/// A new session's id, secret and document.
pub fn make_session(
    user: &str,
    password_sha256: &str,
    now_ms: u64,
    expires_at_ms: u64,
) -> (String, String, SessionDoc) {
    let id = hex::encode(rand::random::<[u8; SESSION_ID_DIGITS / 2]>());
    let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
    let doc = SessionDoc {
        rev: None,
        kind: "session".to_owned(),
        user: user.to_owned(),
        secret_sha256: hash_secret(&secret),
        password_sha256: password_sha256.to_owned(),
        created_at_ms: now_ms,
        expires_at_ms,
        cookie: false,
    };
    (id, secret, doc)
}

/// 256 random bits can't be guessed from their hash, so a fast one will do.
fn hash_secret(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

fn admin_identity(admin: &Admin) -> Identity {
    Identity { name: Some(admin.name.clone()), roles: vec![ADMIN_ROLE.to_owned()] }
}

fn asking_failed(error: &UpstreamError) -> Refusal {
    tracing::warn!(%error, "an account can't be looked up");
    Refusal::UpstreamDown
}

/// The credentials in an `Authorization` value. As in CouchDB, another scheme or a text without a colon is as good as
/// no header, and bad Base64 is 400.
fn basic(value: &[u8]) -> Result<Option<Credentials>, Refusal> {
    const BAD: Refusal = Refusal::BadRequest("Authorization header has invalid base64 value");
    let Some((scheme, encoded)) = value.split_at_checked(6) else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return Ok(None);
    }
    let encoded = encoded.trim_ascii();
    let decoded = STANDARD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded));
    let text = decoded.map_err(|_| BAD)?;
    // Names and passwords are UTF-8 (RFC 7617, 2.1); an account can have no others.
    let text = String::from_utf8(text).map_err(|_| Refusal::BadCredentials)?;
    let Some((name, password)) = text.split_once(':') else { return Ok(None) };
    // CouchDB's clients send `_:_` for "no one".
    if name.is_empty() || (name, password) == ("_", "_") {
        return Ok(None);
    }
    Ok(Some(Credentials { name: name.to_owned(), password: password.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<Option<(String, String)>, Refusal> {
        basic(value.as_bytes()).map(|found| found.map(|c| (c.name, c.password)))
    }

    #[test]
    fn basic_credentials() {
        let pair = |name: &str, password: &str| Ok(Some((name.to_owned(), password.to_owned())));
        let encode = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(parse(&encode("ann:secret")), pair("ann", "secret"));
        assert_eq!(parse(&encode("ü x:p:ä 1")), pair("ü x", "p:ä 1"));
        assert_eq!(parse(&encode("ann:")), pair("ann", ""));
        assert_eq!(parse("bAsIc YTpi"), pair("a", "b"));
        for none in ["Basic", "", "Bearer x.y.z", "Zork", &encode("nocolon"), &encode("_:_"), &encode(":x")] {
            assert_eq!(parse(none), Ok(None), "{none}");
        }
        assert!(matches!(parse("Basic !!!"), Err(Refusal::BadRequest(_))));
        let latin1 = format!("Basic {}", STANDARD.encode(b"\xfc:x"));
        assert_eq!(parse(&latin1), Err(Refusal::BadCredentials));
    }

    #[test]
    fn a_session_has_256_bits() {
        let (id, secret, doc) = make_session("ann", "aa", 1, 2);
        assert_eq!((id.len(), secret.len()), (32, 43));
        assert_eq!(doc.secret_sha256, hash_secret(&secret));
        assert!(!serde_json::to_string(&doc).expect("JSON").contains(&secret));
    }
}
