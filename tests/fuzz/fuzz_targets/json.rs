//! Documents and batches of documents: what is taken is JSON, and comes out as what went in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rean_store::document::{parse_document, parse_documents};
use rean_store::json::{is_valid, minify, push_string};

fuzz_target!(|data: &[u8]| {
    if let Ok(doc) = parse_document(data) {
        let body: serde_json::Value = serde_json::from_slice(&doc.body).expect("a stored body is JSON");
        let members = body.as_object().expect("a stored body is an object");
        assert!(members.keys().all(|name| !name.starts_with('_')), "a member of the server's in the body");
        // What is stored is taken again, and is then the same.
        let again = parse_document(&doc.body).expect("a stored body is taken");
        assert_eq!(again.body, doc.body);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(bulk) = parse_documents(text) {
        for doc in bulk.docs {
            let _ = parse_document(doc.as_bytes());
        }
    }
    // Our own reader takes what another takes, and what it makes smaller means the same. Deep nesting is each one's own bound.
    if let Ok(value) = serde_json::from_str::<serde_json::Value>(text)
        && is_valid(text)
    {
        let mut small = Vec::new();
        minify(text, &mut small);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&small).expect("still JSON"), value);
    }
    let mut quoted = Vec::new();
    push_string(&mut quoted, text);
    assert_eq!(serde_json::from_slice::<String>(&quoted).expect("a JSON string"), text);
});
