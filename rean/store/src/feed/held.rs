//! What a reader's device may hold, of documents that are out of its sight: by the place that it has reached, by what its
//! user was given before, or because they wrote it.

use super::Feed;
use super::row::{somebody_wrote, wrote};
use crate::app::Reader;
use crate::bookmark::Place;
use crate::record::{PartNo, PartRow, Seq};
use crate::served::{Given, Spans};

impl Feed {
    /// Whether there are partial databases from which the user was served and which are out of their sight now.
    pub(super) fn has_lost_parts(&self, reader: &Reader) -> bool {
        self.given(reader).is_some_and(|given| !given.lost_parts(&self.db, reader).is_empty())
    }

    /// What the user was given so far; `None`: it isn't kept.
    pub(super) fn given(&self, reader: &Reader) -> Option<Given> {
        self.serving.as_ref().map(|serving| serving.given(reader))
    }

    /// Whether the client may have been given a document of a row, as far as the place tells. `roles`: by which it may
    /// have been given it.
    pub(super) fn may_hold(&self, reader: &Reader, roles: &[String], part: PartNo, row: &PartRow, seq: Seq) -> bool {
        let Place { after, origin, head, gained, .. } = &self.place;
        let held = |(entered, left): (Seq, Seq)| {
            let was_here = entered <= *origin || (entered <= *after && *head < left);
            if was_here && left <= *origin {
                // A later row stands in the place of the tombstone, which the client may have passed or not.
                return self.given(reader).is_none_or(|given| self.spans(&given, part).began_before(left));
            }
            if !was_here || gained.iter().all(|gain| gain.at < left) {
                return was_here;
            }
            // By a right that is older than that.
            let later = |role: &&String| gained.iter().any(|gain| gain.role == **role && gain.at >= left);
            let roles = roles.iter().filter(|role| !later(role)).cloned().collect();
            self.db.inner().app.read().may_read(&reader.with_roles(roles), Some(part))
        };
        row.stays(seq).any(held)
    }

    /// Whether the user may hold what they wrote themselves. Who did on another pod isn't known: it can't have been
    /// somebody whose right is newer than the row's tombstone, or was lost before the document came.
    pub(super) fn may_have_written(&self, reader: &Reader, part: PartNo, seq: Seq, row: &PartRow) -> bool {
        let may_be_theirs = |spans: Spans| match self.db.may_read_part(reader, part) {
            true => spans.began_before(row.stays(seq).map(|(_, left)| left).max().unwrap_or(seq)),
            false => spans.given(row.stays(seq)).is_some(),
        };
        wrote(reader, row)
            || (somebody_wrote(reader, row)
                && self.given(reader).is_some_and(|given| may_be_theirs(self.spans(&given, part))))
    }

    /// What was given of a partial database.
    pub(super) fn spans(&self, given: &Given, part: PartNo) -> Spans {
        let app = self.db.inner().app.read();
        app.part(part).map(|part| given.of(&part.readers)).unwrap_or_default()
    }
}
