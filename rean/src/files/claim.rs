//! Whose a bucket is. Two rings with one secret - a machine that was cloned, a restored backup - give their objects the same
//! prefix, and each would sweep away what only the other's documents have.
//!
//! So there is a mark beside the objects, a random name, and `_ring` says which it must be. With each sweep it gets the next
//! name. A ring that finds another mark than its own isn't alone there: it writes that down in the mark's place, and from
//! then on neither sweeps. A clone knows its original's mark, and has it replaced by its first sweep.
//!
//! `_ring` has the next name as well as the present one, since the sweep before: when a master dies right after it has
//! written the mark, the pod that follows it knows that name. It may also be a clone that has written it: so that time
//! nothing is swept, and the mark gets a name that no clone knows.

use std::sync::Arc;

use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::databases::blocking;
use crate::files::error::FileError;
use crate::files::storage::Bucket;
use crate::pod::Pod;
use crate::ring::ring_doc;

/// The document of `_ring` with the names.
const DOC: &str = "files:mark";
/// A mark is some hundred bytes; what is larger is none.
const MAX_MARK_BYTES: u64 = 4 << 10;

/// What is said of a mark that can't be read.
const NONSENSE: &str = "it is no mark of a ring: if no other ring keeps files there, remove it";

/// What the bucket says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mark {
    /// One ring's.
    Name(String),
    /// Two have met; for people, between which names.
    Disputed {
        /// The mark that was found.
        found: String,
        /// What the ring that found it had expected.
        expected: String,
    },
}

/// What `_ring` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Names {
    /// Which bucket and prefix these are for.
    place: String,
    now: String,
    next: String,
}

impl Names {
    fn new(place: &str) -> Self {
        Self { place: place.to_owned(), now: random_name(), next: random_name() }
    }

    /// Once the mark is `next`.
    fn turned(&self) -> Self {
        Self { place: self.place.clone(), now: self.next.clone(), next: random_name() }
    }
}

/// What is to be done about a mark.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The bucket gets its ring's next mark.
    Turn {
        /// What `_ring` is to know before the mark is written: a mark that it doesn't know would be another ring's.
        first: Option<Names>,
        mark: Mark,
        mode: PutMode,
        /// And what after it, so that it knows the mark after this one.
        then: Option<Names>,
        /// Whether the bucket is this ring's, and no clone can have written the mark that was found.
        is_certain: bool,
    },
    /// It is another ring's, and that is to be told there.
    Dispute(Mark),
    /// That has been told.
    Told,
}

/// The next step of a ring that knows of these names, or of none for this place.
fn step(mark: Option<&Mark>, names: Option<Names>, place: &str) -> Step {
    match (mark, names) {
        // This ring is the first.
        (None, names) => {
            let names = names.map_or_else(|| Names::new(place), |names| names.turned());
            let mark = Mark::Name(names.now.clone());
            Step::Turn { first: Some(names), mark, mode: PutMode::Create, then: None, is_certain: true }
        }
        (Some(Mark::Disputed { .. }), _) => Step::Told,
        (Some(Mark::Name(name)), Some(names)) if *name == names.now => turn(None, &names),
        // The one that was to come: this ring has written it and not noted that, or a clone has written it.
        (Some(Mark::Name(name)), Some(names)) if *name == names.next => {
            let names = names.turned();
            turn(Some(names.clone()), &names)
        }
        (Some(Mark::Name(found)), names) => {
            let expected = names.map_or_else(|| "none".to_owned(), |names| names.now);
            Step::Dispute(Mark::Disputed { found: found.clone(), expected })
        }
    }
}

/// From these names to the next.
fn turn(first: Option<Names>, names: &Names) -> Step {
    let is_certain = first.is_none();
    let mark = Mark::Name(names.next.clone());
    Step::Turn { first, mark, mode: PutMode::Overwrite, then: Some(names.turned()), is_certain }
}

/// Says that the bucket is this ring's, and sees that nobody else has said so. Whether that is certain.
///
/// # Errors
/// [`FileError::Disputed`] when somebody has; when the storage or the store fails.
pub async fn renew(pod: &Arc<Pod>, bucket: &Bucket) -> Result<bool, FileError> {
    let place = bucket.place();
    let known = names(pod, &place).await?;
    let mark = read(bucket).await?;
    match step(mark.as_ref(), known, &place) {
        Step::Turn { first, mark, mode, then, is_certain } => {
            if let Some(names) = first {
                keep(pod, &names).await?;
            }
            write(bucket, &mark, mode).await?;
            if let Some(names) = then {
                keep(pod, &names).await?;
            }
            Ok(is_certain)
        }
        Step::Dispute(mark) => {
            write(bucket, &mark, PutMode::Overwrite).await?;
            Err(FileError::Disputed(bucket.mark().to_string()))
        }
        Step::Told => Err(FileError::Disputed(bucket.mark().to_string())),
    }
}

async fn read(bucket: &Bucket) -> Result<Option<Mark>, FileError> {
    let failed = |error| FileError::storage("reading whose the bucket is", error);
    let found = match bucket.store().get(&bucket.mark()).await.map_err(failed) {
        Ok(found) => found,
        Err(FileError::Missing) => return Ok(None),
        Err(error) => return Err(error),
    };
    let unknown = || FileError::Storage { step: "reading whose the bucket is", why: NONSENSE.to_owned() };
    if found.meta.size > MAX_MARK_BYTES {
        return Err(unknown());
    }
    let text = found.bytes().await.map_err(failed)?;
    serde_json::from_slice(&text).map(Some).map_err(|_| unknown())
}

async fn write(bucket: &Bucket, mark: &Mark, mode: PutMode) -> Result<(), FileError> {
    let text = serde_json::to_vec(mark).unwrap_or_default();
    let options = PutOptions { mode, ..PutOptions::default() };
    let written = bucket.store().put_opts(&bucket.mark(), PutPayload::from(text), options).await;
    written.map(|_| ()).map_err(|error| FileError::storage("writing whose the bucket is", error))
}

async fn names(pod: &Arc<Pod>, place: &str) -> Result<Option<Names>, FileError> {
    let pod = Arc::clone(pod);
    let found = blocking(move || ring_doc::live(&ring_doc::ring_db(&pod)?, DOC)).await;
    let found = found.map_err(|error| FileError::Pods(error.cause().to_owned()))?;
    let leaf =
        found.map_err(|error| FileError::Storage { step: "reading whose the bucket is", why: error.to_string() })?;
    let names = leaf.and_then(|leaf| serde_json::from_value::<Names>(Value::Object(leaf.body)).ok());
    // Another bucket has another mark.
    Ok(names.filter(|names| names.place == place))
}

async fn keep(pod: &Arc<Pod>, names: &Names) -> Result<(), FileError> {
    let failed = |why: String| FileError::Storage { step: "noting whose the bucket is", why };
    let db = ring_doc::ring_db(pod).map_err(|error| failed(error.to_string()))?;
    let parent = ring_doc::live(&db, DOC).map_err(|error| failed(error.to_string()))?.map(|leaf| leaf.rev);
    let body: Map<String, Value> = match json!(names) {
        Value::Object(body) => body,
        _ => Map::new(),
    };
    let written = ring_doc::write(pod, &db, ring_doc::edit(DOC, parent, &body)).await;
    written.map(|_| ()).map_err(|error| failed(error.cause().to_owned()))
}

fn random_name() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

#[cfg(test)]
mod tests {
    use super::{Mark, Names, Step, step};

    /// A ring, as far as it sweeps: what it knows, and whether it may.
    fn sweep(mark: &mut Option<Mark>, names: &mut Option<Names>) -> bool {
        match step(mark.as_ref(), names.clone(), "a") {
            Step::Turn { first, mark: written, then, is_certain, .. } => {
                *mark = Some(written);
                *names = then.or(first);
                is_certain
            }
            Step::Dispute(written) => {
                *mark = Some(written);
                false
            }
            Step::Told => false,
        }
    }

    #[test]
    fn a_ring_sweeps_what_is_its_own_for_ever_also_after_a_crash() {
        let (mut mark, mut names) = (None, None);
        for _ in 0..5 {
            assert!(sweep(&mut mark, &mut names));
        }
        // The mark was written, and the document was not, or has not come to the next master.
        let before = names.clone();
        assert!(sweep(&mut mark, &mut names));
        names = before;
        assert!(!sweep(&mut mark, &mut names), "it may have been a clone");
        assert!(sweep(&mut mark, &mut names));
    }

    #[test]
    fn two_rings_find_each_other_and_neither_sweeps() {
        let (mut mark, mut names) = (None, None);
        assert!(sweep(&mut mark, &mut names));
        // One that knows nothing of it.
        let (mut other_mark, mut stranger) = (mark.clone(), None);
        assert!(!sweep(&mut other_mark, &mut stranger));
        assert!(!sweep(&mut other_mark, &mut names) && !sweep(&mut other_mark, &mut stranger));
        // A clone, which knows all that the original does: whoever comes second doubts, and the first finds that.
        for clone_is_first in [true, false] {
            let (mut mark, mut names, mut clone) = (mark.clone(), names.clone(), names.clone());
            let mut swept = Vec::new();
            for turn in 0..6 {
                let who = if (turn % 2 == 0) == clone_is_first { &mut clone } else { &mut names };
                swept.push(sweep(&mut mark, who));
            }
            assert_eq!(swept, [true, false, false, false, false, false]);
        }
    }
}
