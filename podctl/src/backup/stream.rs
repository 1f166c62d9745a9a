//! The records of a backup as they are wanted: read on a thread of its own, some ahead.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use rean::backup::format::{Reader, Record};
use tokio::sync::{Mutex, mpsc};

use super::keep;

/// Records that are read ahead; a document may have some MiB.
const AHEAD: usize = 16;

/// Records of a backup, in order.
#[derive(Clone)]
pub struct Records {
    receiver: Arc<Mutex<mpsc::Receiver<anyhow::Result<Record>>>>,
}

impl Records {
    /// Begins to read.
    ///
    /// # Errors
    /// When the file can't be opened or is no backup.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut reader = Reader::new(keep::open(path)?)?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        let name = path.display().to_string();
        tokio::task::spawn_blocking(move || {
            loop {
                let record = match reader.record() {
                    Ok(Some(record)) => Ok(record),
                    Ok(None) => return,
                    Err(error) => Err(anyhow::Error::from(error).context(name.clone())),
                };
                let is_end = record.is_err();
                // Nobody reads on: the restore has ended.
                if sender.blocking_send(record).is_err() || is_end {
                    return;
                }
            }
        });
        Ok(Self { receiver: Arc::new(Mutex::new(receiver)) })
    }

    /// The next record.
    ///
    /// # Errors
    /// When the file can't be read on.
    pub async fn next(&self) -> anyhow::Result<Record> {
        self.receiver.lock().await.recv().await.context("the backup ends too early")?
    }

    /// The next piece of an attachment.
    ///
    /// # Errors
    /// When it is something else.
    pub async fn piece(&self) -> anyhow::Result<Vec<u8>> {
        match self.next().await? {
            Record::Piece(piece) => Ok(piece),
            _ => bail!("the backup has no attachment where one should be"),
        }
    }
}
