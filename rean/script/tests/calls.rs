//! The functions of design documents, called as a server calls them.

use rean_script::{
    Design, FunctionName, Lane, MappedDoc, Refusal, ScriptError, ScriptLimits, Scripts, Updated, ValidateCase,
};
use serde_json::{Value, json};

fn scripts() -> Scripts {
    Scripts::new(ScriptLimits { time_ms: 2_000, threads: 2, ..ScriptLimits::default() })
}

fn design(value: &Value) -> Design {
    Design::new(&value.to_string()).unwrap()
}

fn map_design(map: &str) -> Design {
    design(&json!({ "views": { "v": { "map": map } } }))
}

fn texts(docs: &[Value]) -> Vec<String> {
    docs.iter().map(Value::to_string).collect()
}

fn map(map: &str, doc: &Value) -> Result<Vec<(String, String)>, String> {
    let mapped =
        scripts().map(Lane::Background, &map_design(map), &["v".to_owned()], texts(std::slice::from_ref(doc))).unwrap();
    mapped.into_iter().next().unwrap().views.into_iter().next().unwrap()
}

fn row(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn case(new: &Value) -> ValidateCase {
    ValidateCase { new: new.to_string(), old: None }
}

fn refusals(function: &str, cases: Vec<ValidateCase>) -> Vec<Result<(), Refusal>> {
    let design = design(&json!({ "_id": "_design/d", "validate_doc_update": function }));
    scripts().validate(&design, cases, r#"{"db":"d","name":"ann","roles":["r"]}"#, r#"{"admins":{"names":[]}}"#)
}

#[test]
fn maps_give_rows_as_json_text() {
    let rows = map(
        "function(doc) { emit(doc.k, doc.v); emit([doc._id, 1.5], {b: 1, a: [null]}) }",
        &json!({"_id": "x", "k": "ü\"", "v": -0.5}),
    );
    assert_eq!(rows, Ok(vec![row("\"ü\\\"\"", "-0.5"), row("[\"x\",1.5]", "{\"b\":1,\"a\":[null]}")]));
    assert_eq!(
        map("function(doc) { emit(); emit(undefined, function() {}); emit(NaN, new Date(0)) }", &json!({})),
        Ok(vec![row("null", "null"), row("null", "null"), row("null", "\"1970-01-01T00:00:00.000Z\""),])
    );
    assert_eq!(map("function(doc) {}", &json!({})), Ok(vec![]));
}

#[test]
fn a_function_may_be_written_in_many_ways() {
    for text in [
        "function(doc) { emit(1) }",
        "function(doc) { emit(1) };",
        "function (doc) {\n emit(1)\n}\n// that is all",
        "// first\n/* second */ function(doc) { emit(1) } ; /* third */",
        "(function(doc) { emit(1) })",
        "(function(doc) { emit(1) });",
        "doc => { emit(1) }",
        "(doc) => emit(1);",
        "function named(doc) { emit(1) }",
        "function(doc) { one() }\nfunction one() { emit(1) }",
        "(function() { var k = 1; return function(doc) { emit(k) } })()",
        "function(doc) { 'use strict'; emit(1) }",
        "function(doc) { for (i = 0; i < 1; i++) emit(i + 1) }",
        "function({_id}) { emit(1) }",
    ] {
        assert_eq!(map(text, &json!({"_id": "x"})), Ok(vec![row("1", "null")]), "{text}");
    }
    for (text, reason) in [
        ("function(doc { }", "SyntaxError"),
        ("42", "does not eval to a function"),
        ("", "SyntaxError"),
        ("nothing.here", "ReferenceError"),
        ("throw 1", "SyntaxError"),
        ("function(doc) {}}); evil(); (function() {", "ReferenceError"),
    ] {
        let compiled = scripts().compile(&map_design(text), &[FunctionName::Map("v".to_owned())]);
        match compiled {
            Err(ScriptError::Compile { function, message }) => {
                assert_eq!(function, "views.v.map");
                assert!(message.contains(reason), "{text}: {message}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn what_is_missing_is_told() {
    let (scripts, design) = (scripts(), design(&json!({ "views": { "v": {}, "w": { "map": 7 } }, "filters": {} })));
    for name in ["v", "x", "constructor", "__proto__"] {
        let error = scripts.map(Lane::Request, &design, &[name.to_owned()], vec!["{}".to_owned()]).unwrap_err();
        assert_eq!(error, ScriptError::Missing { function: format!("views.{name}.map") });
    }
    assert!(matches!(scripts.filter(&design, "toString", vec![], "{}"), Err(ScriptError::Missing { .. })));
    let number = scripts.map(Lane::Request, &design, &["w".to_owned()], vec![]);
    assert!(matches!(number, Err(ScriptError::Compile { .. })));
    assert!(matches!(Design::new("[]"), Err(ScriptError::BadInput(_))));
    assert!(matches!(Design::new("{"), Err(ScriptError::BadInput(_))));
}

#[test]
fn one_view_does_not_see_what_another_did_to_the_document() {
    let design = design(&json!({ "views": {
        "a": { "map": "function(doc) { doc.tags.push('x'); doc.n = 2; delete doc._id; emit(doc.tags, doc.n) }" },
        "b": { "map": "function(doc) { if (doc.bad) throw new TypeError('bad one'); emit(doc.tags, [doc.n, doc._id]) }" },
    } }));
    let docs =
        texts(&[json!({"_id": "1", "tags": ["t"], "n": 1}), json!({"_id": "2", "tags": [], "n": 1, "bad": true})]);
    let mapped = scripts().map(Lane::Background, &design, &["a".to_owned(), "b".to_owned()], docs).unwrap();
    assert_eq!(
        mapped,
        vec![
            MappedDoc {
                views: vec![Ok(vec![row("[\"t\",\"x\"]", "2")]), Ok(vec![row("[\"t\"]", "[1,\"1\"]")])],
                costly: false
            },
            MappedDoc {
                views: vec![Ok(vec![row("[\"x\"]", "2")]), Err("TypeError: bad one".to_owned())],
                costly: false
            },
        ]
    );
}

#[test]
fn validators_refuse_as_couchdb_says() {
    let function = "function(newDoc, oldDoc, userCtx, secObj) {
        switch (newDoc.how) {
            case 'forbidden': throw({forbidden: 'no ' + userCtx.name});
            case 'object': throw({forbidden: {why: 1}});
            case 'unauthorized': throw({unauthorized: 'log in'});
            case 'error': throw new Error('broken');
            case 'undefined': nothing.there;
            case 'string': throw 'just text';
            case 'array': throw(['error', 'not_found', 'not there']);
            case 'roles': if (userCtx.roles.indexOf('r') < 0 || !isArray(secObj.admins.names)) throw({forbidden: 'roles'}); break;
            case 'old': if (oldDoc === null) throw({forbidden: 'new'}); break;
            case 'this': if (this._id !== '_design/d') throw({forbidden: 'this'}); break;
        }
    }";
    let cases = [
        "none",
        "forbidden",
        "object",
        "unauthorized",
        "error",
        "undefined",
        "string",
        "array",
        "roles",
        "old",
        "this",
    ];
    let mut all: Vec<_> = cases.iter().map(|how| case(&json!({ "_id": "x", "how": how }))).collect();
    all.push(ValidateCase { new: json!({"how": "old"}).to_string(), old: Some("{}".to_owned()) });
    let threw = |error: &str, message: &str| {
        Err(Refusal::Error(ScriptError::Threw {
            function: "validate_doc_update".to_owned(),
            error: error.to_owned(),
            message: message.to_owned(),
        }))
    };
    assert_eq!(
        refusals(function, all),
        vec![
            Ok(()),
            Err(Refusal::Forbidden("no ann".to_owned())),
            Err(Refusal::Forbidden("{\"why\":1}".to_owned())),
            Err(Refusal::Unauthorized("log in".to_owned())),
            threw("Error", "broken"),
            threw("ReferenceError", "nothing is not defined"),
            threw("unknown_error", "just text"),
            threw("not_found", "not there"),
            Ok(()),
            Err(Refusal::Forbidden("new".to_owned())),
            Ok(()),
            Ok(()),
        ]
    );
}

#[test]
fn a_validator_that_does_not_work_lets_nothing_pass() {
    for function in ["function(", "7", "async function() { throw({forbidden: 'later'}) }"] {
        let answers = refusals(function, vec![case(&json!({})), case(&json!({}))]);
        if function.starts_with("async") {
            // Nothing waits for a promise, CouchDB's engines don't either.
            assert_eq!(answers, vec![Ok(()), Ok(())]);
        } else {
            assert!(answers.iter().all(|answer| matches!(answer, Err(Refusal::Error(ScriptError::Compile { .. })))));
        }
    }
    let answers = scripts().validate(&design(&json!({})), vec![case(&json!({}))], "{}", "{}");
    assert!(matches!(&answers[..], [Err(Refusal::Error(ScriptError::Missing { .. }))]));
    let bad = refusals("function() {}", vec![ValidateCase { new: "{broken".to_owned(), old: None }, case(&json!({}))]);
    assert!(matches!(&bad[..], [Err(Refusal::Error(ScriptError::Threw { .. })), Ok(())]));
}

#[test]
fn filters_are_truthy_or_not() {
    let design = design(&json!({
        "filters": {
            "by": "function(doc, req) { return doc.type == req.query.type && 'yes' }",
            "none": "function(doc, req) {}",
            "bad": "function(doc, req) { return doc.a.b }",
            "stop": "function(doc, req) { throw(['error', 'not_found', 'no']) }",
        },
        "views": { "v": { "map": "function(doc) { if (doc.bad) throw 1; if (doc.n) emit(doc.n) }" } },
    }));
    let (scripts, req) = (scripts(), json!({ "query": { "type": "a" } }).to_string());
    let docs = texts(&[json!({"type": "a"}), json!({"type": "b"}), json!({"n": 1}), json!({"n": 1, "bad": true})]);
    assert_eq!(scripts.filter(&design, "by", docs.clone(), &req), Ok(vec![true, false, false, false]));
    assert_eq!(scripts.filter(&design, "none", docs.clone(), &req), Ok(vec![false; 4]));
    assert_eq!(scripts.view_filter(&design, "v", docs.clone(), &req), Ok(vec![false, false, true, false]));
    assert_eq!(scripts.filter(&design, "by", vec![], &req), Ok(vec![]));
    match scripts.filter(&design, "bad", docs.clone(), &req) {
        Err(ScriptError::Threw { function, error, .. }) => {
            assert_eq!((function.as_str(), error.as_str()), ("filters.bad", "TypeError"))
        }
        other => panic!("{other:?}"),
    }
    match scripts.filter(&design, "stop", docs, &req) {
        Err(ScriptError::Threw { error, message, .. }) => {
            assert_eq!((error.as_str(), message.as_str()), ("not_found", "no"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn update_handlers_give_document_and_response() {
    let design = design(&json!({ "updates": {
        "count": "function(doc, req) { if (!doc) return [null, 'nothing']; doc.n++; return [doc, {json: {n: doc.n}, headers: {'X': req.method}}] }",
        "text": "function() { return 'text' }",
        "short": "function() { return [{}] }",
        "none": "function() {}",
        "forbidden": "function() { throw({forbidden: 'not you'}) }",
    } }));
    let scripts = scripts();
    let counted = scripts.update(&design, "count", Some(r#"{"n":1}"#), r#"{"method":"PUT"}"#).unwrap();
    assert_eq!(counted.doc.as_deref(), Some(r#"{"n":2}"#));
    assert_eq!(counted.response, r#"{"json":{"n":2},"headers":{"X":"PUT"}}"#);
    let nothing = scripts.update(&design, "count", None, "{}").unwrap();
    assert_eq!(nothing, Updated { doc: None, response: "\"nothing\"".to_owned() });
    for name in ["text", "short", "none"] {
        assert!(matches!(scripts.update(&design, name, None, "{}"), Err(ScriptError::BadResult { .. })), "{name}");
    }
    match scripts.update(&design, "forbidden", None, "{}") {
        Err(ScriptError::Threw { error, message, .. }) => {
            assert_eq!((error.as_str(), message.as_str()), ("forbidden", "not you"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn reductions() {
    let design = design(&json!({ "views": {
        "sum": { "reduce": "function(keys, values, rereduce) { return rereduce ? ['again', sum(values)] : [keys.length, sum(values)] }" },
        "none": { "reduce": "function() {}" },
        "all": { "reduce": "function(keys, values) { return values }" },
        "needy": { "reduce": "function() { return typeof require }" },
    } }));
    let scripts = scripts();
    assert_eq!(
        scripts.reduce(Lane::Request, &design, "sum", Some(r#"[["k","a"],["k","b"]]"#), "[1,2.5]"),
        Ok("[2,3.5]".to_owned())
    );
    assert_eq!(scripts.reduce(Lane::Request, &design, "sum", None, "[1,2]"), Ok("[\"again\",3]".to_owned()));
    assert_eq!(scripts.reduce(Lane::Request, &design, "none", None, "[]"), Ok("null".to_owned()));
    assert_eq!(scripts.reduce(Lane::Request, &design, "needy", None, "[]"), Ok("\"undefined\"".to_owned()));
    let values = json!(vec!["0123456789"; 1_000]).to_string();
    match scripts.reduce(Lane::Request, &design, "all", None, &values) {
        Err(ScriptError::Threw { error, message, .. }) => {
            assert_eq!(error, "reduce_overflow_error");
            assert!(message.starts_with("Reduce output must shrink more rapidly"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn modules_of_the_design_document() {
    let design = design(&json!({
        "lib": {
            "a": "exports.name = 'a'; exports.b = require('./b').name; exports.id = module.id",
            "b": "var a = require('./a'); module.exports = { name: 'b', seen: Object.keys(a).join() }",
            "deep": { "c": "exports.up = require('../b').name; exports.far = require('lib/a').name" },
            "count": "var n = 0; exports.next = function() { return ++n }",
            "broken": "throw new Error('inside')",
        },
        "filters": {
            "cycle": "function() { var a = require('lib/a'); return a.name == 'a' && a.b == 'b' && a.id == 'lib/a' && require('lib/b').seen == 'name' }",
            "deep": "function() { var c = require('lib/deep/c'); return c.up == 'b' && c.far == 'a' }",
            "once": "function() { return require('lib/count') === require('lib/count') }",
            "missing": "function() { require('lib/x') }",
            "noText": "function() { require('lib') }",
            "proto": "function() { require('constructor') }",
            "above": "function() { require('../x') }",
            "broken": "function() { require('lib/broken') }",
        },
        "views": {
            "lib": { "m": "exports.k = 'shared'" },
            "inside": { "map": "function(doc) { emit(require('views/lib/m').k) }" },
            "outside": { "map": "function(doc) { emit(require('lib/a').name) }" },
        },
    }));
    let scripts = scripts();
    let one = || vec!["{}".to_owned()];
    for name in ["cycle", "deep", "once"] {
        assert_eq!(scripts.filter(&design, name, one(), "{}"), Ok(vec![true]), "{name}");
    }
    for (name, kind) in [
        ("missing", "invalid_require_path"),
        ("noText", "invalid_require_path"),
        ("proto", "invalid_require_path"),
        ("above", "invalid_require_path"),
        ("broken", "compilation_error"),
    ] {
        match scripts.filter(&design, name, one(), "{}") {
            Err(ScriptError::Threw { error, .. }) => assert_eq!(error, kind, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let mapped = scripts.map(Lane::Request, &design, &["inside".to_owned(), "outside".to_owned()], one()).unwrap();
    assert_eq!(mapped[0].views[0], Ok(vec![row("\"shared\"", "null")]));
    assert!(mapped[0].views[1].as_ref().is_err_and(|message| message.starts_with("invalid_require_path")));
}

#[test]
fn what_a_function_finds_and_what_not() {
    let present = "[emit, sum, isArray, toJSON, log, JSON, Math.random, Date.now, RegExp, Map, Uint8Array, decodeURIComponent, parseInt]";
    assert_eq!(
        map(&format!("function(doc) {{ emit({present}.every(function(f) {{ return !!f }})) }}"), &json!({})),
        Ok(vec![row("true", "null")])
    );
    for name in [
        "setTimeout",
        "setInterval",
        "console",
        "print",
        "std",
        "os",
        "bjson",
        "Atomics",
        "SharedArrayBuffer",
        "WeakRef",
        "FinalizationRegistry",
        "Proxy",
        "queueMicrotask",
        "performance",
        "navigator",
        "process",
        "send",
        "start",
        "getRow",
        "scriptArgs",
        "gc",
        "module",
        "exports",
        "poll",
    ] {
        let found = map(&format!("function(doc) {{ emit(typeof {name}) }}"), &json!({}));
        assert_eq!(found, Ok(vec![row("\"undefined\"", "null")]), "{name}");
    }
    assert_eq!(
        map("function(doc) { emit(toJSON({a: undefined, b: [1]}), sum([1, 2, 3])) }", &json!({})),
        Ok(vec![row("\"{\\\"b\\\":[1]}\"", "6")])
    );
    assert_eq!(
        map("function(doc) { log('one'); log({two: 2}); log(); emit(isArray(doc.a), isArray({})) }", &json!({"a": []})),
        Ok(vec![row("true", "false")])
    );
}

#[test]
fn nothing_of_a_call_is_left_for_the_next() {
    let design = design(&json!({
        "lib": { "leak": "leaked = 'kept'; exports.x = 1" },
        "filters": {
            "spill": "function(doc) { if (typeof spilt === 'undefined') { spilt = 0 } spilt++; return spilt == 1 }",
            "pollute": "function(doc) { var o = JSON.parse('{\"admin\":true}'); for (var k in o) ({}).__proto__[k] = o[k]; return true }",
            "replace": "function(doc) { Object.prototype.hasOwnProperty = function() { return true }; Array.prototype.indexOf = function() { return 0 }; return true }",
            "polluted": "function(doc) { return ({}).admin === true || ({}).hasOwnProperty('x') || [].indexOf(1) === 0 }",
            "design": "function(doc) { this.mark = (this.mark || 0) + 1; this.filters.x = 1; return this.mark === undefined && this.filters.x === undefined }",
            "module": "function(doc) { require('lib/leak'); return leaked == 'kept' }",
        },
    }));
    let scripts = Scripts::new(ScriptLimits { threads: 1, ..ScriptLimits::default() });
    let ask = |name: &str| scripts.filter(&design, name, vec!["{}".to_owned()], "{}").unwrap()[0];
    for round in 0..3 {
        assert!(ask("spill"), "{round}");
        assert!(ask("pollute"));
        assert!(!ask("polluted"), "{round}");
        assert!(ask("replace"));
        assert!(!ask("polluted"), "{round}");
        assert!(ask("design"), "{round}");
        assert!(ask("module"), "{round}");
    }
}

#[test]
fn odd_text_passes_through() {
    let rows = map(
        "function(doc) { emit(doc.s, doc.s.length); emit('\\ud800', 'x\\udc00'); emit({'\\ud83d': '\\u0000'}, doc.s.charAt(0)) }",
        &json!({"s": "a\u{0}😀"}),
    );
    assert_eq!(
        rows,
        Ok(vec![
            row("\"a\\u0000😀\"", "4"),
            row("\"\\ufffd\"", "\"x\\ufffd\""),
            row("{\"\\ufffd\":\"\\u0000\"}", "\"a\"")
        ])
    );
    let own = map(
        "function(doc) { emit(Object.keys(doc), doc.__proto__) }",
        &serde_json::from_str(r#"{"__proto__":{"x":1},"toJSON":2}"#).unwrap(),
    );
    assert_eq!(own, Ok(vec![row("[\"__proto__\",\"toJSON\"]", "{\"x\":1}")]));
}

#[test]
fn many_threads_ask_at_once() {
    let (scripts, design) = (scripts(), map_design("function(doc) { emit(doc.n, doc.n * 2) }"));
    std::thread::scope(|scope| {
        for t in 0..8 {
            let (scripts, design) = (scripts.clone(), design.clone().for_owner(&format!("db{}", t % 3)));
            scope.spawn(move || {
                for n in 0..50 {
                    let lane = if n % 2 == 0 { Lane::Request } else { Lane::Background };
                    let mapped = scripts.map(lane, &design, &["v".to_owned()], texts(&[json!({ "n": n })])).unwrap();
                    assert_eq!(mapped[0].views[0], Ok(vec![row(&n.to_string(), &(n * 2).to_string())]));
                }
            });
        }
    });
}

#[test]
fn a_closed_pool_says_so() {
    let (scripts, design) = (scripts(), map_design("function(doc) { for (;;) {} }"));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| scripts.map(Lane::Request, &design, &["v".to_owned()], texts(&[json!({})])));
        scripts.close();
        // Either it never began, or it was stopped.
        assert!(matches!(running.join().unwrap(), Err(ScriptError::Closed | ScriptError::TooLong { .. })));
    });
    assert_eq!(scripts.map(Lane::Background, &design, &["v".to_owned()], vec![]), Err(ScriptError::Closed));
    assert_eq!(
        scripts.validate(&design, vec![case(&json!({}))], "{}", "{}"),
        vec![Err(Refusal::Error(ScriptError::Closed))]
    );
}
