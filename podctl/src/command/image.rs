//! `podctl image`: a container image out of this very program.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use ::adea::image::{Image, ImageId};
use anyhow::{Context, bail};
use serde_json::json;

/// Write a container image of this program, for `docker load`; the same program gives the same bytes
#[derive(clap::Args)]
pub struct Args {
    /// The archive to write; - is standard output
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// The image's name with its tag; without it adea:VERSION-DIGEST
    #[arg(long, value_name = "NAME:TAG")]
    tag: Option<String>,
    /// The program to make it from; without it this one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Tell what was written as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => ::adea::process::this_program().context("can't find the running program")?,
    };
    let image = Image::of(&binary, adea_ring::software::version(), args.tag.as_deref())?;
    let to_stdout = args.output == Path::new("-");
    if to_stdout {
        if io::stdout().is_terminal() {
            bail!("--output -: an archive is nothing for a terminal; send it to a file or to `docker load`");
        }
        image.write(io::stdout().lock())?;
    } else {
        write_file(&image, &args.output)?;
    }
    let text = tell(image.id(), args.json);
    // Standard output may be the archive itself.
    let told = if to_stdout { writeln!(io::stderr(), "{text}") } else { writeln!(io::stdout(), "{text}") };
    told.context("can't say what was written")
}

/// Writes the archive beside its place first, so that a half one is never taken for a whole.
fn write_file(image: &Image, path: &Path) -> anyhow::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let cannot = || format!("can't write {}", path.display());
    let written = (|| {
        let mut out = BufWriter::new(File::create(&part).with_context(cannot)?);
        image.write(&mut out)?;
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .with_context(cannot)?;
        std::fs::rename(&part, path).with_context(cannot)
    })();
    if written.is_err() {
        // It may not be there.
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn tell(id: &ImageId, as_json: bool) -> String {
    if as_json {
        return json!({"name": id.name, "id": id.config, "layer": id.layer, "layer_bytes": id.layer_bytes}).to_string();
    }
    let mib = id.layer_bytes as f64 / 1_048_576.0;
    format!("{}  {:.1} MiB\nid     {}\nlayer  {}", id.name, mib, id.config, id.layer)
}
