//! When a program has to stop: on SIGTERM and SIGINT, and when its parent is gone; and how an agent begins anew.
//!
//! A parent that dies, even by SIGKILL, closes its end of the pipe that is its child's standard input. A child
//! that was started with `--exit-with-parent` sees the end of that and stops as if it had been told to. (Linux's
//! parent-death signal would do for some of this, but it follows the parent's thread, not its process.)

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::folder::Folder;
use crate::process::this_program;

/// How the agent is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With its programs, in order.
    Stop,
    /// Without them: it is to be started again at once, and finds them running. Child processes can't be left alone and
    /// stop all the same.
    LetGo,
    /// With its programs, in order, and with all that it has in the engine: its pod was removed from the ring.
    Removed,
}

/// A program whose parent is gone and that doesn't manage to stop in this time ends itself.
const ALONE_DEADLINE: Duration = Duration::from_secs(15);

/// Resolves when the program has to stop, and says why. Call it early: signals before that end the program at once.
///
/// # Errors
/// When the signals can't be listened to.
pub fn requested(exit_with_parent: bool) -> std::io::Result<impl Future<Output = &'static str> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let orphaned = exit_with_parent.then(watch_parent).transpose()?;
    Ok(async move {
        let orphaned = async {
            match orphaned {
                Some(orphaned) => {
                    // An error means that the watching thread is gone; it ends only at end of input.
                    let _ = orphaned.await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = orphaned => "its parent is gone",
        }
    })
}

/// Resolves when the agent has to end: SIGHUP lets its programs go, all else stops them. Call it early, as
/// [`requested`].
///
/// # Errors
/// When the signals can't be listened to.
pub fn of_agent(exit_with_parent: bool) -> std::io::Result<impl Future<Output = End> + Send + 'static> {
    let stop = requested(exit_with_parent)?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            why = stop => {
                tracing::info!("stopping: {why}");
                End::Stop
            }
            _ = hang_up.recv() => {
                tracing::info!("beginning anew: SIGHUP");
                End::LetGo
            }
        }
    })
}

/// Reads standard input to its end on a thread of its own: the runtime's own way of reading it would keep the
/// runtime from shutting down.
fn watch_parent() -> std::io::Result<oneshot::Receiver<()>> {
    let (gone, orphaned) = oneshot::channel();
    thread::Builder::new().name("parent-watch".to_owned()).spawn(move || {
        let mut ignored = [0u8; 64];
        let mut input = std::io::stdin();
        while !matches!(input.read(&mut ignored), Ok(0) | Err(_)) {}
        let _ = gone.send(());
        thread::sleep(ALONE_DEADLINE);
        tracing::error!("could not stop in {} s", ALONE_DEADLINE.as_secs());
        std::process::exit(1);
    })?;
    Ok(orphaned)
}

/// Replaces this process by a new agent with the same arguments: the program that an upgrade has left in the data
/// folder, or this one's own file. It only returns when that can't be done.
pub fn begin_anew(folder: &Folder) -> std::io::Error {
    let upgraded = folder.program();
    let program = if upgraded.is_file() { upgraded } else { this_program().unwrap_or(upgraded) };
    tracing::info!("going on as {}", program.display());
    Command::new(program).args(std::env::args_os().skip(1)).exec()
}
