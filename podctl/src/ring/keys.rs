//! The keys of gossip: the document `_ring/keyring`, which every pod follows.

use adea_ring::RingSecret;
use adea_ring::gossip::{KeyId, Keyring, KeyringDoc};
use anyhow::{Context, bail};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::command::ring::{ChosenKey, KeyArgs, KeyCommand};
use crate::http::{Conn, excerpt};
use crate::ring::documents;
use crate::ring::status::Pods;

const PATH: &str = "/_ring/keyring";

/// The keyring, and the revision of its document if there is one.
struct Found {
    doc: KeyringDoc,
    rev: Option<String>,
}

/// Shows the keys, or changes them.
pub async fn run(command: &KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::List(args) => list(args).await,
        KeyCommand::Add(args) => add(args).await,
        KeyCommand::Use(chosen) => use_(chosen).await,
        KeyCommand::Remove(chosen) => remove(chosen).await,
    }
}

async fn list(args: &KeyArgs) -> anyhow::Result<()> {
    let (mut conn, secret) = open(args).await?;
    let found = Found::read(&mut conn, &secret).await?;
    if args.json {
        println!("{}", found.json());
        return Ok(());
    }
    for key in &found.doc.keys {
        let role = if key.id == found.doc.primary { "seals" } else { "is accepted" };
        println!("{} {role}", key.id);
    }
    Ok(())
}

async fn add(args: &KeyArgs) -> anyhow::Result<()> {
    let (mut conn, secret) = open(args).await?;
    let mut found = Found::read(&mut conn, &secret).await?;
    let (doc, id) = found.doc.add(&secret)?;
    found.doc = doc;
    found.write(&mut conn).await?;
    let next = format!("once `podctl ring status` shows all pods alive and 0 behind: podctl ring key use {id}");
    tell(args, &found, &format!("{id} is accepted now"), &next);
    Ok(())
}

async fn use_(chosen: &ChosenKey) -> anyhow::Result<()> {
    let (mut conn, secret) = open(&chosen.common).await?;
    let mut found = Found::read(&mut conn, &secret).await?;
    let id = key_id(&chosen.id)?;
    let before = found.doc.primary;
    found.doc = found.doc.use_(id)?;
    all_there(&mut conn, chosen).await?;
    found.write(&mut conn).await?;
    let next = format!("once `podctl ring status` shows all pods alive and 0 behind: podctl ring key remove {before}");
    tell(&chosen.common, &found, &format!("{id} seals now"), &next);
    Ok(())
}

async fn remove(chosen: &ChosenKey) -> anyhow::Result<()> {
    let (mut conn, secret) = open(&chosen.common).await?;
    let mut found = Found::read(&mut conn, &secret).await?;
    let id = key_id(&chosen.id)?;
    found.doc = found.doc.remove(id)?;
    all_there(&mut conn, chosen).await?;
    found.write(&mut conn).await?;
    let next = "who has only that key is not heard any more";
    tell(&chosen.common, &found, &format!("{id} is accepted no longer"), next);
    Ok(())
}

fn key_id(text: &str) -> anyhow::Result<KeyId> {
    text.parse().with_context(|| format!("{text:?}: `podctl ring key list` shows the keys"))
}

/// A pod that is away learns of no key; back, it would speak with one that nobody accepts.
async fn all_there(conn: &mut Conn, chosen: &ChosenKey) -> anyhow::Result<()> {
    let pods = Pods::read(conn).await?;
    let away = pods.away();
    if chosen.force || away.is_empty() {
        return Ok(());
    }
    bail!(
        "{} away, and could not find back to the ring by itself afterwards: start it first, or give --force",
        away.join(", ") + if away.len() == 1 { " is" } else { " are" }
    )
}

fn tell(args: &KeyArgs, found: &Found, done: &str, next: &str) {
    if args.json {
        println!("{}", found.json());
    } else {
        println!("{done}; {next}");
    }
}

/// A connection, and the secret of the ring that it leads to.
async fn open(args: &KeyArgs) -> anyhow::Result<(Conn, RingSecret)> {
    let (conn, _, secret) = args.target.ring(args.ring_file.as_deref()).await?;
    Ok((conn, secret))
}

impl Found {
    async fn read(conn: &mut Conn, secret: &RingSecret) -> anyhow::Result<Self> {
        let Some(mut doc) = documents::get(conn, PATH).await? else {
            return Ok(Self { doc: KeyringDoc::of_base(secret), rev: None });
        };
        let rev = doc["_rev"].as_str().map(str::to_owned);
        if let Some(members) = doc.as_object_mut() {
            members.retain(|name, _| !name.starts_with('_'));
        }
        let doc: KeyringDoc = serde_json::from_value(doc).context("the document _ring/keyring makes no sense")?;
        Keyring::of_doc(secret, &doc).context("the document _ring/keyring")?;
        Ok(Self { doc, rev })
    }

    /// Writes the document; refused when somebody else has changed it meanwhile.
    async fn write(&mut self, conn: &mut Conn) -> anyhow::Result<()> {
        let mut doc = serde_json::to_value(&self.doc)?;
        if let Some(rev) = &self.rev {
            doc["_rev"] = json!(rev);
        }
        let (status, body) = conn.send(Method::PUT, PATH, doc.to_string()).await?;
        match status {
            status if status.is_success() => Ok(()),
            StatusCode::CONFLICT => {
                bail!("somebody else has changed the keys meanwhile: look at `podctl ring key list`")
            }
            status => bail!("PUT {PATH}: {status}: {}", excerpt(&body)),
        }
    }

    fn json(&self) -> Value {
        let ids: Vec<String> = self.doc.keys.iter().map(|key| key.id.to_string()).collect();
        json!({"keys": ids, "primary": self.doc.primary.to_string()})
    }
}
