//! A pod or some of its databases as one file, and back: what `podctl backup` and `podctl restore` are made of.
//!
//! The pod makes the file (`rean::backup` has its form); here it is kept ([`keep`]), checked, and written to a pod again
//! by the same requests that any client would send ([`restore`], [`batch`]): so what is restored is new databases of their
//! own, with the same documents, revisions and histories.

pub mod batch;
pub mod keep;
pub mod restore;
pub mod stream;
