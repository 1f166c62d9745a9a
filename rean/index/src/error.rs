//! What can go wrong with an index, as its callers see it.

use crate::spec::MapError;
use rean_store::StoreError;
use rean_store::engine::EngineError;

/// Why an index could not be read or kept. Clonable, because many may wait for the same update.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IndexError {
    /// The indexes' engine failed.
    #[error("the storage engine of the indexes failed: {0}")]
    Engine(String),
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
    /// The database, or the index, was deleted. Of an index that is still wanted, ask for the group again.
    #[error("the index is gone")]
    Gone,
    /// The indexes are being closed.
    #[error("the indexes are closing")]
    Closing,
    /// A record can't be decoded. The index is made anew when it is next brought up to date.
    #[error("an index is damaged: {0}")]
    Damaged(&'static str),
    /// The functions can't be run.
    #[error("{0}")]
    Map(MapError),
    /// Values can't be reduced; the fields are CouchDB's `error` and `reason`.
    #[error("{error}: {reason}")]
    Reduce {
        /// Name for clients.
        error: String,
        /// What to tell them.
        reason: String,
    },
    /// Too much is going on. May be tried again.
    #[error("{0}")]
    Busy(String),
}

impl From<EngineError> for IndexError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Closed => IndexError::Closing,
            other => IndexError::Engine(other.to_string()),
        }
    }
}

impl From<StoreError> for IndexError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Gone => IndexError::Gone,
            StoreError::Closing => IndexError::Closing,
            other => IndexError::Store(other),
        }
    }
}
