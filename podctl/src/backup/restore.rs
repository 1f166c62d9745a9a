//! Writes what is in a backup to a pod again.
//!
//! Nothing is written before the whole file has been checked, and nothing over a database that is there, unless that is
//! asked for. Accounts that are there are left as they are: a backup is older than they, and could give somebody a right
//! back that was taken.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use http::{Method, StatusCode};
use rean::backup::format::{Database, Leaf, Record, Sum};
use rean::replicate::carry::Tally as _;
use rean::replicate::peer::{Peer, doc_path};
use serde_json::{Map, Value, json};

use super::batch::Batch;
use super::keep;
use super::stream::Records;
use crate::import::choice::{ACCOUNTS, REPLICATIONS};
use crate::import::copy::{DESIGN, count, query_to_make};
use crate::import::replications;
use crate::import::server::{Server, ask};
use crate::import::tally::Tally;
use crate::import::teller::{Teller, size};

/// What is to be restored, and how.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Names, or `OLD=NEW`; none: all that is in the backup.
    pub databases: Vec<String>,
    /// What is there is replaced.
    pub force: bool,
    /// Replications are begun.
    pub start_replications: bool,
}

/// A restore under way.
struct Restore<'a> {
    pod: &'a Server,
    wish: &'a Wish,
    teller: &'a Teller,
    records: Records,
    /// Documents that were refused, and databases that are not what they were.
    refused: u64,
    differing: u64,
}

/// Restores.
///
/// # Errors
/// What stopped it; at the end, if documents were refused or a database has another number of documents than it had.
pub async fn restore(pod: &Server, path: &Path, wish: &Wish, teller: &Teller) -> anyhow::Result<()> {
    let to_check = path.to_owned();
    let contents = tokio::task::spawn_blocking(move || keep::check(&to_check)).await??;
    let welcome = pod.welcome().await?;
    if !welcome.is_pod {
        bail!("{} is no pod", welcome.shown);
    }
    let names: Vec<&str> = contents.databases.iter().map(|(database, _)| database.name.as_str()).collect();
    let chosen = choose(wish, &names)?;
    let mut there = Vec::new();
    for (_, to) in chosen.iter().filter(|(from, _)| !from.starts_with('_')) {
        if count(&pod.database(to)).await?.is_some() {
            there.push(to.as_str());
        }
    }
    if !there.is_empty() && !wish.force {
        bail!(
            "there already: {}. Restore under another name with --app OLD=NEW, or replace with --force",
            there.join(", ")
        );
    }
    let made_at = &contents.head.made_at;
    teller.say(&format!("a backup of {} from {made_at}, {}: whole", contents.head.pod, size(contents.bytes)));
    let records = Records::open(path)?;
    let mut restore = Restore { pod, wish, teller, records, refused: 0, differing: 0 };
    restore.all(&chosen).await?;
    teller.event(&json!({
        "event": "end", "databases": chosen.len(), "refused": restore.refused, "differences": restore.differing,
    }));
    match (restore.refused, restore.differing) {
        (0, 0) => Ok(()),
        (0, differing) => bail!("{differing} databases have another number of documents than in the backup"),
        (refused, _) => bail!("{refused} documents were refused"),
    }
}

/// Old and new names.
fn choose(wish: &Wish, all: &[&str]) -> anyhow::Result<Vec<(String, String)>> {
    if wish.databases.is_empty() {
        // A file is what somebody made: with a name like `_ring`, `--force` would delete what is the pod's own.
        for name in all.iter().filter(|name| ![ACCOUNTS, REPLICATIONS].contains(*name)) {
            if name.starts_with('_') {
                bail!("{name:?} is a server's own and can't be restored");
            }
            rean::databases::check_name(name).map_err(|error| anyhow::anyhow!("{name:?}: {}", error.reason))?;
        }
        return Ok(all.iter().map(|name| ((*name).to_owned(), (*name).to_owned())).collect());
    }
    let mut chosen: Vec<(String, String)> = Vec::new();
    for text in &wish.databases {
        let (from, to) = text.split_once('=').unwrap_or((text, text));
        if !all.contains(&from) {
            bail!("there is no {from} in the backup; there are: {}", all.join(", "));
        }
        if from != to && (from.starts_with('_') || to.starts_with('_')) {
            bail!("{from}: accounts and replications keep the name of their database");
        }
        if chosen.iter().any(|(_, known)| known == to) {
            bail!("two databases would become {to}");
        }
        rean::databases::check_name(to).map_err(|error| anyhow::anyhow!(error.reason.into_owned()))?;
        chosen.push((from.to_owned(), to.to_owned()));
    }
    Ok(chosen)
}

impl Restore<'_> {
    async fn all(&mut self, chosen: &[(String, String)]) -> anyhow::Result<()> {
        loop {
            match self.records.next().await? {
                Record::Head(head) => {
                    if let Some(config) = head.config.filter(|_| self.wish.databases.is_empty()) {
                        self.ring_settings("config", config).await?;
                    }
                }
                Record::Database(database) => match chosen.iter().find(|(from, _)| *from == database.name) {
                    None => self.pass_over().await?,
                    Some((from, _)) if from == ACCOUNTS => self.accounts().await?,
                    Some((from, _)) if from == REPLICATIONS => self.replications().await?,
                    Some((_, to)) => {
                        let done = self.database(&database, to).await;
                        done.with_context(|| format!("{to} is not whole: restore it again with --force"))?;
                    }
                },
                Record::End(_) => return Ok(()),
                _ => bail!("the backup's records are out of order"),
            }
        }
    }

    async fn pass_over(&self) -> anyhow::Result<()> {
        while !matches!(self.records.next().await?, Record::DatabaseEnd(_)) {}
        Ok(())
    }

    async fn database(&mut self, database: &Database, to: &str) -> anyhow::Result<()> {
        let target = Arc::new(self.pod.database(to));
        if self.wish.force && count(&target).await?.is_some() {
            self.pod.expect(&target, Method::DELETE, "", None).await?;
        }
        if let Some(settings) = &database.settings {
            self.ring_settings(&format!("app:{to}"), settings.clone()).await?;
        }
        let kind = query_to_make(database.app, database.partitioned);
        self.pod.expect(&target, Method::PUT, kind, None).await?;
        self.pod.expect(&target, Method::PUT, "/_revs_limit", Some(&database.revs_limit.into())).await?;
        let tally = Arc::new(Tally::default());
        tally.expect(database.doc_count + database.doc_del_count);
        let sum = self.teller.during("restoring", to, &tally, self.documents(&target, &tally)).await?;
        // For an app it says nothing, and it is never set.
        if let Some(security) = database.security.as_ref().filter(|_| !database.app) {
            self.pod.expect(&target, Method::PUT, "/_security", Some(security)).await?;
        }
        let refusals = tally.refusals();
        self.teller.refusals(to, &refusals);
        self.refused += refusals.count();
        let counts = count(&target).await?.unwrap_or_default();
        if refusals.count() == 0
            && (counts.live, counts.deleted.unwrap_or(0)) != (database.doc_count, database.doc_del_count)
        {
            let text = format!(
                "has {} documents and {} deleted ones; in the backup there are {} and {}",
                counts.live,
                counts.deleted.unwrap_or(0),
                database.doc_count,
                database.doc_del_count
            );
            self.teller.note(to, &text);
            self.differing += 1;
        }
        if sum.bodiless > 0 {
            self.teller.note(to, &format!("{} leaves had no content any more, and are left out", sum.bodiless));
        }
        self.done(to, &tally, database.seq);
        Ok(())
    }

    fn done(&self, db: &str, tally: &Tally, seq: u64) {
        let stats = tally.stats();
        let text = format!("{db}: {} revisions ({}), as of sequence {seq}", stats.written, size(stats.bytes));
        self.teller.say(&text);
        self.teller.event(&json!({
            "event": "done", "db": db, "written": stats.written, "refused": tally.refusals().count(), "bytes": stats.bytes,
        }));
    }

    async fn documents(&self, target: &Arc<Peer>, tally: &Arc<Tally>) -> anyhow::Result<Sum> {
        let mut batch = Batch::new(Arc::clone(target), Arc::clone(tally));
        loop {
            match self.records.next().await? {
                Record::Revision(text) => {
                    batch.take(text, &self.records).await?;
                    tally.advance(1, None);
                }
                Record::DatabaseEnd(sum) => {
                    batch.flush().await?;
                    return Ok(sum);
                }
                _ => bail!("the backup's records are out of order"),
            }
        }
    }

    /// The next document's winner of a database of the pod's own, without its history and attachments; conflicting and
    /// deleted ones are passed over.
    async fn next_own(&self, last: &mut String) -> anyhow::Result<Option<Map<String, Value>>> {
        loop {
            let text = match self.records.next().await? {
                Record::Revision(text) => text,
                Record::Piece(_) => continue,
                Record::DatabaseEnd(_) => return Ok(None),
                _ => bail!("the backup's records are out of order"),
            };
            let leaf: Leaf<'_> = serde_json::from_slice(&text).context("a document of the backup has another form")?;
            if leaf.id == *last {
                continue;
            }
            if !replications::is_document(&leaf.id) {
                bail!("{:?} is no document's id", leaf.id);
            }
            *last = leaf.id.clone();
            let mut doc: Map<String, Value> = serde_json::from_slice(&text)?;
            doc.remove("_attachments");
            if !doc.contains_key("_deleted") {
                return Ok(Some(doc));
            }
        }
    }

    async fn accounts(&mut self) -> anyhow::Result<()> {
        let target = self.pod.database(ACCOUNTS);
        let tally = Tally::default();
        let mut last = String::new();
        while let Some(mut doc) = self.next_own(&mut last).await? {
            let answer = ask(&target, &Method::GET, &doc_path(&last), None).await?;
            let now: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let is_deleted = now.get("reason").and_then(Value::as_str) == Some("deleted");
            let (way, body) = match answer.status {
                StatusCode::OK if now.get("_rev") == doc.get("_rev") => continue,
                StatusCode::NOT_FOUND if !is_deleted => ("?new_edits=false", doc),
                StatusCode::OK | StatusCode::NOT_FOUND if !self.wish.force => {
                    let what = if is_deleted { "was deleted" } else { "is there already" };
                    self.teller.note(
                        ACCOUNTS,
                        &format!("{last:?} {what}, and is left so: --force puts the backup's in its place"),
                    );
                    continue;
                }
                StatusCode::OK | StatusCode::NOT_FOUND => {
                    doc.remove("_revisions");
                    match now.get("_rev") {
                        Some(rev) => doc.insert("_rev".to_owned(), rev.clone()),
                        None => doc.remove("_rev"),
                    };
                    ("", doc)
                }
                _ => return Err(target.fault("reading an account", &answer).into()),
            };
            let below = format!("{}{way}", doc_path(&last));
            self.put(&target, &tally, &last, &below, &body.into()).await?;
        }
        self.end_own(ACCOUNTS, &tally);
        Ok(())
    }

    async fn replications(&mut self) -> anyhow::Result<()> {
        let target = self.pod.database(REPLICATIONS);
        let tally = Tally::default();
        let mut last = String::new();
        while let Some(doc) = self.next_own(&mut last).await? {
            let answer = ask(&target, &Method::GET, &doc_path(&last), None).await?;
            if answer.status.is_success() {
                self.teller.note(REPLICATIONS, &format!("{last:?} is there already, and is left as it is"));
                continue;
            }
            let doc = match last.starts_with(DESIGN) {
                true => {
                    Value::Object(doc.into_iter().filter(|(name, _)| name != "_rev" && name != "_revisions").collect())
                }
                false => replications::outgoing(doc, self.wish.start_replications),
            };
            self.put(&target, &tally, &last, &doc_path(&last), &doc).await?;
        }
        if tally.stats().written > 0 && !self.wish.start_replications {
            self.teller.note(
                REPLICATIONS,
                "they are at rest: begin each by writing it anew, or restore with --start-replications",
            );
        }
        self.end_own(REPLICATIONS, &tally);
        Ok(())
    }

    fn end_own(&mut self, db: &str, tally: &Tally) {
        let refusals = tally.refusals();
        self.teller.refusals(db, &refusals);
        self.refused += refusals.count();
        self.teller.say(&format!("{db}: {} documents", tally.stats().written));
    }

    async fn put(&self, target: &Peer, tally: &Tally, id: &str, below: &str, doc: &Value) -> anyhow::Result<()> {
        let answer = ask(target, &Method::PUT, below, Some(doc)).await?;
        if answer.status.is_success() {
            tally.progress().lock().stats.written += 1;
        } else {
            tally.refused(id, &target.fault("writing it", &answer).to_string());
        }
        Ok(())
    }

    /// A document of `_ring`: settings of the ring or of an app. Others that are there are only replaced if that is asked
    /// for.
    async fn ring_settings(&self, id: &str, settings: Value) -> anyhow::Result<()> {
        let ring = self.pod.database("_ring");
        let answer = ask(&ring, &Method::GET, &doc_path(id), None).await?;
        let mut body = settings.as_object().cloned().unwrap_or_default();
        if answer.status.is_success() {
            let mut now: Map<String, Value> = serde_json::from_slice(&answer.body).unwrap_or_default();
            let rev = now.remove("_rev");
            now.remove("_id");
            if now == body {
                return Ok(());
            }
            if !self.wish.force {
                self.teller.note("_ring", &format!("{id:?} is there already, and is left as it is"));
                return Ok(());
            }
            body.extend(rev.map(|rev| ("_rev".to_owned(), rev)));
        }
        self.pod.expect(&ring, Method::PUT, &doc_path(id), Some(&body.into())).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Wish, choose};

    #[test]
    fn what_is_chosen_of_a_backup() {
        let all = ["_users", "a", "b"];
        let chosen = |names: &[&str]| {
            let databases = names.iter().map(|name| (*name).to_owned()).collect();
            choose(&Wish { databases, ..Wish::default() }, &all)
        };
        assert_eq!(chosen(&[]).unwrap().len(), 3);
        for wrong in ["_ring", "_pods", "../a", "a--b", ""] {
            assert!(choose(&Wish::default(), &["a", wrong]).is_err(), "{wrong:?}");
        }
        assert_eq!(
            chosen(&["a=c", "b"]).unwrap(),
            [("a".to_owned(), "c".to_owned()), ("b".to_owned(), "b".to_owned())]
        );
        for wrong in [&["x"][..], &["a=b", "b"], &["_users=a"], &["a=_users"], &["a=b--c"]] {
            assert!(chosen(wrong).is_err(), "{wrong:?}");
        }
    }
}
