//! Limits of the operating system that a server needs raised.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the number of files that this process may have open as far as it is allowed to, and gives
/// that number. Each client that follows a changes feed holds one open connection, and the usual
/// limit of 1,024 would be its end.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(err) = setrlimit(Resource::Nofile, wanted) {
        tracing::debug!("can't raise the number of open files: {err}");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
