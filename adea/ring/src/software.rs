//! Which build this is: the version that all programs tell, set once by the binary that they are in.

use std::sync::OnceLock;

static VERSION: OnceLock<&'static str> = OnceLock::new();

/// Sets the version that this process tells. Only the first call counts; a binary makes it before anything else.
pub fn set_version(version: &'static str) {
    let _ = VERSION.set(version);
}

/// The version of this build, such as `0.1.0`.
pub fn version() -> &'static str {
    VERSION.get().copied().unwrap_or(env!("CARGO_PKG_VERSION"))
}
