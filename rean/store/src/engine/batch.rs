//! A set of changes that becomes visible, and survives a crash, as a whole or not at all.

use super::{EngineError, Space, Value};

/// The longest key in bytes: what leaves sled room for its prefixes and fits fjall's 16-bit length.
pub const MAX_KEY_BYTES: usize = 65_000;

/// The longest value in bytes. Attachments arrive in far smaller pieces, and a value above the
/// journal's size would make that size a lie.
pub const MAX_VALUE_BYTES: usize = 64 << 20;

/// Puts and deletes over all key spaces, applied in order: of two for one key the last one wins.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    ops: Vec<Op>,
    bytes: usize,
}

/// One change; no value means delete.
#[derive(Debug, Clone)]
pub(super) struct Op {
    pub space: Space,
    pub key: Value,
    pub value: Option<Value>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for `ops` changes.
    pub fn with_capacity(ops: usize) -> Self {
        Self { ops: Vec::with_capacity(ops), bytes: 0 }
    }

    /// Sets a key. `Vec<u8>` and `Bytes` are taken without a copy.
    pub fn put(&mut self, space: Space, key: impl Into<Value>, value: impl Into<Value>) {
        self.push(Op { space, key: key.into(), value: Some(value.into()) });
    }

    /// Removes a key; it need not exist.
    pub fn delete(&mut self, space: Space, key: impl Into<Value>) {
        self.push(Op { space, key: key.into(), value: None });
    }

    /// How many changes it holds.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// True if it holds no change.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The size of its keys and values in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds all changes of `other` after its own.
    pub fn append(&mut self, mut other: Batch) {
        self.bytes += other.bytes;
        self.ops.append(&mut other.ops);
    }

    /// Refuses what an engine could not hold, before anything is written.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        for op in &self.ops {
            if op.key.is_empty() || op.key.len() > MAX_KEY_BYTES {
                return Err(EngineError::KeyLength { len: op.key.len(), max: MAX_KEY_BYTES });
            }
            let len = op.value.as_ref().map_or(0, Value::len);
            if len > MAX_VALUE_BYTES {
                return Err(EngineError::ValueLength { len, max: MAX_VALUE_BYTES });
            }
        }
        Ok(())
    }

    pub(super) fn into_ops(self) -> Vec<Op> {
        self.ops
    }

    fn push(&mut self, op: Op) {
        self.bytes += op.key.len() + op.value.as_ref().map_or(0, Value::len);
        self.ops.push(op);
    }
}
