//! `validate_doc_update`: what is asked before a document is written
//! (<https://docs.couchdb.org/en/stable/ddocs/ddocs.html#validate-document-update-functions>).
//!
//! All validators of the database are shown all documents of a request, a batch at a time, before anything is handed to
//! the store. The store takes an edit only if the document is still what the validators saw; else they are asked again.

mod shown;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rean_script::{Refusal, Scripts, ValidateCase};
use rean_store::{Base, Db, Edit, Mode, StoreError, Write, WriteError, Written};

use crate::designs::{DesignDoc, Designs, PREFIX};
use crate::error::ApiError;
use crate::functions::{call, require_language, security_object, user_ctx};
use crate::pod::{Pod, stopped};
use crate::target::{self, Target};

/// How often validators are asked again because a document changed meanwhile: each time somebody else's write of the same
/// document was let in.
const ATTEMPTS: usize = 8;
/// Texts of documents that are handed over at once, in bytes, and
const BATCH_BYTES: usize = 2 << 20;
/// how many of them.
const BATCH_CASES: usize = 500;

/// What the validators say of an edit: on what it stands, as they saw it; none where they are not asked.
type Verdict = Result<Option<Base>, ApiError>;

/// What all cases of a request share.
struct Court {
    db: Db,
    author: rean_store::Author,
    mode: Mode,
    designs: Arc<Designs>,
    user_ctx: String,
    security: String,
    /// Set when nobody waits for the verdicts any more.
    abandoned: Arc<AtomicBool>,
}

/// Tells the court when its request is gone: a client that leaves must not leave an hour's work behind.
struct Request(Arc<AtomicBool>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether writes to a database are shown to validators.
pub fn is_needed(designs: &Designs) -> bool {
    !designs.validators().is_empty() || designs.unreadable_validator().is_some()
}

/// Writes what the validators let through. One result an edit, in order.
///
/// # Errors
/// When nothing could be tried.
pub async fn write(
    pod: &Arc<Pod>,
    target: &Target,
    designs: &Arc<Designs>,
    edits: Vec<Edit>,
    mode: Mode,
) -> Result<Vec<Result<Written, ApiError>>, ApiError> {
    let mut results: Vec<Option<Result<Written, ApiError>>> = edits.iter().map(|_| None).collect();
    for wave in waves(edits) {
        let (places, edits): (Vec<usize>, Vec<Edit>) = wave.into_iter().unzip();
        let written = write_wave(pod, target, designs, edits, mode).await?;
        for (place, result) in places.into_iter().zip(written) {
            results[place] = Some(result);
        }
    }
    let no_result = || Err(ApiError::internal("the store gave no result"));
    Ok(results.into_iter().map(|result| result.unwrap_or_else(no_result)).collect())
}

/// Edits with their places, in groups that have each document once: the second edit of a document stands on the first.
fn waves(edits: Vec<Edit>) -> Vec<Vec<(usize, Edit)>> {
    let mut waves: Vec<Vec<(usize, Edit)>> = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (place, edit) in edits.into_iter().enumerate() {
        let count = match seen.get_mut(&edit.id) {
            Some(count) => count,
            None => seen.entry(edit.id.clone()).or_default(),
        };
        if waves.len() <= *count {
            waves.push(Vec::new());
        }
        waves[*count].push((place, edit));
        *count += 1;
    }
    waves
}

async fn write_wave(
    pod: &Arc<Pod>,
    target: &Target,
    designs: &Arc<Designs>,
    edits: Vec<Edit>,
    mode: Mode,
) -> Result<Vec<Result<Written, ApiError>>, ApiError> {
    let mut results: Vec<Result<Written, ApiError>> = edits.iter().map(|_| Err(WriteError::Overtaken.into())).collect();
    let mut waiting: Vec<(usize, Edit)> = edits.into_iter().enumerate().collect();
    let request = Request(Arc::default());
    for _ in 0..ATTEMPTS {
        let (places, edits): (Vec<usize>, Vec<Edit>) = waiting.into_iter().unzip();
        let court = Court::of(pod, target, designs, mode, &request)?;
        let (edits, verdicts) = call(pod, designs, move |scripts| {
            let verdicts = court.judge(scripts, &edits);
            (edits, verdicts)
        })
        .await?;
        let mut allowed = Vec::new();
        let mut bases = Vec::new();
        for ((place, edit), verdict) in places.into_iter().zip(edits).zip(verdicts) {
            match verdict {
                Ok(base) => {
                    allowed.push((place, edit));
                    bases.push(base);
                }
                Err(error) => results[place] = Err(error),
            }
        }
        waiting = submit(pod, target, allowed, bases, mode, &mut results).await?;
        if waiting.is_empty() {
            break;
        }
    }
    Ok(results)
}

/// Hands over what was let through; gives back what is to be validated anew.
async fn submit(
    pod: &Arc<Pod>,
    target: &Target,
    allowed: Vec<(usize, Edit)>,
    bases: Vec<Option<Base>>,
    mode: Mode,
    results: &mut [Result<Written, ApiError>],
) -> Result<Vec<(usize, Edit)>, ApiError> {
    if allowed.is_empty() {
        return Ok(Vec::new());
    }
    // Validators may have taken a minute: what counts is what the author may do now. In a plain database nobody asks later.
    let target = target::resolve(pod, &target.who, &target.name)?;
    let (mut still, mut still_bases) = (Vec::new(), Vec::new());
    for ((place, edit), base) in allowed.into_iter().zip(bases) {
        match target.require_write_doc(&edit.id) {
            Ok(()) => {
                still.push((place, edit));
                still_bases.push(base);
            }
            Err(error) => results[place] = Err(error),
        }
    }
    let (allowed, bases) = (still, still_bases);
    let edits = allowed.iter().map(|(_, edit)| edit.clone()).collect();
    let write = Write { edits, author: target.author, mode };
    let written = pod.write_validated(&target.db, write, bases).await?;
    let mut again = Vec::new();
    for ((place, edit), result) in allowed.into_iter().zip(written) {
        match result {
            Err(WriteError::Overtaken) => again.push((place, edit)),
            other => results[place] = other.map_err(ApiError::from),
        }
    }
    Ok(again)
}

impl Court {
    fn of(pod: &Pod, target: &Target, designs: &Arc<Designs>, mode: Mode, request: &Request) -> Result<Self, ApiError> {
        // As whom it will be written, or the commit finds another base.
        let target = target::resolve(pod, &target.who, &target.name)?;
        Ok(Self {
            user_ctx: user_ctx(pod, &target)?.to_string(),
            security: security_object(&target).to_string(),
            author: target.author,
            db: target.db,
            mode,
            designs: Arc::clone(designs),
            abandoned: Arc::clone(&request.0),
        })
    }

    /// One verdict an edit, in order.
    fn judge(&self, scripts: &Scripts, edits: &[Edit]) -> Vec<Verdict> {
        let mut verdicts: Vec<Verdict> = Vec::with_capacity(edits.len());
        let mut batch = Batch::default();
        for (place, edit) in edits.iter().enumerate() {
            let case = match self.case(edit) {
                Ok((base, case)) => {
                    verdicts.push(Ok(base));
                    case
                }
                Err(error) => {
                    verdicts.push(Err(error.into()));
                    None
                }
            };
            if let Some(case) = case {
                batch.push(place, case);
            }
            if batch.is_full() {
                self.hear(scripts, std::mem::take(&mut batch), &mut verdicts);
            }
        }
        self.hear(scripts, batch, &mut verdicts);
        verdicts
    }

    /// On what an edit stands, and what validators are shown, if they are asked.
    fn case(&self, edit: &Edit) -> Result<(Option<Base>, Option<ValidateCase>), StoreError> {
        // Administrators alone write these; asked about them, a broken validator could not be replaced.
        if edit.id.starts_with(PREFIX) {
            return Ok((None, None));
        }
        let base = self.db.base(edit, &self.author, self.mode)?;
        let case = match &base {
            Base::Known | Base::Refused => None,
            Base::New => Some(ValidateCase { new: shown::new_document(edit, self.mode, &[]), old: None }),
            Base::Old(old) => {
                let body = old.body.map(|at| self.db.body(at)).transpose()?.flatten();
                let attachments = body.as_ref().map(|body| body.attachments.as_slice()).unwrap_or_default();
                let new = shown::new_document(edit, self.mode, attachments);
                Some(ValidateCase { new, old: Some(shown::old_document(&self.db, &edit.id, old, body.as_ref())) })
            }
        };
        Ok((Some(base), case))
    }

    /// Shows a batch to each validator; the first refusal of a document counts.
    fn hear(&self, scripts: &Scripts, batch: Batch, verdicts: &mut [Verdict]) {
        let Batch { mut places, mut cases, .. } = batch;
        if self.abandoned.load(Ordering::Relaxed) {
            // Nobody reads them; that they are refusals is for safety.
            places.iter().for_each(|place| verdicts[*place] = Err(stopped()));
            return;
        }
        if let Some(id) = self.designs.unreadable_validator() {
            for place in &places {
                verdicts[*place] = Err(ApiError::internal(format!("The validator in {id} can't be read.")));
            }
            return;
        }
        let (last, others) = match self.designs.validators().split_last() {
            Some(all) if !cases.is_empty() => all,
            _ => return,
        };
        for design in others {
            let answers = self.ask(scripts, design, cases.clone());
            let mut passed = (Vec::new(), Vec::new());
            for ((place, case), answer) in places.into_iter().zip(cases).zip(answers) {
                match answer {
                    Ok(()) => {
                        passed.0.push(place);
                        passed.1.push(case);
                    }
                    Err(error) => verdicts[place] = Err(error),
                }
            }
            (places, cases) = passed;
            if cases.is_empty() {
                return;
            }
        }
        for (place, answer) in places.into_iter().zip(self.ask(scripts, last, cases)) {
            if let Err(error) = answer {
                verdicts[place] = Err(error);
            }
        }
    }

    /// One answer a case. A validator that gives none refuses.
    fn ask(&self, scripts: &Scripts, design: &DesignDoc, cases: Vec<ValidateCase>) -> Vec<Result<(), ApiError>> {
        let count = cases.len();
        if let Err(error) = require_language(design) {
            return vec![Err(error); count];
        }
        let answers = scripts.validate(&design.script, cases, &self.user_ctx, &self.security);
        let mut answers: Vec<_> = answers.into_iter().map(|answer| answer.map_err(refused)).collect();
        answers.resize_with(count, || Err(ApiError::internal(format!("{} gave no answer", design.id))));
        answers
    }
}

fn refused(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Forbidden(reason) => ApiError::forbidden(reason),
        Refusal::Unauthorized(reason) => ApiError::unauthorized(reason),
        Refusal::Error(error) => error.into(),
    }
}

/// Cases that are handed over together, with the places of their edits.
#[derive(Default)]
struct Batch {
    places: Vec<usize>,
    cases: Vec<ValidateCase>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, place: usize, case: ValidateCase) {
        self.bytes += case.new.len() + case.old.as_ref().map_or(0, String::len);
        self.places.push(place);
        self.cases.push(case);
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES || self.cases.len() >= BATCH_CASES
    }
}

#[cfg(test)]
mod tests {
    use super::waves;
    use rean_store::Edit;

    fn edit(id: &str) -> Edit {
        Edit {
            id: id.to_owned(),
            parent: None,
            history: Vec::new(),
            deleted: false,
            body: "{}".into(),
            access: None,
            attachments: Vec::new(),
        }
    }

    #[test]
    fn a_document_is_once_in_a_wave_and_its_edits_keep_their_order() {
        let waves = waves(["a", "b", "a", "c", "a", "b"].map(edit).into());
        let places: Vec<Vec<usize>> = waves.iter().map(|wave| wave.iter().map(|(place, _)| *place).collect()).collect();
        assert_eq!(places, [vec![0, 1, 3], vec![2, 5], vec![4]]);
        assert!(super::waves(Vec::new()).is_empty());
    }
}
