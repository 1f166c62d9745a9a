//! `podctl app deploy`: a folder as a version of an app, in one write.

use anyhow::{Context, bail};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::folder::{self, Items};
use super::multipart::Related;
use super::versions::{self, Known, Shares, version_path};
use crate::command::app::DeployArgs;
use crate::http::{Conn, excerpt};
use crate::import::teller::size;
use crate::look::ask::say;
use crate::look::maintenance::encoded;
use crate::moment::now_ms;
use crate::ring::documents;

/// What was done.
struct Done {
    files: usize,
    sent: usize,
    sent_bytes: u64,
}

/// Deploys a folder.
///
/// # Errors
/// When a file can't be deployed, no pod answers, or it refuses.
pub async fn deploy(args: &DeployArgs) -> anyhow::Result<()> {
    let items = folder::read(&args.dir, args.all)?;
    for (option, page) in [("--index", &args.index), ("--fallback", &args.fallback)] {
        if page.as_ref().is_some_and(|page| option == "--fallback" && !items.contains_key(page)) {
            return Err(crate::exit::wrong_use(format!("{option}: there is no such file in {}", args.dir.display())));
        }
    }
    let mut conn = args.ask.target.connect().await?;
    let app = &args.app;
    let known = versions::read(&mut conn, app).await?;
    let mut shares = Shares::read(&mut conn, app).await?;
    if shares.is_none()
        && let Some(newest) = known.first()
    {
        // Until the new version is to be seen, everybody keeps what there is.
        let mut first = Shares::none();
        first.give(&newest.name, 100);
        first.write(&mut conn, app).await?;
        shares = Some(first);
    }
    let done = put(&mut conn, args, items, &known).await?;
    let mut shares = shares.unwrap_or_else(Shares::none);
    let percent = args.share.or((!shares.shares.contains_key(&args.name)).then_some(100));
    if let Some(percent) = percent {
        shares.give(&args.name, percent);
        shares.write(&mut conn, app).await?;
    }
    let removed = clean(&mut conn, args, &mut shares).await?;
    tell(args, &done, &shares, &removed)
}

/// Writes the version's document, with what has changed.
async fn put(conn: &mut Conn, args: &DeployArgs, items: Items, known: &[Known]) -> anyhow::Result<Done> {
    let path = version_path(&args.app, &args.name);
    let own = known.iter().find(|version| version.name == args.name).map(|version| version.doc.clone());
    let is_copy = own.is_none();
    let before = match own {
        Some(doc) => doc,
        None => copy(conn, args, &items, known).await?,
    };
    let files = items.len();
    let manifest = manifest(args, &before["app"]);
    let has = |name: &str, digest: &str| before["_attachments"][name]["digest"] == digest;
    let (mut attachments, mut follow) = (Map::new(), Vec::new());
    for (path, item) in items {
        let name = format!("www/{path}");
        if has(&name, &item.digest) {
            attachments.insert(name, json!({"stub": true, "digest": item.digest}));
        } else {
            let kind = "application/octet-stream";
            attachments.insert(name.clone(), json!({"follows": true, "content_type": kind, "length": item.bytes}));
            follow.push((name, item));
        }
    }
    let done = Done { files, sent: follow.len(), sent_bytes: follow.iter().map(|(_, item)| item.bytes).sum() };
    let mut doc = json!({"app": manifest, "_attachments": attachments});
    if let Some(rev) = before.get("_rev") {
        doc["_rev"] = rev.clone();
    }
    if !args.ask.json {
        let as_they_were = done.files - done.sent;
        say(&format!("sending {} of {files} files, {}; {as_they_were} are there\n", done.sent, size(done.sent_bytes)))?;
    }
    let mut body = Related::new(&doc.to_string());
    // The parts come in the order of the document's members, which are sorted by name as these are.
    follow.sort_by(|(a, _), (b, _)| a.cmp(b));
    follow.into_iter().for_each(|(_, item)| body.push(item.content, item.bytes));
    let (kind, bytes, parts) = body.into_body();
    let (status, answer) = conn.upload(Method::PUT, &path, &kind, bytes, parts).await?;
    if matches!(status, StatusCode::CREATED | StatusCode::ACCEPTED) {
        return Ok(done);
    }
    if let (true, Some(rev)) = (is_copy, before["_rev"].as_str()) {
        // What it was begun with is of no use to anybody. If it can't go, the next try takes it up.
        let _ = conn.send(Method::DELETE, &format!("{path}?rev={rev}"), "").await;
    }
    match status {
        StatusCode::CONFLICT => bail!("somebody else has deployed {} at the same time: try again", args.name),
        StatusCode::PAYLOAD_TOO_LARGE => {
            bail!("the pod takes no file that large, or not that many at once: {}", excerpt(&answer))
        }
        status => bail!("the version was not taken: {status}: {}", excerpt(&answer)),
    }
}

/// Begins a new version with a copy of one that has some of its files, so that they need not be sent. It isn't there for
/// anybody until it is written: it still says the other one's name.
async fn copy(conn: &mut Conn, args: &DeployArgs, items: &Items, known: &[Known]) -> anyhow::Result<Value> {
    let same = |version: &&Known| {
        let files = version.doc["_attachments"].as_object();
        let names = version.doc["app"]["version"] == version.name.as_str();
        let has = |(path, item): (&String, &folder::Item)| {
            files
                .is_some_and(|files| files.get(&format!("www/{path}")).is_some_and(|one| one["digest"] == *item.digest))
        };
        names && items.iter().any(has)
    };
    let Some(like) = known.iter().find(same) else { return Ok(json!({})) };
    let to = format!("_design/app:{}", encoded(&args.name));
    conn.copy(&version_path(&args.app, &like.name), &to).await.context("can't begin the version with a copy")?;
    let copied = documents::get(conn, &version_path(&args.app, &args.name)).await?;
    copied.context("the copy that the version begins with is not there")
}

/// The member `app`: as before, but for what is given.
fn manifest(args: &DeployArgs, before: &Value) -> Value {
    let mut app = if before.is_object() { before.clone() } else { json!({}) };
    app["version"] = args.name.as_str().into();
    app["put_at_ms"] = now_ms().into();
    for (member, given) in [("index", &args.index), ("fallback", &args.fallback)] {
        if let Some(given) = given {
            app[member] = given.as_str().into();
        }
    }
    if !args.immutable.is_empty() {
        app["immutable"] = json!(args.immutable);
    }
    if !args.headers.is_empty() {
        app["headers"] = args.headers.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    }
    app
}

/// Removes versions that nobody gets, but for the newest.
async fn clean(conn: &mut Conn, args: &DeployArgs, shares: &mut Shares) -> anyhow::Result<Vec<String>> {
    let Some(keep) = args.keep else { return Ok(Vec::new()) };
    let known = versions::read(conn, &args.app).await?;
    let unused = known.iter().filter(|version| version.name != args.name && shares.percent(&version.name) == 0.0);
    let gone: Vec<&Known> = unused.skip(keep).collect();
    for version in &gone {
        version.remove(conn, &args.app).await?;
    }
    let before = shares.shares.len();
    shares.shares.retain(|name, _| !gone.iter().any(|version| version.name == *name));
    if shares.shares.len() < before {
        shares.write(conn, &args.app).await?;
    }
    Ok(gone.iter().map(|version| version.name.clone()).collect())
}

fn tell(args: &DeployArgs, done: &Done, shares: &Shares, removed: &[String]) -> anyhow::Result<()> {
    if args.ask.json {
        let answer = json!({
            "app": args.app, "version": args.name, "files": done.files, "sent": done.sent,
            "sent_bytes": done.sent_bytes, "shares": shares.shares, "removed": removed,
        });
        return say(&format!("{answer}\n"));
    }
    let percent = shares.percent(&args.name);
    let mut text = format!("{}: {} is there for {percent:.1}% of the visitors, at /{0}/_app/\n", args.app, args.name);
    if !removed.is_empty() {
        text.push_str(&format!("removed: {}\n", removed.join(", ")));
    }
    say(&text)
}
