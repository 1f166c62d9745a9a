//! The planner against CouchDB's rules.

use rean_store::selector::{FieldPath, Selector};
use serde_json::{Value, json};

use super::definition::IndexDef;
use super::plan::{Choice, Hints, Plan, Query, UseIndex};
use super::sort::Sort;
use super::{KeyRange, MangoError};

/// Indexes: design document, name, fields, and a filter.
fn indexes(list: &[(&str, &str, &[&str], Value)]) -> Vec<IndexDef> {
    list.iter()
        .flat_map(|(ddoc, name, fields, partial)| {
            let fields: serde_json::Map<_, _> = fields.iter().map(|f| ((*f).to_owned(), json!("asc"))).collect();
            let map = json!({"fields": fields, "partial_filter_selector": partial});
            IndexDef::of_design(
                &format!("_design/{ddoc}"),
                &json!({"language": "query", "views": {*name: {"map": map}}}),
                false,
            )
        })
        .collect()
}

#[derive(Default)]
struct Ask {
    sort: Value,
    fields: Vec<&'static str>,
    use_index: Value,
    no_fallback: bool,
}

fn plan(selector: Value, ask: &Ask, indexes: &[IndexDef]) -> Result<Plan, MangoError> {
    let selector = Selector::parse(&selector).unwrap();
    let sort = if ask.sort.is_null() { Sort::default() } else { Sort::parse(&ask.sort).unwrap() };
    let fields: Vec<FieldPath> = ask.fields.iter().map(|field| FieldPath::parse(field).unwrap()).collect();
    let use_index = UseIndex::parse(&ask.use_index).unwrap();
    let query = Query {
        selector: &selector,
        sort: &sort,
        fields: &fields,
        use_index: use_index.as_ref(),
        allow_fallback: !ask.no_fallback,
    };
    Plan::of(query, indexes)
}

/// The name of the index that serves.
fn chosen(selector: Value, ask: &Ask, indexes: &[IndexDef]) -> String {
    match plan(selector, ask, indexes).unwrap().choice {
        Choice::AllDocs(_) => "_all_docs".to_owned(),
        Choice::Index(at, _) => indexes[at].name.clone(),
    }
}

fn some() -> Vec<IndexDef> {
    indexes(&[
        ("c", "n", &["n"], json!({})),
        ("b", "n-name", &["n", "name"], json!({})),
        ("a", "name", &["name"], json!({})),
        ("d", "ok-n", &["n"], json!({"ok": true})),
    ])
}

#[test]
fn the_index_that_uses_most_of_the_selector_serves() {
    let none = Ask::default();
    for (selector, index) in [
        (json!({}), "_all_docs"),
        (json!({"x": 1}), "_all_docs"),
        (json!({"n": 1}), "n"),
        (json!({"n": 1, "x": 2}), "n"),
        (json!({"n": 1, "name": "a"}), "n-name"),
        (json!({"name": "a"}), "name"),
        (json!({"n": {"$exists": false}}), "_all_docs"),
        (json!({"n": {"$regex": "x"}}), "n"),
        (json!({"$or": [{"n": 1}, {"n": 2}]}), "n"),
        (json!({"$or": [{"n": 1}, {"name": 2}]}), "_all_docs"),
        (json!({"n": {"$gt": 1}, "name": {"$regex": "x"}}), "n"),
    ] {
        assert_eq!(chosen(selector.clone(), &none, &some()), index, "{selector}");
    }
}

#[test]
fn ranges_are_those_of_the_first_fields() {
    let range = |selector: Value| match plan(selector, &Ask::default(), &some()).unwrap().choice {
        Choice::Index(_, range) => range,
        Choice::AllDocs(_) => panic!("an index"),
    };
    assert_eq!(range(json!({"n": {"$gt": 1}})), KeyRange { start: vec![json!(1)], end: vec![] });
    let both = range(json!({"n": 1, "name": {"$lt": "x"}}));
    assert_eq!(both, KeyRange { start: vec![json!(1)], end: vec![json!(1), json!("x")] });
    let open = range(json!({"n": {"$lt": 5}, "name": {"$gt": "a"}}));
    assert_eq!(open, KeyRange { start: vec![], end: vec![json!(5)] });
    assert_eq!(range(json!({"n": {"$in": [1, 2]}})), KeyRange::default());
    assert!(plan(json!({"n": {"$gt": 2, "$lt": 1}}), &Ask::default(), &some()).unwrap().nothing);
    assert!(plan(json!({"$or": []}), &Ask::default(), &some()).unwrap().nothing);
    assert!(!plan(json!({"$or": [], "n": 1}), &Ask::default(), &some()).unwrap().nothing);
}

#[test]
fn ids_have_the_order_of_bytes() {
    let bounds = |selector: Value| match plan(selector, &Ask::default(), &[]).unwrap() {
        Plan { choice: Choice::AllDocs(bounds), nothing, .. } => (bounds.low, bounds.high, bounds.ids, nothing),
        _ => panic!("all documents"),
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(bounds(json!({"_id": {"$gt": "B", "$lt": "a"}})), (text("B"), text("a"), None, false));
    assert!(bounds(json!({"_id": {"$gt": "a", "$lt": "B"}})).3);
    assert_eq!(bounds(json!({"_id": "x", "n": 1})), (text("x"), text("x"), None, false));
    assert_eq!(bounds(json!({"_id": {"$gt": null}})), (None, None, None, false));
    let ids = Some(vec!["a".to_owned(), "b".to_owned()]);
    assert_eq!(bounds(json!({"_id": {"$in": ["b", "a", 1, "b"]}})), (None, None, ids, false));
    let by_id = indexes(&[("x", "id", &["_id"], json!({}))]);
    match plan(json!({"_id": {"$gt": "B", "$lt": "a"}}), &Ask::default(), &by_id).unwrap().choice {
        Choice::Index(0, range) => assert_eq!(range, KeyRange::default()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sort_needs_an_index_in_its_order() {
    let sorted = |selector: Value, sort: Value| plan(selector, &Ask { sort, ..Ask::default() }, &some());
    let name = |selector: Value, sort: Value| match sorted(selector, sort).unwrap().choice {
        Choice::Index(at, _) => some()[at].name.clone(),
        Choice::AllDocs(_) => "_all_docs".to_owned(),
    };
    assert_eq!(name(json!({"n": {"$gt": 1}}), json!(["n"])), "n");
    assert_eq!(name(json!({"n": {"$gt": 1}}), json!([{"n": "desc"}, {"name": "desc"}])), "n-name");
    // Sorted by alone, it must be there.
    assert_eq!(name(json!({"x": 1}), json!(["n"])), "n");
    // What is constant does not disturb the order of the rest.
    assert_eq!(name(json!({"n": 1}), json!(["name"])), "n-name");
    assert_eq!(name(json!({"n": {"$gt": 1}}), json!(["name"])), "name");
    let only = &some()[1..2];
    let ask = Ask { sort: json!(["name"]), ..Ask::default() };
    assert_eq!(chosen(json!({"n": 1}), &ask, only), "n-name");
    assert_eq!(plan(json!({"n": {"$gt": 1}}), &ask, only).unwrap_err(), MangoError::NoSortIndex);
    assert_eq!(name(json!({"_id": {"$gt": null}}), json!([{"_id": "desc"}])), "_all_docs");
    for (selector, sort) in [
        (json!({"n": 1}), json!(["x"])),
        (json!({"x": 1}), json!(["_id"])),
        (json!({"n": {"$gt": 1}}), json!(["name", "n"])),
    ] {
        let error = sorted(selector, sort).unwrap_err();
        assert_eq!((error.status(), error.error()), (400, "no_usable_index"));
    }
}

#[test]
fn an_index_that_is_named_serves_if_it_can() {
    let named = |use_index: Value, no_fallback: bool| {
        plan(json!({"n": {"$gt": 0}, "name": {"$gt": ""}}), &Ask { use_index, no_fallback, ..Ask::default() }, &some())
    };
    let name = |plan: &Plan| match plan.choice {
        Choice::Index(at, _) => some()[at].name.clone(),
        Choice::AllDocs(_) => "_all_docs".to_owned(),
    };
    for (use_index, index) in [
        (json!("c"), "n"),
        (json!("_design/c"), "n"),
        (json!(["_design/c", "n"]), "n"),
        (json!(["c", "n"]), "n"),
        (json!("c/n"), "n"),
        (json!("d"), "ok-n"),
        (json!(null), "n-name"),
        (json!([]), "n-name"),
    ] {
        let plan = named(use_index.clone(), true).unwrap();
        assert_eq!((name(&plan).as_str(), plan.warning), (index, None), "{use_index}");
    }
    let other = named(json!("zork"), false).unwrap();
    assert_eq!(name(&other), "n-name");
    let warning = "_design/zork was not used because it does not contain a valid index for this query.";
    assert_eq!(other.warning.as_deref(), Some(warning));
    let warning = "_design/c, zork was not used because it is not a valid index for this query.";
    assert_eq!(named(json!(["c", "zork"]), false).unwrap().warning.as_deref(), Some(warning));
    let error = named(json!(["c", "zork"]), true).unwrap_err();
    assert_eq!(error.to_string(), "_design/c, zork specified by `use_index` could not be found or it is not suitable.");
    let ask = Ask { no_fallback: true, ..Ask::default() };
    assert_eq!(plan(json!({"x": 1}), &ask, &some()).unwrap_err(), MangoError::NoIndex);
    for bad in [json!(1), json!({}), json!(["a", "b", "c"]), json!([1]), json!("a/b/c"), json!("_design/a/b/c")] {
        assert_eq!(UseIndex::parse(&bad).unwrap_err().error(), "invalid_index_name", "{bad}");
    }
}

#[test]
fn candidates_say_why_they_lost() {
    let reasons = |plan: Plan| -> Vec<(String, bool, &'static str, usize)> {
        let name = |at: Option<usize>| at.map_or("_all_docs".to_owned(), |at| some()[at].name.clone());
        plan.candidates.into_iter().map(|one| (name(one.index), one.usable, one.reason, one.ranking)).collect()
    };
    let found = reasons(plan(json!({"n": {"$gt": 1}}), &Ask::default(), &some()).unwrap());
    let expected = [
        ("ok-n", false, "is_partial", 3),
        ("name", false, "field_mismatch", 2),
        ("n-name", false, "field_mismatch", 2),
        ("_all_docs", true, "unfavored_type", 1),
    ];
    assert_eq!(found, expected.map(|(name, usable, reason, rank)| (name.to_owned(), usable, reason, rank)));
    let named = Ask { use_index: json!("a"), ..Ask::default() };
    let found = reasons(plan(json!({"n": 1, "name": 2}), &named, &some()).unwrap());
    assert!(found.contains(&("n".to_owned(), true, "excluded_by_user", 1)), "{found:?}");
    let found = reasons(plan(json!({"n": 1, "name": 2}), &Ask::default(), &some()).unwrap());
    assert!(found.contains(&("name".to_owned(), true, "less_overlap", 1)), "{found:?}");
    assert!(found.contains(&("n".to_owned(), true, "less_overlap", 2)), "{found:?}");
    assert_eq!(found.last(), Some(&("_all_docs".to_owned(), true, "unfavored_type", 3)));
}

#[test]
fn where_nothing_serves_each_says_why() {
    let selector = Selector::parse(&json!({"age": 23})).unwrap();
    let sort = Sort::parse(&json!(["company"])).unwrap();
    let query = Query { selector: &selector, sort: &sort, fields: &[], use_index: None, allow_fallback: true };
    assert_eq!(Plan::of(query, &some()).unwrap_err(), MangoError::NoSortIndex);
    let losers = Plan::why_none(query, &some());
    assert_eq!(losers.len(), some().len() + 1);
    assert!(losers.iter().all(|one| !one.usable && one.ranking == 1), "{losers:?}");
    assert_eq!(losers.last().map(|last| (last.index, last.reason)), Some((None, "field_mismatch")));
}

#[test]
fn an_index_covers_what_it_has() {
    let covers = |selector: Value, fields: Vec<&'static str>| {
        plan(selector, &Ask { fields, ..Ask::default() }, &some()).unwrap().covering
    };
    assert!(covers(json!({"n": 1}), vec!["n", "_id"]));
    assert!(!covers(json!({"n": 1}), vec![]));
    assert!(!covers(json!({"n": 1}), vec!["n", "x"]));
    assert!(!covers(json!({"n": 1, "x": 2}), vec!["n"]));
    assert!(!covers(json!({"x": 2}), vec!["_id"]));
}

#[test]
fn hints_tell_which_fields_an_index_helps_with() {
    let selector = Selector::parse(&json!({"a": 1, "b": {"$regex": "x"}, "$or": [{"c": 1}, {"d": 2}]})).unwrap();
    let hints = Hints::of(&selector);
    assert_eq!(hints.indexable, ["a"]);
    assert_eq!(hints.unindexable, ["b", "c", "d"]);
}
