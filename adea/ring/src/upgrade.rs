//! Changing the software of a ring, pod by pod.

use serde::{Deserialize, Serialize};

/// The document of `_ring` that orders an upgrade.
pub const UPGRADE_ID: &str = "upgrade";

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
}
