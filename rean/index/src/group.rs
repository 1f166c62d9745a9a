//! One index of one database.

use crate::error::IndexError;
use crate::records::GroupRecord;
use crate::shared::Shared;
use crate::spec::GroupSpec;
use crate::update;
use crate::view::View;
use rean_store::{Db, Scope, Seq};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A handle on an index. Cheap to make; keep none for longer than a request.
#[derive(Clone)]
pub struct Group {
    pub(crate) db: Db,
    pub(crate) spec: Arc<GroupSpec>,
    pub(crate) shared: Arc<Shared>,
}

/// What is known of an index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupInfo {
    /// Of its specification.
    pub signature: String,
    /// All changes up to this sequence are in it.
    pub seq: Seq,
    /// Purges that are in it.
    pub purge_seq: u64,
    /// Bytes of its rows.
    pub row_bytes: u64,
    /// Its share of what all indexes take up on disk, by its rows; 0 where that was not asked for.
    pub disk_bytes: u64,
    /// Whether it is being brought up to date.
    pub updating: bool,
    /// Those who wait for that.
    pub waiting: u64,
}

impl Group {
    /// What it is an index of.
    pub fn spec(&self) -> &Arc<GroupSpec> {
        &self.spec
    }

    /// The database.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Brings the index up to all that was durable when this was called, and gives its sequence, which is that of the
    /// database ([`rean_store::DbInfo::update_seq`]) then or a later one. One does it, others wait for it; blocks for as
    /// long as that takes. `progress` is told the changes that are done, of about how many; it is called between
    /// steps and may pause. A program that ends and the deletion of the database or of the index end it.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn update(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Seq, IndexError> {
        update::run(self, progress)
    }

    /// The sequence up to which all changes are in the index.
    pub fn seq(&self) -> Seq {
        self.shared.record().seq
    }

    /// Whether all that is durable is in the index.
    pub fn is_current(&self) -> bool {
        update::covers(self, self.db.newest()).is_ok_and(|seq| seq.is_some())
    }

    /// Those who wait for the index to be brought up to date: who does that in the background should not pause then.
    pub fn waiting(&self) -> u64 {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// What is known of it.
    ///
    /// # Errors
    /// The index is gone.
    pub fn info(&self) -> Result<GroupInfo, IndexError> {
        self.shared.with_record(|_| ())?;
        let mut info = GroupInfo::of_shared(&self.shared);
        let all_bytes = self.shared.common.page_bytes()?.max(info.row_bytes).max(1);
        let disk_bytes = u128::from(self.shared.common.engine.stats().disk_bytes);
        info.disk_bytes = (disk_bytes * u128::from(info.row_bytes) / u128::from(all_bytes)) as u64;
        Ok(info)
    }

    /// One view of the group as it is at this moment, with the rows that `scope` shows. The partial databases of a
    /// personal one are those that the reader may read now. It is no newer than the last [`Group::update`].
    ///
    /// # Errors
    /// The engine failed, there are too many views open, or the index is gone.
    pub fn view(&self, scope: &Scope, view: usize) -> Result<View, IndexError> {
        View::open(self, scope, view)
    }
}

impl GroupInfo {
    pub(crate) fn of(signature: &str, record: &GroupRecord) -> GroupInfo {
        GroupInfo {
            signature: signature.to_owned(),
            seq: record.seq,
            purge_seq: record.purges,
            row_bytes: record.page_bytes,
            disk_bytes: 0,
            updating: false,
            waiting: 0,
        }
    }

    pub(crate) fn of_shared(shared: &Shared) -> GroupInfo {
        GroupInfo {
            updating: shared.updating.load(Ordering::Relaxed),
            waiting: shared.waiting.load(Ordering::Relaxed),
            ..GroupInfo::of(&shared.signature, &shared.record())
        }
    }
}
