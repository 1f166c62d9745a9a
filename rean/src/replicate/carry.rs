//! Carries the changes of one round over: asks the target what it lacks, reads that from the source and writes it.
//!
//! Memory stays bounded whatever the documents are: the source's answer is read document by document, and not read on
//! while a batch is written; attachments beyond a small size are never read with their documents ([`super::upload`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::fault::{Fault, clip, words};
use super::feed::Row;
use super::job::Job;
use super::peer::{Answer, Peer, Sent, doc_path, escaped};
use super::progress::Progress;
use super::split::Split;
use super::upload;

/// Documents of one `_bulk_docs`.
const BATCH_DOCS: usize = 500;
/// The documents of one `_bulk_docs` together, in bytes, unless one alone is larger.
const BATCH_BYTES: usize = 4 << 20;
/// Revisions of one `_bulk_get`: documents with many conflicts are read in several.
const FETCHED_REVS: usize = 1_000;
/// Revisions in the path of one request, so that it stays below the 8 KiB that servers take.
const PATH_REVS: usize = 50;
/// The attachments of a document up to this size, in bytes, come with it, in base64; others are streamed.
const INLINE_BYTES: u64 = 64 << 10;

/// A revision that the target lacks.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The document.
    pub id: String,
    /// The revision.
    pub rev: String,
    /// What its attachments have, in bytes, as far as that is known.
    pub attached_bytes: u64,
}

/// Whose work it is: it is told what was done.
pub trait Tally: Send + Sync {
    /// Where that is counted.
    fn progress(&self) -> &Mutex<Progress>;

    /// Hears that the target has not taken a document, and why.
    fn refused(&self, _id: &str, _why: &str) {}
}

impl Tally for Job {
    fn progress(&self) -> &Mutex<Progress> {
        &self.progress
    }
}

/// The leaves of documents, by id.
pub type Leaves = BTreeMap<String, Vec<String>>;

/// Carries over.
pub struct Carrier {
    /// Whose.
    pub job: Arc<dyn Tally>,
    /// From here.
    pub source: Arc<Peer>,
    /// To here.
    pub target: Arc<Peer>,
    max_doc_bytes: usize,
    /// Servers of before 2016 and some others have no `_bulk_get`.
    has_bulk_get: AtomicBool,
}

/// What has been read and not written.
#[derive(Default)]
struct Load {
    docs: Vec<Bytes>,
    bytes: usize,
    /// Revisions that are to be read again with their attachments.
    small: Vec<Wanted>,
    /// Revisions whose attachments are to be streamed.
    large: Vec<Wanted>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Attachments are told of.
    Stubs,
    /// Attachments come along.
    Inline,
}

#[derive(Deserialize)]
struct Diff {
    #[serde(default)]
    missing: Vec<String>,
}

/// One row of `_bulk_get`.
#[derive(Deserialize)]
struct Fetched<'a> {
    #[serde(borrow)]
    docs: Vec<Entry<'a>>,
}

/// One revision, of `_bulk_get` or `open_revs`.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow, default)]
    ok: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<Value>,
}

/// What is to be known of a document.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "_rev")]
    rev: String,
    #[serde(rename = "_attachments", default)]
    attachments: BTreeMap<String, Stub>,
}

#[derive(Deserialize)]
struct Stub {
    #[serde(default)]
    length: u64,
    #[serde(default)]
    data: Option<serde::de::IgnoredAny>,
    /// Where its bytes are, as another pod says: they need not be carried.
    #[serde(default)]
    file: Option<serde::de::IgnoredAny>,
}

impl Stub {
    /// Whether the document can be written as it is, as far as this attachment goes.
    fn is_whole(&self, is_pod: bool) -> bool {
        self.data.is_some() || (is_pod && self.file.is_some())
    }
}

impl Carrier {
    /// For one run; documents above `max_doc_bytes` are refused.
    pub fn new(job: Arc<impl Tally + 'static>, source: Arc<Peer>, target: Arc<Peer>, max_doc_bytes: usize) -> Self {
        Self { job, source, target, max_doc_bytes, has_bulk_get: AtomicBool::new(true) }
    }

    /// Carries one round over.
    ///
    /// # Errors
    /// When an end can't be asked. A document that the target refuses is counted and is no fault.
    pub async fn carry(&self, rows: Vec<Row>) -> Result<(), Fault> {
        let mut leaves = Leaves::new();
        for row in rows {
            leaves.entry(row.id).or_default().extend(row.changes.into_iter().map(|leaf| leaf.rev));
        }
        let missing = self.missing(&leaves).await?;
        self.bring(&missing).await
    }

    /// Carries these revisions over, or the leaves that they have become.
    ///
    /// # Errors
    /// As [`Carrier::carry`].
    pub async fn bring(&self, wanted: &[Wanted]) -> Result<(), Fault> {
        let mut load = Load::default();
        let fetched = self.fetch_all(wanted, &mut load).await;
        self.finish(load, fetched).await
    }

    /// Carries all leaves of one document over, whether or not the target has them.
    ///
    /// # Errors
    /// As [`Carrier::carry`].
    pub async fn bring_document(&self, id: &str) -> Result<(), Fault> {
        let mut load = Load::default();
        let fetched = self.fetch_leaves(id, "all", Form::Stubs, &mut load).await;
        self.finish(load, fetched).await
    }

    async fn finish(&self, mut load: Load, fetched: Result<(), Fault>) -> Result<(), Fault> {
        // Also after a fault, so that a source that often breaks off is read to its end some day.
        let written = self.write(&mut load).await;
        fetched.and(written)?;
        for wanted in std::mem::take(&mut load.large) {
            upload::carry(self, &wanted).await?;
        }
        Ok(())
    }

    async fn fetch_all(&self, missing: &[Wanted], load: &mut Load) -> Result<(), Fault> {
        for wanted in missing.chunks(FETCHED_REVS) {
            self.fetch(wanted, Form::Stubs, load).await?;
        }
        let small = std::mem::take(&mut load.small);
        for wanted in groups(&small) {
            self.fetch(wanted, Form::Inline, load).await?;
        }
        Ok(())
    }

    /// What the target lacks of these.
    ///
    /// # Errors
    /// When the target can't be asked.
    pub async fn missing(&self, leaves: &Leaves) -> Result<Vec<Wanted>, Fault> {
        let checked: u64 = leaves.values().map(|revs| revs.len() as u64).sum();
        let text = serde_json::to_string(leaves).unwrap_or_default();
        let answer = self.target.ask(Method::POST, "/_revs_diff", Some(Sent::json(text))).await?;
        if !answer.status.is_success() {
            return Err(self.target.fault("comparing revisions", &answer));
        }
        let diffs: BTreeMap<String, Diff> = serde_json::from_slice(&answer.body)
            .map_err(|_| Fault::Passing(format!("{}: _revs_diff has another form", self.target.shown())))?;
        let missing: Vec<Wanted> = diffs
            .into_iter()
            .flat_map(|(id, diff)| {
                diff.missing.into_iter().map(move |rev| Wanted { id: id.clone(), rev, attached_bytes: 0 })
            })
            .collect();
        let mut progress = self.job.progress().lock();
        progress.stats.checked += checked;
        progress.stats.found += missing.len() as u64;
        Ok(missing)
    }

    async fn fetch(&self, wanted: &[Wanted], form: Form, load: &mut Load) -> Result<(), Fault> {
        if self.has_bulk_get.load(Ordering::Relaxed) && self.fetch_bulk(wanted, form, load).await? {
            return Ok(());
        }
        let mut rest = wanted;
        while let Some(first) = rest.first() {
            let same = rest.iter().take(PATH_REVS).take_while(|next| next.id == first.id).count();
            let (these, others) = rest.split_at(same);
            self.fetch_one(&first.id, these, form, load).await?;
            rest = others;
        }
        Ok(())
    }

    /// Reads by `_bulk_get`; `false` if the source has none.
    async fn fetch_bulk(&self, wanted: &[Wanted], form: Form, load: &mut Load) -> Result<bool, Fault> {
        let docs: Vec<Value> =
            wanted.iter().map(|wanted| serde_json::json!({"id": wanted.id, "rev": wanted.rev})).collect();
        let more = match form {
            Form::Stubs => "&latest=true",
            Form::Inline => "&attachments=true",
        };
        let below = format!("/_bulk_get?{}{more}", self.revs());
        let body = serde_json::json!({ "docs": docs }).to_string();
        self.job.progress().lock().stats.bulk_asked += wanted.len() as u64;
        let response = self.source.send(Method::POST, &below, Some(Sent::json(body))).await?;
        let status = response.status();
        // A pod of the ring has it: where it says 404 the database is gone.
        if matches!(status.as_u16(), 400 | 404 | 405 | 415 | 501) && !self.source.is_pod() {
            // What else may be wrong, the single requests will tell.
            self.has_bulk_get.store(false, Ordering::Relaxed);
            return Ok(false);
        }
        if !status.is_success() {
            let answer = self.source.read(response).await?;
            return Err(self.source.fault("reading documents", &answer));
        }
        let mut split = Split::new(self.source.pieces(response), self.source.shown(), self.max_doc_bytes);
        while let Some(row) = split.next().await? {
            let fetched: Fetched<'_> = serde_json::from_slice(&row).map_err(|_| self.malformed("_bulk_get"))?;
            let given = fetched.docs.iter().filter(|entry| entry.ok.is_some()).count() as u64;
            self.job.progress().lock().stats.bulk_given += given;
            for entry in fetched.docs {
                self.take(&row, &entry, form, load)?;
            }
            self.write_if_full(load).await?;
        }
        Ok(true)
    }

    /// Asks for histories: another pod gives them whole, and of files only what is to be known of them.
    pub fn revs(&self) -> &'static str {
        if self.source.is_pod() { "revs=all&files=true" } else { "revs=true" }
    }

    /// Reads revisions of one document.
    async fn fetch_one(&self, id: &str, wanted: &[Wanted], form: Form, load: &mut Load) -> Result<(), Fault> {
        let revs: Vec<&str> = wanted.iter().map(|wanted| wanted.rev.as_str()).collect();
        let revs = escaped(&serde_json::to_string(&revs).unwrap_or_default());
        self.fetch_leaves(id, &revs, form, load).await
    }

    /// Reads the leaves of one document that `open_revs` picks out.
    async fn fetch_leaves(&self, id: &str, open_revs: &str, form: Form, load: &mut Load) -> Result<(), Fault> {
        let more = match form {
            Form::Stubs => "&latest=true",
            Form::Inline => "&attachments=true",
        };
        let below = format!("{}?open_revs={open_revs}&{}{more}", doc_path(id), self.revs());
        let response = self.source.send(Method::GET, &below, None).await?;
        let status = response.status();
        if !status.is_success() {
            let answer = self.source.read(response).await?;
            // Purged since the change.
            if status == StatusCode::NOT_FOUND && matches!(words(&answer.body).1.as_str(), "missing" | "deleted") {
                return Ok(());
            }
            return Err(self.source.fault("reading a document", &answer));
        }
        let mut split = Split::new(self.source.pieces(response), self.source.shown(), self.max_doc_bytes);
        while let Some(row) = split.next().await? {
            let entry: Entry<'_> = serde_json::from_slice(&row).map_err(|_| self.malformed("open_revs"))?;
            self.take(&row, &entry, form, load)?;
            self.write_if_full(load).await?;
        }
        Ok(())
    }

    fn take(&self, row: &Bytes, entry: &Entry<'_>, form: Form, load: &mut Load) -> Result<(), Fault> {
        let Some(doc) = entry.ok else {
            return self.not_read(entry.error.as_ref());
        };
        let head: Head = serde_json::from_str(doc.get()).map_err(|_| self.malformed("a document"))?;
        let is_pod = self.source.is_pod();
        let lacking = head.attachments.values().filter(|stub| !stub.is_whole(is_pod));
        let attached_bytes = lacking.clone().map(|stub| stub.length).fold(0, u64::saturating_add);
        let whole = lacking.count() == 0;
        if !whole {
            let wanted = Wanted { id: head.id, rev: head.rev, attached_bytes };
            if form == Form::Stubs && attached_bytes <= INLINE_BYTES {
                load.small.push(wanted);
            } else {
                load.large.push(wanted);
            }
            return Ok(());
        }
        {
            let mut progress = self.job.progress().lock();
            progress.stats.read += 1;
            progress.stats.bytes += doc.get().len() as u64;
        }
        load.bytes += doc.get().len();
        load.docs.push(row.slice_ref(doc.get().as_bytes()));
        Ok(())
    }

    /// A revision that isn't there any more has made place for others, which are in the changes too.
    fn not_read(&self, error: Option<&Value>) -> Result<(), Fault> {
        let word = error.and_then(|error| error.get("error")).and_then(Value::as_str).unwrap_or_default();
        match word {
            "forbidden" | "unauthorized" => {
                self.job.progress().lock().stats.refused += 1;
                Ok(())
            }
            "internal_server_error" | "internal_error" | "unknown_error" | "timeout" | "service_unavailable" => {
                Err(Fault::Passing(format!("{}: a document could not be read: {word}", self.source.shown())))
            }
            _ => Ok(()),
        }
    }

    async fn write_if_full(&self, load: &mut Load) -> Result<(), Fault> {
        if load.docs.len() < BATCH_DOCS && load.bytes < BATCH_BYTES {
            return Ok(());
        }
        self.write(load).await
    }

    async fn write(&self, load: &mut Load) -> Result<(), Fault> {
        load.bytes = 0;
        let docs = std::mem::take(&mut load.docs);
        if docs.is_empty() {
            return Ok(());
        }
        self.write_docs(&docs).await
    }

    /// Writes documents. A batch that the target doesn't take is halved, until the document is found that it is about.
    ///
    /// # Errors
    /// When the target can't be asked, or says that it is at fault itself.
    pub async fn write_docs(&self, docs: &[Bytes]) -> Result<(), Fault> {
        let mut waiting = vec![docs];
        while let Some(docs) = waiting.pop() {
            let mut body = Vec::with_capacity(docs.iter().map(|doc| doc.len() + 1).sum::<usize>() + 40);
            body.extend_from_slice(b"{\"new_edits\":false,\"docs\":[");
            for (n, doc) in docs.iter().enumerate() {
                if n > 0 {
                    body.push(b',');
                }
                body.extend_from_slice(doc);
            }
            body.extend_from_slice(b"]}");
            let answer = self.target.ask(Method::POST, "/_bulk_docs", Some(Sent::json(body))).await?;
            let status = answer.status;
            if status.is_success() {
                self.count_written(docs.len() as u64, &answer)?;
            } else if matches!(status.as_u16(), 400 | 413 | 422) {
                if docs.len() > 1 {
                    let (first, second) = docs.split_at(docs.len() / 2);
                    waiting.extend([second, first]);
                } else {
                    let id = docs.first().and_then(|doc| serde_json::from_slice::<Head>(doc).ok()).map(|head| head.id);
                    let (error, reason) = words(&answer.body);
                    self.refused(id.as_deref().unwrap_or_default(), &format!("{status}: {error}: {reason}"));
                    self.job.progress().lock().stats.refused += 1;
                }
            } else {
                return Err(self.target.fault("writing documents", &answer));
            }
        }
        Ok(())
    }

    fn count_written(&self, sent: u64, answer: &Answer) -> Result<(), Fault> {
        let rows: Vec<Value> = serde_json::from_slice(&answer.body)
            .map_err(|_| Fault::Passing(format!("{}: _bulk_docs has another form", self.target.shown())))?;
        let mut refused = 0;
        for row in &rows {
            let word = match row.get("error") {
                None | Some(Value::Null) => continue,
                Some(Value::String(word)) => word.as_str(),
                // PouchDB's servers say `true` and name the error elsewhere.
                Some(_) => row.get("name").and_then(Value::as_str).unwrap_or_default(),
            };
            if matches!(word, "internal_server_error" | "internal_error" | "timeout" | "service_unavailable") {
                return Err(Fault::Passing(format!(
                    "{}: a document could not be written: {word}",
                    self.target.shown()
                )));
            }
            refused += 1;
            let reason = row.get("reason").and_then(Value::as_str).map(clip).unwrap_or_default();
            let why = if reason.is_empty() { word.to_owned() } else { format!("{word}: {reason}") };
            self.refused(row.get("id").and_then(Value::as_str).unwrap_or_default(), &why);
        }
        let refused = refused.min(sent);
        let mut progress = self.job.progress().lock();
        progress.stats.refused += refused;
        progress.stats.written += sent - refused;
        Ok(())
    }

    /// Logs that the target has not taken a document. Between pods that should not be: they have the same rules.
    pub fn refused(&self, id: &str, why: &str) {
        let target = self.target.shown();
        self.job.refused(id, why);
        if self.source.is_pod() {
            tracing::warn!(target, id, why, "a document that came over a link was refused");
        } else {
            tracing::debug!(target, id, why, "a replicated document was refused");
        }
    }

    fn malformed(&self, what: &str) -> Fault {
        Fault::Passing(format!("{}: {what} has another form", self.source.shown()))
    }
}

/// Parts revisions so that the attachments of each part, in base64, are about one batch.
fn groups(wanted: &[Wanted]) -> Vec<&[Wanted]> {
    let mut groups = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (at, one) in wanted.iter().enumerate() {
        if at > from && (bytes + one.attached_bytes > BATCH_BYTES as u64 || at - from >= BATCH_DOCS) {
            groups.push(&wanted[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += one.attached_bytes;
    }
    if from < wanted.len() {
        groups.push(&wanted[from..]);
    }
    groups
}
