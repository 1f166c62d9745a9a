//! The filter function of a replication's source. Its text is a part of what the replication is: with another function the
//! documents that the last one left out are looked at again, as in CouchDB.

use http::Method;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::fault::Fault;
use super::peer::{Peer, doc_path};
use super::spec::Filter;

/// Hex digits of an id.
const ID_DIGITS: usize = 32;

/// The text of the function that filters; `None` where none does, and where it can't be read: who may use a filter need not
/// be allowed to read the design document that it is in.
///
/// # Errors
/// When the source can't be asked.
pub async fn code(source: &Peer, filter: &Filter) -> Result<Option<String>, Fault> {
    let Some((design, kind, name)) = place(filter) else { return Ok(None) };
    let answer = source.ask(Method::GET, &doc_path(&format!("_design/{design}")), None).await?;
    if !answer.status.is_success() {
        return Ok(None);
    }
    let design: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let function = design.get(kind).and_then(|all| all.get(name));
    let function = if kind == "views" { function.and_then(|view| view.get("map")) } else { function };
    Ok(function.and_then(Value::as_str).map(str::to_owned))
}

/// The id of a replication's checkpoints with this function.
pub fn checkpoint_id(without: &str, code: &str) -> String {
    let mut sum = Sha256::new();
    sum.update(without);
    sum.update(code);
    hex::encode(sum.finalize())[..ID_DIGITS].to_owned()
}

/// Design document, kind and name of the function.
fn place(filter: &Filter) -> Option<(&str, &'static str, &str)> {
    let Filter::Function(name, parameters) = filter else { return None };
    if name != "_view" {
        let (design, name) = name.split_once('/')?;
        return Some((design, "filters", name));
    }
    let (_, view) = parameters.iter().find(|(name, _)| name == "view")?;
    let (design, name) = view.split_once('/')?;
    Some((design, "views", name))
}

#[cfg(test)]
mod tests {
    use super::{Filter, checkpoint_id, place};

    #[test]
    fn the_function_is_found_by_its_name() {
        let filter = |name: &str, view: Option<&str>| {
            let view = view.map(|view| ("view".to_owned(), view.to_owned()));
            Filter::Function(name.to_owned(), view.into_iter().collect())
        };
        assert_eq!(place(&filter("d/f", None)), Some(("d", "filters", "f")));
        assert_eq!(place(&filter("_view", Some("d/v"))), Some(("d", "views", "v")));
        for none in [filter("_view", None), filter("_design", None), Filter::All] {
            assert_eq!(place(&none), None);
        }
    }

    #[test]
    fn another_function_has_another_checkpoint() {
        let id = checkpoint_id("abc", "function () {}");
        assert_eq!(id.len(), 32);
        assert_ne!(id, checkpoint_id("abc", "function () { }"));
        assert_ne!(id, checkpoint_id("abd", "function () {}"));
    }
}
