//! The proxy as a program of its own; see the library.

use clap::Parser;
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(name = "proxy", version, about = "The public port of a pod")]
struct Cli {
    #[command(flatten)]
    args: proxy::cli::Args,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("ADEA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(proxy::cli::main(cli.args)?)
}
