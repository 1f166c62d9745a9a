//! What every program of a ring knows and decides: its secret, who is asking, the clock, the members, the peers, the
//! write master.
//!
//! What flows through it: a [`RingSecret`] is read once at start; keys for single purposes are made from it
//! ([`RingSecret::key`]), so that a key that leaks tells nothing of the others. [`identity`] is how the proxy
//! tells rean who sends a request. A [`View`] is what one pod knows of the ring; from it each pod works out, alone,
//! whom it replicates with ([`peering`]) and who takes the writes ([`election`]). [`clock`] stamps what the ring must
//! put in order. With the feature `gossip`, the module of that name is how the pods find one another and tell what goes
//! into a view.
//!
//! What always holds: the secret is never printed, and all comparisons of secrets take the same time whatever they
//! compare. Decisions are functions of the values passed in, time and chance among them, so that each can be replayed.
//!
//! What it is not: it knows no HTTP, no files but one that `trust` reads, and but for `gossip` no sockets and no clock of
//! the machine.

pub mod calendar;
#[cfg(feature = "tls")]
pub mod certificate;
pub mod clock;
pub mod config;
pub mod election;
pub mod files;
#[cfg(feature = "gossip")]
pub mod gossip;
pub mod host;
pub mod hosting;
pub mod identity;
#[cfg(feature = "join")]
pub mod join;
pub mod log_level;
pub mod member;
pub mod node_config;
pub mod operator;
pub mod pace;
pub mod peering;
pub mod public_tls;
pub mod report;
pub mod secret;
pub mod software;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "tls")]
pub mod trust;
pub mod upgrade;
#[cfg(feature = "tls")]
pub mod web_tls;

pub use clock::{Clock, DriftError, Stamp, StampError};
pub use config::{RingConfig, RingConfigError};
pub use identity::{Identity, IdentityError, Signer};
pub use member::{Member, PodId, PodIdError, View};
pub use node_config::{NodeConfig, NodeConfigError};
pub use secret::{RingSecret, SecretError};
