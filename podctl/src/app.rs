//! The pages of apps: a folder becomes a design document, and another one says who gets which version.

pub mod deploy;
mod folder;
mod multipart;
pub mod versions;
