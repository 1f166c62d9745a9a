//! What an operator looks at and sets from day to day: the ring on one screen, its pods, apps and users, its logs and how
//! busy it is.
//!
//! Everything is asked of one pod, whichever answers: documents of `_ring` and `_pods`, and by `/_node/POD/...` what only
//! another pod knows of itself.

pub mod apps;
pub mod ask;
pub mod logs;
pub mod maintenance;
pub mod pods;
pub mod ring_config;
pub mod screen;
pub mod status;
pub mod top;
pub mod users;
