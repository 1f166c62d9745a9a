//! The parameters after the question mark, decoded once and read by name.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// More parameters than any CouchDB resource has; the rest is refused.
const MAX_PARAMETERS: usize = 64;

/// The decoded parameters of a request, in order. Of a name that comes twice the last one counts, as in CouchDB.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Parses what stands after the question mark.
    ///
    /// # Errors
    /// When there are too many parameters.
    pub fn parse(raw: Option<&str>) -> Result<Self, ApiError> {
        let Some(raw) = raw.filter(|raw| !raw.is_empty()) else {
            return Ok(Self::default());
        };
        let mut pairs = Vec::new();
        // CouchDB takes `;` between parameters as it takes `&`, and its own tools use it.
        for part in raw.split(';') {
            for (name, value) in form_urlencoded::parse(part.as_bytes()) {
                if pairs.len() == MAX_PARAMETERS {
                    return Err(ApiError::query("too many query parameters"));
                }
                pairs.push((Cow::into_owned(name), Cow::into_owned(value)));
            }
        }
        Ok(Self { pairs })
    }

    /// Parameters that are given as pairs, for queries that come in a body.
    pub fn from_pairs(pairs: Vec<(String, String)>) -> Self {
        Self { pairs }
    }

    /// The text of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The text of the first of these names that is there: CouchDB has `startkey` and `start_key`.
    pub fn any(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// All pairs, in order.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// `true` or `false`, in capitals or not, as CouchDB reads the parameters of lists and views; absent is `None`.
    ///
    /// # Errors
    /// 400 `query_parse_error` for anything else.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(other) => Err(ApiError::query(format!("Invalid boolean parameter: {:?}", clip(other)))),
        }
    }

    /// Whether the parameter is exactly `true`. CouchDB passes over any other value where a document or its changes are
    /// asked for: clients send `True` or `1`, and never noticed.
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    /// Whether the parameter is `true`, of those that [`Query::bool`] reads.
    ///
    /// # Errors
    /// As [`Query::bool`].
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        Ok(self.bool(name)?.unwrap_or(false))
    }

    /// A whole number from 0 up; absent is `None`.
    ///
    /// # Errors
    /// 400 `query_parse_error` for anything else.
    pub fn u64(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        text.parse::<u64>()
            .map(Some)
            .map_err(|_| ApiError::query(format!("Invalid value for integer: {:?}", clip(text))))
    }

    /// A JSON value of this type; absent is `None`.
    ///
    /// # Errors
    /// 400 `query_parse_error` for what isn't.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(text) => parse_json(name, text).map(Some),
        }
    }
}

/// Parses the JSON text of a parameter.
///
/// # Errors
/// 400 `query_parse_error`.
pub fn parse_json<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, ApiError> {
    serde_json::from_str(text).map_err(|_| ApiError::query(format!("Invalid JSON value for query parameter {name}")))
}

/// The beginning of what a client sent, short enough to send back.
fn clip(text: &str) -> &str {
    match text.char_indices().nth(80) {
        Some((at, _)) => &text[..at],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::Query;

    #[test]
    fn the_last_of_a_name_counts_and_plus_is_a_space() {
        let query = Query::parse(Some("a=1&b=x+y%20z&a=2")).expect("parses");
        assert_eq!(query.get("a"), Some("2"));
        assert_eq!(query.get("b"), Some("x y z"));
        assert_eq!(query.u64("a").expect("a number"), Some(2));
        assert!(query.u64("b").is_err());
        assert!(query.bool("a").is_err());
        assert_eq!(query.any(&["none", "b"]), Some("x y z"));
    }

    #[test]
    fn a_list_reads_capitals_and_a_document_passes_over_what_it_does_not_know() {
        let query = Query::parse(Some("a=True&b=FALSE&c=1&d=true")).expect("parses");
        assert!(query.flag("a").expect("a boolean") && !query.flag("b").expect("a boolean"));
        assert!(query.flag("c").is_err() && !query.flag("none").expect("absent"));
        assert!(query.is_true("d") && !query.is_true("a") && !query.is_true("c") && !query.is_true("none"));
    }

    #[test]
    fn a_semicolon_separates_parameters_as_an_ampersand_does() {
        let query = Query::parse(Some("limit=2;skip=1&a=x%3By")).expect("parses");
        assert_eq!((query.get("limit"), query.get("skip"), query.get("a")), (Some("2"), Some("1"), Some("x;y")));
        assert!(Query::parse(Some("a;b;a=1;".repeat(30).as_str())).is_err());
    }

    #[test]
    fn too_many_parameters_are_refused() {
        let raw = "a=1&".repeat(65);
        assert!(Query::parse(Some(&raw)).is_err());
    }
}
