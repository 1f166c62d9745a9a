//! The versions of an app and their shares: what there is, who gets what, what goes.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::command::app::{ListArgs, RemoveArgs, ShareArgs};
use crate::exit;
use crate::http::{Conn, excerpt};
use crate::import::teller::size;
use crate::look::ask::say;
use crate::look::maintenance::encoded;
use crate::paint::Paint;
use crate::ring::documents::{self, starting_with};
use crate::ring::table::Table;

/// What the ids of versions begin with.
const PREFIX: &str = "_design/app:";
/// The document with the shares.
const ROUTING: &str = "_design/app";

/// A version that is there.
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its document.
    pub doc: Value,
}

/// Who gets which version: the document, if there is one.
pub struct Shares {
    doc: Value,
    /// The shares by version.
    pub shares: BTreeMap<String, u64>,
}

impl Known {
    /// When it was deployed last; 0 if it wasn't by this program.
    pub fn put_at_ms(&self) -> u64 {
        self.doc["app"]["put_at_ms"].as_u64().unwrap_or_default()
    }

    fn files(&self) -> impl Iterator<Item = u64> {
        let all = self.doc["_attachments"].as_object().into_iter().flatten();
        all.filter(|(name, _)| name.starts_with("www/")).filter_map(|(_, file)| file["length"].as_u64())
    }

    /// Removes it.
    pub async fn remove(&self, conn: &mut Conn, app: &str) -> anyhow::Result<()> {
        let rev = self.doc["_rev"].as_str().context("a document without a revision")?;
        conn.expect(Method::DELETE, &format!("{}?rev={rev}", version_path(app, &self.name)), "").await.map(|_| ())
    }
}

impl Shares {
    /// Reads them; `None` where there is no document.
    pub async fn read(conn: &mut Conn, app: &str) -> anyhow::Result<Option<Self>> {
        let doc = documents::get(conn, &format!("/{}/{ROUTING}", encoded(app))).await?;
        let Some(doc) = doc.filter(|doc| doc.get("app").is_some()) else { return Ok(None) };
        let shares = doc["app"]["versions"].as_object().into_iter().flatten();
        let shares = shares.filter_map(|(name, share)| Some((name.clone(), share.as_u64()?))).collect();
        Ok(Some(Self { doc, shares }))
    }

    /// None yet.
    pub fn none() -> Self {
        Self { doc: json!({}), shares: BTreeMap::new() }
    }

    /// Writes them.
    pub async fn write(&mut self, conn: &mut Conn, app: &str) -> anyhow::Result<()> {
        self.doc["app"]["versions"] = json!(self.shares);
        let written = conn.expect(Method::PUT, &format!("/{}/{ROUTING}", encoded(app)), self.doc.to_string()).await?;
        self.doc["_rev"] = written["rev"].clone();
        Ok(())
    }

    /// Gives a version this many of a hundred, and the others the rest as they had it among them.
    pub fn give(&mut self, version: &str, percent: u32) {
        let percent = u64::from(percent);
        self.shares.remove(version);
        let all: u64 = self.shares.values().sum();
        if all > 0 {
            // In hundredths of a percent, so that small shares don't vanish.
            self.shares.values_mut().for_each(|share| *share = (100 - percent) * 100 * *share / all);
        }
        let own = if all > 0 || percent == 0 { percent * 100 } else { 100 };
        self.shares.insert(version.to_owned(), own);
        reduce(&mut self.shares);
    }

    /// A version's part of all visitors, in percent.
    pub fn percent(&self, version: &str) -> f64 {
        let all: u64 = self.shares.values().sum();
        let own = self.shares.get(version).copied().unwrap_or_default();
        if all == 0 { 0.0 } else { own as f64 * 100.0 / all as f64 }
    }
}

/// Whole percents where they are whole.
fn reduce(shares: &mut BTreeMap<String, u64>) {
    if shares.values().all(|share| share % 100 == 0) {
        let is_unit = shares.values().all(|share| *share == 0 || *share == 100) && shares.len() == 1;
        if !is_unit {
            shares.values_mut().for_each(|share| *share /= 100);
        }
    }
}

/// The path of a version's document.
pub fn version_path(app: &str, name: &str) -> String {
    format!("/{}/{PREFIX}{}", encoded(app), encoded(name))
}

/// All versions, those first that were deployed last.
pub async fn read(conn: &mut Conn, app: &str) -> anyhow::Result<Vec<Known>> {
    let (status, body) = conn.send(Method::GET, &format!("/{}", encoded(app)), "").await?;
    match status {
        StatusCode::NOT_FOUND => return Err(exit::wrong_use(format!("there is no database {app}"))),
        status if status.is_success() => {}
        status => bail!("GET /{app}: {status}: {}", excerpt(&body)),
    }
    let (docs, _) = starting_with(conn, &encoded(app), PREFIX).await?;
    let named = |doc: Value| Some(Known { name: doc["_id"].as_str()?.strip_prefix(PREFIX)?.to_owned(), doc });
    let mut versions: Vec<Known> = docs.into_iter().filter_map(named).collect();
    versions.sort_by_key(|version| std::cmp::Reverse(version.put_at_ms()));
    Ok(versions)
}

/// `podctl app list`.
///
/// # Errors
/// When no pod answers, or there is no such database.
pub async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut conn = args.ask.target.connect().await?;
    let versions = read(&mut conn, &args.app).await?;
    let shares = Shares::read(&mut conn, &args.app).await?;
    if args.ask.json {
        let rows: Vec<Value> = versions
            .iter()
            .map(|version| {
                json!({
                    "version": version.name, "files": version.files().count(), "bytes": version.files().sum::<u64>(),
                    "put_at_ms": version.put_at_ms(), "percent": shares.as_ref().map(|all| all.percent(&version.name)),
                })
            })
            .collect();
        return say(&format!("{}\n", json!({"app": args.app, "versions": rows})));
    }
    if versions.is_empty() {
        return say(&format!(
            "there are no pages; podctl app deploy DIR --app {} --version v1 puts some there\n",
            args.app
        ));
    }
    let mut table = Table::new(&["version", "visitors", "files", "size"]);
    for version in &versions {
        let percent = shares.as_ref().map(|all| format!("{:.1}%", all.percent(&version.name)));
        table.push(vec![
            version.name.clone(),
            percent.unwrap_or_else(|| "-".to_owned()),
            version.files().count().to_string(),
            size(version.files().sum()),
        ]);
    }
    say(&table.painted(Paint::stdout()))?;
    if shares.is_none() {
        return say("no shares are set: the newest name is for everybody\n");
    }
    Ok(())
}

/// `podctl app share`.
///
/// # Errors
/// When a version isn't there, or the pod refuses.
pub async fn share(args: &ShareArgs) -> anyhow::Result<()> {
    let mut conn = args.ask.target.connect().await?;
    let versions = read(&mut conn, &args.app).await?;
    if let Some((name, _)) = args.shares.iter().find(|(name, _)| !versions.iter().any(|known| known.name == *name)) {
        return Err(exit::wrong_use(format!("{} has no version {name}; `podctl app list` shows all", args.app)));
    }
    let mut shares = Shares::read(&mut conn, &args.app).await?.unwrap_or_else(Shares::none);
    shares.shares = args.shares.iter().map(|(name, share)| (name.clone(), u64::from(*share))).collect();
    shares.write(&mut conn, &args.app).await?;
    tell(&shares, &args.app, args.ask.json)
}

fn tell(shares: &Shares, app: &str, json: bool) -> anyhow::Result<()> {
    if json {
        return say(&format!("{}\n", json!({"app": app, "shares": shares.shares})));
    }
    let parts: Vec<String> = shares.shares.keys().map(|name| format!("{name} {:.1}%", shares.percent(name))).collect();
    say(&format!("{app}: {}\n", parts.join(", ")))
}

/// `podctl app remove`.
///
/// # Errors
/// When visitors get the version, or it isn't there.
pub async fn remove(args: &RemoveArgs) -> anyhow::Result<()> {
    let mut conn = args.ask.target.connect().await?;
    let versions = read(&mut conn, &args.app).await?;
    let Some(known) = versions.iter().find(|known| known.name == args.name) else {
        return Err(exit::wrong_use(format!("{} has no version {}", args.app, args.name)));
    };
    let shares = Shares::read(&mut conn, &args.app).await?;
    let (app, name) = (&args.app, &args.name);
    if shares.as_ref().is_some_and(|all| all.percent(name) > 0.0 && versions.len() > 1) {
        bail!("visitors get {name}: first give them another version with `podctl app share {app} VERSION=100`");
    }
    known.remove(&mut conn, app).await?;
    if let Some(mut shares) = shares
        && shares.shares.remove(name).is_some()
    {
        shares.write(&mut conn, app).await?;
    }
    say(&match args.ask.json {
        true => format!("{}\n", json!({"app": app, "removed": name})),
        false => format!("{app}: {name} is removed\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::Shares;

    #[test]
    fn a_new_version_takes_its_part_of_all() {
        let mut shares = Shares::none();
        shares.give("v1", 10);
        assert_eq!(shares.percent("v1"), 100.0);
        shares.give("v2", 10);
        assert_eq!((shares.shares["v1"], shares.shares["v2"]), (90, 10));
        shares.give("v3", 50);
        assert_eq!((shares.shares["v1"], shares.shares["v2"], shares.shares["v3"]), (45, 5, 50));
        shares.give("v3", 100);
        assert_eq!((shares.percent("v1"), shares.percent("v3")), (0.0, 100.0));
        shares.give("v2", 0);
        assert_eq!(shares.percent("v3"), 100.0);
    }
}
