//! The configuration as a pod reads it from the ring, where a later version may have written it: what this one doesn't
//! know doesn't count and is named. What is written here is read strictly ([`RingConfig::parse`]), so that a slip of the
//! pen is found.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{PodState, RingConfig, RingConfigError, wrong};

impl RingConfig {
    /// Reads the document; gives the members, with dots, that this version doesn't know.
    ///
    /// # Errors
    /// When a member that is known has the wrong type or a value that is not possible.
    pub fn read(doc: &Value) -> Result<(Self, Vec<String>), RingConfigError> {
        let members = doc.as_object().ok_or_else(|| wrong("config", "must be an object"))?;
        let mut unknown = Vec::new();
        let known = serde_json::to_value(Self::default()).unwrap_or_default();
        let mut kept = Map::new();
        for (name, value) in members.iter().filter(|(name, _)| !name.starts_with('_')) {
            if known.get(name).is_none() {
                unknown.push(name.clone());
            } else if name == "pods" {
                kept.insert(name.clone(), known_states(value, &mut unknown));
            } else {
                kept.insert(name.clone(), value.clone());
            }
        }
        for (name, value) in &mut kept {
            // A section alone, so that its faults are the parser's, which names them.
            let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
            let Ok(config) = Self::deserialize(&alone) else { continue };
            let again = serde_json::to_value(config).unwrap_or_default();
            let strangers = self::strangers(name, value, again.get(name).unwrap_or(&Value::Null));
            for path in &strangers {
                remove(value, path.strip_prefix(name.as_str()).unwrap_or_default().trim_start_matches('.'));
            }
            unknown.extend(strangers);
        }
        Ok((Self::parse(&Value::Object(kept))?, unknown))
    }
}

/// For what another program of the pod says: it may be of a later version.
///
/// # Errors
/// As [`RingConfig::read`].
pub fn tolerant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RingConfig, D::Error> {
    let value = Value::deserialize(deserializer)?;
    RingConfig::read(&value).map(|(config, _)| config).map_err(serde::de::Error::custom)
}

/// The members of `value`, with dots, that are not in what was read from it.
pub(super) fn unknown<T: Serialize>(name: &str, value: &Value, read: &T) -> Vec<String> {
    strangers(name, value, &serde_json::to_value(read).unwrap_or_default())
}

fn strangers(path: &str, given: &Value, known: &Value) -> Vec<String> {
    let (Value::Object(given), Value::Object(known)) = (given, known) else { return Vec::new() };
    let mut found = Vec::new();
    for (name, value) in given {
        let path = format!("{path}.{name}");
        match known.get(name) {
            Some(known) => found.extend(strangers(&path, value, known)),
            // What is not written when it is none.
            None if value.is_null() => {}
            None => found.push(path),
        }
    }
    found
}

fn remove(value: &mut Value, path: &str) {
    let Value::Object(members) = value else { return };
    match path.split_once('.') {
        // The names of settings have no dots; a stranger's may, and is removed whole.
        Some((first, rest)) if members.contains_key(first) => {
            if let Some(inner) = members.get_mut(first) {
                remove(inner, rest);
            }
        }
        _ => {
            members.remove(path);
        }
    }
}

/// The states of pods that this version knows; the others stay as they would be without the setting.
fn known_states(value: &Value, unknown: &mut Vec<String>) -> Value {
    let Value::Object(states) = value else { return value.clone() };
    let mut kept = states.clone();
    kept.retain(|pod, state| {
        let is_known = !state.is_string() || PodState::deserialize(&*state).is_ok();
        if !is_known {
            unknown.push(format!("pods.{pod}"));
        }
        is_known
    });
    Value::Object(kept)
}

#[cfg(test)]
mod tests {
    use crate::config::{PodState, RingConfig};
    use crate::report::Facts;
    use serde_json::json;

    #[test]
    fn what_a_later_version_wrote_is_read_as_far_as_it_is_known() {
        let doc = json!({
            "_id": "config", "write": {"w": 2, "quorum": {"x": 1}}, "weather": {"sun": true},
            "pods": {"a": "inactive", "b": "dreaming"}, "gossip": {"a.b": 1, "phi": 9.0},
            "files": {"store": {"s3": {"bucket": "notes", "colour": "red"}}},
        });
        assert!(RingConfig::parse(&doc).is_err());
        let (config, mut unknown) = RingConfig::read(&doc).expect("borne");
        unknown.sort();
        assert_eq!(unknown, ["files.store.s3.colour", "gossip.a.b", "pods.b", "weather", "write.quorum"]);
        assert_eq!((config.write.w, config.gossip.phi), (2, 9.0));
        assert_eq!(config.pods.values().collect::<Vec<_>>(), [&PodState::Inactive]);
        assert_ne!(config.files, RingConfig::default().files);
        // Its own form has nothing that it doesn't know.
        let own = serde_json::to_value(&config).expect("JSON");
        assert_eq!(RingConfig::read(&own).expect("its own"), (config, vec![]));
    }

    #[test]
    fn what_is_wrong_is_still_named() {
        for (doc, member) in [
            (json!([]), "config"),
            (json!({"write": {"w": 0, "later": 1}}), "write.w"),
            (json!({"write": {"w": "two"}}), "write.w"),
            (json!({"pods": {"A b": "inactive"}}), "pods.A b"),
            (json!({"pods": {"a": 5}}), "pods.a"),
            (json!({"files": {"store": {"moon": {}}}}), "files.store"),
        ] {
            assert_eq!(RingConfig::read(&doc).expect_err(member).member, member);
        }
    }

    #[test]
    fn the_facts_of_a_later_rean_are_borne() {
        let facts = json!({
            "role": "waiting", "origin": "pod-1@0a1b2c3d", "applied": {}, "start": null, "caught_up_to": null,
            "config": {"write": {"w": 2, "later": 1}, "pods": {"a": "dreaming"}, "later": {}}, "later": [1],
        });
        let facts: Facts = serde_json::from_value(facts).expect("borne");
        assert_eq!((facts.config.write.w, facts.config.pods.len()), (2, 0));
    }
}
