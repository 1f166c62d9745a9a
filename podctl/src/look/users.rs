//! The accounts of the ring's users. Passwords come from a file, the environment or the terminal, never from the command
//! line, and go nowhere but to the pod.

use std::io::{self, IsTerminal};
use std::path::Path;

use anyhow::{Context, bail};
use http::{Method, StatusCode};
use rand::RngExt;
use serde_json::{Value, json};

use super::ask::{confirm, say};
use super::maintenance::encoded;
use crate::command::ask::AskArgs;
use crate::command::users::{AddArgs, Args, Command, NewPassword, PasswordArgs, RemoveArgs, RolesArgs};
use crate::exit::{self, Refused};
use crate::http::{Conn, excerpt};
use crate::import::secret::prompt;
use crate::ring::documents::{self, starting_with};
use crate::ring::table::Table;

/// What ids of accounts begin with.
const PREFIX: &str = "org.couchdb.user:";
/// The variable with the new password.
const NEW_PASSWORD_ENV: &str = "ADEA_NEW_PASSWORD";
/// Letters and digits that nobody takes for one another.
const ALPHABET: &[u8] = b"abcdefghjkmnpqrstuvwxyzABCDEFGHJKMNPQRSTUVWXYZ23456789";
/// So many of them are more than 110 bits.
const GENERATED_LENGTH: usize = 20;
/// Tries to change an account while others do.
const TRIES: usize = 5;

/// Lists or changes accounts.
///
/// # Errors
/// When no pod answers, or it refuses.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Some(Command::Add(args)) => add(args).await,
        Some(Command::Password(args)) => password(args).await,
        Some(Command::Roles(args)) => roles(args).await,
        Some(Command::Remove(args)) => remove(args).await,
        Some(Command::List(ask)) => list(ask).await,
        None => list(&args.ask).await,
    }
}

async fn list(ask: &AskArgs) -> anyhow::Result<()> {
    let mut conn = ask.target.connect().await?;
    let (docs, more) = starting_with(&mut conn, "_users", PREFIX).await?;
    let users: Vec<(String, Vec<String>)> = docs.iter().filter_map(user).collect();
    if ask.json {
        let rows: Vec<Value> = users.iter().map(|(name, roles)| json!({"name": name, "roles": roles})).collect();
        return say(&format!("{}\n", json!({"users": rows, "more": more})));
    }
    if users.is_empty() {
        return say("there are no accounts; `podctl users add NAME` makes one\n");
    }
    let mut table = Table::new(&["name", "roles"]);
    users.into_iter().for_each(|(name, roles)| table.push(vec![name, roles.join(", ")]));
    say(&(table.text() + if more { "... and more\n" } else { "" }))
}

/// Name and roles; nothing of what the document says of the password.
fn user(doc: &Value) -> Option<(String, Vec<String>)> {
    let name = doc["_id"].as_str()?.strip_prefix(PREFIX)?.to_owned();
    Some((name, roles_of(doc)))
}

fn roles_of(doc: &Value) -> Vec<String> {
    doc["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

async fn add(args: &AddArgs) -> anyhow::Result<()> {
    let (password, generated) = new_password(&args.name, &args.password)?;
    let mut conn = args.ask.target.connect().await?;
    let doc = json!({"type": "user", "name": args.name, "roles": args.roles, "password": password});
    if !put(&mut conn, &args.name, &doc).await? {
        bail!("there is an account {} already: `podctl users password` and `podctl users roles` change it", args.name);
    }
    tell(&args.ask, &args.name, &args.roles, generated.then_some(&password), "was made")
}

async fn password(args: &PasswordArgs) -> anyhow::Result<()> {
    let (password, generated) = new_password(&args.name, &args.password)?;
    let mut conn = args.ask.target.connect().await?;
    let doc = change(&mut conn, &args.name, |doc| doc["password"] = json!(password)).await?;
    tell(&args.ask, &args.name, &roles_of(&doc), generated.then_some(&password), "has a new password")
}

async fn roles(args: &RolesArgs) -> anyhow::Result<()> {
    let mut conn = args.ask.target.connect().await?;
    if args.set.is_none() && args.add.is_empty() && args.remove.is_empty() {
        let doc = get(&mut conn, &args.name).await?;
        let roles = roles_of(&doc);
        let text =
            if args.ask.json { json!({"name": args.name, "roles": roles}).to_string() } else { roles.join("\n") };
        return if text.is_empty() { Ok(()) } else { say(&format!("{text}\n")) };
    }
    let doc = change(&mut conn, &args.name, |doc| doc["roles"] = json!(changed_roles(roles_of(doc), args))).await?;
    tell(&args.ask, &args.name, &roles_of(&doc), None, "has other roles now, within seconds on all pods")
}

fn changed_roles(before: Vec<String>, args: &RolesArgs) -> Vec<String> {
    let mut roles = args.set.clone().unwrap_or(before);
    // `--set ''` leaves none.
    roles.retain(|role| !role.is_empty() && !args.remove.contains(role));
    for role in &args.add {
        if !roles.contains(role) {
            roles.push(role.clone());
        }
    }
    roles
}

async fn remove(args: &RemoveArgs) -> anyhow::Result<()> {
    let mut conn = args.ask.target.connect().await?;
    get(&mut conn, &args.name).await?;
    if !args.yes {
        confirm(
            &format!("The account {} goes, and with it the right to read what is for it alone", args.name),
            &args.name,
        )?;
    }
    change(&mut conn, &args.name, |doc| doc["_deleted"] = true.into()).await?;
    if args.ask.json {
        return say(&format!("{}\n", json!({"name": args.name, "removed": true})));
    }
    say(&format!("{} was removed; what that user wrote stays\n", args.name))
}

fn tell(ask: &AskArgs, name: &str, roles: &[String], generated: Option<&String>, done: &str) -> anyhow::Result<()> {
    if ask.json {
        let mut json = json!({"name": name, "roles": roles});
        if let Some(password) = generated {
            json["password"] = json!(password);
        }
        return say(&format!("{json}\n"));
    }
    let password = generated.map_or_else(String::new, |password| format!("password {password}\n"));
    say(&format!("{name} {done}\n{password}"))
}

async fn get(conn: &mut Conn, name: &str) -> anyhow::Result<Value> {
    documents::get(conn, &path(name)).await?.ok_or_else(|| exit::wrong_use(format!("there is no account {name}")))
}

async fn change(conn: &mut Conn, name: &str, edit: impl Fn(&mut Value)) -> anyhow::Result<Value> {
    for _ in 0..TRIES {
        let mut doc = get(conn, name).await?;
        edit(&mut doc);
        if put(conn, name, &doc).await? {
            return Ok(doc);
        }
    }
    bail!("somebody else changes the account {name} at this moment: try again")
}

/// Whether it was written; `false` when somebody else has written it meanwhile.
async fn put(conn: &mut Conn, name: &str, doc: &Value) -> anyhow::Result<bool> {
    let path = path(name);
    let (status, body) = conn.send(Method::PUT, &path, doc.to_string()).await?;
    match status {
        StatusCode::CONFLICT => Ok(false),
        status if status.is_success() => Ok(true),
        status => bail!(Refused { method: Method::PUT, path, status, excerpt: excerpt(&body) }),
    }
}

fn path(name: &str) -> String {
    format!("/_users/{}", encoded(&format!("{PREFIX}{name}")))
}

/// The new password, and whether it was made up here.
fn new_password(name: &str, from: &NewPassword) -> anyhow::Result<(String, bool)> {
    if from.generate {
        return Ok((generate(), true));
    }
    let password = match (&from.new_password_file, std::env::var(NEW_PASSWORD_ENV)) {
        (Some(path), _) => of_file(path)?,
        (None, Ok(password)) => password,
        (None, Err(_)) if io::stdin().is_terminal() => {
            let first = prompt(&format!("New password of {name}: "))?;
            if prompt("Once more: ")? != first {
                bail!("the two are not the same: nothing was done");
            }
            first
        }
        (None, Err(_)) => {
            return Err(exit::wrong_use(format!(
                "no password: give --new-password-file FILE or --generate, or set {NEW_PASSWORD_ENV}"
            )));
        }
    };
    if password.is_empty() {
        return Err(exit::wrong_use("the new password is empty"));
    }
    Ok((password, false))
}

fn of_file(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

fn generate() -> String {
    let mut random = rand::rng();
    (0..GENERATED_LENGTH).map(|_| char::from(ALPHABET[random.random_range(..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::{ALPHABET, GENERATED_LENGTH, changed_roles, generate, user};
    use crate::command::users::RolesArgs;
    use clap::{Args, FromArgMatches};
    use serde_json::json;

    fn args(line: &[&str]) -> RolesArgs {
        let command = RolesArgs::augment_args(clap::Command::new("roles").no_binary_name(true));
        RolesArgs::from_arg_matches(&command.get_matches_from(line)).expect("good arguments")
    }

    #[test]
    fn nothing_of_a_password_is_listed() {
        let doc = json!({"_id": "org.couchdb.user:ann", "roles": ["a"], "salt": "x", "derived_key": "y"});
        assert_eq!(user(&doc), Some(("ann".to_owned(), vec!["a".to_owned()])));
        assert_eq!(user(&json!({"_id": "_design/x"})), None);
    }

    #[test]
    fn roles_come_and_go() {
        let before = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(changed_roles(before(), &args(&["ann", "--add", "c,a", "--remove", "b"])), ["a", "c"]);
        assert_eq!(changed_roles(before(), &args(&["ann", "--set", "x,y"])), ["x", "y"]);
        assert!(changed_roles(before(), &args(&["ann", "--set", ""])).is_empty());
    }

    #[test]
    fn made_up_passwords_are_long_and_different() {
        let (one, two) = (generate(), generate());
        assert!(one.len() == GENERATED_LENGTH && one != two);
        assert!(one.bytes().all(|byte| ALPHABET.contains(&byte)));
    }
}
