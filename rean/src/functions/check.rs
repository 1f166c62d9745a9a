//! What is asked of a design document before it is written: that its members have the right types, and that the functions
//! of its views are functions (<https://docs.couchdb.org/en/stable/api/ddoc/common.html#put--db-_design-ddoc>).
//!
//! Only of what a client writes here: what was taken elsewhere must be taken, or it would be missing.

use http::StatusCode;
use rean_script::{Design, FunctionName, ScriptError};
use rean_store::{Db, Edit};
use serde_json::{Map, Value};

use crate::designs::{Designs, PREFIX};
use crate::error::ApiError;
use crate::functions::{LANGUAGE, call};
use crate::pod::Pod;
use crate::views::spec::{MAX_VIEWS, too_many_views};

/// Reduce functions that are built in.
const BUILT_IN_REDUCES: [&str; 4] = ["_sum", "_count", "_stats", "_approx_count_distinct"];
/// The member of `views` that holds modules, and no view.
const MODULES: &str = "lib";
/// Members that hold functions by name; an object in an object holds modules.
const FUNCTIONS: [&str; 4] = ["filters", "lists", "shows", "updates"];

/// Whether an edit is of the kind that is checked.
pub fn is_needed(edit: &Edit) -> bool {
    edit.id.starts_with(PREFIX) && !edit.deleted
}

/// Checks the new text of a design document.
///
/// # Errors
/// 400 `invalid_design_doc` naming the member that is wrong; 400 `compilation_error` for what is no function.
pub async fn check(pod: &Pod, designs: &Designs, db: &Db, edit: &Edit) -> Result<(), ApiError> {
    let text = edit.body.clone();
    let (owner, in_partitioned) = (db.instance().to_owned(), db.is_partitioned());
    call(pod, designs, move |scripts| {
        let body: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|_| invalid("The design document is nested too deeply"))?;
        check_types(&body)?;
        let wants_partitions = body.get("options").and_then(|options| options.get("partitioned"));
        if wants_partitions == Some(&Value::Bool(true)) && !in_partitioned {
            return Err(invalid("partitioned option cannot be true in a non-partitioned database."));
        }
        if is_javascript(&body) {
            let functions = functions(&body)?;
            if !functions.is_empty() {
                let design = Design::new(&Value::Object(body).to_string())?.for_owner(&owner);
                return compile(scripts, &design, functions);
            }
        }
        Ok(())
    })
    .await?
}

fn is_javascript(body: &Map<String, Value>) -> bool {
    body.get("language").is_none_or(|language| language == LANGUAGE || language.is_null())
}

fn compile(scripts: &rean_script::Scripts, design: &Design, functions: Vec<FunctionName>) -> Result<(), ApiError> {
    for function in functions {
        let place = match &function {
            FunctionName::Map(view) => format!("map function in the '{view}' view"),
            FunctionName::Reduce(view) => format!("reduce function in the '{view}' view"),
            other => format!("function {other}"),
        };
        match scripts.compile(design, &[function]) {
            Err(ScriptError::Compile { message, .. }) => {
                let reason = format!("Compilation of the {place} failed: {message}");
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "compilation_error", reason));
            }
            other => other?,
        }
    }
    Ok(())
}

/// The functions of the views, as far as they are not built in.
fn functions(body: &Map<String, Value>) -> Result<Vec<FunctionName>, ApiError> {
    let mut functions = Vec::new();
    for (name, view) in body.get("views").and_then(Value::as_object).into_iter().flatten() {
        if name == MODULES {
            continue;
        }
        functions.push(FunctionName::Map(name.clone()));
        match view.get("reduce").and_then(Value::as_str) {
            None => {}
            Some(reduce) if BUILT_IN_REDUCES.contains(&reduce.trim()) => {}
            Some(reduce) if reduce.starts_with('_') => {
                let shown: String = reduce.chars().take(80).collect();
                return Err(invalid(format!("`{shown}` is not a supported reduce function.")));
            }
            Some(_) => functions.push(FunctionName::Reduce(name.clone())),
        }
    }
    Ok(functions)
}

fn check_types(body: &Map<String, Value>) -> Result<(), ApiError> {
    typed(body.get("language"), "language", "string", Value::is_string)?;
    typed(body.get("validate_doc_update"), "validate_doc_update", "string", Value::is_string)?;
    typed(body.get("rewrites"), "rewrites", "string or array", |value| value.is_string() || value.is_array())?;
    for name in FUNCTIONS {
        for (function, value) in members(body, name)?.into_iter().flatten() {
            let path = format!("{name}.{function}");
            typed(Some(value), &path, "string or object", |value| value.is_string() || value.is_object())?;
        }
    }
    for (name, value) in members(body, "options")?.into_iter().flatten() {
        if matches!(name.as_str(), "include_design" | "local_seq" | "partitioned") {
            typed(Some(value), &format!("options.{name}"), "boolean", Value::is_boolean)?;
        }
    }
    let is_map: fn(&Value) -> bool = match body.get("language").and_then(Value::as_str) {
        Some("query") => Value::is_object,
        _ => Value::is_string,
    };
    let views = members(body, "views")?;
    if views.is_some_and(|views| views.len() > MAX_VIEWS) {
        return Err(invalid(too_many_views()));
    }
    for (name, view) in views.into_iter().flatten() {
        let path = format!("views.{name}");
        typed(Some(view), &path, "object", Value::is_object)?;
        if name == MODULES {
            continue;
        }
        if view.get("map").is_none() {
            return Err(invalid(format!("View `{}` must contain map function", clip(name))));
        }
        typed(view.get("map"), &format!("{path}.map"), "string", is_map)?;
        typed(view.get("reduce"), &format!("{path}.reduce"), "string", Value::is_string)?;
    }
    Ok(())
}

fn members<'a>(body: &'a Map<String, Value>, name: &str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
    typed(body.get(name), name, "object", Value::is_object)?;
    Ok(body.get(name).and_then(Value::as_object))
}

fn typed(value: Option<&Value>, path: &str, kind: &str, is_right: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
    match value {
        Some(value) if !is_right(value) => Err(invalid(format!("`{}` field must have {kind} type", clip(path)))),
        _ => Ok(()),
    }
}

/// The beginning of what a client sent, short enough to send back.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

fn invalid(reason: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_design_doc", reason.into())
}

#[cfg(test)]
mod tests {
    use super::{MAX_VIEWS, check_types, functions};
    use rean_script::FunctionName;
    use serde_json::{Map, Value, json};

    fn refused(body: &Value) -> Option<String> {
        let body = body.as_object().expect("an object");
        check_types(body).and_then(|()| functions(body)).err().map(|error| error.reason.into_owned())
    }

    #[test]
    fn members_have_their_types() {
        for good in [
            json!({}),
            json!({"language": "erlang", "anything": [1]}),
            json!({"views": {"lib": {"m": "exports.x = 1"}, "v": {"map": "function (d) {}", "reduce": "_sum"}}}),
            json!({"language": "query", "views": {"i": {"map": {"fields": {}}, "reduce": "_count"}}}),
            json!({"filters": {"f": "x", "lib": {"m": "y"}}, "rewrites": [], "options": {"local_seq": true, "x": 1}}),
        ] {
            assert_eq!(refused(&good), None, "{good}");
        }
        for (bad, word) in [
            (json!({"views": "zork"}), "views"),
            (json!({"views": {"v": "zork"}}), "views.v"),
            (json!({"views": {"v": {}}}), "map function"),
            (json!({"views": {"v": {"map": {}}}}), "views.v.map"),
            (json!({"views": {"v": {"map": "x", "reduce": 5}}}), "views.v.reduce"),
            (json!({"views": {"v": {"map": "x", "reduce": "_zork"}}}), "_zork"),
            (json!({"filters": {"f": 5}}), "filters.f"),
            (json!({"updates": []}), "updates"),
            (json!({"validate_doc_update": {}}), "validate_doc_update"),
            (json!({"language": 1}), "language"),
            (json!({"options": {"local_seq": "yes"}}), "options.local_seq"),
        ] {
            let reason = refused(&bad).unwrap_or_else(|| panic!("{bad} was let in"));
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn the_number_of_views_is_bounded() {
        let with = |count: usize| {
            let all: Map<_, _> = (0..count).map(|n| (format!("v{n}"), json!({"map": "m"}))).collect();
            refused(&json!({"views": all}))
        };
        assert_eq!(with(MAX_VIEWS), None);
        assert!(with(MAX_VIEWS + 1).is_some_and(|reason| reason.contains("at most 1000 views")));
    }

    #[test]
    fn built_in_reduces_and_modules_are_not_compiled() {
        let body =
            json!({"views": {"lib": {}, "a": {"map": "m", "reduce": "_stats"}, "b": {"map": "m", "reduce": "r"}}});
        let names = functions(body.as_object().expect("an object")).expect("functions");
        let expected = [FunctionName::Map("a".into()), FunctionName::Map("b".into()), FunctionName::Reduce("b".into())];
        assert_eq!(names, expected);
    }
}
