//! `rean --config FILE [--exit-with-parent]`: the database server of a pod. Also `podctl rean`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

/// What the command line says.
struct Arguments {
    config: PathBuf,
    exit_with_parent: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rean: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments = parse(std::env::args_os().skip(1))?;
    Ok(rean::process::main(&arguments.config, arguments.exit_with_parent)?)
}

fn parse(mut rest: impl Iterator<Item = std::ffi::OsString>) -> anyhow::Result<Arguments> {
    let mut config = None;
    let mut exit_with_parent = false;
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("--config") => config = rest.next().map(PathBuf::from),
            Some("--exit-with-parent") => exit_with_parent = true,
            _ => anyhow::bail!("unknown argument {argument:?}; usage: rean --config FILE [--exit-with-parent]"),
        }
    }
    Ok(Arguments { config: config.context("usage: rean --config FILE [--exit-with-parent]")?, exit_with_parent })
}
