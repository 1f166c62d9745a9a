//! The functions of one design document on one thread: a runtime, a context, and what is compiled in it.

use std::{
    collections::HashMap,
    mem,
    rc::Rc,
    time::{Duration, Instant},
};

use rquickjs::{
    Array, Coerced, Context, Ctx, Function, Object, Persistent, Runtime, Value,
    context::{EvalOptions, intrinsic},
    function::This,
};

use crate::{
    Design, FunctionName, MappedRow, ScriptError, ScriptLimits, Updated,
    clock::Clock,
    design::DesignHash,
    json_text::{json_text, mend_surrogates},
    thrown::Thrown,
};

/// No `Proxy` (CouchDB's older engines had none either): what the set-up checks before a loop stays true in it.
type Intrinsics = (
    intrinsic::Date,
    intrinsic::Eval,
    intrinsic::RegExpCompiler,
    intrinsic::RegExp,
    intrinsic::Json,
    intrinsic::MapSet,
    intrinsic::TypedArrays,
    intrinsic::Promise,
);

const SETUP: &str = include_str!("setup.js");
/// A runtime that holds more than this between calls is made anew: many of them are kept on each thread.
const MOST_KEPT_BYTES: usize = 8 << 20;
/// Longest text of a function: libraries are smaller, and the compiler, which no clock stops, takes twenty seconds for
/// the worst text of this length. `setup.js` has the same for modules.
const MOST_TEXT_BYTES: usize = 1 << 20;
/// Longest result that is still taken, in bytes: a document's largest size.
const MOST_RESULT_BYTES: usize = 8 << 20;
/// Longest time that clearing the queue of a runtime takes: what is left then is given up with it.
const LONGEST_CLEARING: Duration = Duration::from_secs(2);
/// CouchDB's `reduce_limit_threshold` and `reduce_limit_ratio`: a reduction longer than this must be at most half of its input.
const REDUCE_THRESHOLD_BYTES: usize = 5_000;
const REDUCE_RATIO: usize = 2;

/// The functions of one design document on one thread.
pub(crate) struct Machine {
    design: Design,
    functions: HashMap<FunctionName, Persistent<Function<'static>>>,
    tools: Option<Tools>,
    context: Option<Context>,
    runtime: Option<Runtime>,
    clock: Rc<Clock>,
    spoiled: bool,
    held_bytes: usize,
}

struct Tools {
    compile: Persistent<Function<'static>>,
    map: Persistent<Function<'static>>,
    tidy: Persistent<Function<'static>>,
    design: Persistent<Value<'static>>,
}

impl Machine {
    /// Makes a runtime, and reads the design document into it.
    pub(crate) fn new(design: &Design, limits: &ScriptLimits, clock: &Rc<Clock>) -> Result<Self, Thrown> {
        // Nothing else than memory is missing here.
        let broken = |_: rquickjs::Error| Thrown::TooMuchMemory;
        let runtime = Runtime::new().map_err(broken)?;
        runtime.set_memory_limit(limits.memory_bytes);
        runtime.set_max_stack_size(limits.stack_bytes);
        let watch = Rc::clone(clock);
        runtime.set_interrupt_handler(Some(Box::new(move || watch.check())));
        let context = Context::custom::<Intrinsics>(&runtime).map_err(broken)?;
        let mut machine = Self {
            design: design.clone(),
            functions: HashMap::new(),
            tools: None,
            context: Some(context),
            runtime: Some(runtime),
            clock: Rc::clone(clock),
            spoiled: false,
            held_bytes: 0,
        };
        let tools = machine.inside(|ctx| set_up(ctx, design));
        machine.tools = Some(tools?);
        Ok(machine)
    }

    /// What it was made for.
    pub(crate) fn hash(&self) -> DesignHash {
        self.design.hash()
    }

    /// Whether it must not be used again.
    pub(crate) fn spoiled(&self) -> bool {
        self.spoiled
    }

    /// A call ended: nothing that the next one would see may stay.
    pub(crate) fn end(&mut self) {
        if self.spoiled {
            return;
        }
        self.clock.step();
        let tidy = self.tools.as_ref().map(|tools| tools.tidy.clone());
        let clean = self.inside(|ctx| {
            let Some(tidy) = tidy else { return Ok(false) };
            let told: Value = tidy.restore(ctx)?.call(())?;
            let Some(lines) = told.as_array() else { return Ok(told.as_bool() == Some(true)) };
            for line in lines.iter::<String>().skip(1) {
                tracing::info!(target: "rean_script::log", "{}", line?);
            }
            lines.get(0)
        });
        let Some(runtime) = &self.runtime else { return };
        self.spoiled = clean != Ok(true) || runtime.is_job_pending();
        // Some six microseconds, as long as it holds little.
        self.held_bytes = held(runtime);
        if self.held_bytes > MOST_KEPT_BYTES {
            runtime.run_gc();
            self.held_bytes = held(runtime);
        }
        self.spoiled |= self.held_bytes > MOST_KEPT_BYTES;
    }

    /// Bytes that it held after its last call.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Compiles a function, if it isn't yet.
    pub(crate) fn compile(&mut self, name: &FunctionName) -> Result<(), ScriptError> {
        if self.functions.contains_key(name) {
            return Ok(());
        }
        let text = source(&self.design, name)?;
        let scope = match name {
            FunctionName::Map(_) => "views",
            FunctionName::Reduce(_) => "none",
            _ => "design",
        };
        if text.len() > MOST_TEXT_BYTES {
            return Err(ScriptError::Compile {
                function: name.to_string(),
                message: "the text is too long".to_owned(),
            });
        }
        let compile = self.tools.as_ref().map(|tools| tools.compile.clone());
        let Some(compile) = compile else { return Err(ScriptError::Closed) };
        let made = self.inside(|ctx| {
            let made: Value = compile.restore(ctx)?.call((text.as_str(), scope))?;
            Ok(made.into_function().map(|function| Persistent::save(ctx, function)))
        });
        match made {
            Ok(Some(function)) => {
                self.functions.insert(name.clone(), function);
                Ok(())
            }
            Ok(None) => Err(ScriptError::Compile {
                function: name.to_string(),
                message: format!("Expression does not eval to a function. ({})", crate::thrown::cut(&text, 1_024)),
            }),
            Err(thrown) => Err(thrown.compile_error(name)),
        }
    }

    /// The rows of a view for a document.
    pub(crate) fn map(&mut self, name: &FunctionName, doc: &str) -> Result<Vec<MappedRow>, Thrown> {
        let map = self.tools.as_ref().map(|tools| tools.map.clone());
        self.call(name, |ctx, function, _| {
            let Some(map) = map else { return Ok(Vec::new()) };
            let rows: Array = map.restore(ctx)?.call((function, parse(ctx, doc)?, true))?;
            let mut texts = rows
                .iter::<rquickjs::String>()
                .map(|text| Ok::<_, rquickjs::Error>(mend_surrogates(text?.to_string()?)));
            let mut pairs = Vec::with_capacity(rows.len() / 2);
            while let (Some(key), Some(value)) = (texts.next(), texts.next()) {
                pairs.push((key?, value?));
            }
            Ok(pairs)
        })
    }

    /// Whether a view emits anything for a document; one with which it throws has no row.
    pub(crate) fn emits(&mut self, name: &FunctionName, doc: &str) -> Result<bool, Thrown> {
        let map = self.tools.as_ref().map(|tools| tools.map.clone());
        let any = self.call(name, |ctx, function, _| match map {
            Some(map) => map.restore(ctx)?.call((function, parse(ctx, doc)?, false)),
            None => Ok(false),
        });
        match any {
            Err(thrown) if !thrown.is_limit() => Ok(false),
            any => any,
        }
    }

    /// Whether a validator lets a document pass.
    pub(crate) fn validate(&mut self, new: &str, old: Option<&str>, user: &str, security: &str) -> Result<(), Thrown> {
        self.call(&FunctionName::Validate, |ctx, function, design| {
            let args = (
                This(design),
                parse(ctx, new)?,
                parse(ctx, old.unwrap_or("null"))?,
                parse(ctx, user)?,
                parse(ctx, security)?,
            );
            function.call::<_, Value>(args).map(drop)
        })
    }

    /// Which documents pass a filter. They share the request, as CouchDB's do.
    pub(crate) fn filter(&mut self, name: &FunctionName, docs: &[String], req: &str) -> Result<Vec<bool>, Thrown> {
        let clock = Rc::clone(&self.clock);
        self.call(name, |ctx, function, design| {
            let req = parse(ctx, req)?;
            let mut passed = Vec::with_capacity(docs.len());
            for doc in docs {
                clock.step();
                let args = (This(design.clone()), parse(ctx, doc)?, req.clone());
                passed.push(function.call::<_, Coerced<bool>>(args)?.0);
                if clock.all_over() {
                    clock.trip();
                    return Err(rquickjs::Error::Exception);
                }
            }
            Ok(passed)
        })
    }

    /// What an update handler makes of a document and a request.
    pub(crate) fn update(&mut self, name: &FunctionName, doc: Option<&str>, req: &str) -> Result<Updated, ScriptError> {
        let result = self.call(name, |ctx, function, design| {
            let args = (This(design), parse(ctx, doc.unwrap_or("null"))?, parse(ctx, req)?);
            let Some(pair) = function.call::<_, Value>(args)?.into_object() else {
                return Ok(Err("no pair of document and response"));
            };
            let (doc, response) = (pair.get::<_, Value>(0)?, pair.get::<_, Value>(1)?);
            if !(response.is_string() || response.is_object()) {
                return Ok(Err("the response is neither a string nor an object"));
            }
            let doc = if doc.is_null() || doc.is_undefined() || doc.as_bool() == Some(false) {
                None
            } else {
                json_text(ctx, &doc)?
            };
            match json_text(ctx, &response)? {
                Some(response) if response.len() + doc.as_ref().map_or(0, String::len) > 2 * MOST_RESULT_BYTES => {
                    Ok(Err("the result is too large"))
                }
                Some(response) => Ok(Ok(Updated { doc, response })),
                None => Ok(Err("the response has no JSON text")),
            }
        });
        match result {
            Ok(Ok(updated)) => Ok(updated),
            Ok(Err(message)) => Err(ScriptError::BadResult { function: name.to_string(), message: message.to_owned() }),
            Err(thrown) => Err(thrown.error(name)),
        }
    }

    /// The reduction of values, as JSON text.
    pub(crate) fn reduce(&mut self, name: &FunctionName, keys: Option<&str>, values: &str) -> Result<String, Thrown> {
        let result = self.call(name, |ctx, function, _| {
            let args = (parse(ctx, keys.unwrap_or("null"))?, parse(ctx, values)?, keys.is_none());
            let reduced: Value = function.call(args)?;
            Ok(json_text(ctx, &reduced)?.unwrap_or_else(|| "null".to_owned()))
        })?;
        let given = keys.map_or(0, str::len) + values.len();
        if result.len() > MOST_RESULT_BYTES
            || (result.len() > REDUCE_THRESHOLD_BYTES && result.len() * REDUCE_RATIO > given)
        {
            return Err(Thrown::Named {
                error: "reduce_overflow_error".to_owned(),
                reason: format!(
                    "Reduce output must shrink more rapidly. Current output: '{}'... (first 100 of {} bytes)",
                    crate::thrown::cut(&result, 100),
                    result.len()
                ),
            });
        }
        Ok(result)
    }

    /// Calls a compiled function.
    fn call<R>(
        &mut self,
        name: &FunctionName,
        work: impl for<'js> FnOnce(&Ctx<'js>, Function<'js>, Value<'js>) -> rquickjs::Result<R>,
    ) -> Result<R, Thrown> {
        let (Some(function), Some(tools)) = (self.functions.get(name).cloned(), &self.tools) else {
            return Err(Thrown::Other("it is not compiled".to_owned()));
        };
        let design = tools.design.clone();
        self.inside(|ctx| work(ctx, function.restore(ctx)?, design.restore(ctx)?))
    }

    /// Runs something in the context, and tells what was thrown.
    fn inside<R>(&mut self, work: impl for<'js> FnOnce(&Ctx<'js>) -> rquickjs::Result<R>) -> Result<R, Thrown> {
        let Some(context) = &self.context else { return Err(Thrown::Other("the engine is gone".to_owned())) };
        let clock = &self.clock;
        let result = context.with(|ctx| work(&ctx).map_err(|error| Thrown::catch(&ctx, &error, clock.tripped())));
        // A function that was stopped may have ended without a word, when the engine was just leaving it.
        let result = if self.clock.tripped() { Err(Thrown::TooLong) } else { result };
        self.spoiled |= result.as_ref().is_err_and(Thrown::is_limit);
        result
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.functions.clear();
        self.tools = None;
        if let Some(runtime) = &self.runtime {
            clear_jobs(runtime);
        }
        self.context = None;
        let Some(runtime) = self.runtime.take() else { return };
        runtime.run_gc();
        let left = runtime.memory_usage();
        if left.obj_count > 0 || left.js_func_count > 0 || left.shape_count > 0 {
            // The engine may lose count of an object where it ran out of memory, and stops the whole process when
            // such a runtime is freed. What is left of it is given up instead.
            tracing::warn!(
                objects = left.obj_count,
                bytes = left.malloc_size,
                "the rest of a JavaScript runtime is given up"
            );
            mem::forget(runtime);
        }
    }
}

/// Takes what waits to be run after a call (promises, asynchronous functions) out of the queue, which holds on to
/// objects. Without memory nothing new can be put there, and what loops is stopped at the first look at the clock.
fn clear_jobs(runtime: &Runtime) {
    if !runtime.is_job_pending() {
        return;
    }
    runtime.set_memory_limit(1);
    runtime.set_interrupt_handler(Some(Box::new(|| true)));
    let began = Instant::now();
    // Each step takes one out; a failure is what is meant here.
    while began.elapsed() < LONGEST_CLEARING && !matches!(runtime.execute_pending_job(), Ok(false)) {}
}

fn held(runtime: &Runtime) -> usize {
    usize::try_from(runtime.memory_usage().malloc_size).unwrap_or(usize::MAX)
}

/// JSON text as a value.
fn parse<'js>(ctx: &Ctx<'js>, text: &str) -> rquickjs::Result<Value<'js>> {
    // One byte more for the end that the engine wants, or the text would be copied twice.
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    ctx.json_parse(bytes)
}

/// The text of a function.
fn source(design: &Design, name: &FunctionName) -> Result<String, ScriptError> {
    let missing = || ScriptError::Missing { function: name.to_string() };
    let whole: serde_json::Value =
        serde_json::from_str(design.json()).map_err(|error| ScriptError::BadInput(error.to_string()))?;
    let found = match name {
        FunctionName::Validate => whole.get("validate_doc_update"),
        FunctionName::Filter(name) => whole.get("filters").and_then(|all| all.get(name)),
        FunctionName::Update(name) => whole.get("updates").and_then(|all| all.get(name)),
        FunctionName::Map(view) => whole.get("views").and_then(|all| all.get(view)?.get("map")),
        FunctionName::Reduce(view) => whole.get("views").and_then(|all| all.get(view)?.get("reduce")),
    };
    match found.ok_or_else(missing)? {
        serde_json::Value::String(text) => Ok(text.clone()),
        _ => Err(ScriptError::Compile { function: name.to_string(), message: "it is no text".to_owned() }),
    }
}

/// Puts what functions find around them into a fresh context.
///
/// All of it is JavaScript: a function of ours would keep the context alive in the runtime, and [`Machine`] could not
/// tell whether the engine lost anything.
fn set_up(ctx: &Ctx<'_>, design: &Design) -> rquickjs::Result<Tools> {
    let mut options = EvalOptions::default();
    options.filename = Some("setup".to_owned());
    let set_up: Function = ctx.eval_with_options(SETUP, options)?;
    let tools: Object = set_up.call(())?;
    let tool = |name: &str| Ok::<_, rquickjs::Error>(Persistent::save(ctx, tools.get::<_, Function>(name)?));
    let design: Value = tools.get::<_, Function>("open")?.call((parse(ctx, design.json())?,))?;
    Ok(Tools {
        compile: tool("compile")?,
        map: tool("map")?,
        tidy: tool("tidy")?,
        design: Persistent::save(ctx, design),
    })
}
