//! Which databases, and under which names. Pure.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use rean::databases::check_name;

/// Accounts.
pub const ACCOUNTS: &str = "_users";
/// Replications.
pub const REPLICATIONS: &str = "_replicator";
/// Databases that a server keeps for itself.
const OWN: [&str; 5] = ["_global_changes", "_metadata", "_nodes", "_ring", "_pods"];

/// A database that is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Its name at the source.
    pub from: String,
    /// Its name at the target.
    pub to: String,
}

/// Which way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From a CouchDB into a pod.
    In,
    /// From a pod to a CouchDB.
    Out,
}

/// What is named on the command line.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Names, or `OLD=NEW`; none: all.
    pub databases: Vec<String>,
    /// Names that are left out.
    pub skipped: Vec<String>,
}

/// Chooses of all the databases of the source: accounts first, replications last. `all` is not needed when names are given.
///
/// # Errors
/// When a name isn't there, can't be at the target, or comes twice.
pub fn choose(wish: &Wish, all: Option<&[String]>, way: Way) -> anyhow::Result<Vec<Choice>> {
    let mut named = Vec::new();
    let mut renamed = Vec::new();
    for text in &wish.databases {
        match text.split_once('=') {
            Some((from, to)) => renamed.push((from.to_owned(), to.to_owned())),
            None => named.push(text.clone()),
        }
    }
    let froms: Vec<String> = match (wish.databases.is_empty(), all) {
        (true, Some(all)) => all.iter().filter(|name| is_usual(name, way)).cloned().collect(),
        (true, None) => bail!("no databases are named"),
        (false, _) => named.into_iter().chain(renamed.iter().map(|(from, _)| from.clone())).collect(),
    };
    let mut choices: Vec<Choice> = Vec::new();
    for from in froms.into_iter().filter(|name| !wish.skipped.contains(name)) {
        let to = renamed.iter().find(|(old, _)| *old == from).map_or_else(|| from.clone(), |(_, new)| new.clone());
        choices.push(Choice { from, to });
    }
    choices.sort_by_key(|choice| match choice.from.as_str() {
        ACCOUNTS => 0,
        REPLICATIONS => 2,
        _ => 1,
    });
    check(&choices, way)?;
    Ok(choices)
}

fn is_usual(name: &str, way: Way) -> bool {
    match way {
        Way::In => !OWN.contains(&name),
        // Hashes of ours mean nothing to a CouchDB, and replications go between places that it may not reach.
        Way::Out => !name.starts_with('_'),
    }
}

fn check(choices: &[Choice], way: Way) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for Choice { from, to } in choices {
        if OWN.contains(&from.as_str()) || OWN.contains(&to.as_str()) {
            bail!("{from} is the server's own and can't be copied");
        }
        if (from.starts_with('_') || to.starts_with('_')) && from != to {
            bail!("{from}: accounts and replications keep the name of their database");
        }
        if !seen.insert(to) {
            bail!("two databases would become {to}");
        }
        if way == Way::In
            && let Err(error) = check_name(to)
        {
            wrong.push(format!("{from}: {}", error.reason));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(anyhow::anyhow!(wrong.join("; "))).context(
        "some names can't be here: give such a database another one with --db OLD=NEW, or leave it out with --skip OLD",
    )
}

#[cfg(test)]
mod tests {
    use super::{Way, Wish, choose};

    fn names(databases: &[&str], skipped: &[&str], way: Way) -> Result<Vec<String>, String> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let all = owned(&["_global_changes", "_replicator", "_users", "a", "b/c", "x--y"]);
        let wish = Wish { databases: owned(databases), skipped: owned(skipped) };
        let chosen = choose(&wish, Some(&all), way).map_err(|error| format!("{error:#}"))?;
        Ok(chosen.into_iter().map(|choice| format!("{}>{}", choice.from, choice.to)).collect())
    }

    #[test]
    fn all_that_is_meant_by_all() {
        let error = names(&[], &[], Way::In).unwrap_err();
        assert!(error.contains("x--y") && error.contains("--db OLD=NEW"), "{error}");
        let chosen = names(&[], &["x--y"], Way::In).unwrap();
        assert_eq!(chosen, ["_users>_users", "a>a", "b/c>b/c", "_replicator>_replicator"]);
        assert_eq!(names(&[], &[], Way::Out).unwrap(), ["a>a", "b/c>b/c", "x--y>x--y"]);
    }

    #[test]
    fn named_ones_may_get_other_names() {
        assert_eq!(names(&["x--y=x-y", "_users"], &[], Way::In).unwrap(), ["_users>_users", "x--y>x-y"]);
        for wrong in [&["a=b", "b"][..], &["_users=a"], &["a=_users"], &["_ring"], &["a=B"]] {
            assert!(names(wrong, &[], Way::In).is_err(), "{wrong:?}");
        }
    }
}
