//! The documents behind what was found, read as the asker may read them at this moment.

use rean_index::mango::IndexDef;
use serde_json::{Map, Value};

use super::project::set;
use super::source::Hit;
use crate::error::ApiError;
use crate::page_body::Out;
use crate::render::{self, Options};
use crate::target::Target;

/// The text of a document; `None`: it is not there for this reader (any more).
///
/// # Errors
/// The store failed.
pub fn text_of(target: &Target, hit: &Hit, conflicts: bool) -> Result<Option<Vec<u8>>, ApiError> {
    if let (Hit::Listed(row), false) = (hit, conflicts) {
        let Some(body) = row.body.map(|at| target.db.body(at)).transpose()?.flatten() else { return Ok(None) };
        let mut text = Vec::new();
        render::push_plain(&mut text, &row.id, &row.rev, false, Some(&body));
        return Ok(Some(text));
    }
    let Some(doc) = target.db.doc(&target.scope, hit.id())? else { return Ok(None) };
    let winner = doc.winner();
    if winner.deleted {
        return Ok(None);
    }
    let mut out = Out::default();
    let options = Options { conflicts, ..Options::default() };
    match render::push_document(&mut out, &target.db, &doc, winner, &options) {
        Ok(_) => Ok(out.into_text()),
        // Compacted away since it was found.
        Err(error) if error.status == http::StatusCode::NOT_FOUND => Ok(None),
        Err(error) => Err(error),
    }
}

/// What an index knows of a document: its id and the indexed fields.
pub fn of_row(index: &IndexDef, id: &str, key: &[u8]) -> Option<Value> {
    let values: Vec<Value> = serde_json::from_slice(key).ok()?;
    let mut document = Value::Object(Map::from_iter([("_id".to_owned(), Value::from(id))]));
    for (field, value) in index.fields.fields.iter().zip(values) {
        set(&mut document, field.path.names(), value);
    }
    Some(document)
}
