//! Replications: the documents of `_replicator`. They come in at rest, because the server that they come from goes on with
//! them, and two that do the same are one too many.

use http::Method;
use rean::replicate::carry::Tally as _;
use rean::replicate::peer::doc_path;
use serde_json::{Map, Value};

use super::accounts::{Row, page, present};
use super::choice::REPLICATIONS;
use super::copy::{DESIGN, Ends, Outcome};
use super::server::ask;
use super::tally::Tally;

/// Documents that are read at once.
const PAGE: usize = 100;
/// What the members that the server writes begin with.
const OWN_MEMBERS: &str = "_replication_";
/// A state that stays, so that nothing is begun.
const AT_REST: &str = "failed";
const REASON: &str = "Copied and not begun: write this document without `_replication_state` to begin it here.";

/// Copies the replications.
///
/// # Errors
/// When an end can't be asked.
pub async fn copy(ends: &Ends<'_>) -> anyhow::Result<Outcome> {
    let (source, target) = (ends.source.database(REPLICATIONS), ends.target.database(REPLICATIONS));
    let tally = Tally::default();
    let mut from = String::new();
    loop {
        let mut rows = page(ends, &source, &from, PAGE).await?;
        let next = (rows.len() > PAGE).then(|| rows.pop()).flatten().map(|row| row.id);
        rows.retain(|row| !row.id.starts_with(DESIGN));
        tally.advance(rows.len() as u64, None);
        let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        let there = present(ends, &target, &ids).await?;
        for Row { id, doc } in rows {
            if !is_document(&id) {
                tally.refused(&id, "is no document's id");
                continue;
            }
            if there.get(&id).is_some_and(|(_, deleted)| !deleted) {
                ends.teller.note(REPLICATIONS, &format!("{id:?} is there already, and was left as it is"));
                continue;
            }
            let doc = outgoing(doc, ends.options.start_replications);
            let answer = ask(&target, &Method::PUT, &doc_path(&id), Some(&doc)).await?;
            if answer.status.is_success() {
                tally.progress().lock().stats.written += 1;
            } else {
                tally.refused(&id, &target.fault("writing it", &answer).to_string());
            }
        }
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    let (written, refusals) = (tally.stats().written, tally.refusals());
    if written > 0 && !ends.options.start_replications {
        let text = format!(
            "{written} replications are at rest there: begin each by writing it anew, or import with --start-replications"
        );
        ends.teller.note(REPLICATIONS, &text);
    }
    ends.teller.refusals(REPLICATIONS, &refusals);
    Ok(Outcome { documents: tally.done(), written, refused: refusals.count(), differences: None, bytes: 0 })
}

/// Whether an id can be a document's. What begins with `_` is something else at that path: `_security` is who may read.
pub fn is_document(id: &str) -> bool {
    !id.is_empty() && (!id.starts_with('_') || id.starts_with(DESIGN))
}

/// The document as the target is to have it.
pub fn outgoing(mut doc: Map<String, Value>, start: bool) -> Value {
    doc.retain(|name, _| {
        !name.starts_with(OWN_MEMBERS) && name != "_rev" && name != "_attachments" && name != "_revisions"
    });
    if !start {
        doc.insert(format!("{OWN_MEMBERS}state"), AT_REST.into());
        doc.insert(format!("{OWN_MEMBERS}state_reason"), REASON.into());
    }
    doc.into()
}

#[cfg(test)]
mod tests {
    use super::{is_document, outgoing};
    use serde_json::json;

    #[test]
    fn settings_of_a_database_are_no_documents() {
        for (id, is) in [("a", true), ("_design/a", true), ("_security", false), ("_local/a", false), ("", false)] {
            assert_eq!(is_document(id), is, "{id}");
        }
    }

    #[test]
    fn replications_come_to_rest_unless_they_are_to_run() {
        let doc =
            json!({"_id": "a", "_rev": "1-a", "_replication_id": "x", "_replication_state": "running", "source": "s"});
        let doc = doc.as_object().unwrap();
        assert_eq!(outgoing(doc.clone(), true), json!({"_id": "a", "source": "s"}));
        assert_eq!(outgoing(doc.clone(), false)["_replication_state"], "failed");
    }
}
