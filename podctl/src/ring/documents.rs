//! Documents with the same beginning of their ids, page by page.

use anyhow::{Context, bail};
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::exit::Refused;
use crate::http::{Conn, excerpt};

/// Documents of a page: status documents are some KiB each.
const PAGE: usize = 500;
/// More than this nobody reads; what is left out is said.
const MAX_DOCS: usize = 100_000;

/// All documents of a database whose ids begin with `prefix` (which ends in a colon), sorted by id, and whether there
/// are more than can be shown.
pub async fn starting_with(conn: &mut Conn, db: &str, prefix: &str) -> anyhow::Result<(Vec<Value>, bool)> {
    // The character after the colon: all ids with the prefix sort before it.
    let end = encoded(&prefix.replace(':', ";"));
    let mut docs: Vec<Value> = Vec::new();
    let mut start = prefix.to_owned();
    loop {
        let path = format!(
            "/{db}/_all_docs?include_docs=true&limit={PAGE}&startkey={}&endkey={end}&inclusive_end=false",
            encoded(&start)
        );
        let page = conn.expect(Method::GET, &path, "").await?;
        let Some(rows) = page["rows"].as_array() else { bail!("{path}: the answer has no rows") };
        docs.extend(rows.iter().map(|row| row["doc"].clone()).filter(Value::is_object));
        if rows.len() < PAGE {
            return Ok((docs, false));
        }
        if docs.len() >= MAX_DOCS {
            return Ok((docs, true));
        }
        let last = rows.last().and_then(|row| row["id"].as_str()).context("a row without an id")?;
        // The next id that there can be.
        start = format!("{last}\u{0}");
    }
}

/// One document, if it is there.
pub async fn get(conn: &mut Conn, path: &str) -> anyhow::Result<Option<Value>> {
    let (status, body) = conn.send(Method::GET, path, "").await?;
    match status {
        http::StatusCode::NOT_FOUND => Ok(None),
        status if status.is_success() => Ok(Some(serde_json::from_slice(&body)?)),
        status => bail!(Refused { method: Method::GET, path: path.to_owned(), status, excerpt: excerpt(&body) }),
    }
}

fn encoded(key: &str) -> String {
    utf8_percent_encode(&Value::from(key).to_string(), NON_ALPHANUMERIC).to_string()
}
