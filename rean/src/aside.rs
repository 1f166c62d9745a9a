//! Work that may take long, done so that it holds up no other request.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs blocking work in place, after handing this thread's other tasks to another one. Costs some
/// microseconds, so it is for what may take milliseconds.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    let many_threads = Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if many_threads { tokio::task::block_in_place(work) } else { work() }
}
