//! Views: the map and reduce functions of design documents, asked over HTTP
//! (<https://docs.couchdb.org/en/stable/api/ddoc/views.html>).
//!
//! A request's design document becomes the description of an index ([`spec`]); the index is brought up to date
//! ([`builds`]), and its rows, as the target's scope shows them, are sent page by page ([`answer`]). The [`indexer`]
//! does the first part ahead of requests, and drops what no design document needs any more.
//!
//! What always holds: readers of a part of an app get the rows of documents that they may read as the index was at the
//! request or later, never older ones, whatever `update` and `stale` say; counts, offsets and ETags are made of those
//! rows alone. Documents go through the target's scope.

pub mod answer;
pub mod args;
pub mod builds;
pub mod http;
pub mod indexer;
pub mod info;
pub mod readers;
pub mod spec;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::http::StatusCode;
use parking_lot::Mutex;
use rean_index::{Group, GroupSpec, IndexError, MapError, mango};
use rean_script::{Design, Scripts};
use rean_store::{Db, DbKind};

use crate::designs::DesignDoc;
use crate::error::ApiError;
use crate::hub::{CommitHook, Hub};
use crate::pod::stopped;
use crate::views::builds::Builds;
pub use crate::views::builds::{Wanted, fresh, fresh_later, lane};
pub use crate::views::indexer::Dirty;
use crate::views::readers::Readers;
use crate::views::spec::{DesignViews, Home, SpecError};

/// Design documents whose views are remembered. Each takes some kilobytes; more are read anew at each request.
const MAX_REMEMBERED: usize = 2_000;
/// The texts of those, in bytes: as much as is kept of design documents themselves.
const MAX_REMEMBERED_BYTES: usize = 32 << 20;

/// What the requests for views share.
#[derive(Default)]
pub struct Views {
    builds: Builds,
    remembered: Mutex<Memory>,
    /// What the indexer has to look at.
    pub dirty: Arc<Dirty>,
    /// Who takes long answers.
    pub readers: Readers,
    compacting: AtomicBool,
}

/// Instance and id.
type DesignKey = (Box<str>, Box<str>);

/// What was read last of a design document: its functions, which stand for its text, and its views.
type Remembered = (Design, Result<Arc<DesignViews>, SpecError>);

/// The views of design documents.
#[derive(Default)]
struct Memory {
    known: HashMap<DesignKey, Remembered>,
    bytes: usize,
}

impl Views {
    /// Follows the commits through the hub.
    pub fn new(hub: &Hub) -> Self {
        let views = Self::default();
        hub.add_hook(Arc::clone(&views.dirty) as Arc<dyn CommitHook>);
        views
    }

    /// The views of a design document.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn of(&self, db: &Db, design: &DesignDoc, scripts: &Scripts) -> Result<Arc<DesignViews>, SpecError> {
        let key: DesignKey = (db.instance().into(), design.id.as_str().into());
        if let Some((known, views)) = self.remembered.lock().known.get(&key)
            && *known == design.script
        {
            return views.clone();
        }
        let home = Home { is_app: db.kind() == DbKind::App, is_partitioned: db.is_partitioned() };
        let views = DesignViews::of(&design.value, &design.script, scripts, home).map(Arc::new);
        self.remembered.lock().keep(key, (design.script.clone(), views.clone()));
        views
    }

    /// What the index of a design document is made of, of views or of Mango; `None`: it has none.
    pub fn group_spec(&self, db: &Db, design: &DesignDoc, scripts: &Scripts) -> Option<Arc<GroupSpec>> {
        match self.of(db, design, scripts) {
            Ok(views) => Some(Arc::clone(&views.group)),
            Err(SpecError::Language(language)) if language == spec::QUERY => {
                mango::group_spec(&design.id, &design.value, db.is_partitioned())
            }
            Err(_) => None,
        }
    }

    /// Whether an index is being brought up to date, and how many requests wait for the next time.
    pub fn state(&self, group: &Group) -> (bool, usize) {
        self.builds.state(group)
    }

    /// `false`: the indexes are being compacted already.
    fn begin_compaction(&self) -> bool {
        !self.compacting.swap(true, Ordering::AcqRel)
    }

    fn end_compaction(&self) {
        self.compacting.store(false, Ordering::Release);
    }

    /// Whether the indexes are being compacted.
    pub fn is_compacting(&self) -> bool {
        self.compacting.load(Ordering::Acquire)
    }
}

impl Memory {
    fn keep(&mut self, key: DesignKey, read: Remembered) {
        let bytes = read.0.json().len();
        if self.known.len() >= MAX_REMEMBERED || self.bytes + bytes > MAX_REMEMBERED_BYTES {
            self.known.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        if let Some((before, _)) = self.known.insert(key, read) {
            self.bytes -= before.json().len();
        }
    }
}

/// What clients are told of an index that failed.
pub fn index_error(error: IndexError, db: &Db) -> ApiError {
    let again = |words: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", words);
    match error {
        IndexError::Closing => stopped(),
        IndexError::Gone if db.is_gone() => ApiError::no_database(),
        IndexError::Gone => again("The index was replaced: ask again.".to_owned()),
        IndexError::Busy(words) | IndexError::Map(MapError::Unavailable(words)) => again(words),
        IndexError::Map(MapError::Function(words)) => {
            ApiError::new(StatusCode::BAD_REQUEST, "compilation_error", words)
        }
        IndexError::Map(MapError::Documents(words) | MapError::Resting(words)) => {
            // CouchDB's word for a function that was ended by a limit.
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "os_process_error", words)
        }
        IndexError::Reduce { error, reason } => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error, reason),
        IndexError::Store(error) => error.into(),
        other => ApiError::internal("the index failed; the server's log says more").with_cause(other),
    }
}
