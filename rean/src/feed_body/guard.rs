//! What ends a feed whose reader's rights change, or whose pod takes no clients any more.

use std::sync::Arc;

use adea_ring::Identity;

use crate::accounts::AccountWatch;
use crate::error::ApiError;
use crate::hub::{Place, Subscription};
use crate::pod::Pod;
use crate::ring::clients::Welcome;
use crate::target::Target;

/// Ends a feed when its reader's rights change.
pub struct Guard {
    _place: Place,
    pub(super) news: Subscription,
    pub(super) account: Option<AccountWatch>,
    pub(super) welcome: Welcome,
}

impl Guard {
    /// Watches the database and the account. Ask for the rights after this.
    ///
    /// # Errors
    /// 429 and 503 when there are too many feeds.
    pub fn new(pod: &Arc<Pod>, who: &Identity, target: &Target, filter_bytes: usize) -> Result<Self, ApiError> {
        let name = who.name.as_deref();
        Ok(Self {
            _place: pod.hub.admit(name, who.is_admin(), filter_bytes)?,
            news: pod.hub.subscribe(&target.db),
            account: name.map(|name| pod.accounts.watch(name)),
            welcome: pod.ring.clients.welcome(who, target.db.name()),
        })
    }

    /// Whether nothing has changed.
    pub fn holds(&self) -> bool {
        !self.news.ended() && self.welcome.holds() && self.account.as_ref().is_none_or(|account| !account.has_changed())
    }
}
