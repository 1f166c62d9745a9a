//! `podctl upgrade`: other software for the ring, pod by pod.

use std::path::PathBuf;

use adea_ring::PodId;
use adea_ring::upgrade::OrderPublicKey;

use crate::moment::parse_span;
use crate::ring::target::{CONFIG, TargetArgs};
use crate::upgrade;

/// Change the software of all pods, one after the other: each hands over, is replaced, catches up; all go back when one
/// is not well. The order is signed, so run it on the machine that has the ring's order.key: the one of `podctl init`.
/// Exits with 0 when all pods have the new software
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub order: OrderArgs,
    #[command(flatten)]
    pub common: Common,
}

#[derive(clap::Subcommand)]
pub enum Command {
    /// How far the upgrade is, pod by pod. Exits with 5 when it failed or was called off
    Status(Common),
    /// Call the upgrade off: pods that have the new software go back, one after the other
    Cancel(CancelArgs),
    /// Show the key that orders must be signed with, and where it lies; or replace it where it is lost, leaked or missing
    Key(KeyArgs),
}

#[derive(clap::Args)]
pub struct CancelArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub signing: Signing,
}

#[derive(clap::Args)]
pub struct Signing {
    /// The private key that signs orders [default: order.key beside the ring file]
    #[arg(long, value_name = "FILE")]
    pub order_key: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct KeyArgs {
    /// Make a new key, which lies on this machine from now on; then do what this prints on all other machines of the ring.
    /// What the old one has signed counts no more
    #[arg(long)]
    pub replace: bool,
    /// On this machine count only orders that are signed with this key, as `podctl upgrade key` prints it on the machine
    /// that has it
    #[arg(long, value_name = "KEY", conflicts_with = "replace")]
    pub trust: Option<OrderPublicKey>,
    /// The pod on whose machine that key lies, to be told to people
    #[arg(long, value_name = "POD", requires = "trust")]
    pub at: Option<PodId>,
    /// Also when this machine's clock and those of the other pods are more than a minute apart
    #[arg(long, requires = "trust")]
    pub force: bool,
    /// The file with the ring's secret, which is changed [default: that of this machine's pod]
    #[arg(long)]
    pub ring_file: Option<PathBuf>,
    /// The data folder of a `podctl dev` [default: ./adea-data]
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// The configuration of the pod on this machine
    #[arg(long, default_value = CONFIG, env = "ADEA_CONFIG")]
    pub config: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct OrderArgs {
    /// An image: a file of `podctl image` or `docker save`, or a name in a registry with its digest, NAME@sha256:DIGEST
    #[arg(long, value_name = "FILE|NAME", conflicts_with = "binary")]
    pub image: Option<String>,
    /// A podctl program file; pods with containers make their image from it, for which it must be a static one
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// How long each pod may take to be well under the new software, such as 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_patience)]
    pub patience: u64,
    /// Also while another upgrade is under way, which is left where it is; or while a pod is away, which is waited for
    #[arg(long)]
    pub force: bool,
    /// Only order it, and don't wait for the end
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub signing: Signing,
}

#[derive(clap::Args)]
pub struct Common {
    #[command(flatten)]
    pub target: TargetArgs,
    /// The file with the ring's secret [default: that of this machine's pod]
    #[arg(long)]
    pub ring_file: Option<PathBuf>,
    /// Print JSON: one object for each change, or one in all with `status`
    #[arg(long)]
    pub json: bool,
}

/// Seconds.
fn parse_patience(text: &str) -> anyhow::Result<u64> {
    use adea_ring::upgrade::{MAX_PATIENCE_S, MIN_PATIENCE_S};
    let seconds = parse_span(text)? / 1_000;
    if (MIN_PATIENCE_S..=MAX_PATIENCE_S).contains(&seconds) {
        return Ok(seconds);
    }
    anyhow::bail!("from {MIN_PATIENCE_S}s to 24h")
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(async {
        match &args.command {
            None => upgrade::start(&args.order, &args.common).await,
            Some(Command::Status(common)) => upgrade::status(common).await,
            Some(Command::Cancel(args)) => upgrade::cancel(args).await,
            Some(Command::Key(args)) => upgrade::key(args).await,
        }
    })
}
