//! The documents that two masters accepted changes of, each without knowing of the other: `_ring/divergence:...`.

use anyhow::bail;
use serde_json::{Value, json};

use crate::command::divergences::Args;
use crate::ring::documents::starting_with;
use crate::ring::status::{age_of, ago};
use crate::ring::table::Table;

/// Shows them.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let mut conn = args.target.connect().await?;
    let (docs, more) = starting_with(&mut conn, "_ring", "divergence:").await?;
    if args.json {
        let rows: Vec<Value> = docs.iter().map(bare).collect();
        println!("{}", json!({"divergences": rows, "more": more}));
    } else if docs.is_empty() {
        println!("no document has diverged");
    } else {
        print!("{}", table(&docs));
        if more {
            println!("... and more");
        }
    }
    if docs.is_empty() {
        return Ok(());
    }
    bail!(
        "{} documents have diverged; nothing is lost: read each revision with GET /DB/ID?rev=REV, write what is to stay, and delete the other revisions",
        docs.len()
    )
}

/// What the database adds is left out.
fn bare(doc: &Value) -> Value {
    let members = doc.as_object().into_iter().flatten();
    members.filter(|(name, _)| !name.starts_with('_')).map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn table(docs: &[Value]) -> String {
    let mut table = Table::new(&["database", "document", "found", "by", "revisions"]);
    for doc in docs {
        let text = |name: &str| doc[name].as_str().unwrap_or("-").to_owned();
        let revs: Vec<&str> = doc["revs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let found = doc["found"].as_str().and_then(age_of).map_or_else(|| "-".to_owned(), ago);
        table.push(vec![text("db"), text("id"), found, text("by"), revs.join(", ")]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::{bare, table};
    use serde_json::json;

    #[test]
    fn shows_where_and_what() {
        let doc = json!({"_id": "divergence:notes:1", "_rev": "1-a", "db": "notes", "id": "x", "revs": ["2-a", "2-b"], "by": "pod-1"});
        let text = table(std::slice::from_ref(&doc));
        assert!(text.ends_with("notes     x         -      pod-1  2-a, 2-b\n"), "{text}");
        assert_eq!(bare(&doc).as_object().map(serde_json::Map::len), Some(4));
    }
}
