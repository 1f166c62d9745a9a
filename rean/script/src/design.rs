//! A design document as its functions see it.

use std::{fmt, sync::Arc};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::ScriptError;

/// A design document as its functions see it. Clones are the same; equal texts of one owner share their compiled functions.
#[derive(Clone)]
pub struct Design {
    inner: Arc<Inner>,
}

struct Inner {
    json: Arc<str>,
    owner: Arc<str>,
    hash: DesignHash,
}

/// What compiled functions are kept by: owner and text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DesignHash([u8; 16]);

/// A function of a design document.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FunctionName {
    /// `validate_doc_update`
    Validate,
    /// `filters.NAME`
    Filter(String),
    /// `updates.NAME`
    Update(String),
    /// `views.NAME.map`
    Map(String),
    /// `views.NAME.reduce`, where it isn't one of the built-in ones
    Reduce(String),
}

impl Design {
    /// Takes the text of a design document. Nothing is compiled yet.
    ///
    /// # Errors
    /// [`ScriptError::BadInput`] if it is no JSON object.
    pub fn new(json: &str) -> Result<Self, ScriptError> {
        serde_json::from_str::<Map<String, Value>>(json).map_err(|error| ScriptError::BadInput(error.to_string()))?;
        Ok(Self::made("", Arc::from(json)))
    }

    /// The same design document as one of `owner`'s (the instance of a database): no owner may hold all threads.
    #[must_use]
    pub fn for_owner(self, owner: &str) -> Self {
        Self::made(owner, Arc::clone(&self.inner.json))
    }

    /// The text that it was made from.
    pub fn json(&self) -> &str {
        &self.inner.json
    }

    /// Whose it is.
    pub fn owner(&self) -> &str {
        &self.inner.owner
    }

    pub(crate) fn shared_owner(&self) -> Arc<str> {
        Arc::clone(&self.inner.owner)
    }

    pub(crate) fn hash(&self) -> DesignHash {
        self.inner.hash
    }

    fn made(owner: &str, json: Arc<str>) -> Self {
        let mut sum = Sha256::new();
        sum.update((owner.len() as u64).to_be_bytes());
        sum.update(owner);
        sum.update(json.as_bytes());
        let mut hash = [0; 16];
        hash.copy_from_slice(&sum.finalize()[..16]);
        Self { inner: Arc::new(Inner { json, owner: Arc::from(owner), hash: DesignHash(hash) }) }
    }
}

impl PartialEq for Design {
    fn eq(&self, other: &Self) -> bool {
        self.inner.hash == other.inner.hash
    }
}

impl Eq for Design {}

impl fmt::Debug for Design {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Design({}, {} bytes)", hex::encode(self.inner.hash.0), self.inner.json.len())
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Validate => f.write_str("validate_doc_update"),
            Self::Filter(name) => write!(f, "filters.{name}"),
            Self::Update(name) => write!(f, "updates.{name}"),
            Self::Map(view) => write!(f, "views.{view}.map"),
            Self::Reduce(view) => write!(f, "views.{view}.reduce"),
        }
    }
}
