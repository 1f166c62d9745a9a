//! The order of JSON values: bytes of sort keys compare as the values do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rean_store::collate::{array_prefix, compare, sort_key};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let _ = array_prefix(data, 2);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>().take(6).map_while(Result::ok);
    let keyed: Vec<(Value, Vec<u8>)> = values.map(|value| (value.clone(), sort_key(&value))).collect();
    for (left, left_key) in &keyed {
        if let Some(items) = left.as_array() {
            let prefix = array_prefix(left_key, items.len()).expect("an array has all its elements");
            assert!(left_key.starts_with(prefix));
            assert!(array_prefix(left_key, items.len() + 1).is_none());
        }
        for (right, right_key) in &keyed {
            assert_eq!(compare(left, right), left_key.cmp(right_key), "{left} and {right}");
        }
    }
});
