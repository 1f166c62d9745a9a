//! Accounts: the documents of `_users`, with the hashes of their passwords.
//!
//! They are not replicated: a second leaf of an account that is there would give somebody the roles, or the password, of
//! the other one as soon as it wins. So an account is carried over where there is none of its name, or where the source's
//! has grown out of the one that is there; otherwise it is left as it is, and told.

use std::collections::BTreeMap;

use http::Method;
use rean::replicate::carry::Tally as _;
use rean::replicate::peer::{Peer, doc_path, escaped};
use serde_json::{Map, Value, json};

use super::choice::{ACCOUNTS, Way};
use super::copy::{Ends, Outcome};
use super::tally::Tally;

/// Accounts that are read at once: some hundred KiB.
const PAGE: usize = 100;
/// What the ids of accounts begin with.
const PREFIX: &str = "org.couchdb.user:";
/// The scheme of the hashes that only a pod knows.
const OWN_SCHEME: &str = "argon2id";

/// Copies the accounts.
///
/// # Errors
/// When an end can't be asked.
pub async fn copy(ends: &Ends<'_>) -> anyhow::Result<Outcome> {
    let (source, target) = (ends.source.database(ACCOUNTS), ends.target.database(ACCOUNTS));
    let accounts = Accounts { ends, source, target, tally: Tally::default() };
    ends.teller.during("copying", ACCOUNTS, &accounts.tally, accounts.all()).await?;
    if ends.options.way == Way::In {
        let text = "who may sign up is not copied: that is said by the `_security` of _users at the target";
        ends.teller.note(ACCOUNTS, text);
    }
    let refusals = accounts.tally.refusals();
    ends.teller.refusals(ACCOUNTS, &refusals);
    let stats = accounts.tally.stats();
    Ok(Outcome {
        documents: accounts.tally.done(),
        written: stats.written,
        refused: refusals.count(),
        // Each was looked at on both sides.
        differences: Some(0),
        bytes: stats.bytes,
    })
}

struct Accounts<'a> {
    ends: &'a Ends<'a>,
    source: Peer,
    target: Peer,
    tally: Tally,
}

/// One document as `_all_docs` has it.
pub struct Row {
    /// Its id.
    pub id: String,
    /// Itself.
    pub doc: Map<String, Value>,
}

/// Reads documents from an id on, with one more than `limit` if there are more.
///
/// # Errors
/// When the server can't be asked.
pub async fn page(ends: &Ends<'_>, source: &Peer, from: &str, limit: usize) -> anyhow::Result<Vec<Row>> {
    let start = escaped(&json!(from).to_string());
    let below = format!("/_all_docs?include_docs=true&startkey={start}&limit={}", limit + 1);
    let mut answer = ends.source.expect(source, Method::GET, &below, None).await?;
    let rows = answer.get_mut("rows").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
    let row = |mut row: Value| {
        let id = row.get("id")?.as_str()?.to_owned();
        let doc = row.get_mut("doc")?.as_object_mut().map(std::mem::take)?;
        Some(Row { id, doc })
    };
    Ok(rows.into_iter().filter_map(row).collect())
}

/// What is there under these ids: the revision, and whether it is a deletion.
///
/// # Errors
/// When the server can't be asked.
pub async fn present(ends: &Ends<'_>, target: &Peer, ids: &[&str]) -> anyhow::Result<BTreeMap<String, (String, bool)>> {
    let body = json!({ "keys": ids });
    let answer = ends.target.expect(target, Method::POST, "/_all_docs", Some(&body)).await?;
    let rows = answer.get("rows").and_then(Value::as_array).cloned().unwrap_or_default();
    let state = |row: &Value| {
        let rev = row.get("value")?.get("rev")?.as_str()?.to_owned();
        let deleted = row["value"].get("deleted") == Some(&Value::Bool(true));
        Some((row.get("key")?.as_str()?.to_owned(), (rev, deleted)))
    };
    Ok(rows.iter().filter_map(state).collect())
}

impl Accounts<'_> {
    async fn all(&self) -> anyhow::Result<()> {
        let mut from = String::new();
        loop {
            let mut rows = page(self.ends, &self.source, &from, PAGE).await?;
            let next = (rows.len() > PAGE).then(|| rows.pop()).flatten().map(|row| row.id);
            self.tally.advance(rows.len() as u64, None);
            self.take(rows).await?;
            match next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    async fn take(&self, rows: Vec<Row>) -> anyhow::Result<()> {
        let (accounts, others): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.id.starts_with(PREFIX));
        // What CouchDB checks with this one, a pod checks itself.
        for other in others.iter().filter(|row| row.id != "_design/_auth") {
            self.ends.teller.note(ACCOUNTS, &format!("{:?} is no account and is not copied", other.id));
        }
        let ids: Vec<&str> = accounts.iter().map(|row| row.id.as_str()).collect();
        let there = present(self.ends, &self.target, &ids).await?;
        let mut docs = Vec::new();
        for Row { id, doc } in accounts {
            let rev = doc.get("_rev").and_then(Value::as_str).unwrap_or_default().to_owned();
            if !is_of(&doc, &id) {
                self.refuse_other(&id);
                continue;
            }
            let doc = match there.get(&id) {
                None => doc,
                Some((known, _)) if *known == rev => continue,
                Some((known, deleted)) => match self.grown(&id, &rev, known).await? {
                    Some(doc) if is_of(&doc, &id) => doc,
                    Some(_) => {
                        self.refuse_other(&id);
                        continue;
                    }
                    None => {
                        if !self.is_older(&id, &rev).await? {
                            let why = if *deleted { "was deleted there" } else { "is another account there" };
                            self.tally.refused(&id, &format!("{why}, and was left as it is"));
                        }
                        continue;
                    }
                },
            };
            docs.push(self.outgoing(&id, doc));
        }
        self.write(docs).await
    }

    fn refuse_other(&self, id: &str) {
        self.tally.refused(id, "the source gives another document under this id");
    }

    /// The account, if it has grown out of the revision that the target has.
    async fn grown(&self, id: &str, rev: &str, known: &str) -> anyhow::Result<Option<Map<String, Value>>> {
        let below = format!("{}?revs=true&rev={}", doc_path(id), escaped(rev));
        let doc = self.ends.source.expect(&self.source, Method::GET, &below, None).await?;
        Ok(doc.as_object().filter(|doc| history(doc).iter().any(|rev| rev == known)).cloned())
    }

    /// Whether the target's has grown out of this one: by a new password, or by its first log-in there.
    async fn is_older(&self, id: &str, rev: &str) -> anyhow::Result<bool> {
        let body = json!({ id: [rev] });
        let diff = self.ends.target.expect(&self.target, Method::POST, "/_revs_diff", Some(&body)).await?;
        Ok(diff.get(id).is_none())
    }

    /// The document as the target is to have it.
    fn outgoing(&self, id: &str, mut doc: Map<String, Value>) -> Value {
        if doc.remove("_attachments").is_some() {
            self.ends.teller.note(ACCOUNTS, &format!("{id:?}: its attachments are not copied"));
        }
        if self.ends.options.way == Way::Out && doc.get("password_scheme") == Some(&OWN_SCHEME.into()) {
            self.ends.teller.note(ACCOUNTS, &format!("{id:?}: CouchDB does not know its hash: set its password anew"));
        }
        doc.into()
    }

    async fn write(&self, docs: Vec<Value>) -> anyhow::Result<()> {
        if docs.is_empty() {
            return Ok(());
        }
        let count = docs.len() as u64;
        let body = json!({"new_edits": false, "docs": docs});
        let answer = self.ends.target.expect(&self.target, Method::POST, "/_bulk_docs", Some(&body)).await?;
        let mut refused = 0;
        for row in answer.as_array().into_iter().flatten() {
            let Some(error) = row.get("error").filter(|error| !error.is_null()) else { continue };
            let id = row.get("id").and_then(Value::as_str).unwrap_or_default();
            let reason = row.get("reason").and_then(Value::as_str).unwrap_or_default();
            self.tally.refused(id, &format!("{}: {reason}", error.as_str().unwrap_or_default()));
            refused += 1;
        }
        let mut progress = self.tally.progress().lock();
        progress.stats.written += count.saturating_sub(refused);
        progress.stats.bytes += body.to_string().len() as u64;
        Ok(())
    }
}

/// Whether a document is what it was asked for as. What the target has was looked up by this id: another account would be
/// written over unseen.
fn is_of(doc: &Map<String, Value>, id: &str) -> bool {
    doc.get("_id").and_then(Value::as_str) == Some(id)
}

/// The revisions of a document that was asked for with `revs=true`.
fn history(doc: &Map<String, Value>) -> Vec<String> {
    let revisions = doc.get("_revisions");
    let start = revisions.and_then(|revisions| revisions.get("start")).and_then(Value::as_u64).unwrap_or(0);
    let ids = revisions.and_then(|revisions| revisions.get("ids")).and_then(Value::as_array);
    let name = |(n, id): (usize, &Value)| Some(format!("{}-{}", start.checked_sub(n as u64)?, id.as_str()?));
    ids.map(|ids| ids.iter().enumerate().filter_map(name).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{history, is_of};
    use serde_json::json;

    #[test]
    fn an_account_is_known_by_its_own_id() {
        let doc = json!({"_id": "org.couchdb.user:root", "name": "root"});
        let doc = doc.as_object().unwrap();
        assert!(is_of(doc, "org.couchdb.user:root"));
        assert!(!is_of(doc, "org.couchdb.user:fresh"));
        assert!(!is_of(json!({"name": "root"}).as_object().unwrap(), "org.couchdb.user:root"));
    }

    #[test]
    fn histories_are_named_in_full() {
        let doc = json!({"_revisions": {"start": 3, "ids": ["c", "b", "a"]}});
        assert_eq!(history(doc.as_object().unwrap()), ["3-c", "2-b", "1-a"]);
        let odd = json!({"_revisions": {"start": 1, "ids": ["c", "b", 7]}});
        assert_eq!(history(odd.as_object().unwrap()), ["1-c", "0-b"]);
        assert!(history(json!({}).as_object().unwrap()).is_empty());
    }
}
