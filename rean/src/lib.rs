//! rean: the database server of a pod and its workers.
//!
//! What flows through it: the proxy forwards each request over HTTP with a signed identity ([`server`]); [`route`]
//! finds the resource; [`target`] turns the database's name and the identity into a database, a scope to read
//! through and an author to write as; the handlers ([`docs`], [`bulk`], [`all_docs`], [`attachments`], [`changes`],
//! [`databases`]) speak CouchDB's HTTP API (<https://docs.couchdb.org/en/stable/api/index.html>) over `rean-store`. What
//! design documents ([`designs`]) say of writes and feeds is done by their [`functions`].
//!
//! What always holds: nothing is read but through [`target::Target`]'s scope, apart from an app's pages, which are for
//! everyone by an administrator's word ([`hosting`]); an unreadable document and a missing one give the same answer; a feed,
//! a list or an attachment is never wholly in memory; a write is acknowledged after its durable commit.
//!
//! What it is not: it knows no passwords in requests (the proxy authenticates). It is bound to loopback, and in a ring to a
//! port that only pods with a certificate of that ring get through ([`ring::port`]).

pub mod account_doc;
pub mod accounts;
pub mod all_docs;
pub mod apps;
mod aside;
pub mod attachments;
pub mod backup;
pub mod body_in;
pub mod bulk;
pub mod bulk_get;
pub mod capped;
pub mod changes;
pub mod check;
pub mod cleaner;
pub mod cluster;
pub mod config;
pub mod databases;
pub mod db_updates;
pub mod designs;
pub mod docs;
pub mod edit_in;
pub mod error;
pub mod feed_body;
pub mod feeds;
pub mod files;
pub mod find;
pub mod form;
pub mod functions;
pub mod hosting;
pub mod hub;
pub mod list_args;
pub mod local_docs;
pub mod maintenance;
pub mod multipart;
pub mod multipart_out;
pub mod node_config;
pub mod open_revs;
pub mod page_body;
pub mod partitions;
pub mod password;
pub mod pod;
pub mod process;
pub mod query;
pub mod range;
pub mod readers;
pub mod render;
pub mod replicate;
pub mod ring;
pub mod room;
pub mod route;
pub mod security;
pub mod server;
pub mod server_info;
mod several;
mod shares;
pub mod standing;
pub mod target;
pub mod tasks;
pub mod upload;
pub mod views;
pub mod workers;

pub use config::{Config, ConfigError, Limits};
pub use server::{RunError, run};
