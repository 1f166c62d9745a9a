//! `podctl logs`: what the programs of the pods have logged.

use super::ask::AskArgs;
use crate::look;

/// Show the newest lines of the pods' logs, in the order of time
#[derive(clap::Args)]
pub struct Args {
    /// Only these pods
    #[arg(value_name = "POD")]
    pub pods: Vec<String>,
    /// Only these programs; may be given again
    #[arg(long = "program", value_name = "PROGRAM", value_delimiter = ',',
        default_values = ["adea", "rean", "proxy"], value_parser = ["adea", "rean", "proxy"])]
    pub programs: Vec<String>,
    /// How many lines, of all together
    #[arg(long, default_value_t = 100, value_parser = lines)]
    pub lines: usize,
    /// That many lines of each log, and not of all together
    #[arg(long)]
    pub all_lines: bool,
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

fn lines(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|lines| (1..=5_000).contains(lines)).ok_or_else(|| "must be from 1 to 5000".to_owned())
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(look::logs::run(&args))
}
