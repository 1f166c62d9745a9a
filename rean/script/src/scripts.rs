//! The calls: what a server asks functions for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Deserialize;

use crate::{
    Design, FunctionName, Refusal, ScriptError, ScriptLimits, breaker::Breaker, pool::Pool, thrown::Thrown,
    worker::Worker,
};

/// A request waits this long for a thread; its client would not wait much longer.
const MOST_REQUEST_WAIT: Duration = Duration::from_secs(30);
/// Background work waits longer: nobody looks at it.
const MOST_BACKGROUND_WAIT: Duration = Duration::from_secs(300);
/// Threads for background work. With few cores one is enough to be always busy.
const MOST_BACKGROUND_THREADS: usize = 2;
/// Bytes of rows that one call may make of all its documents; who asks with the rest gets more.
const MOST_BATCH_BYTES: usize = 128 << 20;
/// Documents of a call with which map functions may hit a limit: enough for some odd ones among many, and no more than
/// three times the time of one for a function that never ends.
const MOST_COSTLY: usize = 3;
/// A thread that was stuck is worth so many hits: its function rests for a minute at once.
const STRIKES_FOR_A_THREAD: usize = 9;

/// Runs the functions of design documents on threads of its own. Clones are the same; the threads end with the last.
///
/// Every call blocks until its answer is there, so it must not be made on a thread of an async runtime.
#[derive(Clone)]
pub struct Scripts {
    shared: Arc<Shared>,
}

struct Shared {
    limits: ScriptLimits,
    requests: Arc<Pool>,
    background: Arc<Pool>,
    breaker: Breaker,
}

/// Who waits for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// A request.
    Request,
    /// An index that is built ahead of requests.
    Background,
}

/// A document that a validator judges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidateCase {
    /// The new document, JSON text.
    pub new: String,
    /// The revision that it follows, JSON text, if there is one.
    pub old: Option<String>,
}

/// What an update handler returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// The document to be written, JSON text; `None` writes nothing.
    pub doc: Option<String>,
    /// The response, JSON text: a string or an object.
    pub response: String,
}

/// A row: key and value, JSON text.
pub type MappedRow = (String, String);

/// What the views made of a document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MappedDoc {
    /// For each view that was asked for, its rows in the order in which they were emitted, or why it has none.
    pub views: Vec<Result<Vec<MappedRow>, String>>,
    /// Whether a function hit a limit of time or memory with it.
    pub costly: bool,
}

/// Who asks, as far as the breaker needs it.
#[derive(Deserialize)]
struct Asker {
    name: Option<String>,
}

/// The same in a request.
#[derive(Deserialize)]
struct Asked {
    #[serde(rename = "userCtx")]
    user: Option<Asker>,
}

impl Scripts {
    /// Makes the pools. Threads start when they are needed.
    pub fn new(limits: ScriptLimits) -> Self {
        let background = (limits.threads / 2).clamp(1, MOST_BACKGROUND_THREADS);
        Self {
            shared: Arc::new(Shared {
                limits,
                requests: Pool::new("request", limits, limits.threads, MOST_REQUEST_WAIT),
                background: Pool::new("index", limits, background, MOST_BACKGROUND_WAIT),
                breaker: Breaker::default(),
            }),
        }
    }

    /// The limits that it was made with.
    pub fn limits(&self) -> ScriptLimits {
        self.shared.limits
    }

    /// Stops: calls that run end soon, calls that wait and all that come get [`ScriptError::Closed`].
    pub fn close(&self) {
        self.shared.close();
    }

    /// Compiles functions, to see whether they are any.
    ///
    /// # Errors
    /// The first that fails: [`ScriptError::Compile`], [`ScriptError::Missing`], or a limit that it hit.
    pub fn compile(&self, design: &Design, functions: &[FunctionName]) -> Result<(), ScriptError> {
        let Some(first) = functions.first().cloned() else { return Ok(()) };
        let functions = functions.to_vec();
        self.run(Lane::Request, design, &first, functions.len(), move |worker, design| {
            for function in &functions {
                worker.clock.step();
                worker.machine(design, std::slice::from_ref(function))?;
            }
            Ok(())
        })
    }

    /// Asks `validate_doc_update` about documents. One answer for each case, in their order.
    pub fn validate(
        &self,
        design: &Design,
        cases: Vec<ValidateCase>,
        user_ctx: &str,
        sec_obj: &str,
    ) -> Vec<Result<(), Refusal>> {
        let name = FunctionName::Validate;
        let (count, user, security) = (cases.len(), user_ctx.to_owned(), sec_obj.to_owned());
        let asker = || serde_json::from_str(user_ctx).ok().map(Asker::name);
        let answers = self.run_for(&asker, Lane::Request, design, &name, count, move |worker, design| {
            let name = FunctionName::Validate;
            let mut answers = Vec::with_capacity(cases.len());
            for case in &cases {
                worker.clock.step();
                let machine = worker.machine(design, std::slice::from_ref(&name))?;
                answers.push(machine.validate(&case.new, case.old.as_deref(), &user, &security));
                if worker.clock.all_over() {
                    break;
                }
            }
            // What was not asked about is not let through.
            answers.resize(cases.len(), Err(Thrown::TooLong));
            Ok(answers)
        });
        match answers {
            Ok(answers) => {
                if answers.contains(&Err(Thrown::TooLong)) {
                    let asker = asker();
                    self.shared.breaker.strike(design.hash(), &name.to_string(), asker.as_deref(), Instant::now());
                }
                answers.into_iter().map(|answer| answer.map_err(|thrown| thrown.refusal(&name))).collect()
            }
            Err(error) => vec![Err(Refusal::Error(error)); count],
        }
    }

    /// Asks `filters.NAME` about documents, with the request as JSON text. One answer for each, in their order.
    ///
    /// # Errors
    /// If it fails with any of the documents.
    pub fn filter(&self, design: &Design, name: &str, docs: Vec<String>, req: &str) -> Result<Vec<bool>, ScriptError> {
        let asker = || asker_of(req);
        let (name, req) = (FunctionName::Filter(name.to_owned()), req.to_owned());
        self.run_for(&asker, Lane::Request, design, &name.clone(), docs.len(), move |worker, design| {
            let machine = worker.machine(design, std::slice::from_ref(&name))?;
            machine.filter(&name, &docs, &req).map_err(|thrown| thrown.error(&name))
        })
    }

    /// Asks whether the map function of a view emits anything (`filter=_view`); it does not see the request.
    ///
    /// # Errors
    /// If the function cannot be compiled or hits a limit; a document with which it throws doesn't pass.
    pub fn view_filter(
        &self,
        design: &Design,
        view: &str,
        docs: Vec<String>,
        req: &str,
    ) -> Result<Vec<bool>, ScriptError> {
        let name = FunctionName::Map(view.to_owned());
        self.run_for(&|| asker_of(req), Lane::Request, design, &name.clone(), docs.len(), move |worker, design| {
            let mut passed = Vec::with_capacity(docs.len());
            for doc in &docs {
                worker.clock.step();
                let machine = worker.machine(design, std::slice::from_ref(&name))?;
                passed.push(machine.emits(&name, doc).map_err(|thrown| thrown.error(&name))?);
                worker.in_time(&name)?;
            }
            Ok(passed)
        })
    }

    /// Calls an update handler with a document, if there is one, and the request as JSON text.
    ///
    /// # Errors
    /// If it fails, or returns no pair of document and response.
    pub fn update(&self, design: &Design, name: &str, doc: Option<&str>, req: &str) -> Result<Updated, ScriptError> {
        let name = FunctionName::Update(name.to_owned());
        let asker = || asker_of(req);
        let (doc, req) = (doc.map(str::to_owned), req.to_owned());
        self.run_for(&asker, Lane::Request, design, &name.clone(), 1, move |worker, design| {
            worker.machine(design, std::slice::from_ref(&name))?.update(&name, doc.as_deref(), &req)
        })
    }

    /// Runs the map functions of views over documents. One answer for each document, in their order; what goes wrong
    /// with one document is told with it. There are fewer answers than documents, but never none, when the time for
    /// the whole is up, there are too many rows for one call, or some documents were [`MappedDoc::costly`]: the rest
    /// was not looked at.
    ///
    /// # Errors
    /// If a function cannot be compiled or run.
    pub fn map(
        &self,
        lane: Lane,
        design: &Design,
        views: &[String],
        docs: Vec<String>,
    ) -> Result<Vec<MappedDoc>, ScriptError> {
        let names: Vec<_> = views.iter().cloned().map(FunctionName::Map).collect();
        let Some(first) = names.first().cloned() else { return Ok(vec![MappedDoc::default(); docs.len()]) };
        self.run(lane, design, &first, docs.len(), move |worker, design| {
            worker.machine(design, &names)?;
            let (mut mapped, mut bytes, mut costly) = (Vec::with_capacity(docs.len()), 0, 0);
            for doc in &docs {
                let made = map_one(worker, design, &names, doc)?;
                bytes += made.bytes();
                costly += usize::from(made.costly);
                mapped.push(made);
                if bytes > MOST_BATCH_BYTES || costly >= MOST_COSTLY || worker.clock.all_over() {
                    break;
                }
            }
            Ok(mapped)
        })
    }

    /// Calls the reduce function of a view: `keys` is the JSON text of `[[key, id], ...]`, none for a rereduce; `values`
    /// that of an array. Gives JSON text.
    ///
    /// # Errors
    /// If it fails; [`ScriptError::Threw`] with `reduce_overflow_error` if the result is no reduction (CouchDB's `reduce_limit`).
    pub fn reduce(
        &self,
        lane: Lane,
        design: &Design,
        view: &str,
        keys: Option<&str>,
        values: &str,
    ) -> Result<String, ScriptError> {
        let name = FunctionName::Reduce(view.to_owned());
        let (keys, values) = (keys.map(str::to_owned), values.to_owned());
        self.run(lane, design, &name.clone(), 1, move |worker, design| {
            let machine = worker.machine(design, std::slice::from_ref(&name))?;
            machine.reduce(&name, keys.as_deref(), &values).map_err(|thrown| thrown.error(&name))
        })
    }

    /// As [`Scripts::run_for`], where it doesn't matter who asks.
    fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        design: &Design,
        name: &FunctionName,
        documents: usize,
        work: impl FnOnce(&mut Worker, &Design) -> Result<T, ScriptError> + Send + 'static,
    ) -> Result<T, ScriptError> {
        self.run_for(&|| None, lane, design, name, documents, work)
    }

    /// Runs a call on a thread of its lane, unless the function rests or its owner has lost a thread.
    fn run_for<T: Send + 'static>(
        &self,
        asker: &dyn Fn() -> Option<String>,
        lane: Lane,
        design: &Design,
        name: &FunctionName,
        documents: usize,
        work: impl FnOnce(&mut Worker, &Design) -> Result<T, ScriptError> + Send + 'static,
    ) -> Result<T, ScriptError> {
        let (function, breaker) = (name.to_string(), &self.shared.breaker);
        if breaker.knows_any()
            && let Some(rest) = breaker.rests(design.hash(), &function, asker().as_deref(), Instant::now())
        {
            return Err(ScriptError::Resting { function, for_ms: rest.as_millis() as u64 });
        }
        // In whichever lane: one owner costs one core at most that no clock can take back.
        if self.shared.requests.has_lost_one(design.owner()) || self.shared.background.has_lost_one(design.owner()) {
            return Err(ScriptError::Busy);
        }
        let pool = match lane {
            Lane::Request => &self.shared.requests,
            Lane::Background => &self.shared.background,
        };
        let own = design.clone();
        let result = pool.run(design.shared_owner(), &function, move |worker| {
            worker.begin(documents);
            work(worker, &own)
        });
        let (result, strikes) = match result {
            Ok(result) => (Ok(result), 0),
            Err((error, stuck)) if stuck => (Err(error), STRIKES_FOR_A_THREAD),
            Err((error @ ScriptError::TooLong { .. }, _)) => (Err(error), 1),
            Err((error, _)) => (Err(error), 0),
        };
        let asker = if strikes > 0 { asker() } else { None };
        for _ in 0..strikes {
            breaker.strike(design.hash(), &function, asker.as_deref(), Instant::now());
        }
        result
    }
}

impl MappedDoc {
    fn bytes(&self) -> usize {
        self.views.iter().flatten().flatten().map(|(key, value)| key.len() + value.len()).sum()
    }
}

impl Asker {
    /// All who have not logged in are one.
    fn name(self) -> String {
        self.name.unwrap_or_default()
    }
}

/// What the views make of one document.
fn map_one(worker: &mut Worker, design: &Design, names: &[FunctionName], doc: &str) -> Result<MappedDoc, ScriptError> {
    worker.clock.step();
    let mut made = MappedDoc::default();
    for name in names {
        let rows = worker.machine(design, std::slice::from_ref(name))?.map(name, doc);
        // It was stopped for something else than its time.
        worker.is_wanted(name)?;
        made.costly |= rows.as_ref().is_err_and(Thrown::is_costly);
        made.views.push(rows.map_err(|thrown| thrown.text()));
    }
    Ok(made)
}

/// Who made a request. Looked for only when something rests or has just taken too long.
fn asker_of(req: &str) -> Option<String> {
    serde_json::from_str::<Asked>(req).ok()?.user.map(Asker::name)
}

impl Shared {
    fn close(&self) {
        self.requests.close();
        self.background.close();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}
