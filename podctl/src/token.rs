//! Tokens that let further pods into the ring: documents `_ring/token:ID` ([`adea_ring::join`]).

use adea_ring::join::{AdminEntry, MAX_LIFE_MS, MAX_USES, TOKEN_PREFIX, Token, TokenDoc, TokenId};
use anyhow::{Context, bail};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::command::token::{CreateArgs, ListArgs, RevokeArgs};
use crate::exit;
use crate::http::{Conn, excerpt};
use crate::moment::{now_ms, parse_span, span};
use crate::ring::documents;
use crate::ring::status::Pods;
use crate::ring::table::Table;

/// Tokens at a time, also those that have ended: more are none that anybody knows of.
const MAX_TOKENS: usize = 1_000;
/// How long an ended token is still listed, in milliseconds: a day, to see who came by it.
const KEPT_MS: u64 = 86_400_000;

/// A token's document.
struct Found {
    id: TokenId,
    rev: String,
    doc: TokenDoc,
}

/// Makes a token.
pub async fn create(args: &CreateArgs) -> anyhow::Result<()> {
    let life_ms = parse_span(&args.ttl).map_err(|err| exit::wrong_use(format!("--ttl: {err}")))?;
    if life_ms > MAX_LIFE_MS {
        return Err(exit::wrong_use(format!("--ttl: {} at most: a forgotten token is a way in", span(MAX_LIFE_MS))));
    }
    if !(1..=MAX_USES).contains(&args.uses) {
        return Err(exit::wrong_use(format!("--uses: 1 to {MAX_USES}")));
    }
    let (mut conn, file, secret) = args.target.ring(args.ring_file.as_deref()).await?;
    let root = conn.expect(Method::GET, "/", "").await?;
    if root["adea"]["role"] == "alone" {
        bail!(
            "this pod was started without a ring (`podctl dev` with one pod, or no section `ring` in its configuration)"
        );
    }
    let kept = tidied(&mut conn).await?;
    if kept >= MAX_TOKENS {
        bail!("there are {kept} tokens already: revoke some (podctl token list)");
    }
    let order_key = file.order_trust().map(|trust| trust.key.fingerprint());
    if order_key.is_none() {
        eprintln!(
            "warning: this ring has no key for orders, so its pods follow no upgrade, nor will one that joins by this token: \
             podctl upgrade key"
        );
    }
    let admin = AdminEntry { name: file.admin.name, password_hash: file.admin.password_hash };
    let token = Token::random(order_key);
    let doc = token.doc(&secret, &admin, args.uses, now_ms(), life_ms)?;
    conn.expect(Method::PUT, &path(&token.id()), json!(doc).to_string()).await?;
    let place = place(&mut conn).await?;
    let join = format!("podctl join {}@{place}", token.to_text());
    if args.json {
        let text = token.to_text();
        println!(
            "{}",
            json!({"id": token.id(), "token": text, "uses": args.uses, "expires_at_ms": doc.expires_at_ms, "join": join})
        );
        return Ok(());
    }
    let uses = if args.uses == 1 { "one machine".to_owned() } else { format!("{} machines", args.uses) };
    println!("On the new machine, within {}; good for {uses}:\n\n  {join}\n", span(life_ms));
    println!("Whoever has it can join. To take it back: podctl token revoke {}", token.id());
    Ok(())
}

/// Lists the tokens.
pub async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut conn = args.target.connect().await?;
    let tokens = read(&mut conn).await?;
    let now_ms = now_ms();
    if args.json {
        let row = |found: &Found| {
            json!({
                "id": found.id, "uses": found.doc.uses, "left": found.doc.left(now_ms),
                "made_at_ms": found.doc.made_at_ms, "expires_at_ms": found.doc.expires_at_ms, "used": found.doc.used,
            })
        };
        println!("{}", Value::Array(tokens.iter().map(row).collect()));
        return Ok(());
    }
    if tokens.is_empty() {
        println!("there are no tokens: `podctl token create` makes one");
        return Ok(());
    }
    let mut table = Table::new(&["token", "lets in", "of", "ends", "has let in"]);
    for Found { id, doc, .. } in &tokens {
        let ends = match doc.expires_at_ms.checked_sub(now_ms) {
            Some(left_ms) if left_ms > 0 => format!("in {}", span(left_ms)),
            _ => "has ended".to_owned(),
        };
        let pods: Vec<&str> = doc.used.iter().map(|used| used.pod.as_str()).collect();
        let pods = if pods.is_empty() { "-".to_owned() } else { pods.join(", ") };
        table.push(vec![id.to_string(), doc.left(now_ms).to_string(), doc.uses.to_string(), ends, pods]);
    }
    print!("{}", table.text());
    Ok(())
}

/// Takes a token back.
pub async fn revoke(args: &RevokeArgs) -> anyhow::Result<()> {
    // Somebody may give the whole token, which is nothing to repeat.
    let id = args.id.split('.').next().unwrap_or_default();
    let id: TokenId = id.parse().map_err(|err| exit::wrong_use(format!("{err}: `podctl token list` shows them")))?;
    let mut conn = args.target.connect().await?;
    loop {
        let Some(doc) = documents::get(&mut conn, &path(&id)).await? else {
            bail!("there is no token {id}: `podctl token list` shows them");
        };
        let rev = doc["_rev"].as_str().context("a document without a revision")?;
        if delete(&mut conn, &id, rev).await? {
            break;
        }
    }
    if args.json {
        println!("{}", json!({"revoked": id}));
    } else {
        println!("{id} lets nobody in any more; pods that it has let in stay");
    }
    Ok(())
}

/// All tokens, the newest first.
async fn read(conn: &mut Conn) -> anyhow::Result<Vec<Found>> {
    let (docs, _) = documents::starting_with(conn, "_ring", TOKEN_PREFIX).await?;
    let found = docs.into_iter().filter_map(|value| {
        let id = value["_id"].as_str()?.strip_prefix(TOKEN_PREFIX)?.parse().ok()?;
        let rev = value["_rev"].as_str()?.to_owned();
        Some(Found { id, rev, doc: serde_json::from_value(value).ok()? })
    });
    let mut found: Vec<Found> = found.collect();
    found.sort_by_key(|found| std::cmp::Reverse(found.doc.made_at_ms));
    Ok(found)
}

/// Deletes the tokens that ended long ago; gives how many there are then.
async fn tidied(conn: &mut Conn) -> anyhow::Result<usize> {
    let now_ms = now_ms();
    let mut kept = 0;
    for Found { id, rev, doc } in read(conn).await? {
        let is_old = doc.expires_at_ms.saturating_add(KEPT_MS) < now_ms;
        // One that somebody else changes at this moment is left for the next time.
        if !is_old || !delete(conn, &id, &rev).await? {
            kept += 1;
        }
    }
    Ok(kept)
}

/// Deletes a token's document; false when it has changed meanwhile.
async fn delete(conn: &mut Conn, id: &TokenId, rev: &str) -> anyhow::Result<bool> {
    let path = format!("{}?rev={rev}", path(id));
    let (status, body) = conn.send(Method::DELETE, &path, "").await?;
    match status {
        status if status.is_success() => Ok(true),
        StatusCode::CONFLICT | StatusCode::NOT_FOUND => Ok(false),
        status => bail!(exit::Refused { method: Method::DELETE, path, status, excerpt: excerpt(&body) }),
    }
}

/// Where the new machine is to knock: a live pod's URL, the master's if it has one.
async fn place(conn: &mut Conn) -> anyhow::Result<String> {
    let pods = Pods::read(conn).await?;
    let mut live: Vec<_> = pods.rows.iter().filter(|row| row.is_alive()).collect();
    live.sort_by_key(|row| pods.master.as_deref() != Some(row.id.as_str()));
    let url = live.iter().find_map(|row| row.url());
    Ok(url.unwrap_or_else(|| "HOST:PORT".to_owned()))
}

fn path(id: &TokenId) -> String {
    format!("/_ring/{}", id.doc_id())
}
