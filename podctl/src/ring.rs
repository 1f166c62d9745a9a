//! What an operator sees of a ring and changes in it, by way of any of its pods.
//!
//! All that is shown is in documents: `_ring/pod:ID` is what each pod says of itself, `_pods` what the pod that is asked
//! knows of all, `_ring/instruction:...` and `_ring/divergence:...` what happened to other documents.

pub mod clocks;
pub mod divergences;
pub mod documents;
pub mod keys;
pub mod listener;
pub mod revocations;
pub mod status;
pub mod table;
pub mod target;
