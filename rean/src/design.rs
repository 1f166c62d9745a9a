//! Design documents: they are stored, and their functions are not run yet. Whoever relies on a
//! `validate_doc_update` must hear of that, so the log says it, once for each database.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use rean_store::{Db, Edit};
use serde::de::IgnoredAny;

/// What the ids of design documents start with.
const PREFIX: &str = "_design/";
/// Members of a design document that hold functions
/// (<https://docs.couchdb.org/en/stable/ddocs/ddocs.html>).
const FUNCTIONS: [&str; 7] = ["validate_doc_update", "filters", "views", "updates", "shows", "lists", "rewrites"];
/// Databases that are remembered: more lines than this, nobody reads.
const MAX_TOLD: usize = 1_000;

/// The databases of which it was told.
#[derive(Default)]
pub struct Design {
    told: Mutex<HashSet<String>>,
}

impl Design {
    /// Which of these edits bring functions to a database of which it wasn't told yet: their places in the list, and
    /// what to say once they are stored.
    pub fn notices(&self, db: &Db, edits: &[Edit]) -> Vec<(usize, String)> {
        let designs = edits.iter().enumerate().filter(|(_, edit)| edit.id.starts_with(PREFIX) && !edit.deleted);
        let mut notices = Vec::new();
        for (place, edit) in designs {
            if self.told.lock().contains(&key(db)) {
                break;
            }
            let found = functions(&edit.body);
            if !found.is_empty() {
                notices.push((place, format!("{} has {}", edit.id, found.join(", "))));
            }
        }
        notices
    }

    /// Says it, unless it was said; tells whether it did.
    pub fn tell(&self, db: &Db, notice: &str) -> bool {
        let mut told = self.told.lock();
        if told.len() >= MAX_TOLD || !told.insert(key(db)) {
            return false;
        }
        tracing::warn!(
            target: "rean",
            database = db.name(),
            "{notice}: stored, but functions of design documents are not run yet, so nothing is validated, filtered \
             or indexed by them"
        );
        true
    }
}

/// A database that was deleted and made again is another one.
fn key(db: &Db) -> String {
    format!("{}/{}", db.name(), db.instance())
}

fn functions(body: &[u8]) -> Vec<&'static str> {
    // The store checks the text; what it refuses needs no notice.
    let members: HashMap<String, IgnoredAny> = serde_json::from_slice(body).unwrap_or_default();
    FUNCTIONS.into_iter().filter(|name| members.contains_key(*name)).collect()
}

#[cfg(test)]
mod tests {
    use super::functions;

    #[test]
    fn functions_are_found_at_the_top_only() {
        assert_eq!(functions(br#"{"views":{},"a":1,"validate_doc_update":""}"#), ["validate_doc_update", "views"]);
        for none in [r#"{"a":{"views":{}}}"#, "{}", "[]", "", r#"{"language":"javascript"}"#] {
            assert!(functions(none.as_bytes()).is_empty(), "{none}");
        }
    }
}
