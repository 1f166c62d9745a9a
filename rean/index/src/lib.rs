//! Indexes over the documents of a database, kept in an engine of their own.

use rean_store::engine::Engine;

/// The indexes of a pod. Clones are the same.
#[derive(Clone)]
pub struct Indexes;

/// Why an index could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] rean_store::engine::EngineError),
}

impl Indexes {
    /// Takes the indexes that an engine holds.
    ///
    /// # Errors
    /// The engine failed.
    pub fn open(_engine: Box<dyn Engine>) -> Result<Self, IndexError> {
        Ok(Self)
    }
}
