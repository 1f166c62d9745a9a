//! Rows as their readers get them.

use super::Change;
use crate::app::{AppState, Reader};
use crate::authors::SOMEBODY;
use crate::db::Db;
use crate::record::{PartRow, Seq};
use crate::rev::Rev;
use crate::view::BodyRef;
use std::sync::Arc;

/// A row of a feed, as its reader gets it.
#[derive(Clone)]
pub struct FeedRow {
    /// The document.
    pub id: Arc<str>,
    /// The place after this row.
    pub seq_token: String,
    /// Its leaves, winner first.
    pub revs: Vec<Rev>,
    /// Whether the winner is a tombstone.
    pub deleted: bool,
    /// Whether it only left this reader's sight.
    pub tomb: bool,
    /// The winner's content, if there is any to show.
    pub body: Option<BodyRef>,
    /// Whether the row is the same for all its readers, so that [`Change::line`] may serve.
    pub shared: bool,
    /// The change that it is from, if it came live.
    pub change: Option<Arc<Change>>,
}

/// Whether a reader has written the document where the row is.
pub(super) fn wrote(reader: &Reader, row: &PartRow) -> bool {
    reader.name().is_some_and(|name| row.authors.iter().any(|author| author == name))
}

/// Whether somebody has written it on another pod, who may be this reader.
pub(super) fn somebody_wrote(reader: &Reader, row: &PartRow) -> bool {
    reader.name().is_some() && row.authors.iter().any(|author| author == SOMEBODY)
}

/// Whether the client may hold the row's winner as dead. Not if it was in the reader's sight before and after
/// the move that ended it for others, which is the commit that made the row.
pub(super) fn may_be_dead(row: &PartRow, seq: Seq, first_read: bool) -> bool {
    !row.tomb
        && row
            .leaves
            .first()
            .is_some_and(|winner| !winner.deleted && winner.ended != 0 && (first_read || winner.ended != seq))
}

pub(super) fn live_row(db: &Db, app: &AppState, reader: &Reader, row: &PartRow, seq_token: String) -> FeedRow {
    let gone = row.gone.iter().map(|rev| db.inner().chain.tomb(&row.id, rev));
    let revs = row.leaves.iter().map(|leaf| leaf.rev.clone()).chain(gone).collect();
    let winner = row.leaves.first();
    let content = winner.filter(|leaf| app.may_read_acl(reader, leaf.acl));
    FeedRow {
        id: Arc::from(row.id.as_str()),
        seq_token,
        deleted: winner.is_none_or(|leaf| leaf.deleted),
        tomb: false,
        body: content.and_then(|leaf| leaf.body).map(BodyRef),
        shared: row.leaves.len() == 1 && row.gone.is_empty() && content.is_some(),
        revs,
        change: None,
    }
}

pub(super) fn tomb_row(db: &Db, row: &PartRow, seq_token: String) -> FeedRow {
    let held = row.leaves.iter().map(|leaf| &leaf.rev).chain(&row.gone);
    FeedRow {
        id: Arc::from(row.id.as_str()),
        seq_token,
        revs: held.map(|rev| db.inner().chain.tomb(&row.id, rev)).collect(),
        deleted: true,
        tomb: true,
        body: None,
        shared: false,
        change: None,
    }
}
