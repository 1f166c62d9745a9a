//! Lists and maps from a request body that stop at a bound instead of growing with what is sent.

use std::fmt;
use std::marker::PhantomData;

use rean_store::rev::Rev;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::error::ApiError;

/// Most documents, keys or ids that one request names: CouchDB has no bound, its replicator asks for some hundreds.
pub const MAX_ITEMS: usize = 100_000;
/// Said when there are more.
const TOO_MANY: &str = "too many items";

/// An array of at most [`MAX_ITEMS`].
#[derive(Debug)]
pub struct CappedList<T>(pub Vec<T>);

/// An object of at most [`MAX_ITEMS`] members, in order.
#[derive(Debug)]
pub struct CappedMap<T>(pub Vec<(String, T)>);

/// A revision; a text that is none is an error.
#[derive(Debug)]
pub struct RevText(pub Rev);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for CappedList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if items.len() == MAX_ITEMS {
                        return Err(A::Error::custom(TOO_MANY));
                    }
                    items.push(item);
                }
                Ok(items)
            }
        }
        deserializer.deserialize_seq(Items(PhantomData)).map(Self)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for CappedMap<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Vec<(String, T)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    if members.len() == MAX_ITEMS {
                        return Err(A::Error::custom(TOO_MANY));
                    }
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Members(PhantomData)).map(Self)
    }
}

impl<'de> Deserialize<'de> for RevText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Rev;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a revision")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Rev, E> {
                text.parse().map_err(|_| E::custom("Invalid rev format"))
            }
        }
        deserializer.deserialize_str(Text).map(Self)
    }
}

/// Parses a whole body.
///
/// # Errors
/// 400 `bad_request`: with `shape` as reason when it is JSON, but not what is wanted here.
pub fn parse<T: DeserializeOwned>(text: &[u8], shape: &'static str) -> Result<T, ApiError> {
    serde_json::from_slice(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => ApiError::bad_request(shape),
        _ => ApiError::invalid_json(),
    })
}

#[cfg(test)]
mod tests {
    use super::{CappedList, CappedMap, MAX_ITEMS, RevText, parse};

    #[test]
    fn a_list_stops_at_its_bound() {
        let full = format!("[{}0]", "0,".repeat(MAX_ITEMS - 1));
        let list: CappedList<u8> = parse(full.as_bytes(), "x").expect("just fits");
        assert_eq!(list.0.len(), MAX_ITEMS);
        let over = format!("[{}0]", "0,".repeat(MAX_ITEMS));
        assert!(parse::<CappedList<u8>>(over.as_bytes(), "x").is_err());
    }

    #[test]
    fn a_map_keeps_its_order_and_checks_revisions() {
        let map: CappedMap<CappedList<RevText>> = parse(br#"{"b":["1-a"],"a":[]}"#, "x").expect("parses");
        let ids: Vec<_> = map.0.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["b", "a"]);
        let error = parse::<CappedMap<CappedList<RevText>>>(br#"{"b":["zork"]}"#, "shape");
        assert_eq!(error.expect_err("no revision").reason, "shape");
        let error = parse::<CappedMap<CappedList<RevText>>>(br#"{"b":"#, "shape");
        assert_eq!(error.expect_err("no JSON").reason, "invalid UTF-8 JSON");
    }
}
