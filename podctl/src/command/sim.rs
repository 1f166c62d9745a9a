//! `podctl sim`: what the ring would decide, worked out on this machine without a ring.

use std::io::{self, Write};

use adea_ring::peering::Params;
use anyhow::Context;

use crate::sim::{Plan, Row, simulate};

/// Work out what a ring would do, without one
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Peering(PeeringArgs),
}

/// How far a change travels between pods, and what is left when many fail at once
///
/// "Before" is the moment after the failure, when all pods still count on the failed ones; "after", when the failure is
/// noticed and each has worked out its peers anew.
#[derive(clap::Args)]
struct PeeringArgs {
    /// How many pods
    #[arg(long, value_delimiter = ',', default_value = "3,10,100,1000,2000", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pods: Vec<u32>,
    /// Neighbours on either side of the circle of ids
    #[arg(long, default_value_t = Params::default().k, value_parser = clap::value_parser!(u16).range(1..=16))]
    k: u16,
    /// Shortcuts for each pod, on average
    #[arg(long, default_value_t = Params::default().p, value_parser = shortcuts)]
    p: f64,
    /// Percentages of the pods to fail at once
    #[arg(long, value_delimiter = ',', default_value = "0,10,30,50", value_parser = clap::value_parser!(u32).range(0..=99))]
    fail: Vec<u32>,
    /// Picks the shortcuts and the pods that fail
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Lines of JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let What::Peering(args) = args.what;
    let mut out = io::stdout().lock();
    let params = Params { k: args.k, p: args.p, seed: args.seed };
    tell(&args, &params, &mut out).context("can't write the figures")
}

fn tell(args: &PeeringArgs, params: &Params, out: &mut impl Write) -> io::Result<()> {
    if !args.json {
        writeln!(out, "k = {}, p = {}, seed = {}", params.k, params.p, params.seed)?;
        writeln!(out, "{}", Row::HEAD)?;
    }
    for pods in &args.pods {
        for fail_percent in &args.fail {
            let row = simulate(&Plan { pods: *pods, fail_percent: *fail_percent, params: *params });
            if args.json {
                writeln!(out, "{}", row.json())?;
            } else {
                writeln!(out, "{row}")?;
            }
        }
    }
    out.flush()
}

fn shortcuts(text: &str) -> Result<f64, String> {
    let fits = |p: &f64| (0.0..=16.0).contains(p);
    text.parse().ok().filter(fits).ok_or_else(|| "a number from 0 to 16".to_owned())
}
