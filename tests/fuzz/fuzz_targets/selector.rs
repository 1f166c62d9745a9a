//! Selectors: any JSON is either refused or can be asked of any document.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rean_store::selector::Selector;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let Some(Ok(selector)) = values.next() else { return };
    let Ok(parsed) = Selector::parse(&selector) else { return };
    let negated = Selector::parse(&serde_json::json!({ "$nor": [selector] }));
    let docs = values.take(8).map_while(Result::ok).chain([serde_json::json!({}), selector.clone()]);
    for doc in docs {
        let matches = parsed.matches(&doc);
        assert_eq!(matches, parsed.matches(&doc), "the same question, another answer");
        // What CouchDB makes of negations is not the opposite of a selector: they can agree. They must only be answered.
        let _ = negated.as_ref().map(|negated| negated.matches(&doc));
    }
});
