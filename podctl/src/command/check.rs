//! `podctl check`: whether a stopped pod's store agrees with itself.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Check what a stopped pod has stored; exits with 1 when something is wrong
#[derive(clap::Args)]
pub struct Args {
    /// The pod's data folder, or the store's own
    #[arg(long, default_value = "./adea-data")]
    pub data: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    ::adea::limits::raise_open_files();
    let path = store_in(&args.data);
    let mut out = io::stdout().lock();
    let (mut databases, mut faults) = (0u64, 0u64);
    let mut told = Ok(());
    rean::check::check(&path, |found| {
        databases += 1;
        faults += found.faults.len() as u64;
        if told.is_ok() {
            told = tell(&mut out, &found);
        }
    })?;
    told.and_then(|()| out.flush()).context("can't write the findings")?;
    if faults > 0 {
        bail!("{faults} faults in {}", path.display());
    }
    writeln!(out, "{databases} databases, no faults").context("can't write the findings")
}

/// A pod keeps its store in `rean`; a server that runs by itself keeps it where it was told to.
fn store_in(data: &Path) -> PathBuf {
    let of_a_pod = data.join("rean");
    if of_a_pod.is_dir() { of_a_pod } else { data.to_path_buf() }
}

fn tell(out: &mut impl Write, found: &rean::check::Found) -> io::Result<()> {
    let verdict = if found.faults.is_empty() { "well" } else { "NOT well" };
    writeln!(out, "{}: {} documents, {verdict}", found.name, found.docs)?;
    found.faults.iter().try_for_each(|fault| writeln!(out, "  {fault}"))
}
