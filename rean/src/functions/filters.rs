//! Filters of changes feeds that are functions: `filter=design/name` and `filter=_view&view=design/name`
//! (<https://docs.couchdb.org/en/stable/ddocs/ddocs.html#filter-functions>).
//!
//! A feed asks with all documents of a page at once, on its own time: nothing of this is on the way of a commit. Feeds
//! that ask the same function with the same request, as the tabs of one user do, have one answer for a live change.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rean_script::ScriptError;
use rean_store::{Db, Rev};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::designs::{DesignDoc, Designs};
use crate::error::ApiError;
use crate::feed_body::seen::{Question, Seen};
use crate::functions::{call, design};
use crate::pod::Pod;
use crate::target::Target;

/// How often a feed asks again when there are too many calls, and
const BUSY_TRIES: u32 = 20;
/// the pause before.
const BUSY_PAUSE: Duration = Duration::from_millis(250);

/// Members of `req` that differ between requests that are the same for nearly all functions: each counts only where the
/// design document has its name.
const OFTEN_UNUSED: [&str; 4] = ["uuid", "info", "headers", "raw_path"];
/// Parameters of a feed, likewise.
const OFTEN_UNUSED_PARAMETERS: [&str; 8] =
    ["since", "last-event-id", "feed", "heartbeat", "timeout", "limit", "include_docs", "style"];

/// The feeds that ask the same take turns: one asks, the others find the answer.
#[derive(Default)]
pub struct Turns {
    of_question: Mutex<HashMap<Question, Weak<Turn>>>,
}

/// Held while a question is asked.
type Turn = tokio::sync::Mutex<()>;

/// What a feed asks of one revision of the design document.
#[derive(Clone)]
struct Asked {
    rev: Rev,
    question: Question,
    turn: Arc<Turn>,
}

/// A function that lets documents through, or not: as its design document has it when it is asked. So feeds hold no design
/// documents, of which there may be another for each feed.
pub struct FunctionFilter {
    pod: Arc<Pod>,
    db: Db,
    design_name: Box<str>,
    function: Function,
    /// The request, as the function sees it.
    req: Arc<str>,
    asked: Mutex<Option<Asked>>,
}

/// Which function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Function {
    /// `filters.NAME`
    Filter(String),
    /// `views.NAME.map`: what it emits something for passes.
    View(String),
}

impl std::fmt::Debug for FunctionFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FunctionFilter").field("function", &self.function).finish_non_exhaustive()
    }
}

impl FunctionFilter {
    /// The function of a design document of the target's database. `req`: the request, once it is known that there is
    /// such a function.
    ///
    /// # Errors
    /// 404 when there is none.
    pub fn new(
        pod: &Arc<Pod>,
        target: &Target,
        design_name: &str,
        function: Function,
        req: impl FnOnce() -> Result<Value, ApiError>,
    ) -> Result<Self, ApiError> {
        let designs = pod.designs.of(&target.db)?;
        function.find(&designs, design_name)?;
        Ok(Self {
            pod: Arc::clone(pod),
            db: target.db.clone(),
            design_name: design_name.into(),
            function,
            req: req()?.to_string().into(),
            asked: Mutex::default(),
        })
    }

    /// Whether documents are to be handed over with `_revisions`. It costs a look-up for each document, and hardly any
    /// filter asks for it.
    pub fn wants_revisions(&self) -> bool {
        // What is not there any more is told when it is asked.
        let designs = self.pod.designs.of(&self.db).ok();
        let design = designs.and_then(|designs| designs.get(&self.design_name));
        design.is_some_and(|design| design.names_revisions)
    }

    /// What it keeps in memory, in bytes, about.
    pub fn bytes(&self) -> usize {
        self.req.len() + self.design_name.len()
    }

    /// Which of these documents pass: one answer for each, in their order.
    ///
    /// # Errors
    /// If the function fails with any of them, or is not there any more.
    pub async fn pass(&self, docs: Vec<Arc<Seen>>) -> Result<Vec<bool>, ApiError> {
        let designs = self.pod.designs.of(&self.db)?;
        let design = self.function.find(&designs, &self.design_name)?;
        drop(designs);
        let Asked { question, turn, .. } = self.asked(&design);
        let _turn = turn.lock().await;
        let mut answers: Vec<Option<bool>> = docs.iter().map(|doc| doc.verdict(&question)).collect();
        let unknown: Vec<usize> = (0..docs.len()).filter(|place| answers[*place].is_none()).collect();
        if !unknown.is_empty() {
            let texts = unknown.iter().map(|place| docs[*place].text().to_owned()).collect();
            for (place, answer) in unknown.into_iter().zip(self.pass_texts(texts).await?) {
                docs[place].set_verdict(question, answer);
                answers[place] = Some(answer);
            }
        }
        Ok(answers.into_iter().map(|answer| answer.unwrap_or(false)).collect())
    }

    fn asked(&self, design: &DesignDoc) -> Asked {
        let mut asked = self.asked.lock();
        if let Some(asked) = asked.as_ref().filter(|asked| asked.rev == design.rev) {
            return asked.clone();
        }
        let question = question(self.db.instance(), design, &self.function, &self.req);
        let turn = self.pod.filter_turns.of(question);
        asked.insert(Asked { rev: design.rev.clone(), question, turn }).clone()
    }

    async fn pass_texts(&self, docs: Vec<String>) -> Result<Vec<bool>, ApiError> {
        let docs = Arc::new(docs);
        for _ in 1..BUSY_TRIES {
            match self.ask(Arc::clone(&docs)).await? {
                Err(ScriptError::Busy) => tokio::time::sleep(BUSY_PAUSE).await,
                other => return complete(other?, docs.len()),
            }
        }
        complete(self.ask(Arc::clone(&docs)).await??, docs.len())
    }

    async fn ask(&self, docs: Arc<Vec<String>>) -> Result<Result<Vec<bool>, ScriptError>, ApiError> {
        let designs = self.pod.designs.of(&self.db)?;
        let script = self.function.find(&designs, &self.design_name)?.script.clone();
        let (function, req) = (self.function.clone(), Arc::clone(&self.req));
        call(&self.pod, &designs, move |scripts| {
            let docs = docs.as_ref().clone();
            match &function {
                Function::Filter(name) => scripts.filter(&script, name, docs, &req),
                Function::View(name) => scripts.view_filter(&script, name, docs, &req),
            }
        })
        .await
    }
}

impl Turns {
    fn of(&self, question: Question) -> Arc<Turn> {
        /// Below this many it is not worth looking for those that are gone.
        const FEW: usize = 1_024;
        let mut turns = self.of_question.lock();
        if let Some(turn) = turns.get(&question).and_then(Weak::upgrade) {
            return turn;
        }
        // Before it grows: so there are never many more than feeds.
        if turns.len() >= FEW && turns.len() == turns.capacity() {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = Arc::new(Turn::default());
        turns.insert(question, Arc::downgrade(&turn));
        turn
    }
}

/// What decides about the answers: the function, and what it may look at in the request. Who asks is always part of it,
/// except where the function does not see the request.
fn question(instance: &str, design: &DesignDoc, function: &Function, req: &str) -> Question {
    let req = match function {
        Function::Filter(_) => decisive(serde_json::from_str(req).unwrap_or_default(), &design.json).to_string(),
        Function::View(_) => String::new(),
    };
    let mut sum = Sha256::new();
    for part in [instance, &design.json, &format!("{function:?}"), &req] {
        sum.update((part.len() as u64).to_be_bytes());
        sum.update(part);
    }
    sum.finalize().into()
}

fn decisive(mut req: Value, design: &str) -> Value {
    if let Some(members) = req.as_object_mut() {
        members.retain(|name, _| !OFTEN_UNUSED.contains(&name.as_str()) || design.contains(name.as_str()));
        if let Some(query) = members.get_mut("query").and_then(Value::as_object_mut) {
            let unused = |name: &str| OFTEN_UNUSED_PARAMETERS.contains(&name) && !design.contains(name);
            query.retain(|name, _| !unused(name));
        }
    }
    req
}

/// What has no answer passes nothing.
fn complete(answers: Vec<bool>, count: usize) -> Result<Vec<bool>, ApiError> {
    if answers.len() == count { Ok(answers) } else { Err(ApiError::internal("a filter gave too few answers")) }
}

impl Function {
    /// The design document that has it.
    fn find(&self, designs: &Designs, design_name: &str) -> Result<Arc<DesignDoc>, ApiError> {
        let design = design(designs, design_name)?;
        let (Self::Filter(name) | Self::View(name)) = self;
        match self.is_in(&design) {
            true => Ok(design),
            false => Err(ApiError::not_found(format!("missing json key: {}", clip(name)))),
        }
    }

    fn is_in(&self, design: &DesignDoc) -> bool {
        match self {
            Self::Filter(name) => design.has("filters", name),
            Self::View(name) => design.has("views", name),
        }
    }
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::decisive;
    use serde_json::json;

    #[test]
    fn what_a_function_does_not_name_does_not_count() {
        let req = json!({
            "uuid": "u", "info": {}, "headers": {"Host": "h"}, "raw_path": "/", "userCtx": {"name": "ann"},
            "query": {"since": "1", "type": "a"},
        });
        assert_eq!(
            decisive(req.clone(), "function () {}"),
            json!({"userCtx": {"name": "ann"}, "query": {"type": "a"}})
        );
        assert_eq!(decisive(req.clone(), "req.uuid, info, headers, raw_path, since"), req);
    }
}
