//! `GET /_backup`: a backup of all that a pod has, or of some databases, as one stream in the form of [`format`].
//!
//! It is made from one snapshot of the store while the pod runs: each database is in it as it was at one and the same
//! sequence. In it are all leaves of all documents with their histories and attachments, deletions, `_security`,
//! `_revs_limit`, the settings of apps, and for a whole pod accounts, replications and the ring's settings. Not in it are
//! `_local` documents (a replication that finds none compares anew), sessions, what pods tell of themselves, and all that
//! is of a ring: its keys, secrets and instructions. It holds the hashes of passwords, and passwords of replications.
//!
//! What always holds: only administrators get one; memory doesn't grow with what is in it; a reader that is silent for too
//! long is left, because the snapshot keeps the store from giving back space.

pub mod format;
mod leaf;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adea_ring::Identity;
use axum::body::Body;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use rean_store::json::push_string;
use rean_store::{DbKind, Frozen, FrozenDb, FrozenLeaf, PIECE_BYTES, Reading, StoreError, StoredFile, digest_text};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use self::format::{Database, Head, Kind, Sum, Writer};
use crate::databases::blocking;
use crate::error::ApiError;
use crate::files::Files;
use crate::files::reader::Lazy;
use crate::pod::{Pod, SYSTEM_DATABASES};
use crate::replicate::moment::Moment;
use crate::route::{Request, Response};
use crate::target::require_server_admin;

/// The media type of a backup.
const MEDIA_TYPE: &str = "application/vnd.adea.backup";
/// Blocks that wait to be sent: some MiB.
const QUEUED_BLOCKS: usize = 4;
/// How long a reader may take nothing.
const READER_TIMEOUT: Duration = Duration::from_secs(60);
/// Databases that may be named in one request.
const MAX_NAMED: usize = 1_000;
/// Ring settings: the id of their document.
const CONFIG: &str = "config";

/// Backups under way: one at a time, because each holds a snapshot.
#[derive(Default)]
pub struct Backups {
    running: AtomicBool,
}

/// The one place for a backup; free again when it is dropped.
struct Running(Arc<Pod>);

impl Running {
    fn begin(pod: &Arc<Pod>) -> Option<Self> {
        let was = pod.backups.running.swap(true, Ordering::AcqRel);
        (!was).then(|| Self(Arc::clone(pod)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.backups.running.store(false, Ordering::Release);
    }
}

/// Why a backup ended early.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It can't be packed.
    #[error("packing: {0}")]
    Pack(#[from] io::Error),
    /// An attachment that is kept outside of the store can't be read.
    #[error("reading a file: {0}")]
    File(io::Error),
    /// Nobody takes it.
    #[error("nobody reads it any more")]
    Left,
}

/// `GET /_backup`; `?db=NAME`, which may be given again, for some databases.
///
/// # Errors
/// 401 for all but administrators; 404 for a database that isn't there; 503 while another backup is made.
pub async fn backup(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    let named: Vec<String> = form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes())
        .filter(|(name, _)| name == "db")
        .map(|(_, value)| value.into_owned())
        .take(MAX_NAMED + 1)
        .collect();
    if named.len() > MAX_NAMED {
        return Err(ApiError::bad_request(format!("At most {MAX_NAMED} databases can be named.")));
    }
    let busy = || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Another backup is being made.");
    let running = Running::begin(pod).ok_or_else(busy)?;
    let for_freeze = Arc::clone(pod);
    let plan = blocking(move || Plan::new(&for_freeze, named)).await??;
    if request.head {
        return Ok(answer(Body::empty()));
    }
    let (sender, receiver) = mpsc::channel(QUEUED_BLOCKS);
    let handle = Handle::current();
    tokio::task::spawn_blocking(move || {
        let pod = Arc::clone(&running.0);
        let task = pod.tasks.begin("backup", "");
        let total = plan.databases.iter().map(|db| db.docs + db.deleted).sum();
        let give = |bytes: Vec<u8>| send(&handle, &sender, Ok(bytes.into()));
        if let Err(broken) = plan.write(give, &mut |done| task.progress(done, total)) {
            tracing::warn!(%broken, "a backup was broken off");
            // So that the reader sees that it isn't whole.
            let _ = send(&handle, &sender, Err(io::Error::other("the backup was broken off")));
        }
        drop(running);
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|block| (block, receiver))
    });
    Ok(answer(Body::from_stream(stream)))
}

fn answer(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Hands a block over, from a thread that may block.
fn send(handle: &Handle, sender: &mpsc::Sender<io::Result<Bytes>>, block: io::Result<Bytes>) -> Result<(), Broken> {
    handle.block_on(async {
        match tokio::time::timeout(READER_TIMEOUT, sender.send(block)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Broken::Left),
        }
    })
}

/// What goes into a backup.
struct Plan {
    frozen: Frozen,
    databases: Vec<FrozenDb>,
    /// Where the settings are.
    ring: Option<FrozenDb>,
    head: Head,
    files: Arc<Files>,
}

impl Plan {
    /// Takes the snapshot.
    fn new(pod: &Pod, named: Vec<String>) -> Result<Self, ApiError> {
        let frozen = pod.store.freeze()?;
        let mut databases = frozen.databases()?;
        let ring = databases.iter().find(|db| db.name == "_ring").cloned();
        let whole = named.is_empty();
        let is_wanted = |name: &str| match name {
            "_users" | "_replicator" => whole,
            name if SYSTEM_DATABASES.contains(&name) => false,
            name => whole || named.iter().any(|wanted| wanted == name),
        };
        databases.retain(|db| is_wanted(&db.name));
        if databases.len() < named.len() {
            return Err(ApiError::no_database());
        }
        databases.sort_by_key(|db| match db.name.as_str() {
            "_users" => 0,
            "_replicator" => 2,
            _ => 1,
        });
        let config = match &ring {
            Some(ring) if whole => settings(&frozen, ring, CONFIG)?,
            _ => None,
        };
        let head = Head {
            made_at: Moment::now().iso8601(),
            software: adea_ring::software::version().to_owned(),
            pod: pod.ring.origin.pod.to_string(),
            history: pod.store.history().to_owned(),
            seq: frozen.seq(),
            whole,
            databases: databases.iter().map(|db| db.name.clone()).collect(),
            config,
        };
        Ok(Self { frozen, databases, ring, head, files: Arc::clone(&pod.files) })
    }

    fn write(&self, give: impl FnMut(Vec<u8>) -> Result<(), Broken>, tell: &mut dyn FnMut(u64)) -> Result<(), Broken> {
        let mut writer = Writer::new(give)?;
        writer.json(Kind::Head, &self.head)?;
        let mut total = Sum::default();
        for db in &self.databases {
            writer.json(Kind::Database, &self.describe(db)?)?;
            let mut sum = Sum::default();
            self.frozen.documents(db, |doc| {
                sum.documents += 1;
                for leaf in &doc.leaves {
                    self.write_leaf(&mut writer, db, &doc.id, leaf, &mut sum)?;
                }
                tell(total.documents + sum.documents);
                Ok::<(), Broken>(())
            })?;
            writer.json(Kind::DatabaseEnd, &sum)?;
            total.add(&sum);
        }
        writer.json(Kind::End, &total)?;
        writer.finish()
    }

    fn describe(&self, db: &FrozenDb) -> Result<Database, Broken> {
        let is_app = db.kind == DbKind::App;
        let settings = match &self.ring {
            Some(ring) if is_app => settings(&self.frozen, ring, &format!("{}{}", crate::apps::PREFIX, db.name))?,
            _ => None,
        };
        Ok(Database {
            name: db.name.clone(),
            app: is_app,
            partitioned: db.partitioned,
            seq: db.seq,
            instance: db.instance.clone(),
            doc_count: db.docs,
            doc_del_count: db.deleted,
            revs_limit: db.revs_limit,
            security: serde_json::from_str(&db.security).ok(),
            settings,
        })
    }

    fn write_leaf<F>(
        &self,
        writer: &mut Writer<F>,
        db: &FrozenDb,
        id: &str,
        leaf: &FrozenLeaf,
        sum: &mut Sum,
    ) -> Result<(), Broken>
    where
        F: FnMut(Vec<u8>) -> Result<(), Broken>,
    {
        let Some(body) = &leaf.body else {
            sum.bodiless += 1;
            return Ok(());
        };
        let text = leaf_text(id, leaf);
        writer.record(Kind::Revision, &text)?;
        sum.revisions += 1;
        sum.bytes += text.len() as u64;
        for attachment in &body.attachments {
            sum.attachments += 1;
            sum.bytes += attachment.length;
            if let Some(file) = self.frozen.file(db, attachment.blob)? {
                self.write_file(writer, file)?;
                continue;
            }
            let mut left = attachment.length;
            let mut piece = 0;
            while left > 0 {
                let bytes = self.frozen.blob_piece(db, attachment.blob, piece)?;
                left = left.checked_sub(bytes.len() as u64).filter(|_| !bytes.is_empty()).ok_or({
                    Broken::Store(StoreError::Damaged("an attachment has another length than its record"))
                })?;
                writer.record(Kind::Piece, &bytes)?;
                piece += 1;
            }
        }
        Ok(())
    }
}

impl Plan {
    /// A file goes into the backup as any attachment does: what is restored needs no other pod and no bucket.
    fn write_file<F>(&self, writer: &mut Writer<F>, file: StoredFile) -> Result<(), Broken>
    where
        F: FnMut(Vec<u8>) -> Result<(), Broken>,
    {
        let mut bytes = Lazy::new(Arc::clone(&self.files), file, 0, file.length);
        let runtime = Handle::current();
        while let Some(piece) = runtime.block_on(poll_fn(|context| bytes.poll_bytes(context))) {
            for piece in piece.map_err(Broken::File)?.chunks(PIECE_BYTES) {
                writer.record(Kind::Piece, piece)?;
            }
        }
        Ok(())
    }
}

/// The members of a live document of `_ring`.
fn settings(frozen: &Frozen, ring: &FrozenDb, id: &str) -> Result<Option<Value>, StoreError> {
    let doc = frozen.document(ring, id)?;
    let winner = doc.and_then(|doc| doc.leaves.into_iter().next()).filter(|leaf| !leaf.deleted);
    Ok(winner.and_then(|leaf| leaf.body).and_then(|body| serde_json::from_slice(&body.json).ok()))
}

/// A leaf as CouchDB's JSON, with its whole history and with attachments that follow.
fn leaf_text(id: &str, leaf: &FrozenLeaf) -> Vec<u8> {
    use std::io::Write as _;
    let (json, attachments) = match &leaf.body {
        Some(body) => (&body.json[..], &body.attachments[..]),
        None => (&b"{}"[..], &[][..]),
    };
    let mut out = Vec::with_capacity(json.len() + 256);
    out.extend_from_slice(b"{\"_id\":");
    push_string(&mut out, id);
    // Writing to a vector can't fail; revisions need no escapes.
    if let Some(rev) = leaf.history.first() {
        let _ = write!(out, ",\"_rev\":\"{rev}\",\"_revisions\":{{\"start\":{},\"ids\":[", rev.generation);
        for (n, ancestor) in leaf.history.iter().enumerate() {
            let _ = write!(out, "{}\"{}\"", if n == 0 { "" } else { "," }, ancestor.hash);
        }
        out.extend_from_slice(b"]}");
    }
    if leaf.deleted {
        out.extend_from_slice(b",\"_deleted\":true");
    }
    for (n, attachment) in attachments.iter().enumerate() {
        out.extend_from_slice(if n == 0 { b",\"_attachments\":{" } else { b"," });
        push_string(&mut out, &attachment.name);
        out.extend_from_slice(b":{\"content_type\":");
        push_string(&mut out, &attachment.content_type);
        let (length, revpos, digest) = (attachment.length, attachment.revpos, digest_text(&attachment.digest_md5));
        let _ = write!(out, ",\"length\":{length},\"revpos\":{revpos},\"digest\":\"{digest}\",\"follows\":true}}");
    }
    if !attachments.is_empty() {
        out.push(b'}');
    }
    if json.len() > 2 {
        out.push(b',');
        out.extend_from_slice(&json[1..]);
    } else {
        out.push(b'}');
    }
    out
}
