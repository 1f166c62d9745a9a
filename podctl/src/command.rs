//! The commands, one file each: what they take, and where the work is done.

pub mod adea;
pub mod app;
pub mod apps;
pub mod ask;
pub mod backup;
pub mod bench;
pub mod check;
pub mod completions;
pub mod config;
pub mod dev;
pub mod divergences;
pub mod doctor;
pub mod exit_codes;
pub mod health;
pub mod image;
pub mod import;
pub mod init;
pub mod join;
pub mod leave;
pub mod login;
pub mod logout;
pub mod logs;
pub mod maintenance;
pub mod man;
pub mod pods;
pub mod proxy;
pub mod rean;
pub mod revocations;
pub mod ring;
pub mod sim;
pub mod status;
pub mod token;
pub mod top;
pub mod upgrade;
pub mod users;

use std::future::Future;
use std::pin::Pin;

use anyhow::Context;

/// Runs a program on all cores until it has finished.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Runtime::new().context("can't start the runtime")?;
    // Boxed, so that the runtime's loop is in the program once, and not once a command.
    let work: Pin<Box<dyn Future<Output = anyhow::Result<T>> + '_>> = Box::pin(work);
    let done = runtime.block_on(work);
    // What is left are threads that wait for the outside, such as name look-ups; they are not to hold up the end.
    runtime.shutdown_background();
    done
}
