//! A page of rows as one value, and its head.
//!
//! Rows that follow one another have much of their places in common, so each names only what differs.

use crate::error::IndexError;
use crate::keys::{id_of, pushed_len, shared};
use crate::reduce::Partial;
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A row in a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageRow {
    /// See [`crate::keys::place`].
    pub place: Vec<u8>,
    pub cell: Cell,
}

/// What is kept of a row besides its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Bytes of the sort key in the place.
    pub sort_len: usize,
    /// JSON.
    pub key: Bytes,
    /// JSON.
    pub value: Bytes,
}

/// What is known of a page without reading it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub rows: u64,
    /// Of the page.
    pub bytes: u64,
    /// Of its rows, if the view reduces and it is not large.
    pub reduction: Option<Partial>,
}

impl PageRow {
    /// The sort key of its JSON key.
    pub fn sort_key(&self) -> &[u8] {
        &self.place[..self.cell.sort_len]
    }

    /// What the places of its document's rows with its key begin with, and those of no others.
    pub fn entry(&self) -> &[u8] {
        let (sort_key, tail) = self.place.split_at(self.cell.sort_len);
        &self.place[..sort_key.len() + pushed_len(tail)]
    }

    pub fn id(&self) -> Result<String, IndexError> {
        id_of(&self.place[self.cell.sort_len..]).ok_or(IndexError::Damaged("a row's document"))
    }

    /// Bytes that it takes up in a page behind another row.
    pub fn cost(&self, before: Option<&PageRow>) -> usize {
        let known = before.map_or(0, |before| shared(&before.place, &self.place));
        // Lengths are one or two bytes each.
        self.place.len() - known + self.cell.key.len() + self.cell.value.len() + 6
    }
}

pub(crate) fn encode_page(rows: &[PageRow]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut before: &[u8] = &[];
    for row in rows {
        let known = shared(before, &row.place);
        push_len(&mut out, known);
        push_bytes(&mut out, &row.place[known..]);
        push_len(&mut out, row.cell.sort_len);
        push_bytes(&mut out, &row.cell.key);
        push_bytes(&mut out, &row.cell.value);
        before = &row.place;
    }
    out
}

pub(crate) fn decode_page(page: &Bytes) -> Result<Vec<PageRow>, IndexError> {
    let mut rows: Vec<PageRow> = Vec::new();
    let mut at = 0;
    while at < page.len() {
        let row = decode_row(page, &mut at, rows.last()).ok_or(IndexError::Damaged("a page"))?;
        rows.push(row);
    }
    Ok(rows)
}

fn decode_row(page: &Bytes, at: &mut usize, before: Option<&PageRow>) -> Option<PageRow> {
    let known = take_len(page, at)?;
    let rest = take_bytes(page, at)?;
    let before = before.map_or(&[][..], |before| &before.place);
    let mut place = Vec::with_capacity(known.min(before.len()) + rest.len());
    place.extend_from_slice(before.get(..known)?);
    place.extend_from_slice(&rest);
    let sort_len = take_len(page, at).filter(|len| *len <= place.len())?;
    let key = take_bytes(page, at)?;
    let value = take_bytes(page, at)?;
    Some(PageRow { place, cell: Cell { sort_len, key, value } })
}

pub(crate) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    postcard::to_stdvec(record).expect("records have no type that postcard refuses")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, IndexError> {
    postcard::from_bytes(bytes).map_err(|_| IndexError::Damaged(what))
}

fn push_len(out: &mut Vec<u8>, mut len: usize) {
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn take_len(page: &[u8], at: &mut usize) -> Option<usize> {
    let mut len = 0usize;
    for shift in (0..35).step_by(7) {
        let byte = *page.get(*at)?;
        *at += 1;
        len |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(len);
        }
    }
    None
}

fn take_bytes(page: &Bytes, at: &mut usize) -> Option<Bytes> {
    let len = take_len(page, at)?;
    let end = at.checked_add(len).filter(|end| *end <= page.len())?;
    let bytes = page.slice(*at..end);
    *at = end;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::place;
    use proptest::prelude::*;

    fn row(key: &str, id: &str, number: u32, value: &str) -> PageRow {
        let sort_key = rean_store::collate::sort_key(&serde_json::from_str(key).unwrap());
        let cell = Cell {
            sort_len: sort_key.len(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        };
        PageRow { place: place(&sort_key, id, number), cell }
    }

    #[test]
    fn rows_come_back_as_they_were_put() {
        let long = format!("\"{}\"", "x".repeat(20_000));
        let rows = vec![row("null", "a", 0, "1"), row("1", "a", 0, &long), row("1", "b\u{0}", 300, "[]")];
        let page = Bytes::from(encode_page(&rows));
        assert_eq!(decode_page(&page).unwrap(), rows);
        assert_eq!(rows[2].id().unwrap(), "b\u{0}");
        assert!(decode_page(&page.slice(..page.len() - 1)).is_err());
        assert!(decode_page(&Bytes::new()).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn damage_is_told_and_never_panics(page in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(rows) = decode_page(&Bytes::from(page)) {
                for row in rows {
                    let _ = row.id();
                }
            }
        }
    }
}
