//! Where an answer ended: the index that served, and its last row. Both came from a document that the reader was given,
//! so the text tells them nothing. One that a client makes up is a place to begin at and no more: rows and documents
//! are read through the reader's scope wherever that is. The checksum is there for texts that were cut off.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rean_index::mango::{MangoError, clip};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Before the text: its form, so that it can change.
const PREFIX: &str = "g1-";
/// Bytes of the checksum.
const CHECK_BYTES: usize = 6;

/// A place in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// The index; none: all documents in the order of their ids.
    pub row: Option<RowPlace>,
    /// The last document.
    pub id: String,
}

/// A row of an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowPlace {
    /// The id of the index's design document.
    pub ddoc: String,
    /// Its name.
    pub name: String,
    /// The row's key: the values of the index's fields.
    pub key: Vec<Value>,
}

impl Bookmark {
    /// Its text.
    pub fn text(&self) -> String {
        let plain = serde_json::to_vec(self).unwrap_or_default();
        let mut bytes = check(&plain).to_vec();
        bytes.extend_from_slice(&plain);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a text.
    ///
    /// # Errors
    /// It is none that was given out.
    pub fn read(text: &str) -> Result<Bookmark, MangoError> {
        Self::decode(text).ok_or_else(|| MangoError::Bookmark(format!("\"{}\"", clip(text))))
    }

    fn decode(text: &str) -> Option<Bookmark> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        let (sum, plain) = bytes.split_at_checked(CHECK_BYTES)?;
        (*sum == check(plain)).then_some(())?;
        serde_json::from_slice(plain).ok()
    }
}

fn check(plain: &[u8]) -> [u8; CHECK_BYTES] {
    let mut sum = [0; CHECK_BYTES];
    sum.copy_from_slice(&Sha256::digest(plain)[..CHECK_BYTES]);
    sum
}

#[cfg(test)]
mod tests {
    use super::{Bookmark, RowPlace};
    use serde_json::json;

    #[test]
    fn a_text_leads_back_to_its_place() {
        let row =
            RowPlace { ddoc: "_design/x".to_owned(), name: "n".to_owned(), key: vec![json!(1), json!({"a": "ü"})] };
        for row in [None, Some(row)] {
            let bookmark = Bookmark { row, id: "a/b".to_owned() };
            let text = bookmark.text();
            assert_eq!(Bookmark::read(&text).ok(), Some(bookmark));
            assert!(Bookmark::read(&text[..text.len() - 4]).is_err());
            assert!(Bookmark::read(&text.replacen("g1-", "g2-", 1)).is_err());
        }
        for bad in ["", "zork", "g1-", "g1-AAAA", "17-abc"] {
            assert_eq!(Bookmark::read(bad).map_err(|error| error.error()), Err("invalid_bookmark"), "{bad}");
        }
    }
}
