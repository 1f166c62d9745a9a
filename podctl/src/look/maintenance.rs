//! Databases in maintenance: closed to everyone, or to readers. The rules are the section `maintenance` of the server
//! settings, which every pod's proxy follows.

use adea_ring::node_config::{CLOSED, MAINTENANCE, NODE_CONFIG_ID, WRITE_ONLY};
use anyhow::bail;
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::ask::say;
use crate::command::ask::AskArgs;
use crate::command::maintenance::{Args, Command};
use crate::exit::{self, Refused};
use crate::http::{Conn, excerpt};
use crate::ring::documents;
use crate::ring::table::Table;

/// Shows the databases in maintenance, or changes one.
///
/// # Errors
/// When no pod answers, or it refuses.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Some(Command::On(on)) => {
            let rule = if on.write_only { WRITE_ONLY } else { CLOSED };
            let mut conn = on.ask.target.connect().await?;
            require(&mut conn, &on.db).await?;
            conn.expect(Method::PUT, &path(&on.db), Value::from(rule).to_string()).await?;
            tell(&on.ask, &on.db, Some(rule))
        }
        Some(Command::Off(off)) => {
            let mut conn = off.ask.target.connect().await?;
            end(&mut conn, &off.db).await?;
            tell(&off.ask, &off.db, None)
        }
        Some(Command::List(ask)) => list(ask).await,
        None => list(&args.ask).await,
    }
}

/// The databases in maintenance, and what holds for each.
///
/// # Errors
/// When no pod answers.
pub async fn read(conn: &mut Conn) -> anyhow::Result<Vec<(String, String)>> {
    let settings = documents::get(conn, &format!("/_ring/{NODE_CONFIG_ID}")).await?.unwrap_or_default();
    let rules = settings["sections"][MAINTENANCE].as_object().into_iter().flatten();
    Ok(rules.filter_map(|(db, rule)| Some((db.clone(), rule.as_str()?.to_owned()))).collect())
}

async fn list(ask: &AskArgs) -> anyhow::Result<()> {
    let mut conn = ask.target.connect().await?;
    let all = read(&mut conn).await?;
    if ask.json {
        let rows: Vec<Value> = all.iter().map(|(db, rule)| json!({"db": db, "rule": rule})).collect();
        return say(&format!("{}\n", json!({"maintenance": rows})));
    }
    if all.is_empty() {
        return say("no database is in maintenance\n");
    }
    let mut table = Table::new(&["database", "rule"]);
    all.into_iter().for_each(|(db, rule)| table.push(vec![db, rule]));
    say(&table.text())
}

/// A slip in a name would close a database that isn't there, and leave the one that is meant open.
async fn require(conn: &mut Conn, db: &str) -> anyhow::Result<()> {
    let (status, body) = conn.send(Method::HEAD, &format!("/{}", encoded(db)), "").await?;
    match status {
        StatusCode::NOT_FOUND => Err(exit::wrong_use(format!("there is no database {db}"))),
        // What is in maintenance already may be put in it in another way.
        StatusCode::SERVICE_UNAVAILABLE => Ok(()),
        status if status.is_success() => Ok(()),
        status => {
            bail!(Refused { method: Method::HEAD, path: format!("/{db}"), status, excerpt: excerpt(&body) })
        }
    }
}

async fn end(conn: &mut Conn, db: &str) -> anyhow::Result<()> {
    let path = path(db);
    let (status, body) = conn.send(Method::DELETE, &path, "").await?;
    match status {
        StatusCode::NOT_FOUND => Err(exit::wrong_use(format!("{db} is not in maintenance"))),
        status if status.is_success() => Ok(()),
        status => bail!(Refused { method: Method::DELETE, path, status, excerpt: excerpt(&body) }),
    }
}

fn tell(ask: &AskArgs, db: &str, rule: Option<&str>) -> anyhow::Result<()> {
    if ask.json {
        return say(&format!("{}\n", json!({"db": db, "rule": rule})));
    }
    say(&match rule {
        None => format!("{db} is open again, within seconds on all pods\n"),
        Some(WRITE_ONLY) => {
            format!(
                "{db} can be written and not read, within seconds on all pods; `podctl maintenance off {db}` ends it\n"
            )
        }
        Some(_) => {
            format!("{db} is closed to everyone, within seconds on all pods; `podctl maintenance off {db}` ends it\n")
        }
    })
}

fn path(db: &str) -> String {
    format!("/_node/_local/_config/{MAINTENANCE}/{}", encoded(db))
}

/// One segment of a path.
pub fn encoded(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}
