//! Who may read and write a document: the `access` member, an app's rules that compute it, and the
//! signature that names a partial database.
//!
//! An entry is `user:NAME`, `role:NAME`, `users` (anyone who is logged in) or `anyone`. A document's own
//! `access` member wins over the app's rules; the first rule whose selector matches wins over the app's
//! default; the default of an app that says nothing names nobody, so that only administrators read.

use crate::selector::{Selector, SelectorError};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use std::fmt;

/// Entries that one list of an `access` member may have. A bound, because every commit of a document and
/// every partial database carries its list.
pub const MAX_ENTRIES: usize = 1_000;
/// Bytes of one entry: a user name is at most a document id.
pub const MAX_ENTRY_BYTES: usize = 512;
/// Rules of one app: each one may have to be tried for each write.
pub const MAX_RULES: usize = 100;

/// A normalised pair of reader and writer lists: sorted, without duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// Who may read.
    pub read: Vec<String>,
    /// Who may write.
    pub write: Vec<String>,
}

/// Why an `access` member or an app's rules were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AccessError(pub String);

/// The short stable name of a set of readers: lower-case hex of SHA-256 over the sorted, de-duplicated
/// readers as a JSON array, cut to 24 digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signature(String);

impl Signature {
    /// Digits of a signature.
    pub const DIGITS: usize = 24;

    /// The signature of normalised readers.
    pub fn of(readers: &[String]) -> Signature {
        let text = serde_json::to_string(readers).unwrap_or_default();
        let mut digits = hex::encode(Sha256::digest(text.as_bytes()));
        digits.truncate(Self::DIGITS);
        Signature(digits)
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a text has the form of a signature.
    pub fn is_form(text: &str) -> bool {
        text.len() == Self::DIGITS && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads one entry of a list and adds what it stands for.
type Entries<'a> = dyn Fn(&str, &mut Vec<String>) -> Result<(), AccessError> + 'a;

impl Access {
    /// Reads the JSON text of an `access` member.
    ///
    /// # Errors
    /// Anything but `{"read": [entries], "write": [entries]}` (`write` may be left out) with well-formed
    /// entries is refused: an unknown member may be a typing error that would open a document.
    pub fn parse(text: &str) -> Result<Access, AccessError> {
        let value: Json = serde_json::from_str(text).map_err(|_| AccessError("`access` can't be read".to_owned()))?;
        Self::from_json(&value, "access", &entry_of)
    }

    /// The JSON text of an `access` member that says this.
    pub fn to_text(&self) -> String {
        let mut members = serde_json::Map::new();
        members.insert("read".to_owned(), self.read.as_slice().into());
        if self.write != writers_among(&self.read) {
            members.insert("write".to_owned(), self.write.as_slice().into());
        }
        Json::Object(members).to_string()
    }

    fn from_json(value: &Json, what: &str, entries: &Entries<'_>) -> Result<Access, AccessError> {
        let Json::Object(members) = value else {
            return Err(AccessError(format!("`{what}` must be an object with `read` and `write`")));
        };
        for name in members.keys() {
            if name != "read" && name != "write" {
                return Err(AccessError(format!("`{what}` has an unknown member `{name}`")));
            }
        }
        let list = |name: &str| -> Result<Option<Vec<String>>, AccessError> {
            let Some(value) = members.get(name) else { return Ok(None) };
            let Json::Array(items) = value else {
                return Err(AccessError(format!("`{what}.{name}` must be an array of strings")));
            };
            let mut out = Vec::with_capacity(items.len());
            for item in items {
                let Json::String(text) = item else {
                    return Err(AccessError(format!("`{what}.{name}` must be an array of strings")));
                };
                entries(text, &mut out).map_err(|error| AccessError(format!("`{what}.{name}`: {error}")))?;
            }
            normalise(&mut out);
            if out.len() > MAX_ENTRIES {
                return Err(AccessError(format!("`{what}.{name}` has more than {MAX_ENTRIES} entries")));
            }
            Ok(Some(out))
        };
        let read = list("read")?.ok_or_else(|| AccessError(format!("`{what}.read` is missing")))?;
        let write = list("write")?.unwrap_or_else(|| writers_among(&read));
        Ok(Access { read, write })
    }
}

/// Without `access.write` the named users and roles among the readers may write, never `users` or `anyone`.
fn writers_among(read: &[String]) -> Vec<String> {
    read.iter().filter(|e| e.contains(':')).cloned().collect()
}

fn normalise(entries: &mut Vec<String>) {
    entries.sort_unstable();
    entries.dedup();
}

fn entry_of(text: &str, out: &mut Vec<String>) -> Result<(), AccessError> {
    check_entry(text)?;
    out.push(text.to_owned());
    Ok(())
}

fn check_entry(text: &str) -> Result<(), AccessError> {
    let named = text.strip_prefix("user:").or_else(|| text.strip_prefix("role:"));
    let well_formed = match named {
        Some(name) => !name.is_empty() && !name.chars().any(char::is_control),
        None => text == "users" || text == "anyone",
    };
    if !well_formed || text.len() > MAX_ENTRY_BYTES {
        let shown: String = text.chars().take(40).collect();
        return Err(AccessError(format!("`{shown}` is no access entry: use user:NAME, role:NAME, users or anyone")));
    }
    Ok(())
}

/// One rule: documents that the selector matches get these readers and writers.
#[derive(Debug)]
struct Rule {
    selector: Selector,
    access: Template,
}

/// Access whose entries may take values from the document: `user:${owner}`. A member that holds an array of
/// strings gives one entry for each; a member that is missing or of another kind gives none.
#[derive(Debug, Clone, Default)]
struct Template {
    value: Json,
}

/// The access settings of an app: `_ring`'s `app:NAME` document.
#[derive(Debug)]
pub struct AppRules {
    rules: Vec<Rule>,
    default: Access,
    create: Vec<String>,
    text: String,
}

impl Default for AppRules {
    fn default() -> Self {
        AppRules {
            rules: Vec::new(),
            default: Access::default(),
            create: vec!["users".to_owned()],
            text: "{}".to_owned(),
        }
    }
}

impl AppRules {
    /// Reads the members `rules`, `default` and `create` of an app's settings; others are left to others.
    ///
    /// # Errors
    /// The message names the member.
    pub fn parse(value: &Json) -> Result<AppRules, AccessError> {
        let Json::Object(members) = value else {
            return Err(AccessError("an app's settings must be an object".to_owned()));
        };
        let mut out = AppRules::default();
        if let Some(rules) = members.get("rules") {
            let Json::Array(rules) = rules else {
                return Err(AccessError("`rules` must be an array".to_owned()));
            };
            if rules.len() > MAX_RULES {
                return Err(AccessError(format!("`rules` has more than {MAX_RULES} rules")));
            }
            for (at, rule) in rules.iter().enumerate() {
                out.rules.push(Rule::parse(rule, &format!("rules[{at}]"))?);
            }
        }
        if let Some(default) = members.get("default") {
            out.default = Access::from_json(default, "default", &entry_of)?;
        }
        if let Some(create) = members.get("create") {
            let Json::Array(items) = create else {
                return Err(AccessError("`create` must be an array of access entries".to_owned()));
            };
            out.create.clear();
            for item in items {
                let text = item
                    .as_str()
                    .ok_or_else(|| AccessError("`create` must be an array of access entries".to_owned()))?;
                entry_of(text, &mut out.create).map_err(|error| AccessError(format!("`create`: {error}")))?;
            }
            normalise(&mut out.create);
        }
        let kept: serde_json::Map<String, Json> = members
            .iter()
            .filter(|(name, _)| ["rules", "default", "create"].contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        out.text = Json::Object(kept).to_string();
        Ok(out)
    }

    /// The settings as JSON text, as they are stored beside the database.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Who may create documents.
    pub fn create(&self) -> &[String] {
        &self.create
    }

    /// The access of a document: its own, or by rule, or the default.
    ///
    /// # Errors
    /// The document's own `access` member is malformed.
    pub fn effective(&self, id: &str, own: Option<&str>, body: &[u8]) -> Result<Access, AccessError> {
        if let Some(text) = own {
            return Access::parse(text);
        }
        if self.rules.is_empty() {
            return Ok(self.default.clone());
        }
        // A body that is too deep for a tree matches no rule: it falls to the default, which is the closed side.
        let Ok(Json::Object(mut doc)) = serde_json::from_slice::<Json>(body) else {
            return Ok(self.default.clone());
        };
        doc.insert("_id".to_owned(), Json::String(id.to_owned()));
        let doc = Json::Object(doc);
        for rule in &self.rules {
            if rule.selector.matches(&doc) {
                return Ok(rule.access.fill(&doc));
            }
        }
        Ok(self.default.clone())
    }
}

impl Rule {
    fn parse(value: &Json, what: &str) -> Result<Rule, AccessError> {
        let Json::Object(members) = value else {
            return Err(AccessError(format!("`{what}` must be an object")));
        };
        for name in members.keys() {
            if !["selector", "read", "write"].contains(&name.as_str()) {
                return Err(AccessError(format!("`{what}` has an unknown member `{name}`")));
            }
        }
        let selector = members.get("selector").ok_or_else(|| AccessError(format!("`{what}.selector` is missing")))?;
        let selector =
            Selector::parse(selector).map_err(|e: SelectorError| AccessError(format!("`{what}.selector`: {e}")))?;
        let mut lists = members.clone();
        lists.remove("selector");
        let value = Json::Object(lists);
        // Checked once with every placeholder filled, so that filling can't fail later.
        Access::from_json(&value, what, &|text, out| entry_of(&fill_with(text, "x"), out))?;
        Ok(Rule { selector, access: Template { value } })
    }
}

impl Template {
    fn fill(&self, doc: &Json) -> Access {
        let entries = |text: &str, out: &mut Vec<String>| -> Result<(), AccessError> {
            match placeholder(text) {
                None => out.push(text.to_owned()),
                Some((before, path, after)) => {
                    let mut put = |value: &str| {
                        let entry = format!("{before}{value}{after}");
                        // A value that makes no entry (empty, control characters) names nobody.
                        if check_entry(&entry).is_ok() {
                            out.push(entry);
                        }
                    };
                    match look_up(doc, path) {
                        Some(Json::String(value)) => put(value),
                        Some(Json::Array(values)) => {
                            values.iter().take(MAX_ENTRIES).filter_map(Json::as_str).for_each(put);
                        }
                        _ => {}
                    }
                }
            }
            Ok(())
        };
        Access::from_json(&self.value, "rule", &entries).unwrap_or_default()
    }
}

/// The parts of an entry with a `${path}`: what stands before, the path, what stands after.
fn placeholder(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once("${")?;
    let (path, after) = rest.split_once('}')?;
    Some((before, path, after))
}

fn fill_with(text: &str, value: &str) -> String {
    match placeholder(text) {
        Some((before, _, after)) => format!("{before}{value}{after}"),
        None => text.to_owned(),
    }
}

fn look_up<'a>(doc: &'a Json, path: &str) -> Option<&'a Json> {
    path.split('.').try_fold(doc, |value, name| value.get(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn order_and_duplicates_do_not_change_the_signature() {
        let a = Access::parse(r#"{"read":["user:b","user:a","user:a"]}"#).unwrap();
        let b = Access::parse(r#"{"read":["user:a","user:b"]}"#).unwrap();
        assert_eq!(a, b);
        assert_eq!(Signature::of(&a.read), Signature::of(&b.read));
        assert!(Signature::is_form(Signature::of(&a.read).as_str()));
    }

    #[test]
    fn writers_are_the_named_readers_unless_said() {
        let a = Access::parse(r#"{"read":["users","user:a","role:r"]}"#).unwrap();
        assert_eq!(a.write, ["role:r", "user:a"]);
        let b = Access::parse(r#"{"read":["anyone"],"write":["users"]}"#).unwrap();
        assert_eq!(b.write, ["users"]);
    }

    #[test]
    fn malformed_access_is_refused() {
        for bad in [
            "1",
            "[]",
            "{}",
            r#"{"read":"users"}"#,
            r#"{"read":["everyone"]}"#,
            r#"{"read":["user:"]}"#,
            r#"{"read":["users"],"wirte":[]}"#,
            r#"{"read":[1]}"#,
            r#"{"read":["users"],"write":{}}"#,
            r#"{"read":["user:a\u0000"]}"#,
        ] {
            assert!(Access::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rules_take_values_from_the_document() {
        let rules = AppRules::parse(&json!({
            "rules": [
                {"selector": {"type": "note"}, "read": ["user:${owner}", "user:${shared.with}"], "write": ["user:${owner}"]},
                {"selector": {"public": true}, "read": ["anyone"], "write": ["role:editor"]}
            ],
            "default": {"read": ["role:staff"]}
        }))
        .unwrap();
        let of = |body: &str| rules.effective("x", None, body.as_bytes()).unwrap();
        let note = of(r#"{"type":"note","owner":"ann","shared":{"with":["bob","cy"]}}"#);
        assert_eq!(note.read, ["user:ann", "user:bob", "user:cy"]);
        assert_eq!(note.write, ["user:ann"]);
        assert_eq!(of(r#"{"type":"note"}"#).read, Vec::<String>::new());
        assert_eq!(of(r#"{"public":true}"#).read, ["anyone"]);
        assert_eq!(of("{}").read, ["role:staff"]);
        let own = rules.effective("x", Some(r#"{"read":["user:z"]}"#), br#"{"public":true}"#).unwrap();
        assert_eq!(own.read, ["user:z"]);
    }

    #[test]
    fn settings_name_what_is_wrong() {
        for (bad, name) in [
            (json!({"rules": 1}), "rules"),
            (json!({"rules": [{"selector": {}, "read": ["x"]}]}), "x"),
            (json!({"rules": [{"read": ["users"]}]}), "selector"),
            (json!({"create": ["who"]}), "who"),
            (json!({"default": {}}), "read"),
        ] {
            let error = AppRules::parse(&bad).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in ".{0,200}") {
            let _ = Access::parse(&text);
        }

        #[test]
        fn a_value_from_a_document_never_widens_the_kind(owner in ".{0,30}") {
            let rules = AppRules::parse(&json!({"rules": [{"selector": {}, "read": ["user:${owner}"]}]})).unwrap();
            let body = json!({"owner": owner}).to_string();
            for entry in rules.effective("x", None, body.as_bytes()).unwrap().read {
                prop_assert!(entry.starts_with("user:"));
            }
        }
    }
}
