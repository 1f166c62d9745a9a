//! Whether the rights with which a long answer began still hold.
//!
//! A list is made page by page, as fast as its client takes it, and its scope keeps the roles of the beginning. A
//! client that reads slowly would otherwise go on reading with rights that were taken away long ago.

use std::sync::Arc;

use adea_ring::Identity;
use rean_store::Who;

use crate::error::ApiError;
use crate::pod::Pod;
use crate::target::{self, Target};

/// The rights of one request, to be asked for again with each page.
pub struct Standing {
    pod: Arc<Pod>,
    who: Identity,
    began_as: Who,
}

impl Standing {
    /// To be made before the target is resolved, so that no change falls in between.
    ///
    /// # Errors
    /// 401 for an account that has been removed.
    pub fn new(pod: &Arc<Pod>, who: &Identity) -> Result<Self, ApiError> {
        Ok(Self { pod: Arc::clone(pod), who: who.clone(), began_as: pod.accounts.who(who)? })
    }

    /// Asks again: `require` is what the request asked of its target.
    ///
    /// # Errors
    /// When the account has other roles than at the beginning, or the database is not theirs to read any more.
    pub fn check(
        &self,
        target: &Target,
        require: impl FnOnce(&Target) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        if self.pod.accounts.who(&self.who)? != self.began_as {
            return Err(ApiError::forbidden("Your rights have changed."));
        }
        require(&target::resolve(&self.pod, &self.who, &target.name)?)
    }
}
