//! The functions of design documents, run in a box.

/// Runs the functions of design documents on threads of its own. Clones are the same.
#[derive(Clone)]
pub struct Scripts;

/// What a call may use.
#[derive(Debug, Clone)]
pub struct ScriptLimits {
    /// Bytes of memory.
    pub memory_bytes: usize,
}

impl Default for ScriptLimits {
    fn default() -> Self {
        Self { memory_bytes: 64 << 20 }
    }
}

impl Scripts {
    /// Starts the threads.
    pub fn new(_limits: ScriptLimits) -> Self {
        Self
    }
}
