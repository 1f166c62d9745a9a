//! Queries against a plain filter over the same documents: random documents, random selectors of all operators, with
//! and without indexes, as an administrator, in a personal and in a partial database, while documents change.

mod harness;

use std::cmp::Ordering;
use std::collections::BTreeSet;

use adea_ring::Identity;
use harness::{World, admin, user};
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use rean_store::collate::compare;
use rean_store::selector::{FieldPath, Selector};
use serde_json::{Value, json};

/// Documents at the beginning.
const DOCS: usize = 120;
/// Rounds: each changes some documents and asks some queries.
const ROUNDS: usize = 14;
const QUERIES_A_ROUND: usize = 40;
const CHANGES_A_ROUND: usize = 8;
/// The fields of documents and queries.
const FIELDS: [&str; 5] = ["a", "b", "c.d", "c", "e"];

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (-2..6_i64).prop_map(Value::from),
        1 => prop_oneof![Just(0.5), Just(2.0), Just(-1e9)].prop_map(Value::from),
        3 => prop::sample::select(vec!["", "a", "A", "b", "ab", "ä", "é", "e\u{301}", "zz", "Ab c"]).prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(vec!["d", "x"]), inner), 0..3).prop_map(|members| members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

fn document() -> impl Strategy<Value = Value> {
    let member = || prop_oneof![3 => value().prop_map(Some), 1 => Just(None)];
    let readers = prop::sample::select(vec![
        json!(["user:ann"]),
        json!(["user:bob"]),
        json!(["user:ann", "user:bob"]),
        json!(["role:x"]),
    ]);
    (member(), member(), member(), member(), readers).prop_map(|(a, b, c, e, readers)| {
        let mut doc = json!({"access": {"read": readers}});
        for (name, value) in [("a", a), ("b", b), ("c", c), ("e", e)] {
            if let Some(value) = value {
                doc[name] = value;
            }
        }
        doc
    })
}

fn condition() -> impl Strategy<Value = Value> {
    let comparison = prop::sample::select(vec!["$lt", "$lte", "$eq", "$ne", "$gte", "$gt"]);
    let one = prop_oneof![
        8 => (comparison, scalar()).prop_map(|(name, value)| json!({name: value})),
        1 => (prop::sample::select(vec!["$in", "$nin", "$all"]), prop::collection::vec(scalar(), 0..4))
            .prop_map(|(name, list)| json!({name: list})),
        1 => any::<bool>().prop_map(|wanted| json!({"$exists": wanted})),
        1 => prop::sample::select(vec!["null", "boolean", "number", "string", "array", "object"])
            .prop_map(|name| json!({"$type": name})),
        1 => (0..3_u64).prop_map(|size| json!({"$size": size})),
        1 => (1..4_i64, 0..2_i64).prop_map(|(by, rest)| json!({"$mod": [by, rest]})),
        1 => prop::sample::select(vec!["^a", "b$", "(?i)A"]).prop_map(|pattern| json!({"$regex": pattern})),
        2 => prop::sample::select(vec!["a", "A", "", "ä", "Ab "]).prop_map(|start| json!({"$beginsWith": start})),
        1 => scalar().prop_map(|value| json!({"$elemMatch": {"$gte": value}})),
        1 => scalar().prop_map(|value| json!({"$allMatch": {"$ne": value}})),
        1 => Just(json!({"$keyMapMatch": {"$eq": "d"}})),
        2 => value(),
    ];
    prop_oneof![
        5 => one,
        1 => (scalar(), scalar()).prop_map(|(low, high)| json!({"$gte": low, "$lte": high})),
        1 => scalar().prop_map(|value| json!({"$not": {"$gt": value}})),
        1 => Just(json!({"$not": {"$exists": true}})),
    ]
}

fn field() -> impl Strategy<Value = &'static str> {
    prop_oneof![8 => prop::sample::select(FIELDS.to_vec()), 1 => Just("_id")]
}

fn selector() -> impl Strategy<Value = Value> {
    let plain = prop::collection::vec((field(), condition()), 0..4).prop_map(|members| {
        members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<serde_json::Map<_, _>>().into()
    });
    plain.prop_recursive(2, 8, 3, |inner: proptest::strategy::BoxedStrategy<Value>| {
        let list = prop::collection::vec(inner.clone(), 0..3);
        prop_oneof![
            2 => (prop::sample::select(vec!["$and", "$or", "$nor"]), list).prop_map(|(name, list)| json!({name: list})),
            1 => (inner.clone(), field(), condition()).prop_map(|(inner, name, value)| json!({"$and": [inner, {name: value}]})),
            1 => inner.prop_map(|inner| json!({"$not": inner})),
        ]
    })
}

fn sort() -> impl Strategy<Value = Value> {
    let fields = prop_oneof![
        Just(vec![]),
        Just(vec!["a"]),
        Just(vec!["b"]),
        Just(vec!["a", "b"]),
        Just(vec!["c.d"]),
        Just(vec!["_id"]),
    ];
    (fields, prop::sample::select(vec!["asc", "desc"]))
        .prop_map(|(fields, direction)| fields.into_iter().map(|field| json!({field: direction})).collect())
}

/// Everything that the test knows of.
struct Model {
    world: World,
    runner: TestRunner,
    /// Answers that an index served.
    by_index: usize,
    /// Answers with documents.
    with_documents: usize,
}

impl Model {
    fn make<S: Strategy>(&mut self, strategy: &S) -> S::Value {
        strategy.new_tree(&mut self.runner).expect("a value").current()
    }

    /// All documents that somebody may read, as they read them.
    async fn documents(&self, who: &Identity, db: &str) -> Vec<Value> {
        let list = self.world.get(who, &format!("/{db}/_all_docs?include_docs=true")).await.expect(200);
        let rows = list["rows"].as_array().expect("rows");
        rows.iter().map(|row| row["doc"].clone()).filter(|doc| !id(doc).starts_with('_')).collect()
    }

    async fn change(&mut self) {
        for _ in 0..CHANGES_A_ROUND {
            let n = self.make(&(0..DOCS));
            let path = format!("/notes/d{n:03}");
            let old = self.world.get(&admin(), &path).await;
            let mut doc = self.make(&document());
            if old.status == 200 {
                doc["_rev"] = old.json()["_rev"].clone();
                if self.make(&(0..4)) == 0 {
                    doc = json!({"_rev": doc["_rev"], "_deleted": true});
                }
            }
            let answer = self.world.put(&admin(), &path, doc).await;
            assert!(answer.status.is_success(), "{}", answer.text);
        }
    }

    async fn check(&mut self, who: &Identity, db: &str) {
        let query = json!({"selector": self.make(&selector()), "sort": self.make(&sort()), "limit": 1_000});
        let answer = self.world.post(who, &format!("/{db}/_find"), query.clone()).await;
        let Ok(selector) = Selector::parse(&query["selector"]) else {
            assert_eq!(answer.status, 400, "{query}");
            return;
        };
        if answer.status == 400 {
            assert_eq!(answer.json()["error"], "no_usable_index", "{query}");
            assert_ne!(query["sort"], json!([]), "{query}");
            return;
        }
        let answer = answer.expect(200);
        let found = answer["docs"].as_array().expect("docs").clone();
        self.by_index +=
            usize::from(!answer["warning"].as_str().is_some_and(|text| text.starts_with("No matching index")));
        self.with_documents += usize::from(!found.is_empty());
        let sorted_by: Vec<FieldPath> = query["sort"].as_array().expect("a list").iter().map(field_of).collect();
        // An empty list that is the whole selector finds nothing, though as a part of one it hinders nothing.
        let is_nothing = ["$and", "$or"].iter().any(|name| selector.to_json() == json!({*name: []}));
        let wanted: BTreeSet<String> = self
            .documents(who, db)
            .await
            .iter()
            .filter(|doc| {
                !is_nothing && selector.matches(doc) && sorted_by.iter().all(|field| field.find(doc).is_some())
            })
            .map(|doc| id(doc).to_owned())
            .collect();
        let ids: Vec<&str> = found.iter().map(id).collect();
        let distinct: BTreeSet<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        assert_eq!(distinct.len(), ids.len(), "{query}: a document twice");
        assert_eq!(distinct, wanted, "{db}: {query}");
        check_order(&found, &sorted_by, &query);
        self.check_pages(who, db, query, &ids).await;
    }

    /// Pages of any size, one after the other, are the same as all at once.
    async fn check_pages(&mut self, who: &Identity, db: &str, mut query: Value, ids: &[&str]) {
        let size = self.make(&(1..9_usize));
        query["limit"] = size.into();
        query["bookmark"] = Value::Null;
        let mut seen: Vec<String> = Vec::new();
        loop {
            let page = self.world.post(who, &format!("/{db}/_find"), query.clone()).await.expect(200);
            let docs = page["docs"].as_array().expect("docs");
            seen.extend(docs.iter().map(|doc| id(doc).to_owned()));
            query["bookmark"] = page["bookmark"].clone();
            if docs.len() < size {
                break;
            }
        }
        assert_eq!(seen, ids, "{db}: {query}");
    }
}

fn id(doc: &Value) -> &str {
    doc["_id"].as_str().expect("an id")
}

fn field_of(item: &Value) -> FieldPath {
    let name = item.as_object().and_then(|members| members.keys().next()).expect("a field");
    FieldPath::parse(name).expect("a path")
}

fn check_order(found: &[Value], sorted_by: &[FieldPath], query: &Value) {
    let descending = query["sort"].to_string().contains("desc");
    for pair in found.windows(2) {
        let order = sorted_by.iter().fold(Ordering::Equal, |order, field| {
            order.then_with(|| {
                let (left, right) = (field.find(&pair[0]).expect("there"), field.find(&pair[1]).expect("there"));
                if field.text() == "_id" { left.as_str().cmp(&right.as_str()) } else { compare(left, right) }
            })
        });
        assert_ne!(order, if descending { Ordering::Less } else { Ordering::Greater }, "{query}: {pair:?}");
    }
}

async fn index(world: &World, n: usize, fields: Value, partial: Value) {
    let index =
        json!({"index": {"fields": fields, "partial_filter_selector": partial}, "ddoc": format!("i{n}"), "name": "x"});
    world.post(&admin(), "/notes/_index", index).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_find_what_a_plain_filter_finds() {
    let world = World::new().await;
    world.app("notes").await;
    let mut model = Model { world, runner: TestRunner::deterministic(), by_index: 0, with_documents: 0 };
    for n in 0..DOCS {
        let doc = model.make(&document());
        model.world.put(&admin(), &format!("/notes/d{n:03}"), doc).await.expect(201);
    }
    let indexes =
        [json!(["a"]), json!(["b"]), json!(["a", "b"]), json!(["c.d"]), json!(["e", "a"]), json!(["_id", "b"])];
    for round in 0..ROUNDS {
        if let Some(fields) = indexes.get(round / 2).filter(|_| round % 2 == 1) {
            // A partial index serves only those who name it: it must change nothing.
            index(&model.world, 2 * round, json!(["a"]), json!({"b": {"$gt": 2}})).await;
            index(&model.world, 2 * round + 1, fields.clone(), json!({})).await;
        }
        model.change().await;
        for n in 0..QUERIES_A_ROUND {
            let (who, db) = match n % 4 {
                0 => (admin(), "notes".to_owned()),
                1 => (user("ann", &[]), "notes--me".to_owned()),
                2 => (user("bob", &["x"]), "notes--me".to_owned()),
                _ => (user("ann", &[]), partial_of_ann(&model.world).await),
            };
            model.check(&who, &db).await;
        }
    }
    let (by_index, with_documents) = (model.by_index, model.with_documents);
    assert!(by_index > 200 && with_documents > 100, "{by_index} {with_documents}: what was to be tested was not asked");
}

async fn partial_of_ann(world: &World) -> String {
    let access = world.get(&user("ann", &[]), "/notes/_access").await.expect(200);
    access["partials"][0]["db"].as_str().expect("a name").to_owned()
}
