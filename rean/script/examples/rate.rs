//! What a document costs: microseconds of CPU for map, filter, validate and reduce, in batches and alone.
//!
//! `cargo run --release -p rean-script --example rate`

use std::time::Instant;

use cpu_time::ProcessTime;
use rean_script::{Design, Lane, ScriptLimits, Scripts, ValidateCase};

const DOCUMENTS: usize = 20_000;
const BATCH: usize = 1_000;
const ALONE: usize = 5_000;

const DESIGN: &str = r#"{
    "_id": "_design/d",
    "views": {
        "one": {"map": "function(doc) { if (doc.type == 'note') emit([doc.author, doc.created], null) }"},
        "two": {"map": "function(doc) { (doc.tags || []).forEach(function(tag) { emit(tag, 1) }) }", "reduce": "function(keys, values) { return sum(values) }"},
        "three": {"map": "function(doc) { emit(doc._id, {title: doc.title, words: doc.text.split(' ').length}) }"}
    },
    "filters": {"mine": "function(doc, req) { return doc.author == req.query.author }"},
    "validate_doc_update": "function(newDoc, oldDoc, userCtx, secObj) { if (newDoc._deleted) return; if (!newDoc.author) throw({forbidden: 'no author'}); if (oldDoc && oldDoc.author != newDoc.author && userCtx.roles.indexOf('_admin') < 0) throw({forbidden: 'not yours'}); }"
}"#;

fn main() {
    let scripts = Scripts::new(ScriptLimits { threads: 2, ..ScriptLimits::default() });
    let design = Design::new(DESIGN).expect("the text above is JSON");
    let docs: Vec<String> = (0..DOCUMENTS).map(doc).collect();
    let user = r#"{"db":"notes","name":"ann","roles":["writer"]}"#;
    let view = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();

    for (name, views) in [("map, one view", view(&["one"])), ("map, three views", view(&["one", "two", "three"]))] {
        measure(name, DOCUMENTS, || {
            for batch in docs.chunks(BATCH) {
                scripts.map(Lane::Background, &design, &views, batch.to_vec()).expect("it maps");
            }
        });
    }
    let req = r#"{"query":{"author":"ann"}}"#;
    measure("filter, in batches", DOCUMENTS, || {
        for batch in docs.chunks(BATCH) {
            scripts.filter(&design, "mine", batch.to_vec(), req).expect("it filters");
        }
    });
    measure("filter, alone", ALONE, || {
        for doc in &docs[..ALONE] {
            scripts.filter(&design, "mine", vec![doc.clone()], req).expect("it filters");
        }
    });
    let case = |doc: &String| ValidateCase { new: doc.clone(), old: Some(doc.clone()) };
    measure("validate, in batches", DOCUMENTS, || {
        for batch in docs.chunks(BATCH) {
            let answers = scripts.validate(&design, batch.iter().map(case).collect(), user, "{}");
            assert!(answers.iter().all(Result::is_ok), "all are valid");
        }
    });
    measure("validate, alone", ALONE, || {
        for doc in &docs[..ALONE] {
            assert!(scripts.validate(&design, vec![case(doc)], user, "{}")[0].is_ok(), "it is valid");
        }
    });
    let values = format!("[{}]", vec!["1"; 100].join(","));
    measure("reduce of 100 values", ALONE, || {
        for _ in 0..ALONE {
            scripts.reduce(Lane::Background, &design, "two", None, &values).expect("it reduces");
        }
    });
    let fresh = 200;
    measure("a fresh design document", fresh, || {
        for n in 0..fresh {
            let design = Design::new(DESIGN).expect("JSON").for_owner(&n.to_string());
            scripts.filter(&design, "mine", vec![docs[0].clone()], req).expect("it filters");
        }
    });
}

fn doc(n: usize) -> String {
    format!(
        r#"{{"_id":"note-{n:06}","_rev":"1-967a00dff5e02add41819138abb3284d","type":"note","author":"ann","created":"2026-01-{:02}T10:00:00Z","title":"Note number {n}","tags":["a{}","b"],"text":"some words that stand here for the text of a small note, as people write them"}}"#,
        n % 28 + 1,
        n % 7
    )
}

fn measure(name: &str, count: usize, mut work: impl FnMut()) {
    work();
    let (cpu, wall) = (ProcessTime::now(), Instant::now());
    work();
    let (cpu, wall) = (cpu.elapsed(), wall.elapsed());
    let each = |micros: u128| micros as f64 / count as f64;
    println!("{name:<26} {:8.2} us CPU {:8.2} us", each(cpu.as_micros()), each(wall.as_micros()));
}
