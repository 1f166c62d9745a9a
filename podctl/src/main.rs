//! podctl: the operator's hand, and the one binary that can be each of the others.
//!
//! One file a command under [`command`]; what the larger ones are made of is in the folders of their names.

mod app;
mod backup;
mod bench;
mod command;
mod config_edit;
mod contexts;
mod dev;
mod doctor;
mod exit;
mod http;
mod import;
mod init;
mod join;
mod leave;
mod login;
mod look;
mod machine;
mod moment;
mod paint;
mod password;
mod programs;
mod ring;
mod running;
mod sim;
mod token;
mod upgrade;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Rows, revisions and bodies are many small allocations on many threads, where the system's allocator is slow and
/// keeps much of what was freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Starts a ring of pods, looks at it, changes it.
#[derive(Parser)]
#[command(version = adea_ring::software::version(), about, after_long_help = format!("Exit codes:\n{}", exit::MEANINGS))]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dev(command::dev::Args),
    Status(command::status::Args),
    Pods(command::pods::Args),
    Apps(command::apps::Args),
    App(command::app::Args),
    Users(command::users::Args),
    Top(command::top::Args),
    Logs(command::logs::Args),
    Maintenance(command::maintenance::Args),
    Config(command::config::Args),
    Doctor(command::doctor::Args),
    Init(command::init::Args),
    Join(command::join::Args),
    Leave(command::leave::Args),
    Token(command::token::Args),
    Login(command::login::Args),
    Logout(command::logout::Args),
    Upgrade(command::upgrade::Args),
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
    Image(command::image::Args),
    Health(command::health::Args),
    Adea(command::adea::Args),
    Rean(command::rean::Args),
    Proxy(command::proxy::Args),
    Completions(command::completions::Args),
    Man(command::man::Args),
    ExitCodes(command::exit_codes::Args),
}

fn main() -> ExitCode {
    #[cfg(adea_next)]
    next_version();
    // Before anything else: until then all users of this machine can see it.
    if let Err(err) = join::hide() {
        let _ = writeln!(io::stderr(), "error: {}", reasons(&err));
        return ExitCode::FAILURE;
    }
    let done = match Cli::parse().command {
        Command::Dev(args) => command::dev::run(args),
        Command::Status(args) => command::status::run(args),
        Command::Pods(args) => command::pods::run(args),
        Command::Apps(args) => command::apps::run(args),
        Command::App(args) => command::app::run(args),
        Command::Users(args) => command::users::run(args),
        Command::Top(args) => command::top::run(args),
        Command::Logs(args) => command::logs::run(args),
        Command::Maintenance(args) => command::maintenance::run(args),
        Command::Config(args) => command::config::run(args),
        Command::Doctor(args) => command::doctor::run(args),
        Command::Init(args) => command::init::run(args),
        Command::Join(args) => command::join::run(args),
        Command::Leave(args) => command::leave::run(args),
        Command::Token(args) => command::token::run(args),
        Command::Login(args) => command::login::run(args),
        Command::Logout(args) => command::logout::run(args),
        Command::Upgrade(args) => command::upgrade::run(args),
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
        Command::Image(args) => command::image::run(&args),
        Command::Health(args) => command::health::run(&args),
        Command::Adea(args) => command::adea::run(args),
        Command::Rean(args) => command::rean::run(args),
        Command::Proxy(args) => command::proxy::run(args),
        Command::Completions(args) => command::completions::run(args),
        Command::Man(args) => command::man::run(args),
        Command::ExitCodes(args) => command::exit_codes::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            // The reader may be gone, which is no reason to panic.
            let _ = writeln!(io::stderr(), "error: {}", reasons(&err));
            ExitCode::from(exit::Code::of(&err) as u8)
        }
    }
}

/// Makes this build one of a later version: for tests of two versions side by side.
#[cfg(adea_next)]
fn next_version() {
    adea_ring::software::set_version(concat!(env!("CARGO_PKG_VERSION"), "-next"));
    adea_ring::software::set_extra();
}

/// The error and its causes, but for those that the text before them tells already.
fn reasons(err: &anyhow::Error) -> String {
    err.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        before if before.contains(&cause) => text,
        _ => format!("{text}: {cause}"),
    })
}
