//! Changing the software of a ring, pod by pod.
//!
//! What flows through: the operator who has the [`OrderKey`] signs an [`Order`]; it is the document [`UPGRADE_ID`]
//! of `_ring`, so every pod learns of it. Each pod says how far it is with it ([`Progress`]), and works out from the
//! order and from what all others say what it does next ([`next`]). Nobody leads.
//!
//! What always holds, as far as what a pod has heard is true: no two pods are without their programs at once; a pod begins
//! only when all pods of the order are there and have the software, and all before it run it; one pod that goes back,
//! or an operator who calls it off, makes all go back, one by one.

mod key;
mod next;
mod order;
#[cfg(test)]
mod simulation;

use serde::{Deserialize, Serialize};

pub use key::{Fingerprint, OrderKey, OrderKeyError, OrderPublicKey, OrderTrust};
pub use next::{ANNOUNCE_MS, Act, HAND_OVER_MS, MAX_CRASHES, Own, Peer, Side, next};
pub use order::{MAX_PATIENCE_S, MAX_PODS, MIN_PATIENCE_S, Order, OrderError, OrderState, Source};

/// The document of `_ring` that orders an upgrade.
pub const UPGRADE_ID: &str = "upgrade";
/// What the ids of the documents of `_ring` begin with that hold software; the SHA-256 of it follows.
pub const IMAGE_PREFIX: &str = "image:";
/// The attachment of such a document.
pub const ARCHIVE: &str = "archive";

/// How far a pod is with the order of an upgrade, as it tells all others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Which order.
    pub order: String,
    /// How far.
    pub step: Step,
    /// Why it went wrong, or what is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Where a pod stands in an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It fetches the image.
    Fetching,
    /// It has the image, and waits for its turn.
    Ready,
    /// It hands over the mastership, if it has that.
    HandingOver,
    /// Its programs are replaced.
    Replacing,
    /// The new ones run, and catch up.
    CatchingUp,
    /// It runs the new software.
    Done,
    /// It goes back to the software that it had.
    RollingBack,
    /// It runs the old software again.
    RolledBack,
    /// A step that a later version has: what it is, this one can't tell.
    #[serde(other)]
    Unknown,
}

impl Step {
    /// Whether the pod's programs may be away, or are about to be: no other pod may begin meanwhile.
    pub fn is_busy(self) -> bool {
        matches!(self, Self::HandingOver | Self::Replacing | Self::CatchingUp | Self::RollingBack | Self::Unknown)
    }

    /// As others read it, and as people do.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Ready => "ready",
            Self::HandingOver => "handing_over",
            Self::Replacing => "replacing",
            Self::CatchingUp => "catching_up",
            Self::Done => "done",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::{Progress, Step};

    #[test]
    fn a_step_of_a_later_version_is_borne() {
        let text = r#"{"order":"a","step":"dancing","since":5}"#;
        let progress: Progress = serde_json::from_str(text).expect("borne");
        assert!(progress.step == Step::Unknown && progress.step.is_busy());
        let text = serde_json::to_string(&Progress { step: Step::HandingOver, ..progress }).expect("JSON");
        assert_eq!(text, r#"{"order":"a","step":"handing_over"}"#);
    }
}
