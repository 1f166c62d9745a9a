//! Logging in to a ring: a session of it is kept for the commands that follow ([`crate::contexts`]).
//!
//! A session ends after a time and is not prolonged, or a stolen one could be kept alive for ever: then the password is
//! asked for again.

use std::fs;

use adea_ring::trust::{self, Trust};
use anyhow::{Context, bail};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::command::login::Args;
use crate::command::logout;
use crate::contexts::{Contexts, Ring, Session};
use crate::exit;
use crate::http::{Conn, Peer, excerpt};
use crate::moment::{now_ms, parse_iso, span};
use crate::password;
use crate::ring::documents::starting_with;
use crate::ring::target::plain;

/// URLs of a ring's pods that are kept: one that answers is enough.
const MAX_URLS: usize = 16;

/// Logs in.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let url = plain(args.url.trim_end_matches('/'));
    let ca = match &args.ca {
        Some(path) => Some(fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?),
        None => None,
    };
    let peer = peer(&args.url, ca.as_deref())?;
    if !peer.is_https() && !peer.is_loopback().await.unwrap_or(false) {
        eprintln!("warning: {url} has no TLS: whoever is on the way can read the password and all that follows");
    }
    let mut conn = peer.connect().await.map_err(|err| advise(err, ca.is_some()))?;
    let root = conn.expect(Method::GET, "/", "").await?;
    let Some(uuid) = root["uuid"].as_str() else { bail!("{url} is no pod: it doesn't say of which ring it is") };
    if root["adea"].is_null() {
        bail!("{url} is no pod of Adea, but {}", root["vendor"]["name"].as_str().unwrap_or("something else"));
    }
    let password = match password::given(args.password_file.as_deref())? {
        Some(password) => password,
        None => password::ask(&format!("Password of {} at {url}", args.user))?,
    };
    let (session, is_admin) = log_in(&mut conn, &args.user, &password).await?;
    let mut conn = peer.with_login(&session.name, &session.password)?.connect().await?;
    let urls = urls(&mut conn, &url).await?;
    let ends_in_ms = session.expires_at_ms.saturating_sub(now_ms());
    let pods = urls.len();
    let mut contexts = Contexts::load()?;
    contexts.rings.insert(uuid.to_owned(), Ring { urls, user: args.user.clone(), session, ca });
    contexts.current = Some(uuid.to_owned());
    let path = contexts.save()?;
    if !is_admin {
        eprintln!("warning: {} is no administrator: most commands will be refused", args.user);
    }
    if args.json {
        println!("{}", json!({"ring": uuid, "user": args.user, "pods": pods, "ends_in_ms": ends_in_ms}));
    } else {
        let many = if pods == 1 { "one pod is known" } else { &format!("{pods} pods are known") };
        println!("logged in as {} for {}; {many}; kept in {}", args.user, span(ends_in_ms), path.display());
    }
    Ok(())
}

/// Ends a log-in, here and at the ring.
pub async fn log_out(args: &logout::Args) -> anyhow::Result<()> {
    let mut contexts = Contexts::load()?;
    let ids: Vec<String> = match (args.all, &contexts.current) {
        (true, _) => contexts.rings.keys().cloned().collect(),
        (false, Some(id)) if contexts.rings.contains_key(id) => vec![id.clone()],
        (false, _) => Vec::new(),
    };
    let mut left_open = Vec::new();
    for id in &ids {
        let Some(ring) = contexts.rings.remove(id) else { continue };
        if !ring.is_over(now_ms()) && end(&ring).await.is_err() {
            left_open.push(format!("{} until its time is over, in {}", ring.urls.join(", "), ends_in(&ring)));
        }
    }
    if contexts.current.as_ref().is_none_or(|id| !contexts.rings.contains_key(id)) {
        contexts.current = contexts.rings.keys().next().cloned();
    }
    contexts.save()?;
    for open in &left_open {
        eprintln!("warning: forgotten here, but no pod could be told: it stays open at {open}");
    }
    if args.json {
        println!("{}", json!({"ended": ids.len() - left_open.len(), "forgotten": ids.len()}));
    } else if ids.is_empty() {
        println!("there is no log-in");
    } else {
        println!("logged out");
    }
    Ok(())
}

fn ends_in(ring: &Ring) -> String {
    span(ring.session.expires_at_ms.saturating_sub(now_ms()))
}

/// Ends a session at the first pod that answers.
async fn end(ring: &Ring) -> anyhow::Result<()> {
    for url in &ring.urls {
        let peer = peer(url, ring.ca.as_deref())?.with_login(&ring.session.name, &ring.session.password)?;
        let ended = async { peer.connect().await?.send(Method::DELETE, "/_session", "").await };
        match ended.await {
            // One that is not known any more has ended, too.
            Ok((status, _)) if status.is_success() || status == StatusCode::UNAUTHORIZED => return Ok(()),
            _ => {}
        }
    }
    bail!("no pod answers")
}

async fn log_in(conn: &mut Conn, user: &str, password: &str) -> anyhow::Result<(Session, bool)> {
    let form = json!({"name": user, "password": password, "session": true}).to_string();
    let (status, body) = conn.send(Method::POST, "/_session", form).await?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(exit::not_allowed(answer["reason"].as_str().unwrap_or("the log-in was refused").to_owned()));
    }
    if !status.is_success() {
        bail!("the log-in failed: {status}: {}", excerpt(&body));
    }
    let text = |member: &str| answer["session"][member].as_str().map(str::to_owned);
    let (Some(name), Some(password), Some(expires)) = (text("name"), text("password"), text("expires")) else {
        bail!("the pod gave no session: is it of another version?");
    };
    let expires_at_ms = parse_iso(&expires).context("the pod doesn't say until when the session lasts")?;
    let is_admin = answer["roles"].as_array().is_some_and(|roles| roles.iter().any(|role| role == "_admin"));
    Ok((Session { name, password, expires_at_ms }, is_admin))
}

/// Where the ring's pods are, the one that was asked first.
async fn urls(conn: &mut Conn, first: &str) -> anyhow::Result<Vec<String>> {
    let (docs, _) = starting_with(conn, "_pods", "pod:").await?;
    let mut urls = vec![first.to_owned()];
    for url in docs.iter().filter_map(|doc| doc["url"].as_str()) {
        let url = url.trim_end_matches('/');
        // The session goes to all of them: none may be asked with less care than the first.
        let is_as_safe = !first.starts_with("https:") || url.starts_with("https:");
        if is_as_safe && urls.len() < MAX_URLS && !urls.iter().any(|known| known == url) && Peer::parse(url).is_ok() {
            urls.push(url.to_owned());
        }
    }
    Ok(urls)
}

fn peer(url: &str, ca: Option<&str>) -> anyhow::Result<Peer> {
    let peer = Peer::parse(url)?;
    Ok(match ca {
        Some(pem) => peer.with_trust(&Trust::nobody().with_pem(pem.as_bytes()).context("--ca")?),
        None => peer,
    })
}

/// What to do when a pod's certificate is by an authority that nobody knows.
fn advise(err: anyhow::Error, has_ca: bool) -> anyhow::Error {
    let is_trust = err.chain().find_map(trust::explain).is_some_and(|text| text.contains("authority"));
    if is_trust && !has_ca {
        return err
            .context("for a ring with its own authority give --ca FILE: ca.pem of the data folder of any of its pods");
    }
    err
}
