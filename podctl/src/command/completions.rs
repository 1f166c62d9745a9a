//! `podctl completions`: what a shell completes.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::Cli;
use crate::look::ask::say;

/// Print a script by which a shell completes podctl's commands: such as `podctl completions bash >
/// /etc/bash_completion.d/podctl`
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    pub shell: Shell,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "podctl", &mut script);
    say(&String::from_utf8_lossy(&script))
}
