//! podctl: the operator's hand, and the one binary that can be each of the others.
//!
//! One file a command under [`command`]; what the larger ones are made of is in the folders of their names.

mod backup;
mod bench;
mod command;
mod dev;
mod http;
mod import;
mod programs;
mod ring;
mod running;
mod sim;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Rows, revisions and bodies are many small allocations on many threads, where the system's allocator is slow and
/// keeps much of what was freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Starts a ring of pods, looks at it, changes it.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dev(command::dev::Args),
    Ring(command::ring::Args),
    Revocations(command::revocations::Args),
    Divergences(command::divergences::Args),
    Bench(command::bench::Args),
    Import(command::import::Args),
    Export(command::import::ExportArgs),
    Backup(command::backup::Args),
    Restore(command::backup::RestoreArgs),
    Check(command::check::Args),
    Sim(command::sim::Args),
    Adea(command::adea::Args),
    Rean(command::rean::Args),
    Proxy(command::proxy::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Dev(args) => command::dev::run(args),
        Command::Ring(args) => command::ring::run(args),
        Command::Revocations(args) => command::revocations::run(args),
        Command::Divergences(args) => command::divergences::run(args),
        Command::Bench(args) => command::bench::run(args),
        Command::Import(args) => command::import::run(args),
        Command::Export(args) => command::import::export(args),
        Command::Backup(args) => command::backup::run(args),
        Command::Restore(args) => command::backup::restore(args),
        Command::Check(args) => command::check::run(args),
        Command::Sim(args) => command::sim::run(args),
        Command::Adea(args) => command::adea::run(args),
        Command::Rean(args) => command::rean::run(args),
        Command::Proxy(args) => command::proxy::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            // The reader may be gone, which is no reason to panic.
            let _ = writeln!(io::stderr(), "error: {}", reasons(&err));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, but for those that the text before them tells already.
fn reasons(err: &anyhow::Error) -> String {
    err.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        before if before.contains(&cause) => text,
        _ => format!("{text}: {cause}"),
    })
}
