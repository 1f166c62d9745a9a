//! What every program of a ring knows: its secret, the keys made from it, and who is asking.
//!
//! What flows through it: a [`RingSecret`] is read once at start; keys for single purposes are made from it
//! ([`RingSecret::key`]), so that a key that leaks tells nothing of the others. [`identity`] is how the proxy
//! tells rean who sends a request.
//!
//! What always holds: the secret is never printed, and all comparisons of secrets take the same time whatever they compare.
//!
//! What it is not: it knows no HTTP, no files and no clock.

pub mod identity;
pub mod secret;

pub use identity::{Identity, IdentityError, Signer};
pub use secret::{RingSecret, SecretError};
