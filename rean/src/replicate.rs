//! CouchDB's replicator: carries documents from one database to another, each of this server or of any other that speaks
//! CouchDB's API (<https://docs.couchdb.org/en/stable/replication/protocol.html>).
//!
//! What flows through it: [`api`] and [`documents`] take what is wanted ([`spec`]) from `_replicate` and `_replicator`;
//! [`registry`] holds one [`job`] for each id, which runs a [`session`] after the other until one is done; a session reads
//! rounds of changes ([`feed`]), has them carried over ([`carry`], [`upload`]) and marks how far it is ([`checkpoint`]).
//! Both ends are asked through [`peer`].
//!
//! What always holds: an end on this server is used with the rights of who started the replication; what is in memory
//! doesn't grow with documents, attachments or the time that an end is away; a checkpoint is written after the target has
//! told that it has everything before it; no answer, list or log shows a password.

pub mod api;
pub mod carry;
pub mod checkpoint;
pub mod connector;
pub mod documents;
pub mod fault;
pub mod feed;
pub mod filter;
pub mod job;
pub mod moment;
pub mod peer;
pub mod progress;
pub mod registry;
pub mod session;
pub mod spec;
pub mod split;
pub mod upload;

pub use registry::Replications;
