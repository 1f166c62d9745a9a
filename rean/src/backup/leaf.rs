//! What a reader of a backup must know of a leaf: whose it is, and which attachments follow it.

use serde::Deserialize;
use serde_json::value::RawValue;

/// What is to be known of a leaf to read on behind it.
#[derive(Debug, Default, Deserialize)]
pub struct Leaf<'a> {
    /// The document.
    #[serde(rename = "_id")]
    pub id: String,
    /// Its revision.
    #[serde(rename = "_rev")]
    pub rev: String,
    /// Its attachments, in order.
    #[serde(rename = "_attachments", default, borrow, deserialize_with = "in_order")]
    pub attachments: Vec<(String, Stub, &'a RawValue)>,
}

/// An attachment whose bytes follow.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Stub {
    /// Its media type.
    #[serde(default)]
    pub content_type: String,
    /// Its bytes.
    #[serde(default)]
    pub length: u64,
    /// The generation in which it was written.
    #[serde(default)]
    pub revpos: u64,
}

/// The members of an object in the order in which they stand there.
fn in_order<'de: 'a, 'a, D>(deserializer: D) -> Result<Vec<(String, Stub, &'a RawValue)>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    struct InOrder;
    impl<'de> serde::de::Visitor<'de> for InOrder {
        type Value = Vec<(String, Stub, &'de RawValue)>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of attachments")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut out = Vec::new();
            while let Some((name, text)) = map.next_entry::<String, &'de RawValue>()? {
                let stub = serde_json::from_str(text.get()).map_err(serde::de::Error::custom)?;
                out.push((name, stub, text));
            }
            Ok(out)
        }
    }
    deserializer.deserialize_map(InOrder)
}
