//! Compares what both sides have: each leaf of each document, by the changes of one side and `_revs_diff` of the other.

use std::collections::BTreeSet;
use std::sync::Arc;

use rean::replicate::carry::{Carrier, Leaves, Wanted};
use rean::replicate::fault::Fault;
use rean::replicate::feed::read_page;
use serde_json::{Value, json};

use super::choice::Choice;
use super::copy::{Copying, Ends, count, goes_on};
use super::patience::{Patience, patiently};
use super::tally::Tally;

/// Differences that are told by name, each way.
const SHOWN: usize = 50;

/// What one side lacks of the other.
#[derive(Default)]
struct Lacking {
    count: u64,
    /// The first of them.
    first: Vec<Wanted>,
}

impl Lacking {
    fn add(&mut self, wanted: Vec<Wanted>) {
        self.count += wanted.len() as u64;
        let room = SHOWN - self.first.len();
        self.first.extend(wanted.into_iter().take(room));
    }

    fn tell(&self, ends: &Ends<'_>, db: &str, what: &str) {
        for wanted in &self.first {
            ends.teller.note(db, &format!("differs: {:?} {} {what}", wanted.id, wanted.rev));
        }
        if self.count > self.first.len() as u64 {
            ends.teller.note(db, &format!("and {} more", self.count - self.first.len() as u64));
        }
    }
}

/// Compares, and gives how many leaves differ, but for those that were refused. What came or changed while the copy went on
/// is carried over.
///
/// # Errors
/// When an end can't be asked.
pub async fn verify(ends: &Ends<'_>, copying: &Copying, choice: &Choice) -> anyhow::Result<u64> {
    let tally = Tally::default();
    let lacking = ends.teller.during("comparing", &choice.to, &tally, forth(copying, &tally)).await?;
    lacking.tell(ends, &choice.to, "is not at the target");
    let mut differences = lacking.count;
    // Whatever else is there was there before, or was written meanwhile.
    if copying.place.made {
        let more = back(copying).await?;
        more.tell(ends, &choice.to, "is not at the source");
        differences += more.count;
    }
    let counts = (count(&copying.source).await?.unwrap_or_default(), count(&copying.target).await?.unwrap_or_default());
    // Not every server counts the deleted ones.
    let deleted_differ = counts.0.deleted.zip(counts.1.deleted).is_some_and(|(one, other)| one != other);
    let same = counts.0.live == counts.1.live && !deleted_differ;
    ends.teller.event(&json!({
        "event": "compared", "db": choice.to, "differences": differences,
        "source": {"doc_count": counts.0.live, "doc_del_count": counts.0.deleted},
        "target": {"doc_count": counts.1.live, "doc_del_count": counts.1.deleted},
    }));
    if !same && differences == 0 && copying.tally.refusals().count() == 0 && copying.place.made {
        let text = format!(
            "the source has {} documents and {} deleted ones, the target {} and {}: is one of them being written to?",
            counts.0.live,
            counts.0.deleted.unwrap_or(0),
            counts.1.live,
            counts.1.deleted.unwrap_or(0)
        );
        ends.teller.note(&choice.to, &text);
        differences += 1;
    }
    Ok(differences)
}

/// What the target lacks, after what it lacks has been brought once.
async fn forth(copying: &Copying, tally: &Tally) -> Result<Lacking, Fault> {
    let mut lacking = Lacking::default();
    let mut since = Value::from(0);
    let mut patience = Patience::default();
    loop {
        let page = match read_page(&copying.source, &copying.spec, &since, false).await {
            Ok(page) => page,
            Err(fault) => {
                patience.bear(fault).await?;
                continue;
            }
        };
        patience.restore();
        let is_last = page.is_last;
        let next = goes_on(&copying.source, &since, &page)?;
        tally.advance(page.rows.len() as u64, page.pending);
        let leaves: Leaves =
            page.rows.into_iter().map(|row| (row.id, row.changes.into_iter().map(|leaf| leaf.rev).collect())).collect();
        lacking.add(lacks(copying, leaves).await?);
        since = next;
        if is_last {
            return Ok(lacking);
        }
    }
}

async fn lacks(copying: &Copying, leaves: Leaves) -> Result<Vec<Wanted>, Fault> {
    if leaves.is_empty() {
        return Ok(Vec::new());
    }
    let mut missing = patiently(async || copying.carrier.missing(&leaves).await).await?;
    let refused = copying.tally.refusals().named;
    missing.retain(|wanted| !refused.contains_key(&wanted.id));
    if missing.is_empty() {
        return Ok(missing);
    }
    patiently(async || copying.carrier.bring(&missing).await).await?;
    let refused = copying.tally.refusals().named;
    // What has been replaced at the source since is no leaf of it any more, and what replaced it was brought.
    let ids: BTreeSet<&String> = missing.iter().map(|wanted| &wanted.id).collect();
    let again: Leaves =
        leaves.iter().filter(|(id, _)| ids.contains(id)).map(|(id, revs)| (id.clone(), revs.clone())).collect();
    let mut left = patiently(async || copying.carrier.missing(&again).await).await?;
    left.retain(|wanted| !refused.contains_key(&wanted.id));
    Ok(left)
}

/// What the source lacks.
async fn back(copying: &Copying) -> Result<Lacking, Fault> {
    let (from, to) = (Arc::clone(&copying.target), Arc::clone(&copying.source));
    let carrier =
        Carrier::new(Arc::new(Tally::default()), Arc::clone(&from), to, rean::Limits::default().max_body_bytes);
    let mut lacking = Lacking::default();
    let mut since = Value::from(0);
    loop {
        let page = patiently(async || read_page(&from, &copying.spec, &since, false).await).await?;
        let is_last = page.is_last;
        let next = goes_on(&from, &since, &page)?;
        let leaves: Leaves =
            page.rows.into_iter().map(|row| (row.id, row.changes.into_iter().map(|leaf| leaf.rev).collect())).collect();
        if !leaves.is_empty() {
            lacking.add(patiently(async || carrier.missing(&leaves).await).await?);
        }
        since = next;
        if is_last {
            return Ok(lacking);
        }
    }
}
