//! What a part of the agent sees of the pod, and can change of it.

use std::path::PathBuf;

use tokio::sync::{mpsc, watch};

use crate::aside::AsideBoard;
use crate::docker::Engine;
use crate::doing::Doing;
use crate::folder::Folder;
use crate::ring::turn::News;
use crate::software::Software;
use crate::stop::End;

/// The levers of a running agent. Clones move the same ones.
#[derive(Debug, Clone)]
pub struct Levers {
    /// The data folder.
    pub folder: Folder,
    /// The file with the ring's secret.
    pub ring_file: PathBuf,
    /// The software that the programs are to be; they are replaced when it changes.
    pub software: watch::Sender<Software>,
    /// How the programs are.
    pub doing: watch::Receiver<Doing>,
    /// What comes from the ring.
    pub news: watch::Receiver<News>,
    /// What the ring hears of this pod.
    pub board: AsideBoard,
    /// Ends the agent.
    pub end: mpsc::Sender<End>,
    /// The engine, where the programs run in containers.
    pub engine: Option<Engine>,
    /// The image that runs where the software names none; none where there are no containers.
    pub image: Option<String>,
}
