//! A certificate from an authority that speaks ACME (RFC 8555).
//!
//! The authority looks at the public port itself (TLS-ALPN-01, RFC 8737), so nothing else has to be open. What it gave is
//! kept in a folder, and renewed when two thirds of its time are over. While there is none, handshakes fail.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::public_tls::{Acme, PublicTlsError};
use adea_ring::trust::Trust;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error as AcmeError, Identifier, NewAccount,
    NewOrder, OrderStatus, RetryPolicy,
};
use parking_lot::Mutex;
use rcgen::{CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::acme_http::AcmeHttp;
use super::acme_store::AcmeStore;
use super::certificates::{Certificates, Pair, PairError, provider};
use super::{TlsError, files};
use crate::clock;

/// What an authority says that it speaks when it looks at a challenge.
pub const PROTOCOL: &[u8] = b"acme-tls/1";
/// An authority's word for an account that it doesn't have (RFC 8555, 6.7).
const NO_ACCOUNT: &str = ":accountDoesNotExist";
/// How long an authority may take for each of its two steps.
const STEP: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_secs(1)).backoff(1.5).timeout(Duration::from_secs(120));
/// The whole of an order, whatever happens in it.
const ORDER_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// The first pause after a failure, and the longest. Let's Encrypt bears five failures an hour
/// (<https://letsencrypt.org/docs/rate-limits/>).
const RETRY_MIN: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(4 * 3600);
/// How often is looked whether it is time. One long timer would not notice that the clock was set.
const LOOK: Duration = Duration::from_secs(3600);

/// What is ordered, from whom, and where it is kept.
pub struct Order {
    acme: Acme,
    store: AcmeStore,
    trust: Trust,
    certificates: Arc<Certificates>,
    challenges: Arc<Challenges>,
    challenge_config: Arc<ServerConfig>,
    /// From when and until when the certificate in use holds. Not read from the store: if that can't be written to, the
    /// authority must not be asked again and again.
    validity_s: Mutex<Option<(i64, i64)>>,
}

/// Why an order failed.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("{0}")]
    Acme(#[from] AcmeError),
    #[error("{0}")]
    Refused(String),
    #[error("the answer to a challenge could not be made: {0}")]
    Challenge(#[from] rcgen::Error),
    #[error("the answer to a challenge can't be used: {0}")]
    Use(#[from] rustls::Error),
    #[error("the certificate that was given can't be used: {0}")]
    Pair(String),
    #[error("the account or the certificate can't be kept: {0}")]
    Store(#[from] std::io::Error),
    #[error("the account can't be kept: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it took longer than {} minutes", ORDER_TIMEOUT.as_secs() / 60)]
    Late,
}

impl Order {
    /// Takes what an earlier process was given, if that is still there.
    ///
    /// # Errors
    /// When the folder or the authority's own authority can't be used.
    pub fn new(acme: &Acme, certificates: Arc<Certificates>) -> Result<Self, TlsError> {
        let cache = acme.cache.as_deref();
        let problem =
            || PublicTlsError { key: "acme.cache", problem: "must name a folder to keep things in".to_owned() };
        let cache = cache.filter(|path| !path.as_os_str().is_empty()).ok_or_else(problem)?;
        let unusable = |error: std::io::Error| files::file_error("acme.cache", cache, error.to_string());
        let store = AcmeStore::open(cache, acme).map_err(unusable)?;
        let challenges = Arc::new(Challenges::default());
        let order = Self {
            acme: acme.clone(),
            trust: trust(acme.ca.as_deref())?,
            certificates,
            challenge_config: challenge_config(&challenges)?,
            challenges,
            store,
            validity_s: Mutex::default(),
        };
        if let Some(pem) = order.store.certificate().map_err(unusable)? {
            match pair(&pem) {
                Ok(pair) => order.take(pair),
                Err(error) => tracing::warn!(%error, "the certificate that was kept is ordered anew"),
            }
        }
        Ok(order)
    }

    /// What an authority is shown that looks at a challenge.
    pub fn challenge_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.challenge_config)
    }

    /// Orders and renews.
    pub async fn keep(self: Arc<Self>) {
        let mut pause = RETRY_MIN;
        loop {
            if !self.is_due() {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let ordered = tokio::time::timeout(ORDER_TIMEOUT, self.order()).await;
            self.challenges.answers.lock().clear();
            match ordered.unwrap_or(Err(OrderError::Late)) {
                Ok(()) => {
                    pause = RETRY_MIN;
                    tracing::info!("{} gave a certificate for {}", self.acme.directory, self.acme.domains.join(", "));
                }
                Err(error) => {
                    self.certificates.not_renewed();
                    tracing::error!(
                        "no certificate for {} from {}: {error}. Tried again in {} minutes. Each name must lead to this \
                         machine, and its port 443 must be open to everybody",
                        self.acme.domains.join(", "),
                        self.acme.directory,
                        pause.as_secs() / 60,
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Whether two thirds of the certificate's time are over, or there is none.
    fn is_due(&self) -> bool {
        let now_s = i64::try_from(clock::now_ms() / 1000).unwrap_or(i64::MAX);
        let validity_s = *self.validity_s.lock();
        validity_s.is_none_or(|(from_s, until_s)| now_s >= from_s + until_s.saturating_sub(from_s) / 3 * 2)
    }

    fn take(&self, pair: Pair) {
        *self.validity_s.lock() = Some((pair.from_s, pair.until_s));
        self.certificates.set(pair);
    }

    async fn order(&self) -> Result<(), OrderError> {
        let names: Vec<Identifier> = self.acme.domains.iter().cloned().map(Identifier::Dns).collect();
        let wanted = NewOrder::new(&names);
        let mut order = match self.account().await?.new_order(&wanted).await {
            Err(AcmeError::Api(problem))
                if problem.r#type.as_deref().is_some_and(|kind| kind.ends_with(NO_ACCOUNT)) =>
            {
                tracing::warn!("{} has forgotten the account: there will be a new one", self.acme.directory);
                self.store.forget_account()?;
                self.account().await?.new_order(&wanted).await?
            }
            order => order?,
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                other => return Err(OrderError::Refused(format!("a name is {other:?} to it"))),
            }
            let none = || OrderError::Refused("it does not offer to look at the TLS port (tls-alpn-01)".to_owned());
            let mut challenge = authorization.challenge(ChallengeType::TlsAlpn01).ok_or_else(none)?;
            let name = challenge.identifier().to_string();
            let answer = answer(&name, challenge.key_authorization().digest().as_ref())?;
            self.challenges.answers.lock().insert(name.to_ascii_lowercase(), Arc::new(answer));
            challenge.set_ready().await?;
        }
        match order.poll_ready(&STEP).await? {
            OrderStatus::Ready => {}
            _ => return Err(OrderError::Refused(why_invalid(&mut order).await)),
        }
        let key = order.finalize().await?;
        let chain = order.poll_certificate(&STEP).await?;
        let pem = format!("{key}\n{chain}").into_bytes();
        self.take(pair(&pem).map_err(OrderError::Pair)?);
        if let Err(error) = self.store.keep_certificate(&pem) {
            tracing::error!(%error, "the new certificate is in use but can't be kept: the next start orders another");
        }
        Ok(())
    }

    async fn account(&self) -> Result<Account, OrderError> {
        let http = || Box::new(AcmeHttp::new(&self.trust));
        if let Some(kept) = self.store.account()? {
            match serde_json::from_slice::<AccountCredentials>(&kept) {
                Ok(credentials) => return Ok(Account::builder_with_http(http()).from_credentials(credentials).await?),
                Err(error) => {
                    tracing::warn!(%error, "the account that was kept can't be read; there will be a new one")
                }
            }
        }
        let contact: Vec<&str> = self.acme.contact.iter().map(String::as_str).collect();
        let account = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let creating = Account::builder_with_http(http()).create(&account, self.acme.directory.clone(), None);
        let (account, credentials) = creating.await?;
        self.store.keep_account(&serde_json::to_vec(&credentials)?)?;
        Ok(account)
    }
}

/// What the authority says of the names that it could not prove.
async fn why_invalid(order: &mut instant_acme::Order) -> String {
    let mut told = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { continue };
        let Ok(state) = authorization.refresh().await else { continue };
        let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        told.extend(errors.map(|error| format!("{}: {error}", state.identifier())));
    }
    if told.is_empty() { "it could not prove the names".to_owned() } else { told.join("; ") }
}

/// The answers to challenges that are open now, by name.
#[derive(Debug, Default)]
struct Challenges {
    answers: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.to_ascii_lowercase();
        self.answers.lock().get(&name).cloned()
    }
}

/// A certificate of this very server that holds what the authority wants to see (RFC 8737, 3).
fn answer(name: &str, digest: &[u8]) -> Result<CertifiedKey, OrderError> {
    // The digest is a SHA-256.
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?.der().clone();
    let key = PrivatePkcs8KeyDer::from(key).into();
    // Without looking whether both fit: webpki refuses to read an extension that it doesn't know.
    Ok(CertifiedKey::new(vec![certificate], provider().key_provider.load_private_key(key)?))
}

fn challenge_config(challenges: &Arc<Challenges>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let resolver = Arc::clone(challenges);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}

fn trust(ca: Option<&Path>) -> Result<Trust, TlsError> {
    let Some(path) = ca else { return Ok(Trust::web()) };
    let pem = files::read("acme.ca", path)?;
    Trust::web().with_pem(&pem).map_err(|error| files::file_error("acme.ca", path, error.to_string()))
}

fn pair(pem: &[u8]) -> Result<Pair, String> {
    Pair::from_pem(pem, pem).map_err(|error| match error {
        PairError::Certificate(problem) | PairError::Key(problem) => problem,
    })
}
