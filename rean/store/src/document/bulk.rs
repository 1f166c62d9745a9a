//! The body of a `_bulk_docs` request (<https://docs.couchdb.org/en/stable/api/database/bulk-api.html>).

use std::fmt;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::{self, DocumentError};
use crate::json;

/// Most documents in one request. Replicators send some hundreds; each document has a row in the answer, so
/// a body of millions of `{}` would cost many times its size.
pub const MAX_BULK_DOCUMENTS: usize = 100_000;

/// Documents to write, as text that [`parse_document`](super::parse_document) takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BulkDocs<'a> {
    /// The documents; each is the text of an object.
    pub docs: Vec<&'a str>,
    /// Whether new revisions are to be made; false means that the documents name theirs. True unless given.
    pub new_edits: bool,
    /// Whether all are to be written or none: nothing can do that, but it must be known that it was asked.
    pub all_or_nothing: bool,
}

/// Splits the body of a `_bulk_docs` request into its documents, without copying.
///
/// # Errors
/// [`DocumentError`] if the body is no JSON object, or `docs` no array of objects, or too long.
pub fn parse_documents(text: &str) -> Result<BulkDocs<'_>, DocumentError> {
    let entries = json::scan_object(text).map_err(|_| {
        if !text.trim_ascii_start().starts_with('{') && json::is_valid(text) {
            error::bad_request("Request body must be a JSON object")
        } else {
            error::invalid_json()
        }
    })?;
    let member = |name: &str| entries.iter().find(|entry| entry.key == name).map(|entry| entry.value);
    let new_edits = match member("new_edits") {
        None | Some("true") => true,
        Some("false") => false,
        Some(_) => {
            return Err(error::bad_request("`new_edits` parameter must be a boolean."));
        }
    };
    let docs = member("docs").ok_or_else(|| error::bad_request("POST body must include `docs` parameter."))?;
    if !docs.starts_with('[') {
        return Err(error::bad_request("`docs` parameter must be an array."));
    }
    let docs = split_array(docs)?;
    if docs.iter().any(|doc| !doc.starts_with('{')) {
        return Err(error::no_object());
    }
    let all_or_nothing = member("all_or_nothing") == Some("true");
    Ok(BulkDocs { docs, new_edits, all_or_nothing })
}

fn split_array(text: &str) -> Result<Vec<&str>, DocumentError> {
    struct Items;
    impl<'de> Visitor<'de> for Items {
        type Value = Option<Vec<&'de str>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            let mut fits = true;
            while let Some(item) = seq.next_element::<&'de RawValue>()? {
                fits &= items.len() < MAX_BULK_DOCUMENTS;
                if fits {
                    items.push(item.get());
                }
            }
            Ok(fits.then_some(items))
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let items = deserializer.deserialize_seq(Items).map_err(|_| error::invalid_json())?;
    items.ok_or_else(|| {
        let reason = format!("A request holds at most {MAX_BULK_DOCUMENTS} documents");
        DocumentError::TooLarge(reason)
    })
}
