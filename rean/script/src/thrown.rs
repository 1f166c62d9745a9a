//! What came flying out of a function, told so that CouchDB's clients know it.

use rquickjs::{Coerced, Ctx, Object, Value};

use crate::{FunctionName, Refusal, ScriptError, json_text::json_text};

/// Reasons are cut to this many bytes: they go into answers and logs.
const MOST_REASON_BYTES: usize = 4_096;

/// What came flying out of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Thrown {
    TooLong,
    TooMuchMemory,
    TooDeep,
    Forbidden(String),
    Unauthorized(String),
    /// An `Error`, or one of CouchDB's forms: what it gives as `error` and as `reason`.
    Named {
        error: String,
        reason: String,
    },
    /// Anything else, as text.
    Other(String),
}

impl Thrown {
    /// Whether the function hit a limit, after which its runtime is not used again.
    pub(crate) fn is_limit(&self) -> bool {
        matches!(self, Self::TooLong | Self::TooMuchMemory | Self::TooDeep)
    }

    /// Whether the limit cost much to hit; a stack is full in a moment.
    pub(crate) fn is_costly(&self) -> bool {
        matches!(self, Self::TooLong | Self::TooMuchMemory)
    }

    /// Takes the exception that is pending in `ctx`; `stopped` if the clock stopped the function.
    pub(crate) fn catch(ctx: &Ctx<'_>, error: &rquickjs::Error, stopped: bool) -> Self {
        if stopped {
            ctx.catch();
            return Self::TooLong;
        }
        match error {
            rquickjs::Error::Exception => Self::of(ctx, &ctx.catch()),
            rquickjs::Error::Allocation => Self::TooMuchMemory,
            other => Self::Named { error: "bad_result".to_owned(), reason: other.to_string() },
        }
    }

    fn of<'js>(ctx: &Ctx<'js>, value: &Value<'js>) -> Self {
        if value.is_uncatchable_error() {
            return Self::TooLong;
        }
        // The engine throws null when it has not even the memory for an error.
        if value.is_null() {
            return Self::TooMuchMemory;
        }
        let Some(object) = value.as_object() else { return Self::Other(reason(ctx, value)) };
        if value.is_error() {
            return Self::of_error(ctx, object);
        }
        if value.is_array() {
            let kind = element(ctx, object, "0");
            if kind == "error" || kind == "fatal" {
                return Self::Named { error: element(ctx, object, "1"), reason: element(ctx, object, "2") };
            }
        } else {
            for (member, make) in
                [("forbidden", Self::Forbidden as fn(String) -> Self), ("unauthorized", Self::Unauthorized)]
            {
                if matches!(object.contains_key(member), Ok(true)) {
                    return make(element(ctx, object, member));
                }
            }
            if matches!((object.contains_key("error"), object.contains_key("reason")), (Ok(true), Ok(true))) {
                return Self::Named { error: element(ctx, object, "error"), reason: element(ctx, object, "reason") };
            }
        }
        ctx.catch();
        Self::Other(reason(ctx, value))
    }

    fn of_error<'js>(ctx: &Ctx<'js>, error: &Object<'js>) -> Self {
        let name = words(ctx, error, "name").unwrap_or_else(|| "Error".to_owned());
        let message = words(ctx, error, "message").unwrap_or_default();
        match (name.as_str(), message.as_str()) {
            ("InternalError", "out of memory") => Self::TooMuchMemory,
            ("RangeError", "Maximum call stack size exceeded") | ("InternalError", "stack overflow") => Self::TooDeep,
            _ => Self::Named { error: cut(&name, 256).to_owned(), reason: cut(&message, MOST_REASON_BYTES).to_owned() },
        }
    }

    /// For a log line and for a document that a view leaves out.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::TooLong => "took too long".to_owned(),
            Self::TooMuchMemory => "used too much memory".to_owned(),
            Self::TooDeep => "called itself too deeply".to_owned(),
            Self::Forbidden(reason) => format!("forbidden: {reason}"),
            Self::Unauthorized(reason) => format!("unauthorized: {reason}"),
            Self::Named { error, reason } => format!("{error}: {reason}"),
            Self::Other(text) => text.clone(),
        }
    }

    /// As the error of a call.
    pub(crate) fn error(self, name: &FunctionName) -> ScriptError {
        let function = name.to_string();
        match self {
            Self::TooLong => ScriptError::TooLong { function },
            Self::TooMuchMemory => ScriptError::TooMuchMemory { function },
            Self::TooDeep => ScriptError::TooDeep { function },
            Self::Forbidden(message) => ScriptError::Threw { function, error: "forbidden".to_owned(), message },
            Self::Unauthorized(message) => ScriptError::Threw { function, error: "unauthorized".to_owned(), message },
            Self::Named { error, reason } => ScriptError::Threw { function, error, message: reason },
            Self::Other(message) => ScriptError::Threw { function, error: "unnamed_error".to_owned(), message },
        }
    }

    /// As the error of compiling.
    pub(crate) fn compile_error(self, name: &FunctionName) -> ScriptError {
        match self {
            limit if limit.is_limit() => limit.error(name),
            Self::Named { error, reason } if error == "compilation_error" || error == "invalid_require_path" => {
                ScriptError::Compile { function: name.to_string(), message: reason }
            }
            other => ScriptError::Compile { function: name.to_string(), message: other.text() },
        }
    }

    /// As the answer of a validator.
    pub(crate) fn refusal(self, name: &FunctionName) -> Refusal {
        match self {
            Self::Forbidden(reason) => Refusal::Forbidden(reason),
            Self::Unauthorized(reason) => Refusal::Unauthorized(reason),
            // What CouchDB calls anything that is no error of the engine's.
            Self::Other(message) => Refusal::Error(ScriptError::Threw {
                function: name.to_string(),
                error: "unknown_error".to_owned(),
                message,
            }),
            other => Refusal::Error(other.error(name)),
        }
    }
}

/// The first bytes of a text, at a character's end.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A member as text; what throws on the way is nothing.
fn element<'js>(ctx: &Ctx<'js>, object: &Object<'js>, member: &str) -> String {
    match object.get::<_, Value<'js>>(member) {
        Ok(value) => reason(ctx, &value),
        Err(_) => {
            ctx.catch();
            String::new()
        }
    }
}

fn words<'js>(ctx: &Ctx<'js>, object: &Object<'js>, member: &str) -> Option<String> {
    let words = object.get::<_, Option<Coerced<String>>>(member);
    if words.is_err() {
        ctx.catch();
    }
    words.ok().flatten().map(|words| words.0)
}

/// A string as it is, everything else as JSON text.
fn reason<'js>(ctx: &Ctx<'js>, value: &Value<'js>) -> String {
    let text = match value.as_string().map(rquickjs::String::to_string) {
        Some(Ok(text)) => Ok(Some(text)),
        _ => json_text(ctx, value),
    };
    match text {
        Ok(text) => cut(&text.unwrap_or_else(|| "null".to_owned()), MOST_REASON_BYTES).to_owned(),
        Err(_) => {
            ctx.catch();
            "what was thrown cannot be shown".to_owned()
        }
    }
}
