//! Databases from a CouchDB into a pod, and back: what `podctl import` and `podctl export` are made of.
//!
//! Both ends are asked in CouchDB's HTTP API ([`server`]), so that the one may be any server that speaks it. A database's
//! documents are carried by the replicator's own hands (`rean::replicate`), with all leaves, their histories and
//! attachments ([`copy`]); then settings ([`settings`]), and at last what both sides have is compared ([`verify`]).
//! Accounts ([`accounts`]) and replications ([`replications`]) mean something to a server and have rules of their own.
//!
//! What always holds: nothing of the source is changed; a place is marked after the target has all before it; what the
//! target refuses is told at the end by name; no password is on a command line or in what is printed.

pub mod accounts;
pub mod choice;
pub mod copy;
pub mod patience;
pub mod place;
pub mod replications;
pub mod run;
pub mod secret;
pub mod server;
pub mod settings;
pub mod tally;
pub mod teller;
pub mod verify;
