//! Requests that come with CouchDB's cookie: who sends them, and cookies that live on while they are used.

use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, header};

use super::cache::{Change, Digest};
use super::{Authenticator, Login, Outcome, cookie};
use crate::error::Refusal;
use crate::settings::InForce;

impl Authenticator {
    /// Who sends a request: as [`Authenticator::authenticate`], and by the cookie where that is switched on. A request with
    /// credentials of its own is judged by those alone. A cookie that is over, or of a page that it doesn't count for, is
    /// no error: the request is nobody's, so that a page can show its log-in.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`], but for bad cookies.
    pub async fn authenticate_request(&self, request: &Parts, peer: IpAddr) -> Outcome {
        let settings = self.settings.get();
        let Some((id, secret)) = usable(request, &settings) else {
            return self.authenticate(&request.headers, peer).await;
        };
        let digest = self.cache.digest(format!("Cookie {id}.{secret}").as_bytes());
        if let Some(login) = self.cached(&digest) {
            return Ok(login);
        }
        // Boxed: the slow way's state is large, and every request would carry it.
        let checking = Box::pin(self.once(digest, self.check_cookie(digest, &id, &secret, peer)));
        match checking.await {
            Err(Refusal::BadCredentials) => Ok(Arc::clone(&self.anonymous)),
            outcome => outcome,
        }
    }

    /// Wrong cookies don't count as failures of the address: a browser goes on sending one that is over.
    async fn check_cookie(&self, digest: Digest, id: &str, secret: &str, peer: IpAddr) -> Outcome {
        let epoch = self.cache.now();
        self.throttle.begin_session(peer).map_err(|wait| self.throttled(wait))?;
        let found = self.look_up_session(id, secret, true).await;
        found.map(|login| self.keep(login, digest, epoch))
    }

    /// Prolongs the session of a cookie whose time is half over; the `Set-Cookie` that says so.
    pub async fn renew_cookie(&self, request: &Parts, login: &Login) -> Option<HeaderValue> {
        let settings = self.settings.get();
        let rules = settings.cookie.as_ref().filter(|_| login.by_cookie)?;
        let expires_at_ms = self.prolong(login, rules.timeout_s.saturating_mul(1000)).await?;
        let (id, secret) = cookie::read(&request.headers)?;
        cookie::set(rules, &id, &secret, expires_at_ms, &request.headers)
    }

    /// Reads the settings anew, and makes changes of administrators count at once.
    pub async fn reload_settings(&self) {
        match self.settings.reload(&self.upstream).await {
            Ok(changed) => {
                changed.admins.into_iter().for_each(|name| self.changed(Change::Admin { name }));
                if changed.rules {
                    // Of a feed with many databases nobody knows here which those are. Who may go on comes again.
                    self.feeds.end_all();
                }
            }
            Err(error) => tracing::debug!(%error, "the server settings can't be read yet"),
        }
    }
}

/// The id and the secret of a cookie that counts.
fn usable(request: &Parts, settings: &InForce) -> Option<(String, String)> {
    settings.cookie.as_ref()?;
    if request.headers.contains_key(header::AUTHORIZATION) || !cookie::counts(request, settings.cors.named()) {
        return None;
    }
    cookie::read(&request.headers)
}
