//! The form of a backup, version 1: one file, written and read from its beginning to its end in constant memory.
//!
//! # Blocks
//! The file begins with [`MAGIC`], whose last byte but one is the version. Then blocks follow:
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | how many bytes the block has as it is stored, little-endian; 0: the end |
//! | 4 | how many it has unpacked, at most [`MAX_BLOCK_BYTES`], little-endian |
//! | 32 | SHA-256 over the sum of the block before (of the magic for the first), these two numbers and the stored bytes |
//! | n | the block, as a Zstandard frame |
//!
//! So each sum vouches for all of the file up to there: a damaged, missing or moved block is noticed where it is. The last
//! block has no bytes and a sum of its own: a file that was cut off is no backup, wherever it was cut.
//!
//! # Records
//! The unpacked blocks, one after the other, are a run of records: a byte that says what it is, four bytes with its length,
//! little-endian, and itself. In this order:
//!
//! | kind | what |
//! | --- | --- |
//! | 1 | once: a [`Head`] as JSON |
//! | 2 | for each database: a [`Database`] as JSON |
//! | 3 | for each leaf of each document: it, as CouchDB's JSON, with `_revisions`, and `follows` at its attachments |
//! | 4 | behind it, the bytes of its attachments in the order in which they are listed, in pieces |
//! | 5 | at the end of a database: what was in it, a [`Sum`] as JSON |
//! | 6 | once, at the end: a [`Sum`] of all as JSON |
//!
//! Accounts (`_users`) come first, replications (`_replicator`) last; within a database design documents come last.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use super::leaf::{Leaf, Stub};

/// What a backup of this version begins with.
pub const MAGIC: [u8; 8] = *b"ADEABK\x01\n";
/// Where in it the version is.
const VERSION_AT: usize = 6;
/// Bytes of a block before it is packed: enough that packing is worth it, little enough to be sent while it is made.
const BLOCK_BYTES: usize = 512 << 10;
/// The most that a block may unpack to: a reader makes room for it before it knows what is in it.
pub const MAX_BLOCK_BYTES: usize = 4 << 20;
/// The most that a record may have: the largest document that may be configured, and its history.
pub const MAX_RECORD_BYTES: usize = 80 << 20;
/// Zstandard's own default: some 300 MB/s a core.
const LEVEL: i32 = 3;
/// Bytes before a block's content.
const BLOCK_HEAD: usize = 40;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What the backup is of.
    Head = 1,
    /// A database begins.
    Database = 2,
    /// A leaf.
    Revision = 3,
    /// A piece of an attachment.
    Piece = 4,
    /// A database ends.
    DatabaseEnd = 5,
    /// All ends.
    End = 6,
}

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// When it was made.
    pub made_at: String,
    /// By which version.
    pub software: String,
    /// On which pod.
    pub pod: String,
    /// The name of its store's run of sequences.
    pub history: String,
    /// The store's sequence at the one moment that all of the backup is of.
    pub seq: u64,
    /// Whether it is of the whole pod: all databases, accounts and replications.
    pub whole: bool,
    /// The names of its databases.
    pub databases: Vec<String>,
    /// The ring's settings, if it is of the whole pod and there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
}

/// A database of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Whether it is an app.
    pub app: bool,
    /// Whether the ids of its documents name partitions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partitioned: bool,
    /// Its newest change.
    pub seq: u64,
    /// Which of all databases of that name it was.
    pub instance: String,
    /// Live documents.
    pub doc_count: u64,
    /// Deleted documents.
    pub doc_del_count: u64,
    /// How many revisions of a branch are remembered.
    pub revs_limit: u64,
    /// `_security`, if it was ever set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<Value>,
    /// The app's settings: the document `app:NAME` of `_ring`, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Value>,
}

/// What is in a backup or in a database of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// Documents, deleted ones too.
    pub documents: u64,
    /// Leaves of them.
    pub revisions: u64,
    /// Leaves of which only the name is known, and which are left out.
    pub bodiless: u64,
    /// Attachments of these leaves.
    pub attachments: u64,
    /// Bytes of the leaves and their attachments.
    pub bytes: u64,
}

impl Sum {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.revisions += other.revisions;
        self.bodiless += other.bodiless;
        self.attachments += other.attachments;
        self.bytes += other.bytes;
    }
}

/// Why a file can't be read as a backup.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It is something else.
    #[error("this is no backup")]
    Foreign,
    /// A later version made it.
    #[error("this backup has the form {0}, which is newer than this program")]
    Newer(u8),
    /// It ends too early.
    #[error("the backup is cut off at byte {at}: it is not whole")]
    CutOff {
        /// Where.
        at: u64,
    },
    /// What is there is not what was written.
    #[error("the backup is damaged in the block at byte {at}: {what}")]
    Damaged {
        /// Where the block begins.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// It can't be read.
    #[error("the backup can't be read at byte {at}")]
    Io {
        /// Where.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Packs records into blocks, and gives each to `give` when it is full.
pub struct Writer<F> {
    give: F,
    block: Vec<u8>,
    sum: [u8; 32],
}

impl<F, E> Writer<F>
where
    F: FnMut(Vec<u8>) -> Result<(), E>,
    E: From<io::Error>,
{
    /// Begins a backup.
    ///
    /// # Errors
    /// What `give` gives.
    pub fn new(mut give: F) -> Result<Self, E> {
        give(MAGIC.to_vec())?;
        Ok(Self { give, block: Vec::with_capacity(BLOCK_BYTES), sum: Sha256::digest(MAGIC).into() })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// What `give` gives; when it is too large.
    pub fn record(&mut self, kind: Kind, text: &[u8]) -> Result<(), E> {
        let length = u32::try_from(text.len()).ok().filter(|_| text.len() <= MAX_RECORD_BYTES);
        let length = length.ok_or_else(|| io::Error::other("a document is too large for a backup"))?;
        self.push(&[kind as u8])?;
        self.push(&length.to_le_bytes())?;
        self.push(text)
    }

    /// Adds a record as JSON.
    ///
    /// # Errors
    /// As [`Writer::record`].
    pub fn json(&mut self, kind: Kind, value: &impl Serialize) -> Result<(), E> {
        let text = serde_json::to_vec(value).map_err(io::Error::from)?;
        self.record(kind, &text)
    }

    /// Ends the backup.
    ///
    /// # Errors
    /// What `give` gives.
    pub fn finish(mut self) -> Result<(), E> {
        self.flush()?;
        let mut end = [0; BLOCK_HEAD];
        end[8..].copy_from_slice(&next_sum(&self.sum, &[0; 8], &[]));
        (self.give)(end.to_vec())
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), E> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == BLOCK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), E> {
        if self.block.is_empty() {
            return Ok(());
        }
        let packed = zstd::bulk::compress(&self.block, LEVEL)?;
        let mut lengths = [0; 8];
        // Both are far below 4 GiB.
        lengths[..4].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        lengths[4..].copy_from_slice(&(self.block.len() as u32).to_le_bytes());
        self.sum = next_sum(&self.sum, &lengths, &packed);
        self.block.clear();
        (self.give)([&lengths[..], &self.sum, &packed].concat())
    }
}

fn next_sum(before: &[u8; 32], lengths: &[u8; 8], packed: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(before).chain_update(lengths).chain_update(packed).finalize().into()
}

/// A record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// What the backup is of.
    Head(Head),
    /// A database begins.
    Database(Database),
    /// A leaf, as JSON text.
    Revision(Vec<u8>),
    /// A piece of an attachment.
    Piece(Vec<u8>),
    /// A database ends.
    DatabaseEnd(Sum),
    /// All ends.
    End(Sum),
}

/// Reads a backup, and checks each block before it gives anything of it.
pub struct Reader<R> {
    input: R,
    /// Bytes of the file that were read.
    at: u64,
    /// Where the block begins.
    block_at: u64,
    block: Vec<u8>,
    /// So much of the block has been taken.
    taken: usize,
    sum: [u8; 32],
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// When it is no backup, or one of a later version.
    pub fn new(mut input: R) -> Result<Self, FormatError> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => FormatError::Foreign,
            _ => FormatError::Io { at: 0, source },
        })?;
        if magic[..VERSION_AT] != MAGIC[..VERSION_AT] {
            return Err(FormatError::Foreign);
        }
        match magic[VERSION_AT] {
            version if version > MAGIC[VERSION_AT] => return Err(FormatError::Newer(version)),
            _ if magic != MAGIC => return Err(FormatError::Foreign),
            _ => {}
        }
        let at = MAGIC.len() as u64;
        let sum = Sha256::digest(MAGIC).into();
        Ok(Self { input, at, block_at: at, block: Vec::new(), taken: 0, sum, ended: false })
    }

    /// Bytes of the file that were read.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next record; none behind the last, when the end of the file has been checked too.
    ///
    /// # Errors
    /// When the file is damaged, cut off or can't be read.
    pub fn record(&mut self) -> Result<Option<Record>, FormatError> {
        if !self.fill()? {
            return Ok(None);
        }
        let kind = self.take(1)?[0];
        let length = self.take(4)?;
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if length > MAX_RECORD_BYTES {
            return Err(self.damaged("a record is too long"));
        }
        let text = self.take(length)?;
        Ok(Some(match kind {
            1 => Record::Head(self.parse(&text)?),
            2 => Record::Database(self.parse(&text)?),
            3 => Record::Revision(text),
            4 => Record::Piece(text),
            5 => Record::DatabaseEnd(self.parse(&text)?),
            6 => Record::End(self.parse(&text)?),
            _ => return Err(self.damaged("a record of an unknown kind")),
        }))
    }

    fn parse<T: for<'a> Deserialize<'a>>(&self, text: &[u8]) -> Result<T, FormatError> {
        serde_json::from_slice(text).map_err(|_| self.damaged("a record has another form"))
    }

    fn damaged(&self, what: &'static str) -> FormatError {
        FormatError::Damaged { at: self.block_at, what }
    }

    /// The next bytes of the run of records.
    fn take(&mut self, count: usize) -> Result<Vec<u8>, FormatError> {
        let mut out = Vec::with_capacity(count.min(MAX_BLOCK_BYTES));
        while out.len() < count {
            if !self.fill()? {
                return Err(self.damaged("it ends within a record"));
            }
            let rest = &self.block[self.taken..];
            let now = &rest[..rest.len().min(count - out.len())];
            out.extend_from_slice(now);
            self.taken += now.len();
        }
        Ok(out)
    }

    /// Sees to it that there are bytes; `false` at the end.
    fn fill(&mut self) -> Result<bool, FormatError> {
        while self.taken == self.block.len() && !self.ended {
            self.next_block()?;
        }
        Ok(!self.ended)
    }

    fn next_block(&mut self) -> Result<(), FormatError> {
        self.block_at = self.at;
        let head: [u8; BLOCK_HEAD] = {
            let mut head = [0; BLOCK_HEAD];
            self.read(&mut head)?;
            head
        };
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let (packed, unpacked) = (number(0), number(4));
        // Packing never makes more than a little of it.
        if unpacked > MAX_BLOCK_BYTES || packed > MAX_BLOCK_BYTES + 1_024 || (packed == 0) != (unpacked == 0) {
            return Err(self.damaged("its length can't be"));
        }
        let mut bytes = vec![0; packed];
        self.read(&mut bytes)?;
        let mut lengths = [0; 8];
        lengths.copy_from_slice(&head[..8]);
        self.sum = next_sum(&self.sum, &lengths, &bytes);
        if self.sum != head[8..] {
            return Err(self.damaged("its sum is another"));
        }
        self.taken = 0;
        self.block.clear();
        if packed == 0 {
            self.ended = true;
            return self.expect_end();
        }
        let block = zstd::bulk::decompress(&bytes, unpacked).map_err(|_| self.damaged("it can't be unpacked"))?;
        if block.len() != unpacked {
            return Err(self.damaged("it unpacks to another length"));
        }
        self.block = block;
        Ok(())
    }

    fn expect_end(&mut self) -> Result<(), FormatError> {
        let at = self.at;
        match self.input.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(FormatError::Damaged { at, what: "there is something behind the end" }),
            Err(source) => Err(FormatError::Io { at, source }),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), FormatError> {
        let at = self.at;
        self.input.read_exact(into).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => FormatError::CutOff { at },
            _ => FormatError::Io { at, source },
        })?;
        self.at += into.len() as u64;
        Ok(())
    }
}

/// Reads a backup to its end and checks that it is whole and in order. Gives what it is of, its databases and their sums.
///
/// # Errors
/// What is wrong, and where.
pub fn check<R: Read>(input: R) -> Result<(Head, Vec<(Database, Sum)>), FormatError> {
    let mut reader = Reader::new(input)?;
    let Some(Record::Head(head)) = reader.record()? else { return Err(reader.damaged("it has no head")) };
    let mut databases = Vec::new();
    let mut total = Sum::default();
    loop {
        match reader.record()? {
            Some(Record::Database(database)) => {
                let sum = check_database(&mut reader)?;
                total.add(&sum);
                databases.push((database, sum));
            }
            Some(Record::End(sum)) if sum == total => break,
            _ => return Err(reader.damaged("what is in it is not what it says")),
        }
    }
    if reader.record()?.is_some() {
        return Err(reader.damaged("there are records behind the end"));
    }
    Ok((head, databases))
}

fn check_database<R: Read>(reader: &mut Reader<R>) -> Result<Sum, FormatError> {
    let mut found = Sum::default();
    let mut left = 0_u64;
    loop {
        match reader.record()? {
            Some(Record::Revision(text)) if left == 0 => {
                let leaf: Leaf<'_> = reader.parse_leaf(&text)?;
                found.revisions += 1;
                found.attachments += leaf.attachments.len() as u64;
                left = leaf.attachments.iter().map(|(_, stub, _)| stub.length).fold(0, u64::saturating_add);
                found.bytes += text.len() as u64 + left;
            }
            Some(Record::Piece(piece)) if (1..=left).contains(&(piece.len() as u64)) => left -= piece.len() as u64,
            Some(Record::DatabaseEnd(sum)) if left == 0 => {
                let same = Sum { documents: sum.documents, bodiless: sum.bodiless, ..found } == sum;
                return if same { Ok(sum) } else { Err(reader.damaged("what is in it is not what it says")) };
            }
            _ => return Err(reader.damaged("its records are out of order")),
        }
    }
}

impl<R: Read> Reader<R> {
    fn parse_leaf<'a>(&self, text: &'a [u8]) -> Result<Leaf<'a>, FormatError> {
        serde_json::from_slice(text).map_err(|_| self.damaged("a document has another form"))
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
