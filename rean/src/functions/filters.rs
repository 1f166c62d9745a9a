//! Filters of changes feeds that are functions: `filter=design/name` and `filter=_view&view=design/name`
//! (<https://docs.couchdb.org/en/stable/ddocs/ddocs.html#filter-functions>).
//!
//! A feed asks with all documents of a page at once, on its own time: nothing of this is on the way of a commit.

use std::sync::Arc;
use std::time::Duration;

use rean_script::ScriptError;
use rean_store::Db;
use serde_json::Value;

use crate::designs::{DesignDoc, Designs};
use crate::error::ApiError;
use crate::functions::{call, design};
use crate::pod::Pod;
use crate::target::Target;

/// How often a feed asks again when there are too many calls, and
const BUSY_TRIES: u32 = 20;
/// the pause before.
const BUSY_PAUSE: Duration = Duration::from_millis(250);

/// A function that lets documents through, or not: as its design document has it when it is asked. So feeds hold no design
/// documents, of which there may be another for each feed.
pub struct FunctionFilter {
    pod: Arc<Pod>,
    db: Db,
    design_name: Box<str>,
    function: Function,
    /// The request, as the function sees it.
    req: Arc<str>,
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
        function.find(&*pod.designs.of(&target.db)?, design_name)?;
        Ok(Self {
            pod: Arc::clone(pod),
            db: target.db.clone(),
            design_name: design_name.into(),
            function,
            req: req()?.to_string().into(),
        })
    }

    /// Whether documents are to be handed over with `_revisions`. It costs a look-up for each document, and hardly any
    /// filter asks for it.
    pub fn wants_revisions(&self) -> bool {
        // What is not there any more is told when it is asked.
        let designs = self.pod.designs.of(&self.db).ok();
        let design = designs.and_then(|designs| designs.get(&self.design_name));
        design.is_some_and(|design| design.json.contains("_revisions"))
    }

    /// What it keeps in memory, in bytes, about.
    pub fn bytes(&self) -> usize {
        self.req.len() + self.design_name.len()
    }

    /// Which of these documents pass: one answer for each, in their order.
    ///
    /// # Errors
    /// If the function fails with any of them, or is not there any more.
    pub async fn pass(&self, docs: Vec<String>) -> Result<Vec<bool>, ApiError> {
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
