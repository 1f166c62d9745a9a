//! Which rows of a feed its filter lets through, and which revisions of them.
//!
//! Who lost the right to a document must be told, whatever they filter by: such rows pass every filter that looks at
//! documents. They could read it before.

use std::sync::Arc;

use rean_store::json::push_string;
use rean_store::rev::Rev;
use rean_store::{Body, DocView, FeedRow, RevView, StoreError};

use crate::changes::{Filter, Options};
use crate::feed_body::seen::Seen;
use crate::feed_body::{CutOff, push_plain_doc};
use crate::functions::filters::FunctionFilter;
use crate::page_body::Out;
use crate::render::{self, push_document};
use crate::target::Target;

/// Texts of documents that a function sees at once, in bytes.
const BATCH_BYTES: usize = 1 << 20;

/// What is shown of a row.
#[derive(Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nothing.
    Nothing,
    /// All of it.
    All,
    /// Of its revisions, some.
    Revs(Vec<bool>),
}

/// One revision of a row, as its filter is to see it.
enum Look {
    /// The document.
    Doc(Arc<Seen>),
    /// It is told without a look: it left the reader's sight.
    Tell,
    /// It has no content any more; a later row of its document follows.
    Gone,
}

impl Shown {
    /// Whether the revision at this place of the row is shown.
    pub fn has(&self, place: usize) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Revs(revs) => revs.get(place).copied().unwrap_or(false),
        }
    }

    fn of(revs: Vec<bool>) -> Self {
        match revs.iter().filter(|shown| **shown).count() {
            0 => Self::Nothing,
            all if all == revs.len() => Self::All,
            _ => Self::Revs(revs),
        }
    }
}

/// What a filter that is no function lets through of a row.
pub fn shown(target: &Target, options: &Options, row: &FeedRow) -> Result<Shown, StoreError> {
    let passes = match &options.filter {
        Filter::All => true,
        Filter::DocIds(ids) => ids.contains(&*row.id),
        Filter::Design => row.id.starts_with("_design/"),
        Filter::Selector(selector) => {
            let looks = looks(target, row, options.all_leaves, false)?;
            let matches = |look| match look {
                // What is nested too deeply for a tree matches no selector.
                Look::Doc(doc) => doc.value().is_some_and(|doc| selector.matches(doc)),
                Look::Tell => true,
                Look::Gone => false,
            };
            return Ok(Shown::of(looks.into_iter().map(matches).collect()));
        }
        // These are asked in batches.
        Filter::Function(_) => false,
    };
    Ok(if passes { Shown::All } else { Shown::Nothing })
}

/// Rows that a function sees at once.
pub struct Batch {
    rows: Vec<(FeedRow, Vec<Verdict>)>,
    docs: Vec<Arc<Seen>>,
}

/// How it is known whether a revision is shown.
enum Verdict {
    Known(bool),
    /// By the next answer of the function.
    Asked,
}

impl Batch {
    /// Takes rows until there is enough text.
    pub fn gather(
        target: &Target,
        all_leaves: bool,
        filter: &FunctionFilter,
        rows: &mut std::vec::IntoIter<FeedRow>,
    ) -> Result<Self, StoreError> {
        let mut batch = Self { rows: Vec::new(), docs: Vec::new() };
        let mut bytes = 0;
        let revisions = filter.wants_revisions();
        while bytes < BATCH_BYTES
            && let Some(mut row) = rows.next()
        {
            let mut verdicts = Vec::new();
            for look in looks(target, &row, all_leaves, revisions)? {
                verdicts.push(match look {
                    Look::Doc(doc) => {
                        bytes += doc.text().len();
                        batch.docs.push(doc);
                        Verdict::Asked
                    }
                    Look::Tell => Verdict::Known(true),
                    Look::Gone => Verdict::Known(false),
                });
            }
            // Rows that wait for a slow listener must not hold on to what all listeners share.
            row.change = None;
            batch.rows.push((row, verdicts));
        }
        Ok(batch)
    }

    /// Asks the function.
    pub async fn ask(self, filter: &FunctionFilter) -> Result<Vec<(FeedRow, Shown)>, CutOff> {
        let answers = match self.docs.is_empty() {
            true => Vec::new(),
            false => filter.pass(self.docs).await.map_err(|error| CutOff::Filter(Box::new(error)))?,
        };
        let mut answers = answers.into_iter();
        let mut decide = |verdict| match verdict {
            Verdict::Known(shown) => shown,
            Verdict::Asked => answers.next().unwrap_or(false),
        };
        let rows = self.rows.into_iter();
        Ok(rows.map(|(row, verdicts)| (row, Shown::of(verdicts.into_iter().map(&mut decide).collect()))).collect())
    }
}

/// The revisions of a row that its filter looks at: the winner, or with `all_leaves` all of them.
fn looks(target: &Target, row: &FeedRow, all_leaves: bool, revisions: bool) -> Result<Vec<Look>, StoreError> {
    if row.tomb {
        return Ok(vec![Look::Tell]);
    }
    let others = all_leaves && row.revs.len() > 1;
    if row.shared && row.revs.len() == 1 && !revisions && row.change.is_some() {
        if let Some(seen) = Seen::of(row) {
            return Ok(vec![Look::Doc(seen)]);
        }
        let text = winner_text(target, row)?;
        return Ok(vec![text.map_or(Look::Gone, |text| Look::Doc(Seen::keep(row, text)))]);
    }
    // The row's own winner counts, also if the document has changed since: then a later row follows.
    let doc = if others || revisions { target.db.doc(&target.scope, &row.id)? } else { None };
    let found = |rev: &Rev| doc.as_ref().and_then(|doc| Some((doc, doc.leaves.iter().find(|leaf| leaf.rev == *rev)?)));
    let mut looks = vec![match row.revs.first().and_then(found) {
        Some((doc, leaf)) if revisions => leaf_look(target, doc, leaf, true)?,
        _ => look(winner_text(target, row)?),
    }];
    if others {
        for rev in &row.revs[1..] {
            looks.push(match found(rev) {
                Some((doc, leaf)) => leaf_look(target, doc, leaf, revisions)?,
                None => Look::Tell,
            });
        }
    }
    Ok(looks)
}

fn winner_text(target: &Target, row: &FeedRow) -> Result<Option<String>, StoreError> {
    let mut text = Vec::new();
    push_plain_doc(&mut text, target, row)?;
    Ok(as_text(text))
}

fn leaf_look(target: &Target, doc: &DocView, leaf: &RevView, revisions: bool) -> Result<Look, StoreError> {
    if revisions {
        let mut out = Out::default();
        let options = render::Options { revs: true, ..render::Options::default() };
        let pushed = push_document(&mut out, &target.db, doc, leaf, &options);
        return Ok(pushed.ok().and_then(|_| out.into_text()).map_or(Look::Gone, |text| look(as_text(text))));
    }
    let body: Option<Body> = leaf.body.map(|at| target.db.body(at)).transpose()?.flatten();
    if body.is_none() && !leaf.deleted {
        return Ok(Look::Gone);
    }
    let mut text = Vec::new();
    render::push_plain(&mut text, &doc.id, &leaf.rev, leaf.deleted, body.as_ref());
    Ok(look(as_text(text)))
}

/// `None`: there is no document any more.
fn as_text(text: Vec<u8>) -> Option<String> {
    String::from_utf8(text).ok().filter(|text| text != "null")
}

fn look(text: Option<String>) -> Look {
    text.map_or(Look::Gone, |text| Look::Doc(Arc::new(Seen::alone(text))))
}

/// What comes after a row's sequence: its id and the revisions that are shown.
pub fn push_id_and_revs(out: &mut Vec<u8>, row: &FeedRow, all_leaves: bool, shown: &Shown) {
    out.extend_from_slice(b"\"id\":");
    push_string(out, &row.id);
    out.extend_from_slice(b",\"changes\":[");
    let most = if all_leaves { row.revs.len() } else { 1 };
    let mut before: &[u8] = b"{\"rev\":";
    for (_, rev) in row.revs.iter().take(most).enumerate().filter(|(place, _)| row.tomb || shown.has(*place)) {
        render::push_rev(out, before, rev);
        out.push(b'}');
        before = b",{\"rev\":";
    }
    out.push(b']');
    if row.deleted {
        out.extend_from_slice(b",\"deleted\":true");
    }
}

#[cfg(test)]
mod tests {
    use super::Shown;

    #[test]
    fn a_row_is_shown_if_one_of_its_revisions_is() {
        assert_eq!(Shown::of(vec![false, false]), Shown::Nothing);
        assert_eq!(Shown::of(vec![true]), Shown::All);
        let some = Shown::of(vec![false, true]);
        assert_eq!(some, Shown::Revs(vec![false, true]));
        assert!(!some.has(0) && some.has(1) && !some.has(2));
        assert!(Shown::All.has(7) && !Shown::Nothing.has(0));
    }
}
