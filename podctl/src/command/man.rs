//! `podctl man`: the manual.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::CommandFactory;

use crate::Cli;

/// Write the manual pages, one for each command, such as into /usr/local/share/man/man1
#[derive(clap::Args)]
pub struct Args {
    /// The folder; it is made if need be
    pub dir: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    write(&args.dir)
}

fn write(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(|| format!("can't write to {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::write;
    use crate::{Cli, exit};
    use clap::{Command, CommandFactory};

    fn each(command: &Command, path: &str, look: &mut impl FnMut(&str, &Command)) {
        let path = format!("{path} {}", command.get_name());
        look(path.trim(), command);
        command.get_subcommands().for_each(|below| each(below, &path, look));
    }

    #[test]
    fn every_command_and_option_has_a_word_of_help() {
        Cli::command().debug_assert();
        each(&Cli::command(), "", &mut |path, command| {
            assert!(command.get_about().is_some(), "{path} has no help");
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{path}: {} has no help", arg.get_id());
            }
        });
    }

    #[test]
    fn what_prints_of_a_ring_prints_json_too() {
        // They do something and print nothing but errors, or print nothing that a program would read.
        const WITHOUT: [&str; 13] = [
            "podctl adea",
            "podctl rean",
            "podctl proxy",
            "podctl bench",
            "podctl check",
            "podctl sim",
            "podctl completions",
            "podctl man",
            "podctl exit-codes",
            "podctl config edit",
            "podctl image",
            "podctl health",
            "podctl logout",
        ];
        each(&Cli::command(), "", &mut |path, command| {
            let is_group = command.get_subcommands().next().is_some();
            if !is_group && !WITHOUT.contains(&path) {
                assert!(command.get_arguments().any(|arg| arg.get_id() == "json"), "{path} has no --json");
            }
        });
    }

    #[test]
    fn the_manual_has_a_page_for_each_command() {
        let dir = tempfile::tempdir().expect("a folder");
        write(&dir.path().join("man1")).expect("the pages");
        each(&Cli::command(), "", &mut |path, _| {
            let page = dir.path().join("man1").join(format!("{}.1", path.replace(' ', "-")));
            assert!(page.is_file(), "{} is missing", page.display());
        });
        let first = std::fs::read_to_string(dir.path().join("man1/podctl.1")).expect("a page");
        for line in exit::MEANINGS.lines() {
            let word = line.split_whitespace().nth(2).expect("a word");
            assert!(first.contains(word), "{line}");
        }
    }
}
