//! A revision's name: how many edits deep it is, and a hash of what it says.
//!
//! Text form and order are CouchDB's: `<generation>-<hash>`
//! (<https://docs.couchdb.org/en/stable/replication/conflicts.html>).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

mod term;

/// Highest generation there is: the largest whole number that a JavaScript client reads exactly
/// (it has to, in `_revisions.start`). No document is edited this often; such a generation is forged.
pub const MAX_GENERATION: u64 = (1 << 53) - 1;

/// Longest hash that is not an MD5, in bytes. Clients may make up their own (new_edits=false);
/// histories hold a thousand of them, so they have to stay small.
pub const MAX_HASH_BYTES: usize = 128;

/// The name of one revision. Orders by generation, then by hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rev {
    /// 1 for a document's first revision, one more for each edit; at most [`MAX_GENERATION`].
    pub generation: u64,
    /// What tells revisions of one generation apart.
    pub hash: RevHash,
}

/// The part of a revision's name after the dash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RevHash {
    /// 32 hexadecimal digits, as CouchDB, PouchDB and this store make them.
    Md5([u8; 16]),
    /// Anything else that a client made up: printable ASCII without quote, backslash and space,
    /// never 32 hexadecimal digits.
    Text(Box<str>),
}

/// A text that names no revision. CouchDB answers 400 `bad_request` with this message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid rev format")]
pub struct RevError;

impl Rev {
    /// The revision that an edit makes: one generation above `parent` (or 1), with the MD5 of what the edit says, so
    /// the same edit has the same name on every pod, and in CouchDB (see `term`).
    ///
    /// `body` is a JSON object as minified text. At [`MAX_GENERATION`] the generation stays where it is; a tree takes
    /// that as a branch of its own.
    pub fn next<'a>(
        parent: Option<&Rev>,
        deleted: bool,
        body: &[u8],
        attachments: impl Iterator<Item = (&'a str, &'a str, &'a [u8])>,
    ) -> Rev {
        let attachments: Vec<_> = attachments.collect();
        let old = parent.map(|parent| (parent.generation, parent.hash.as_bytes()));
        let mut term = Vec::with_capacity(body.len() + body.len() / 4 + 128);
        term::edit(&mut term, deleted, old, body, &attachments);
        let md5 = Md5::digest(&term);
        let generation = parent.map_or(0, |rev| rev.generation).saturating_add(1);
        Rev { generation: generation.min(MAX_GENERATION), hash: RevHash::Md5(md5.into()) }
    }

    /// The revision of this generation with this hash text, as `_revisions` lists them.
    ///
    /// # Errors
    /// [`RevError`] if the generation is not 1..=[`MAX_GENERATION`] or the hash is not one.
    pub fn new(generation: u64, hash: &str) -> Result<Rev, RevError> {
        if !(1..=MAX_GENERATION).contains(&generation) {
            return Err(RevError);
        }
        let hash = hash.parse()?;
        Ok(Rev { generation, hash })
    }
}

impl fmt::Display for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.generation, self.hash)
    }
}

impl FromStr for Rev {
    type Err = RevError;

    fn from_str(text: &str) -> Result<Rev, RevError> {
        let (generation, hash) = text.split_once('-').ok_or(RevError)?;
        // `parse` alone would take "+1" too.
        if !generation.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(RevError);
        }
        Rev::new(generation.parse().map_err(|_| RevError)?, hash)
    }
}

impl RevHash {
    fn text<'a>(&'a self, digits: &'a mut [u8; 32]) -> &'a [u8] {
        match self {
            RevHash::Md5(bytes) => {
                for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
                    pair[0] = HEX_DIGITS[usize::from(byte >> 4)];
                    pair[1] = HEX_DIGITS[usize::from(byte & 15)];
                }
                digits
            }
            RevHash::Text(text) => text.as_bytes(),
        }
    }
}

impl fmt::Display for RevHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Both kinds are ASCII.
        f.write_str(std::str::from_utf8(self.text(&mut [0; 32])).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for RevHash {
    type Err = RevError;

    fn from_str(text: &str) -> Result<RevHash, RevError> {
        let mut md5 = [0; 16];
        if hex::decode_to_slice(text, &mut md5).is_ok() {
            return Ok(RevHash::Md5(md5));
        }
        // The hash is put into JSON, headers and ETags as it is.
        let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        if text.is_empty() || text.len() > MAX_HASH_BYTES || !text.bytes().all(is_plain) {
            return Err(RevError);
        }
        Ok(RevHash::Text(text.into()))
    }
}

impl Ord for RevHash {
    /// As CouchDB orders them: 32 hexadecimal digits count as the 16 bytes that they stand for, all else as text.
    fn cmp(&self, other: &RevHash) -> Ordering {
        self.as_bytes().cmp(other.as_bytes()).then_with(|| self.kind().cmp(&other.kind()))
    }
}

impl PartialOrd for RevHash {
    fn partial_cmp(&self, other: &RevHash) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl RevHash {
    /// What CouchDB keeps of it.
    fn as_bytes(&self) -> &[u8] {
        match self {
            RevHash::Md5(bytes) => bytes,
            RevHash::Text(text) => text.as_bytes(),
        }
    }

    fn kind(&self) -> u8 {
        match self {
            RevHash::Md5(_) => 0,
            RevHash::Text(_) => 1,
        }
    }
}

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::{MAX_GENERATION, MAX_HASH_BYTES, Rev, RevError, RevHash};
    use proptest::prelude::{any, prop_assert_eq, proptest};

    fn rev(text: &str) -> Rev {
        text.parse().unwrap()
    }

    fn none() -> std::iter::Empty<(&'static str, &'static str, &'static [u8])> {
        std::iter::empty()
    }

    #[test]
    fn what_names_no_revision_is_refused() {
        let long = format!("1-{}", "x".repeat(MAX_HASH_BYTES + 1));
        let high = format!("{}-a", MAX_GENERATION + 1);
        for text in [
            "",
            "zork",
            "1",
            "1-",
            "x-abc",
            "-1-abc",
            "-abc",
            "+1-abc",
            "0-1",
            "1-zz zz",
            "1-a\"b",
            "1-a\\b",
            "1-\u{e9}",
            "1-a\n",
            "99999999999999999999999-a",
            &long,
            &high,
        ] {
            assert_eq!(text.parse::<Rev>(), Err(RevError), "{text:?}");
        }
    }

    #[test]
    fn text_forms_come_back() {
        for text in ["3-900150983cd24fb0d6963f7d28e17f72", "1-abc", "7-a-b", "9007199254740991-z"] {
            assert_eq!(rev(text).to_string(), text);
        }
        let upper = rev("1-900150983CD24FB0D6963F7D28E17F72");
        assert_eq!(upper.to_string(), "1-900150983cd24fb0d6963f7d28e17f72");
        assert!(matches!(upper.hash, RevHash::Md5(_)));
    }

    #[test]
    fn order_is_generation_then_bytes() {
        let [low, high] = ["2", "b"].map(|digit| rev(&format!("1-{}", digit.repeat(32))));
        assert!(rev("10-a") > rev("9-f"));
        assert!(low < high);
        // 0x22 and 0xbb around 0x61, the letter a.
        assert!(low < rev("1-abc") && high > rev("1-zz"));
        assert!(rev("1-aa") > rev("1-a"));
    }

    #[test]
    fn an_edit_has_one_name_and_no_other_edit_has_it() {
        let first = Rev::next(None, false, b"{}", none());
        assert_eq!(first.generation, 1);
        assert_eq!(first, Rev::next(None, false, b"{}", none()));
        assert_eq!(Rev::next(Some(&first), false, b"{}", none()).generation, 2);

        let a: (&str, &str, &[u8]) = ("a", "t", &[1]);
        let b: (&str, &str, &[u8]) = ("b", "t", &[2]);
        let both = Rev::next(None, false, b"{}", [a, b].into_iter());
        let others = [
            Rev::next(None, true, b"{}", none()),
            Rev::next(None, false, b"{\"a\":1}", none()),
            Rev::next(None, false, b"{}", [a].into_iter()),
            Rev::next(None, false, b"{}", [("at", "", &[1_u8][..])].into_iter()),
            both,
        ];
        for (i, one) in others.iter().enumerate() {
            assert_ne!(one, &first);
            assert!(others[..i].iter().all(|other| other != one));
        }
    }

    #[test]
    fn names_are_those_that_couchdb_gives() {
        // The empty document is named in CouchDB's documentation, the others by tests of CouchDB's clients.
        let empty = Rev::next(None, false, b"{}", none());
        assert_eq!(empty.to_string(), "1-967a00dff5e02add41819138abb3284d");
        let first = Rev::next(None, false, br#"{"v":"1"}"#, none());
        assert_eq!(first.to_string(), "1-806db366bc1ba3ebef40f4b7c63a53af");
        let second = Rev::next(Some(&first), false, br#"{"v":"2"}"#, none());
        assert_eq!(second.to_string(), "2-8ef50bd631ee32d350edd37cd66f2e31");
    }

    #[test]
    fn the_last_generation_stays() {
        let last = Rev::new(MAX_GENERATION, "a").unwrap();
        let next = Rev::next(Some(&last), false, b"{}", none());
        assert_eq!(next.generation, MAX_GENERATION);
        assert_eq!(rev(&next.to_string()), next);
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_text_is_stable(text in "\\PC{0,40}|[0-9]{1,20}-[!-~]{0,40}") {
            if let Ok(rev) = text.parse::<Rev>() {
                prop_assert_eq!(rev.to_string().parse::<Rev>(), Ok(rev));
            }
        }

        #[test]
        fn stored_form_comes_back_and_is_compact(generation in 1..MAX_GENERATION, hash in any::<[u8; 16]>()) {
            let rev = Rev { generation, hash: RevHash::Md5(hash) };
            let stored = postcard::to_allocvec(&rev).unwrap();
            assert!(stored.len() <= 8 + 1 + 16);
            prop_assert_eq!(postcard::from_bytes::<Rev>(&stored).unwrap(), rev);
        }

        #[test]
        fn those_that_are_made_here_order_as_their_texts_do(a in "[a-f0-9]{32}", b in "[a-f0-9]{32}") {
            let (x, y) = (RevHash::from_text(&a), RevHash::from_text(&b));
            prop_assert_eq!(x.cmp(&y), x.to_string().cmp(&y.to_string()));
        }
    }

    impl RevHash {
        fn from_text(text: &str) -> RevHash {
            text.parse().unwrap()
        }
    }
}
