//! The documents of a pod: databases with CouchDB's revision trees, update sequences and attachments, and,
//! for an app's database, who may read each document and the partial databases that follow from it.
//!
//! # What flows through it
//! Edits come in with [`Db::submit`], go to the one writer thread, and are committed in groups: a document
//! with its revision tree, its row in the feed, its body, its move between partial databases and all counts
//! are one atomic batch with one flush (`writer`, `apply`, `rights`, `partition`). Reads go straight to the
//! engine through a [`Scope`] that says who looks (`view`, `listing`, `feed`). Other pods follow all databases at
//! once, in the order of the store's sequences ([`Store::rows`]), and write here what they have with full histories.
//!
//! # What always holds
//! - A document is in at most one partial database, in every state that a crash can leave.
//! - What a caller was told is written survives `kill -9`, and power loss with an engine that is power-safe.
//! - A reader gets nothing of a document whose winner's readers do not name them, nor of a revision whose
//!   readers did not, but for the tombstone that tells of its leaving.
//! - A body is stored once; partial databases are indexes over bodies.
//! - Stores with the same keys that have got the same revisions, in whatever order, and have the same rules have the
//!   same leaves, winner and place of every document: what a store makes up is named the same everywhere (`chain`),
//!   and a deletion says whose its document was.
//! - A sequence is given once within a history ([`Store::history`]), and told to other pods only when it is durable.
//! - While there is an instructor, a move between partial databases and its instruction are one commit (`moves`).
//!
//! # What is stored
//! Format version 1. Records are postcard, numbers in keys big-endian, `db` and `part` four bytes, `seq` and
//! `blob` eight.
//!
//! | space | key | value |
//! | --- | --- | --- |
//! | Meta | `format` | the format's version; a newer one is refused |
//! | Meta | `clock` | commits, last sequence, next database number; written with each commit |
//! | Meta | `history` | eight hex digits that name the store's run of sequences |
//! | Meta | `note/` name | a small record of the server's; `served/` db/ hash: what a user was given (`served`) |
//! | Meta | `db/` name | settings of a database |
//! | Meta | `state/` db | its counts |
//! | Meta | `part/` db part | the readers of a partial database |
//! | Meta | `count/` db part | its counts and newest row |
//! | Meta | `partition/` db name | counts of a partition of a partitioned database |
//! | Meta | `acl/` db number | an access pair: partial database and writers |
//! | Meta | `doomed/` db | a deleted database whose data is still to be cleared |
//! | Meta | `purged/` db purge | the id of a document of which something was purged |
//! | Meta | `upload/` blob | an upload that no document has taken up |
//! | Docs | db id | a document: revision tree, place, tombstones |
//! | Seqs | db seq | a row of the feed: id and leaves |
//! | Bodies | db seq | attachments and text of the revision that was written at `seq` |
//! | Local | db owner id | a `_local` document |
//! | PartDocs | db part id | a document in a partial database, or its tombstone there |
//! | PartSeqs | db part seq | a row of a partial database's feed |
//! | Blobs | db blob piece | 64 KiB of an attachment; of a file the one piece 0, its record |
//! | BlobIndex | db sha256 | the number of known bytes; of a file the hash is of its name |
//!
//! Beside the engine's folder lies `acknowledged`, the number of the last acknowledged commit (`witness`).
//!
//! # What it is not
//! It knows no HTTP, no network and no async; authentication and `_security` are the server's.

pub mod access;
mod app;
mod apply;
mod attach;
mod authors;
mod backup;
mod base;
mod blob;
mod bookmark;
mod chain;
pub mod collate;
mod db;
pub mod document;
mod edit;
pub mod engine;
mod error;
mod feed;
mod indexable;
pub mod json;
mod known;
mod listing;
mod local;
mod moves;
mod notes;
mod opening;
mod outside;
mod partition;
mod partitioned;
mod progress;
mod record;
pub mod rev;
mod rights;
mod rows;
pub mod selector;
mod served;
mod store;
pub mod tree;
mod upkeep;
mod view;
mod witness;
mod writer;

pub use access::AppRules;
pub use app::{PartInfo, Reader, Who};
pub use apply::Done;
pub use backup::{Frozen, FrozenDb, FrozenDoc, FrozenLeaf};
pub use blob::{BlobRef, BlobWriter, PIECE_BYTES, digest_text};
pub use db::{Db, DbInfo, DbKind, Sizes};
pub use edit::{AttachmentEdit, AttachmentEditSource, Author, Base, Edit, Mode, OldRevision, Write, Written};
pub use engine::EngineKind;
pub use error::{OpenError, StoreError, WriteError};
pub use feed::{Change, Feed, FeedError, FeedRow, Offer, Since};
pub use indexable::{IndexLive, IndexPage, IndexRow, Newest, Purges};
pub use listing::{DocRow, IdRange};
pub use local::{LocalDoc, LocalDone};
pub use moves::{Instructor, Move};
pub use notes::{MAX_NOTE_BYTES, MAX_NOTE_NAME_BYTES};
pub use outside::{FileKey, FileKeyError, FilePlace, Outside, Reading, StoredFile};
pub use partitioned::{
    MAX_PARTITION_BYTES, PartitionError, PartitionInfo, PartitionedIdError, partition_bounds, partition_of,
    validate_partition, validate_partitioned_id,
};
pub use record::{Attachment, BlobId, PartNo, Seq};
pub use rev::Rev;
pub use rows::{StorePage, StoreRow};
pub use store::{NoObserver, Observer, Store, StoreKeys, StoreOptions, StoreStats};
pub use upkeep::PurgeDone;
pub use view::{Body, BodyRef, DocView, RevView, RevsDiff, Scope};
