//! What matches and what is refused; the expected answers are CouchDB's.

use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use serde_json::{Map, Value, json};

use super::{MAX_DEPTH, MAX_NODES, MAX_REGEXES, Selector};

fn matches(selector: Value, doc: Value) -> bool {
    Selector::parse(&selector).unwrap_or_else(|error| panic!("{selector}: {error}")).matches(&doc)
}

fn refusal(selector: Value) -> (&'static str, String) {
    let error = Selector::parse(&selector).expect_err(&selector.to_string());
    (error.name(), error.to_string())
}

/// Asks each selector of one document.
fn check(doc: &Value, expected: &[(Value, bool)]) {
    for (selector, answer) in expected {
        assert_eq!(matches(selector.clone(), doc.clone()), *answer, "{selector}");
    }
}

#[test]
fn plain_values_and_several_fields_are_implicit() {
    let doc = json!({"_id": "a:1", "type": "note", "n": 3, "null": null, "o": {"x": 1, "y": {}},
                     "list": [1, {"k": "v"}], "a.b": 1, "$d": 2, "empty": {}});
    check(
        &doc,
        &[
            (json!({}), true),
            (json!({"type": "note"}), true),
            (json!({"type": "note", "n": 3}), true),
            (json!({"type": "note", "n": 4}), false),
            (json!({"_id": "a:1"}), true),
            (json!({"n": 3.0}), true),
            (json!({"null": null}), true),
            (json!({"none": null}), false),
            (json!({"o": {"x": 1}}), true),
            (json!({"o.x": 1}), true),
            (json!({"o": {"x": 1, "y": {}}}), true),
            (json!({"o": {"y": {}}}), true),
            (json!({"o": {}}), false),
            (json!({"empty": {}}), true),
            (json!({"o": {"$eq": {"x": 1, "y": {}}}}), true),
            (json!({"o": {"$eq": {"x": 1}}}), false),
            (json!({"list": [1, {"k": "v"}]}), true),
            (json!({"list": 1}), false),
            (json!({"list.0": 1}), true),
            (json!({"list.1.k": "v"}), true),
            (json!({"list.2": 1}), false),
            (json!({"a\\.b": 1}), true),
            (json!({"a.b": 1}), false),
            (json!({"\\$d": 2}), true),
        ],
    );
}

#[test]
fn comparisons_follow_collation_across_types() {
    let doc = json!({"n": 5, "s": "m", "t": true});
    check(
        &doc,
        &[
            (json!({"n": {"$gt": 4}}), true),
            (json!({"n": {"$gt": 5}}), false),
            (json!({"n": {"$gte": 5, "$lte": 5}}), true),
            (json!({"n": {"$lt": 5.5}}), true),
            (json!({"n": {"$lt": "a"}}), true),
            (json!({"n": {"$gt": null}}), true),
            (json!({"n": {"$gt": true}}), true),
            (json!({"s": {"$gt": "lz", "$lt": "n"}}), true),
            (json!({"s": {"$lt": []}}), true),
            (json!({"s": {"$ne": "x"}}), true),
            (json!({"t": {"$gt": false}}), true),
        ],
    );
}

#[test]
fn a_missing_field_fails_every_condition_and_its_negation() {
    let doc = json!({"a": 1, "o": {"x": null}});
    check(
        &doc,
        &[
            (json!({"b": {"$ne": 1}}), false),
            (json!({"b": {"$nin": [1]}}), false),
            (json!({"b": {"$lt": 9}}), false),
            (json!({"b": {"$exists": false}}), true),
            (json!({"b": {"$exists": true}}), false),
            (json!({"b": {"$not": {"$exists": true}}}), true),
            (json!({"b": {"$not": {"$eq": 1}}}), false),
            (json!({"$not": {"b": 1}}), false),
            (json!({"$nor": [{"b": 1}]}), false),
            (json!({"b": {"$not": {"$regex": "x"}}}), false),
            (json!({"o.x": {"$exists": true}}), true),
            (json!({"o.y": {"$exists": false}}), true),
            (json!({"p.y": {"$exists": false}}), true),
            (json!({"a.y": {"$exists": false}}), false),
            (json!({"a": {"$exists": false}}), false),
        ],
    );
}

#[test]
fn combinations() {
    let doc = json!({"a": 1, "b": 2});
    check(
        &doc,
        &[
            (json!({"$and": [{"a": 1}, {"b": 2}]}), true),
            (json!({"$and": [{"a": 1}, {"b": 3}]}), false),
            (json!({"$or": [{"a": 2}, {"b": 2}]}), true),
            (json!({"$or": [{"a": 2}, {"b": 3}]}), false),
            (json!({"$nor": [{"a": 2}, {"b": 3}]}), true),
            (json!({"$nor": [{"a": 2}, {"b": 2}]}), false),
            (json!({"$not": {"a": 1, "b": 3}}), true),
            (json!({"$not": {"a": 1, "b": 2}}), false),
            (json!({"$not": {"$not": {"a": 1}}}), true),
            (json!({"$not": {"$nor": [{"a": 1}, {"b": 9}]}}), true),
            (json!({"a": {"$or": [{"$lt": 0}, {"$gt": 0}]}}), true),
            (json!({"a": {"$and": [{"$lt": 0}, {"$gt": 0}]}}), false),
            (json!({"a": {"$nor": [{"$lt": 0}, 7]}}), true),
            (json!({"$or": [{"a": 9}, {"b": 2}], "a": 1}), true),
            (json!({"$and": []}), true),
            (json!({"$or": []}), true),
            (json!({"$nor": []}), true),
        ],
    );
}

#[test]
fn ids_compare_by_their_bytes() {
    let doc = json!({"_id": "a", "s": "a"});
    check(
        &doc,
        &[
            (json!({"_id": {"$gt": "B"}}), true),
            (json!({"_id": {"$lt": "B"}}), false),
            (json!({"_id": {"$in": ["b", "a"]}}), true),
            (json!({"_id": {"$gt": null, "$lt": []}}), true),
            (json!({"_id": {"$not": {"$lte": "B"}}}), true),
        ],
    );
}

#[test]
fn the_normal_form_is_couchdbs() {
    for (selector, normal) in [
        (json!({}), json!({})),
        (json!({"a": 1}), json!({"a": {"$eq": 1}})),
        (json!({"n": {"$gt": 1}}), json!({"n": {"$gt": 1}})),
        (json!({"a": 1, "b": 2}), json!({"$and": [{"a": {"$eq": 1}}, {"b": {"$eq": 2}}]})),
        (json!({"a": {"b": {"$gt": 1, "$lt": 3}}}), json!({"$and": [{"a.b": {"$gt": 1}}, {"a.b": {"$lt": 3}}]})),
        (json!({"a\\.b": {"$exists": true}}), json!({"a\\.b": {"$exists": true}})),
        (json!({"a": {"$not": {"$lt": 3}}}), json!({"a": {"$gte": 3}})),
        (json!({"$nor": [{"a": 1}, {"a": {"$in": [2]}}]}), json!({"$and": [{"a": {"$ne": 1}}, {"a": {"$nin": [2]}}]})),
        (json!({"a": {"$not": {"$regex": "x"}}}), json!({"a": {"$not": {"$regex": "x"}}})),
        (
            json!({"a": {"$elemMatch": {"b": 1, "$not": {"c": 2}}}}),
            json!({"a": {"$elemMatch": {"$and": [{"b": {"$eq": 1}}, {"$not": {"c": {"$eq": 2}}}]}}}),
        ),
        (json!({"a": {"$allMatch": {"$gt": 1}}}), json!({"a": {"$allMatch": {"$gt": 1}}})),
    ] {
        assert_eq!(Selector::parse(&selector).unwrap().to_json(), normal, "{selector}");
    }
}

#[test]
fn conditions_on_arrays_and_keys() {
    let doc = json!({"l": [1, 2, 3], "s": ["x"], "e": [], "n": 2, "ll": [[1, 2]],
                     "m": [{"k": 1}, {"k": 5, "z": 0}], "map": {"alpha": 1, "beta": 2}});
    check(
        &doc,
        &[
            (json!({"l": {"$all": [1, 3]}}), true),
            (json!({"l": {"$all": [1, 4]}}), false),
            (json!({"l": {"$all": [[1, 2, 3]]}}), true),
            (json!({"ll": {"$all": [[1, 2]]}}), true),
            (json!({"l": {"$all": []}}), false),
            (json!({"n": {"$all": [2]}}), false),
            (json!({"l": {"$in": [3, 9]}}), true),
            (json!({"l": {"$in": [[1, 2, 3]]}}), false),
            (json!({"n": {"$in": [1, 2]}}), true),
            (json!({"n": {"$in": []}}), false),
            (json!({"n": {"$nin": []}}), true),
            (json!({"n": {"$nin": [2]}}), false),
            (json!({"l": {"$nin": [9]}}), true),
            (json!({"l": {"$nin": [3]}}), false),
            (json!({"l": {"$size": 3}}), true),
            (json!({"n": {"$size": 1}}), false),
            (json!({"l": {"$elemMatch": {"$gt": 2}}}), true),
            (json!({"l": {"$elemMatch": {"$gt": 2, "$lt": 3}}}), false),
            (json!({"m": {"$elemMatch": {"k": 5}}}), true),
            (json!({"m": {"$elemMatch": {"k": {"$gt": 1}, "z": 0}}}), true),
            (json!({"m": {"$elemMatch": {"$not": {"z": 0}}}}), true),
            (json!({"m": {"$elemMatch": {"$nor": [{"z": 0}, {"k": 1}]}}}), false),
            (json!({"m": {"$not": {"$elemMatch": {"k": 7}}}}), true),
            (json!({"m": {"$allMatch": {"k": {"$gte": 1}}}}), true),
            (json!({"m": {"$allMatch": {"k": {"$gte": 2}}}}), false),
            (json!({"e": {"$allMatch": {"$eq": 1}}}), false),
            (json!({"e": {"$elemMatch": {"$eq": 1}}}), false),
            (json!({"n": {"$elemMatch": {"$eq": 2}}}), false),
            (json!({"map": {"$keyMapMatch": {"$eq": "beta"}}}), true),
            (json!({"map": {"$keyMapMatch": {"$gt": "c"}}}), false),
            (json!({"l": {"$keyMapMatch": {"$eq": "0"}}}), false),
        ],
    );
}

#[test]
fn types_remainders_and_texts() {
    let doc = json!({"i": -7, "big": u64::MAX, "f": 7.5, "s": "Grüße, Welt", "b": false, "z": null,
                     "o": {}, "l": []});
    check(
        &doc,
        &[
            (json!({"i": {"$type": "number"}}), true),
            (json!({"s": {"$type": "string"}}), true),
            (json!({"b": {"$type": "boolean"}}), true),
            (json!({"z": {"$type": "null"}}), true),
            (json!({"o": {"$type": "object"}}), true),
            (json!({"l": {"$type": "array"}}), true),
            (json!({"l": {"$type": "list"}}), false),
            (json!({"i": {"$mod": [4, -3]}}), true),
            (json!({"i": {"$mod": [4, 1]}}), false),
            (json!({"big": {"$mod": [2, 1]}}), true),
            (json!({"i": {"$mod": [-1, 0]}}), true),
            (json!({"f": {"$mod": [2, 1]}}), false),
            (json!({"s": {"$mod": [2, 1]}}), false),
            (json!({"s": {"$regex": "^Gr.{2}e"}}), true),
            (json!({"s": {"$regex": "welt"}}), false),
            (json!({"s": {"$regex": "(?i)welt$"}}), true),
            (json!({"i": {"$regex": "7"}}), false),
            (json!({"s": {"$beginsWith": "Grüß"}}), true),
            (json!({"s": {"$beginsWith": "grüß"}}), false),
            (json!({"i": {"$beginsWith": "-"}}), false),
        ],
    );
}

#[test]
fn mistakes_are_named_as_couchdb_names_them() {
    let expected = [
        (json!([]), "invalid_selector_json", "Selector must be a JSON object, not: []"),
        (json!({"a": {"$foo": 1}}), "invalid_operator", "Invalid operator: $foo"),
        (json!({"$foo": 1}), "invalid_operator", "Invalid operator: $foo"),
        (json!({"$where": "1"}), "not_supported", "Unsupported operator: $where"),
        (json!({"$text": "1"}), "not_supported", "Unsupported operator: $text"),
        (json!({"$and": {}}), "bad_arg", "Bad argument for operator $and: {}"),
        (json!({"$or": 1}), "bad_arg", "Bad argument for operator $or: 1"),
        (json!({"$nor": 1}), "bad_arg", "Bad argument for operator $nor: 1"),
        (json!({"a": {"$not": 5}}), "bad_arg", "Bad argument for operator $not: 5"),
        (json!({"a": {"$in": 1}}), "bad_arg", "Bad argument for operator $in: 1"),
        (json!({"a": {"$nin": 1}}), "bad_arg", "Bad argument for operator $nin: 1"),
        (json!({"a": {"$all": 1}}), "bad_arg", "Bad argument for operator $all: 1"),
        (json!({"a": {"$exists": 1}}), "bad_arg", "Bad argument for operator $exists: 1"),
        (json!({"a": {"$type": 1}}), "bad_arg", "Bad argument for operator $type: 1"),
        (json!({"a": {"$size": -1}}), "bad_arg", "Bad argument for operator $size: -1"),
        (json!({"a": {"$mod": [0, 1]}}), "bad_arg", "Bad argument for operator $mod: [0,1]"),
        (json!({"a": {"$mod": [2]}}), "bad_arg", "Bad argument for operator $mod: [2]"),
        (json!({"a": {"$regex": "("}}), "bad_arg", "Bad argument for operator $regex: \"(\""),
        (json!({"a": {"$beginsWith": 1}}), "invalid_operator", "Invalid operator: $beginsWith"),
        (json!({"a": {"$elemMatch": 1}}), "bad_arg", "Bad argument for operator $elemMatch: 1"),
        (json!({"$eq": 1}), "invalid_selector", "One or more conditions is missing a field name."),
        (json!({"": 1}), "invalid_selector", "One or more conditions is missing a field name."),
        (json!({"a..b": 1}), "invalid_field_name", "Invalid field name: a..b"),
    ];
    for (selector, name, reason) in expected {
        assert_eq!(refusal(selector.clone()), (name, reason.to_owned()), "{selector}");
    }
}

#[test]
fn size_and_depth_are_bounded() {
    let nested = |depth: usize| (0..depth).fold(json!({"a": 1}), |inner, _| json!({"$not": inner}));
    assert!(Selector::parse(&nested(MAX_DEPTH - 2)).is_ok());
    assert_eq!(refusal(nested(MAX_DEPTH + 1)).0, "invalid_selector");

    let path = vec!["a"; MAX_DEPTH + 1].join(".");
    assert_eq!(refusal(json!({path: 1})).0, "invalid_selector");

    let ids = |count: usize| json!({"_id": {"$in": vec!["x"; count]}});
    assert!(Selector::parse(&ids(MAX_NODES - 2)).is_ok());
    assert_eq!(refusal(ids(MAX_NODES)).0, "invalid_selector");

    let regexes = vec![json!({"a": {"$regex": "a"}}); MAX_REGEXES + 1];
    assert_eq!(refusal(json!({"$or": regexes})).0, "invalid_selector");
    assert_eq!(refusal(json!({"a": {"$regex": "(a{1000}){1000}"}})).0, "bad_arg");
    assert_eq!(refusal(json!({"a": {"$regex": "a".repeat(10_000)}})).0, "invalid_selector");
}

/// JSON in which names are often operators or fields of the documents.
fn values() -> impl Strategy<Value = Value> {
    let text = prop_oneof![Just("a".to_owned()), Just("b".to_owned()), ".{0,6}"];
    let simple = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..3_i64).prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    simple.prop_recursive(6, 48, 5, |inner| {
        let member = (names(), inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..5).prop_map(Value::from),
            prop::collection::vec(member, 0..5).prop_map(|members| members.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

fn names() -> impl Strategy<Value = String> {
    let known = vec![
        "$and",
        "$or",
        "$not",
        "$nor",
        "$all",
        "$elemMatch",
        "$allMatch",
        "$keyMapMatch",
        "$lt",
        "$lte",
        "$eq",
        "$ne",
        "$gte",
        "$gt",
        "$exists",
        "$type",
        "$in",
        "$nin",
        "$size",
        "$mod",
        "$regex",
        "$beginsWith",
        "$text",
        "a",
        "b",
        "a.b",
        "0",
        "a.0",
        "\\$and",
        "a\\.b",
        "\\",
        ".",
    ];
    prop_oneof![
        8 => prop::sample::select(known).prop_map(str::to_owned),
        1 => "\\PC{0,5}",
    ]
}

proptest! {
    #[test]
    fn no_selector_and_no_document_panics(selector in values(), doc in values()) {
        match Selector::parse(&selector) {
            Ok(selector) => { selector.matches(&doc); }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn the_normal_form_says_the_same(selector in values(), doc in values()) {
        if let Ok(selector) = Selector::parse(&selector) {
            let normal = selector.to_json();
            // It may be larger than what a client may send.
            if let Ok(again) = Selector::parse(&normal) {
                prop_assert_eq!(again.matches(&doc), selector.matches(&doc), "{}", normal);
                prop_assert_eq!(again.to_json(), normal);
            }
        }
    }

    #[test]
    fn a_value_equals_itself_and_nothing_is_between(value in values(), other in values()) {
        let doc = json!({"a": value, "b": other});
        let itself = matches(json!({"a": {"$eq": value}}), doc.clone());
        prop_assert!(itself);
        let below = matches(json!({"a": {"$lt": other}}), doc.clone());
        let equal = matches(json!({"a": {"$eq": other}}), doc.clone());
        let above = matches(json!({"a": {"$gt": other}}), doc.clone());
        prop_assert_eq!([below, equal, above].into_iter().filter(|is| *is).count(), 1);
        prop_assert_eq!(matches(json!({"b": {"$gt": value}}), doc), below);
    }

    #[test]
    fn a_negation_is_the_opposite_where_the_field_exists(condition in values(), value in values()) {
        let doc = json!({"a": value});
        let plain = Selector::parse(&json!({"a": {"$elemMatch": {"$eq": condition}}})).unwrap();
        let negated = Selector::parse(&json!({"a": {"$not": {"$elemMatch": {"$eq": condition}}}})).unwrap();
        prop_assert!(plain.matches(&doc) != negated.matches(&doc));
    }
}
