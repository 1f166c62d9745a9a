//! Queries over indexes: where the planner takes an index or a range of ids, no document that matches lies outside.
#![no_main]

use std::cmp::Ordering;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rean_index::mango::plan::Choice;
use rean_index::mango::{IndexDef, NewIndex, Plan, Query, Sort, UseIndex};
use rean_store::collate::compare;
use rean_store::selector::Selector;
use serde_json::{Value, json};

static INDEXES: LazyLock<Vec<IndexDef>> = LazyLock::new(|| {
    let map = |fields: Value| json!({"map": {"fields": fields, "partial_filter_selector": {}}});
    let views = json!({"a": map(json!({"a": "asc"})), "b": map(json!({"b": "asc"})), "ab": map(json!({"a": "asc", "b": "asc"}))});
    IndexDef::of_design("_design/x", &json!({"language": "query", "views": views}), false)
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let Some(Ok(selector)) = values.next() else { return };
    let _ = (NewIndex::parse(&selector), UseIndex::parse(&selector), Sort::parse(&selector));
    let Ok(parsed) = Selector::parse(&selector) else { return };
    let sort = Sort::default();
    let query = Query { selector: &parsed, sort: &sort, fields: &[], use_index: None, allow_fallback: true };
    let plan = Plan::of(query, &INDEXES).expect("without an order there is always a way");
    for doc in values.take(8).map_while(Result::ok).filter(Value::is_object) {
        if !parsed.matches(&doc) {
            continue;
        }
        // CouchDB gives nothing for an empty list that is the whole selector, which the matcher lets through.
        let normal = parsed.to_json();
        let is_empty_list = |name| normal.get(name).is_some_and(|list| *list == json!([]));
        assert!(!plan.nothing || is_empty_list("$or") || is_empty_list("$and"), "{selector} can't match, and matches {doc}");
        match &plan.choice {
            Choice::Index(at, range) => {
                let columns = INDEXES[*at].columns();
                let key: Option<Vec<Value>> = columns.iter().map(|name| doc.get(name).cloned()).collect();
                let key = key.unwrap_or_else(|| panic!("{selector} takes the index {columns:?}, in which {doc} is not"));
                let side = |end: &[Value]| {
                    let orders = key.iter().zip(end).map(|(value, end)| compare(value, end));
                    orders.fold(Ordering::Equal, Ordering::then)
                };
                assert!(side(&range.start).is_ge(), "{doc} is below {:?} of {selector}", range.start);
                assert!(side(&range.end).is_le(), "{doc} is above {:?} of {selector}", range.end);
            }
            Choice::AllDocs(bounds) => {
                let Some(id) = doc.get("_id").and_then(Value::as_str) else { continue };
                assert!(bounds.low.as_ref().is_none_or(|low| id >= low.as_str()), "{id} is below those of {selector}");
                assert!(bounds.high.as_ref().is_none_or(|high| id <= high.as_str()), "{id} is above those of {selector}");
                assert!(bounds.ids.as_ref().is_none_or(|ids| ids.iter().any(|one| one == id)), "{id} isn't one of {selector}");
            }
        }
    }
});
