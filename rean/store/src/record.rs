//! What is stored under which key. The table is in the crate's root; this file is its code.
//!
//! Records are encoded by postcard: field order is the format, so a change of a type here is a new format
//! version. Keys are big-endian, so that they sort as numbers.

use crate::engine::{Space, Value};
use crate::error::StoreError;
use crate::rev::Rev;
use crate::tree::RevTree;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The format that this version writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;

/// Number of a database: given once, never used again.
pub type DbId = u32;
/// Number of a partial database within its app: given once.
pub type PartNo = u32;
/// Number of an access pair within its app: given once; 0 is none.
pub(crate) type AclNo = u32;
/// The store-wide update sequence: each changed document takes the next.
pub type Seq = u64;
/// Number of an attachment's bytes.
pub type BlobId = u64;

/// What is counted for the whole store; written with each commit.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Clock {
    /// Commits so far.
    pub commit: u64,
    /// The last sequence given.
    pub seq: Seq,
    /// The next database number.
    pub next_db: DbId,
}

/// What a database is. The first two are stored as the `false` and `true` of "it is an app" were before there was more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum KindRecord {
    Plain,
    App,
    /// A plain one whose documents' ids name their partitions.
    Partitioned,
}

/// A database's settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DbRecord {
    pub id: DbId,
    pub kind: KindRecord,
    /// New at each creation, so that a bookmark of a deleted namesake is recognised.
    pub instance: [u8; 4],
    /// `_security` as text; empty: never set.
    pub security: String,
    pub revs_limit: u64,
    /// The app's access settings as text.
    pub rules: String,
    /// Up to which document id a repartition under these rules has come; `None`: all are placed.
    pub repartition: Option<String>,
}

/// A database's counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DbState {
    pub docs: u64,
    pub deleted: u64,
    pub seq: Seq,
    pub purges: u64,
    /// Bytes of stored bodies.
    pub bytes: u64,
}

/// A document in its database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DocRecord {
    pub seq: Seq,
    pub tree: RevTree,
    /// The partial database that the document is in.
    pub place: Option<PartNo>,
    /// Partial databases that hold a tombstone of it.
    pub tombs: Vec<PartNo>,
    /// Leaves whose end somebody was shown, because it left their sight (see `chain`), and since when.
    pub ended: Vec<(Rev, Seq)>,
}

/// A leaf as a row of a feed shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leaf {
    pub rev: Rev,
    pub deleted: bool,
    pub body: Option<u64>,
    pub acl: AclNo,
    /// Since when somebody may have been shown its end; 0: nobody was.
    pub ended: Seq,
}

/// A row of a database's feed: the latest change of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeqRow {
    pub id: String,
    /// Winner first.
    pub leaves: Vec<Leaf>,
}

/// A document in a partial database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartDoc {
    pub seq: Seq,
    /// When it came here.
    pub entered: Seq,
    /// It was here and has left.
    pub tomb: bool,
    /// Those that its readers see, winner first; for a tomb those that they have.
    pub leaves: Vec<Leaf>,
    /// Revisions that its readers may hold as leaves and that have gone out of their sight, while the document
    /// has not: the end of each is told with the row.
    pub gone: Vec<Rev>,
    /// Users who wrote the document here: they have what they wrote, whatever they have read.
    pub authors: Vec<String>,
    /// Stored behind the rest (see [`encode_with_past`]).
    #[serde(skip)]
    pub past: Past,
}

/// What is remembered of when a document was in a partial database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Past {
    /// When what is a tombstone now had left; 0: at the row's sequence. A tombstone can be put anew.
    pub left: Seq,
    /// When it had first come, and when it had last left, before it came for the last time. An earlier version kept only
    /// the first of these, as the time when the document came.
    pub earlier: Option<(Seq, Seq)>,
}

/// A row of a partial database's feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartRow {
    pub id: String,
    pub entered: Seq,
    pub tomb: bool,
    pub leaves: Vec<Leaf>,
    pub gone: Vec<Rev>,
    pub authors: Vec<String>,
    #[serde(skip)]
    pub past: Past,
}

impl PartDoc {
    /// For what has no row.
    pub fn nothing(seq: Seq) -> PartDoc {
        let (leaves, gone, authors) = Default::default();
        PartDoc { seq, entered: seq, tomb: true, leaves, gone, authors, past: Past::default() }
    }

    /// Of a tombstone: from when to when the document was there, all times taken as one.
    pub fn stay_until_it_left(&self) -> (Seq, Seq) {
        let first = self.past.earlier.map_or(self.entered, |(first, _)| first);
        (first, if self.past.left == 0 { self.seq } else { self.past.left })
    }
}

impl PartRow {
    /// From when to when the document was there: the first sequence with it, and the first without. `seq`: the row's.
    pub fn stays(&self, seq: Seq) -> impl Iterator<Item = (Seq, Seq)> + Clone + use<> {
        let is_deleted = self.leaves.first().is_none_or(|leaf| leaf.deleted);
        let end = match (self.tomb, self.past.left) {
            (true, 0) => seq,
            (true, left) => left,
            (false, _) if is_deleted => seq,
            (false, _) => Seq::MAX,
        };
        self.past.earlier.into_iter().chain([(self.entered, end)])
    }
}

/// A record that has a past, as one value. A version that knows of no past reads what stands before it.
pub(crate) fn encode_with_past<T: Serialize>(record: &T, past: Past) -> Vec<u8> {
    let mut out = encode(record);
    if past != Past::default() {
        out.extend(encode(&past));
    }
    out
}

pub(crate) fn decode_row(bytes: &[u8]) -> Result<PartRow, StoreError> {
    let (row, past) = decode_with_past(bytes, "a row of a partial database")?;
    Ok(PartRow { past, ..row })
}

pub(crate) fn decode_part_doc(bytes: &[u8]) -> Result<PartDoc, StoreError> {
    let (doc, past) = decode_with_past(bytes, "a document of a partial database")?;
    Ok(PartDoc { past, ..doc })
}

fn decode_with_past<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<(T, Past), StoreError> {
    let (record, rest) = postcard::take_from_bytes(bytes).map_err(|_| StoreError::Damaged(what))?;
    Ok((record, if rest.is_empty() { Past::default() } else { decode(rest, what)? }))
}

/// What is counted of a partial database. Its readers are a record of their own, which never changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartCount {
    /// Live documents.
    pub docs: u64,
    /// Deleted documents whose place this is.
    pub deleted: u64,
    /// Of its newest row.
    pub seq: Seq,
}

/// A pair of readers and writers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AclRecord {
    pub part: Option<PartNo>,
    pub write: Vec<String>,
    /// The user, not an administrator, whose edit first had it.
    pub maker: Option<String>,
}

/// A `_local` document.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LocalRecord {
    pub rev: u64,
    pub body: Vec<u8>,
}

/// An attachment of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its name within the document.
    pub name: String,
    /// Its media type.
    pub content_type: String,
    /// MD5 of its bytes: CouchDB's digest.
    pub digest_md5: [u8; 16],
    /// Bytes.
    pub length: u64,
    /// The generation in which it was written.
    pub revpos: u64,
    /// Where its bytes are.
    pub blob: BlobId,
}

impl Attachment {
    /// Whether its bytes are kept outside of the store.
    pub fn is_file(&self) -> bool {
        crate::outside::is_file(self.blob)
    }
}

/// Known bytes, found by their SHA-256: MD5 collisions can be made, and would give one user's bytes to another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BlobEntry {
    pub blob: BlobId,
    pub length: u64,
}

pub(crate) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    postcard::to_stdvec(record).expect("records have no type that postcard refuses")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, StoreError> {
    postcard::from_bytes(bytes).map_err(|_| StoreError::Damaged(what))
}

/// A body with its attachments as one value: `u32` length of the postcard list, the list, the JSON text.
pub(crate) fn encode_body(attachments: &[Attachment], json: &[u8]) -> Vec<u8> {
    let list = if attachments.is_empty() { Vec::new() } else { encode(&attachments) };
    let mut out = Vec::with_capacity(4 + list.len() + json.len());
    out.extend_from_slice(&(list.len() as u32).to_be_bytes());
    out.extend_from_slice(&list);
    out.extend_from_slice(json);
    out
}

pub(crate) fn decode_body(value: &Value) -> Result<(Vec<Attachment>, Value), StoreError> {
    let damaged = StoreError::Damaged("a body");
    let head = value.get(..4).ok_or_else(|| damaged.clone())?;
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let list = value.get(4..4 + length).ok_or(damaged)?;
    let attachments = if length == 0 { Vec::new() } else { decode(list, "an attachment list")? };
    Ok((attachments, value.slice(4 + length..)))
}

/// Key making. Each returns the key within its space.
pub(crate) mod key {
    use super::{BlobId, DbId, PartNo, Seq, Space};

    pub const FORMAT: &[u8] = b"format";
    pub const CLOCK: &[u8] = b"clock";
    pub const HISTORY: &[u8] = b"history";
    /// Meta prefixes.
    pub const DB: &[u8] = b"db/";
    pub const STATE: &[u8] = b"state/";
    pub const PART: &[u8] = b"part/";
    pub const PART_COUNT: &[u8] = b"count/";
    pub const ACL: &[u8] = b"acl/";
    pub const DOOMED: &[u8] = b"doomed/";
    pub const UPLOAD: &[u8] = b"upload/";
    pub const NOTE: &[u8] = b"note/";
    pub const PURGED: &[u8] = b"purged/";
    pub const FIRST: &[u8] = b"first/";
    pub const PARTITION: &[u8] = b"partition/";

    pub fn meta(prefix: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let mut key = prefix.to_vec();
        for part in parts {
            key.extend_from_slice(part);
        }
        key
    }

    pub fn state(db: DbId) -> Vec<u8> {
        meta(STATE, &[&db.to_be_bytes()])
    }

    pub fn first(db: DbId) -> Vec<u8> {
        meta(FIRST, &[&db.to_be_bytes()])
    }

    pub fn part(db: DbId, part: PartNo) -> Vec<u8> {
        meta(PART, &[&db.to_be_bytes(), &part.to_be_bytes()])
    }

    pub fn part_count(db: DbId, part: PartNo) -> Vec<u8> {
        meta(PART_COUNT, &[&db.to_be_bytes(), &part.to_be_bytes()])
    }

    pub fn acl(db: DbId, acl: u32) -> Vec<u8> {
        meta(ACL, &[&db.to_be_bytes(), &acl.to_be_bytes()])
    }

    pub fn purged(db: DbId, purge: u64) -> Vec<u8> {
        meta(PURGED, &[&db.to_be_bytes(), &purge.to_be_bytes()])
    }

    pub fn partition(db: DbId, partition: &str) -> Vec<u8> {
        meta(PARTITION, &[&db.to_be_bytes(), partition.as_bytes()])
    }

    pub fn doc(db: DbId, id: &str) -> Vec<u8> {
        meta(&db.to_be_bytes(), &[id.as_bytes()])
    }

    pub fn seq(db: DbId, seq: Seq) -> Vec<u8> {
        meta(&db.to_be_bytes(), &[&seq.to_be_bytes()])
    }

    pub fn local(db: DbId, owner: &str, id: &str) -> Vec<u8> {
        meta(&db.to_be_bytes(), &[&(owner.len() as u16).to_be_bytes(), owner.as_bytes(), id.as_bytes()])
    }

    pub fn part_doc(db: DbId, part: PartNo, id: &str) -> Vec<u8> {
        meta(&db.to_be_bytes(), &[&part.to_be_bytes(), id.as_bytes()])
    }

    pub fn part_seq(db: DbId, part: PartNo, seq: Seq) -> Vec<u8> {
        meta(&db.to_be_bytes(), &[&part.to_be_bytes(), &seq.to_be_bytes()])
    }

    pub fn chunk(db: DbId, blob: BlobId, chunk: u32) -> Vec<u8> {
        meta(&db.to_be_bytes(), &[&blob.to_be_bytes(), &chunk.to_be_bytes()])
    }

    pub fn blob_index(db: DbId, sha256: &[u8; 32]) -> Vec<u8> {
        meta(&db.to_be_bytes(), &[sha256])
    }

    /// The first key that does not begin with this prefix.
    pub fn after(prefix: &[u8]) -> Vec<u8> {
        let mut key = prefix.to_vec();
        while let Some(last) = key.pop() {
            if last < 0xff {
                key.push(last + 1);
                return key;
            }
        }
        // Only a prefix of 0xff bytes comes here: no database has that number.
        vec![0xff; prefix.len() + 1]
    }

    /// The sequence at the end of a key.
    pub fn last_seq(key: &[u8]) -> Option<Seq> {
        let tail = key.len().checked_sub(8)?;
        Some(Seq::from_be_bytes(key[tail..].try_into().ok()?))
    }

    /// Spaces whose keys begin with the number of a database.
    pub const OF_DATABASES: [Space; 8] = [
        Space::Docs,
        Space::Seqs,
        Space::Bodies,
        Space::Local,
        Space::PartDocs,
        Space::PartSeqs,
        Space::Blobs,
        Space::BlobIndex,
    ];
}

#[cfg(test)]
mod tests {
    use super::{KindRecord, PartRow, Past, decode, decode_row, encode, encode_with_past};

    #[test]
    fn a_row_without_a_past_is_stored_as_it_was_before_there_were_pasts() {
        let row = |past| PartRow {
            id: "x".into(),
            entered: 3,
            tomb: true,
            leaves: Vec::new(),
            gone: Vec::new(),
            authors: vec!["ann".into()],
            past,
        };
        let past = Past { left: 0, earlier: Some((1, 2)) };
        let (old, new) = (encode_with_past(&row(Past::default()), Past::default()), encode_with_past(&row(past), past));
        assert_eq!(decode_row(&old).unwrap(), row(Past::default()));
        assert_eq!(decode_row(&new).unwrap(), row(past));
        assert_eq!(row(past).stays(9).collect::<Vec<_>>(), [(1, 2), (3, 9)]);
        // A version that knows of none reads the rest.
        assert!(new.starts_with(&old));
        assert_eq!(decode::<PartRow>(&new, "a row").unwrap(), row(Past::default()));
        assert!(decode_row(&new[..new.len() - 1]).is_err());
    }

    #[test]
    fn kinds_are_stored_as_it_was_stored_whether_they_are_apps() {
        for (kind, app) in [(KindRecord::Plain, false), (KindRecord::App, true)] {
            assert_eq!(encode(&kind), encode(&app));
            assert_eq!(decode::<KindRecord>(&encode(&app), "a kind").ok(), Some(kind));
        }
        // A version that knows only those does not take it for either.
        assert!(decode::<bool>(&encode(&KindRecord::Partitioned), "a kind").is_err());
    }
}
