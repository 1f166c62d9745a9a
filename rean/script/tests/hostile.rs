//! Functions that mean harm: each costs its own call an error, and nobody else anything.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use rean_script::{Design, FunctionName, Lane, Refusal, ScriptError, ScriptLimits, Scripts, ValidateCase};
use serde_json::{Value, json};

/// Short times, so that the tests are: 300 ms are a hundred times what an honest call here takes.
fn scripts() -> Scripts {
    Scripts::new(ScriptLimits { memory_bytes: 32 << 20, time_ms: 300, threads: 2, ..ScriptLimits::default() })
}

fn design(function: &str) -> Design {
    Design::new(
        &json!({
            "filters": { "bad": function, "good": "function(doc, req) { return doc.ok === true }" },
            "views": { "bad": { "map": function }, "good": { "map": "function(doc) { emit(doc.ok, [1, {}]) }" } },
        })
        .to_string(),
    )
    .unwrap()
}

fn run(scripts: &Scripts, design: &Design) -> Result<Vec<bool>, ScriptError> {
    scripts.filter(design, "bad", vec![r#"{"ok":true}"#.to_owned()], "{}")
}

/// Another design, and another function of the same one, work as ever.
fn is_well(scripts: &Scripts, same: &Design, what: &str) {
    for design in [same, &design("function() {}")] {
        let passed = scripts.filter(design, "good", vec![r#"{"ok":true}"#.to_owned(), "{}".to_owned()], "{}");
        assert_eq!(passed, Ok(vec![true, false]), "{what}");
        let mapped = scripts.map(Lane::Background, design, &["good".to_owned()], vec![r#"{"ok":1}"#.to_owned()]);
        assert_eq!(mapped.unwrap()[0].views[0], Ok(vec![("1".to_owned(), "[1,{}]".to_owned())]), "{what}");
    }
}

/// Runs a filter twice; the errors.
fn fails(function: &str) -> Vec<ScriptError> {
    let (scripts, design) = (scripts(), design(function));
    let errors = (0..2).map(|_| {
        let error = run(&scripts, &design).expect_err(function);
        is_well(&scripts, &design, function);
        error
    });
    errors.collect()
}

fn resident_bytes() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse::<usize>().unwrap();
    pages * 4_096
}

#[test]
fn loops_end() {
    for function in [
        "function() { for (;;) {} }",
        "function() { while (true) { try { for (;;) {} } catch (e) {} finally { for (;;) {} } } }",
        "function() { var n = 0; while (n >= 0) { n = (n + 1) % 7 } }",
        "function() { var g = (function* () { for (;;) yield 1 })(); for (var x of g) {} }",
        "function() { return { valueOf: function() { for (;;) {} } } > 1 }",
        "function() { throw { get forbidden() { for (;;) {} } } }",
        "function() { throw { toJSON: function() { for (;;) {} } } }",
        "function() { var e = new Error('x'); Object.defineProperty(e, 'message', { get: function() { for (;;) {} } }); throw e }",
        "function() { [3, 2, 1].sort(function() { for (;;) {} }) }",
        "function() { 'aaa'.replace(/a/g, function() { for (;;) {} }) }",
        "(function() { for (;;) {} })()",
        "function() { Object.defineProperty(Object.prototype, 'x', { get: function() { for (;;) {} } }); for (;;) ({}).x }",
    ] {
        let began = Instant::now();
        assert!(fails(function).iter().all(|error| matches!(error, ScriptError::TooLong { .. })), "{function}");
        assert!(began.elapsed() < Duration::from_secs(20), "{function}");
    }
}

#[test]
fn regular_expressions_end() {
    for function in [
        "function() { return /^(a+)+$/.test(Array(60).join('a') + '!') }",
        "function() { return /(x+x+)+y/.test(Array(50).join('x')) }",
        "function() { return 'b' + Array(200000).join('a').match(/(a*)*(b|c)/) }",
        "function() { var s = Array(1 << 20).join('ab'); for (;;) s.replace(/(a|b)*c/g, '') }",
    ] {
        for error in fails(function) {
            assert!(
                matches!(
                    error,
                    ScriptError::TooLong { .. } | ScriptError::TooMuchMemory { .. } | ScriptError::Threw { .. }
                ),
                "{function}: {error}"
            );
        }
    }
    // Ten million characters of expression: whatever becomes of it, the next call works.
    let (scripts, design) = (
        scripts(),
        design(
            "function() { var s = 'a'; while (s.length < 10000000) s += s; new RegExp('(' + s + ')*') ; new RegExp(Array(300000).join('(')) }",
        ),
    );
    assert!(run(&scripts, &design).is_err());
    is_well(&scripts, &design, "long expressions");
}

#[test]
fn loops_inside_the_engine_end() {
    for function in [
        "function() { Array.prototype.indexOf.call({ length: 9007199254740991 }, 1) }",
        "function() { Array.prototype.reverse.call({ length: 9007199254740991 }) }",
        "function() { Array.prototype.splice.call({ length: 9007199254740991 }, 0, 1) }",
        "function() { Array.prototype.copyWithin.call({ length: 9007199254740991 }, 0, 1) }",
        "function() { Array.prototype.join.call({ length: 9007199254740991 }, '') }",
        "function() { Array.prototype.unshift.call({ length: 9007199254740980 }, 1) }",
        "function() { var n = 0; Array.prototype.reverse.call({ get length() { return n++ ? 9007199254740991 : 1 } }) }",
        "function() { var a = []; a.length = 4294967295; a.reverse() }",
        "function() { var a = []; a.length = 4294967295; a.sort() }",
        "function() { var a = []; a.length = 4294967295; return [].concat(a, a).length }",
        "function() { for (;;) Array(1000000).fill(0).reverse() }",
        "function() { var s = 'a'; while (s.length < 4000000) s += s; return s.indexOf(s.slice(0, s.length / 2) + 'b') }",
        "function() { var s = 'a'; while (s.length < 4000000) s += s; for (;;) s.indexOf('b') }",
    ] {
        let began = Instant::now();
        for error in fails(function) {
            assert!(
                matches!(
                    error,
                    ScriptError::TooLong { .. } | ScriptError::Threw { .. } | ScriptError::TooMuchMemory { .. }
                ),
                "{function}: {error}"
            );
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{function}");
    }
}

#[test]
fn a_thread_that_is_stuck_is_replaced_and_its_owner_waits_for_it() {
    // Nothing looks at the clock between ten thousand multiplications of very large numbers.
    let stuck = "function() { var n = (1n << 500000n) - 1n; for (;;) n * n }";
    let (scripts, bad) = (scripts(), design(stuck).for_owner("a"));
    let began = Instant::now();
    assert!(matches!(run(&scripts, &bad), Err(ScriptError::TooLong { .. })));
    assert!(began.elapsed() < Duration::from_secs(20));
    is_well(&scripts, &design("function() {}").for_owner("b"), stuck);
    // Another name for the same function does not get the next thread, in no lane.
    let again = design(&format!("{stuck} // again")).for_owner("a");
    let began = Instant::now();
    assert_eq!(run(&scripts, &again), Err(ScriptError::Busy));
    let mapped = scripts.map(Lane::Background, &again, &["bad".to_owned()], vec!["{}".to_owned()]);
    assert_eq!(mapped, Err(ScriptError::Busy));
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn what_the_engine_does_with_long_texts_and_lists_looks_at_the_clock() {
    let scripts = scripts();
    let text = "var t = 'ä'; while (t.length < 2000000) t += t;";
    let list =
        "var l = []; for (var i = 0; i < 100000; i++) l.push({}); var n = l.map(function(x, i) { return 'k' + i });";
    for (before, step) in [
        (text, "JSON.stringify(t)"),
        (text, "JSON.stringify([t])"),
        ("var t = '[' + '1,'.repeat(500000) + '1]';", "JSON.parse(t)"),
        (text, "encodeURIComponent(t)"),
        (text, "escape(t)"),
        (text, "t.toUpperCase()"),
        (text, "String.prototype.toLowerCase.call([t])"),
        (text, "t.normalize('NFD')"),
        (text, "t.slice(1)"),
        (text, "t.localeCompare(t + 'a')"),
        (text, "t.padStart(4000000)"),
        (text, "'ä'.repeat(2000000)"),
        (text, "String.prototype.indexOf.call([t], 'b')"),
        (list, "JSON.stringify(l, n)"),
        (list, "Object.keys(l)"),
        (list, "Object.assign({}, l)"),
        ("var a = new Uint8Array(4000000);", "a.sort()"),
        ("var a = new Uint8Array(4000000);", "a.indexOf(7)"),
        ("var a = new Float64Array(1000000);", "a.slice()"),
    ] {
        let bad = design(&format!("function() {{ {before} for (;;) {step} }}")).for_owner("a");
        let began = Instant::now();
        let error = run(&scripts, &bad).expect_err(step);
        let is_limit = matches!(error, ScriptError::TooLong { .. } | ScriptError::TooMuchMemory { .. });
        assert!(is_limit || matches!(error, ScriptError::Threw { .. }), "{step}: {error}");
        // No thread was lost for it: its owner goes on.
        is_well(&scripts, &bad, step);
        assert!(began.elapsed() < Duration::from_secs(5), "{step}: {:?}", began.elapsed());
    }
}

#[test]
fn guarded_functions_work_as_ever() {
    for (expression, value) in [
        ("'abc'.slice(-2)", json!("bc")),
        ("String.prototype.slice.call(12345, 1, 3)", json!("23")),
        ("'a-b'.split('-')", json!(["a", "b"])),
        ("'a1b2'.replace(/[0-9]/g, '')", json!("ab")),
        ("'abc'.includes('b') && !'abc'.indexOf('a')", json!(true)),
        ("'ab'.match(/b/).index", json!(1)),
        ("'x'.repeat(3) + 'y'.padStart(3, '-') + ' z '.trim()", json!("xxx--yz")),
        (
            "encodeURIComponent('a b') + decodeURIComponent('%C3%A4') + parseInt('ff', 16) + parseFloat('1.5x')",
            json!("a%20bä2551.5"),
        ),
        ("JSON.stringify({a: 1, b: 2}, ['b']) + JSON.stringify([1], null, 1)", json!("{\"b\":2}[\n 1\n]")),
        ("JSON.parse('[1,2]', function(k, v) { return k === '0' ? 7 : v })", json!([7, 2])),
        ("Object.keys({a: 1}).concat(Object.values({a: 2}))", json!(["a", 2])),
        ("Object.assign({a: 1}, null, {b: 2})", json!({"a": 1, "b": 2})),
        ("Array.from(new Uint8Array([3, 1, 2]).sort().slice(1))", json!([2, 3])),
        ("(function() { try { String.prototype.trim.call(null) } catch (e) { return e.name } })()", json!("TypeError")),
        ("'abc'.slice.name + 'abc'.slice.length + JSON.parse.length", json!("slice22")),
    ] {
        let design = design(&format!("function() {{ emit({expression}) }}"));
        let mapped = scripts().map(Lane::Request, &design, &["bad".to_owned()], vec!["{}".to_owned()]).unwrap();
        let rows = mapped[0].views[0].as_ref().unwrap_or_else(|error| panic!("{expression}: {error}"));
        assert_eq!(serde_json::from_str::<Value>(&rows[0].0).unwrap(), value, "{expression}");
    }
}

#[test]
fn memory_is_bounded_and_comes_back() {
    let before = resident_bytes();
    for function in [
        "function() { var s = 'x'; for (;;) s += s }",
        "function() { var a = []; for (;;) a.push(a.slice()) }",
        "function() { var a = []; for (;;) a.push({}) }",
        "function() { var a = []; for (;;) try { a.push(new Array(1000).join('y')) } catch (e) {} }",
        "function() { new Uint8Array(1 << 30) }",
        "function() { 'x'.repeat(1 << 29) }",
        "function() { var o = {}; for (var n = 0; ; n++) o['k' + n] = n }",
        "function() { Array.prototype.fill.call({ length: 9007199254740991 }, 1) }",
        "function() { var m = new Map(); for (var n = 0; ; n++) m.set(n, n) }",
        "function() { var f = []; for (;;) f.push(function() { return f }) }",
        "function() { throw 'x'.repeat(1 << 28) }",
        "function() { var s = Symbol; for (var a = [];;) a.push(s('x')) }",
        "function() { var a = [];  for (;;) a = [a, a] }",
        "function() { var s = 'x'.repeat(1 << 20), a = []; for (var i = 0; i < 1000; i++) a.push(s); throw { forbidden: JSON.stringify(a) } }",
    ] {
        for error in fails(function) {
            assert!(
                matches!(
                    error,
                    ScriptError::TooMuchMemory { .. } | ScriptError::TooLong { .. } | ScriptError::Threw { .. }
                ),
                "{function}: {error}"
            );
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 160 << 20, "{grown} bytes are not given back");
}

#[test]
fn running_out_of_memory_anywhere_ends_no_process() {
    // The engine runs out at another place each time, and must come out of each.
    let work = "function(doc) {
        var keep = [], n = 0;
        for (;;) {
            keep.push({ n: n++, s: 'text ' + n, f: function() { return n }, r: /a(b)c/.exec('xabcx'), d: new Date(n), j: JSON.parse('{\"a\":[1,{\"b\":2}]}') });
            keep.push(new Map([[n, keep]]), JSON.stringify(keep[keep.length - 1]), (function* () { yield keep })(), class { static x = n; y() {} });
            try { null.x } catch (e) { keep.push(e) }
            [..'abc'].map(c => c.toUpperCase()).sort().join(); new Promise(() => keep); keep.push(Symbol('s' + n), BigInt(n) ** 9n, `t${n}`);
        }
    }".replace("[..'abc']", "[...'abc']");
    for step in 0..160 {
        let limits = ScriptLimits {
            memory_bytes: (640 << 10) + step * 3_331,
            time_ms: 2_000,
            threads: 1,
            ..ScriptLimits::default()
        };
        let scripts = Scripts::new(limits);
        let error = run(&scripts, &design(&work)).unwrap_err();
        assert!(
            !matches!(error, ScriptError::Closed | ScriptError::Busy | ScriptError::TooLong { .. }),
            "{step}: {error}"
        );
    }
    // So little that not even the engine starts.
    for step in 0..160 {
        let limits =
            ScriptLimits { memory_bytes: 1 + step * 4_001, time_ms: 2_000, threads: 1, ..ScriptLimits::default() };
        assert!(run(&Scripts::new(limits), &design("function() { for (var a = [];;) a.push({}) }")).is_err());
    }
}

#[test]
fn depth_is_bounded() {
    for function in [
        "function f() { return f() }",
        "function() { var f = function(n) { return [n].map(f) }; f(1) }",
        "function() { var o = {}; o.toString = function() { return '' + o }; return o + '' == 1 }",
        "function() { var o = []; for (var i = 0; i < 200000; i++) o = [o]; JSON.stringify(o) }",
        "function() { JSON.parse(Array(200000).join('[')) }",
        "function() { var o = { toJSON: function() { return JSON.stringify(o) } }; JSON.stringify(o) }",
        "function() { var o = []; for (var i = 0; i < 200000; i++) o = [o]; o.flat(Infinity) }",
        "function() { var o = []; for (var i = 0; i < 200000; i++) o = [o]; return o.toString() == 1 }",
    ] {
        assert!(
            fails(function)
                .iter()
                .all(|error| matches!(error, ScriptError::TooDeep { .. } | ScriptError::Threw { .. })),
            "{function}"
        );
    }
    let deep = format!("{}{}", "[".repeat(300_000), "]".repeat(300_000));
    let (scripts, good) = (scripts(), design("function(doc) { return true }"));
    assert!(matches!(scripts.filter(&good, "bad", vec![deep.clone()], "{}"), Err(ScriptError::TooDeep { .. })));
    let mapped = scripts.map(Lane::Request, &good, &["good".to_owned()], vec![deep, r#"{"ok":1}"#.to_owned()]).unwrap();
    assert_eq!(mapped[0].views[0], Err("called itself too deeply".to_owned()));
    assert!(mapped[1].views[0].is_ok());
    is_well(&scripts, &good, "deep documents");
    // Freeing what is nested deeply is no recursion either.
    let (scripts, nested) = (
        self::scripts(),
        design("function() { var o = {}; for (var i = 0; i < 200000; i++) o = { o: o }; return true }"),
    );
    assert_eq!(run(&scripts, &nested), Ok(vec![true]));
    is_well(&scripts, &nested, "freed");
}

#[test]
fn no_code_is_made_out_of_text() {
    for way in [
        "eval('1')",
        "(0, eval)('1')",
        "globalThis.eval('1')",
        "new Function('return 1')()",
        "Function('return 1')()",
        "(function() {}).constructor('return 1')()",
        "[].map.constructor('return 1')()",
        "({}).constructor.constructor('return 1')()",
        "emit.constructor('return 1')()",
        "(function* () {}).constructor('yield 1')()",
        "(async function() {}).constructor('return 1')()",
        "(async function* () {}).constructor('return 1')()",
        "Object.getPrototypeOf(function* () {}).constructor('return 1')()",
        "Reflect.construct(Function, ['return 1'])()",
        "new (class extends Function {})('return 1')()",
        "require.constructor('return 1')()",
    ] {
        for error in fails(&format!("function() {{ {way}; return true }}")) {
            match error {
                ScriptError::Threw { error, .. } => assert_eq!(error, "EvalError", "{way}"),
                other => panic!("{way}: {other}"),
            }
        }
    }
    let (scripts, imports) = (scripts(), design("function() { import('std'); import('./x'); return true }"));
    assert_eq!(run(&scripts, &imports), Ok(vec![true]));
    is_well(&scripts, &imports, "imports");
}

#[test]
fn what_is_replaced_harms_only_itself() {
    for function in [
        "function() { JSON.parse = JSON.stringify = function() { return 1 }; return true }",
        "function() { Object.prototype.ok = true; Object.prototype.toJSON = function() { return 'x' }; return true }",
        "function() { Array.prototype.push = function() {}; Array.prototype.toJSON = function() { return 'x' }; return true }",
        "function() { Object.defineProperty(Array.prototype, '0', { set: function() {}, get: function() { return 'x' } }); return true }",
        "function() { Object.defineProperty(Object.prototype, 'length', { get: function() { return 7 } }); return true }",
        "function() { Function.prototype.call = Function.prototype.apply = function() {}; return true }",
        "function() { emit = sum = require = undefined; delete globalThis.JSON; delete globalThis.Object; return true }",
        "function() { Object.freeze(globalThis); return true }",
        "function() { Object.setPrototypeOf(Object.prototype.__proto__ || globalThis, null); return true }",
        "function() { for (var k of Object.getOwnPropertyNames(globalThis)) try { globalThis[k] = null } catch (e) {} return true }",
        "function() { Object.defineProperty(globalThis, 'stays', { value: 1 }); return true }",
        "function() { Error.prototype.toString = Symbol.prototype.toString = function() { throw 1 }; return true }",
    ] {
        let (scripts, design) = (scripts(), design(function));
        for _ in 0..3 {
            // Some stumble over themselves; what counts is what the others see.
            let _ = run(&scripts, &design);
            is_well(&scripts, &design, function);
        }
    }
}

#[test]
fn results_that_play_tricks() {
    for (function, passes) in [
        ("function() { return { valueOf: function() { throw 1 } } }", true),
        ("function() { return Symbol('x') }", true),
        ("function() { return 0n }", false),
        ("function() { return document }", false),
        ("function() { return Promise.reject(1) }", true),
        ("async function() { for (;;) {} }", false),
        ("function() { Promise.resolve().then(function() { for (;;) {} }); return true }", true),
        ("function*() { for (;;) {} }", true),
    ] {
        let (scripts, design) = (scripts(), design(function));
        let result = run(&scripts, &design);
        assert_eq!(result.unwrap_or_else(|_| vec![false]), vec![passes], "{function}");
        is_well(&scripts, &design, function);
    }
    let updates = |text: &str| Design::new(&json!({ "updates": { "u": text } }).to_string()).unwrap();
    let scripts = scripts();
    for text in [
        "function() { return { get 0() { throw 'x' } } }",
        "function() { return [{ toJSON: function() { throw 'x' } }, ''] }",
        "function() { return [{ a: 1n }, ''] }",
        "function() { var o = {}; o.o = o; return [o, ''] }",
        "function() { return [null, function() {}] }",
        "function() { return [null, { toJSON: function() {} }] }",
        "function() { return [null, Symbol('x')] }",
        "function() { return [null, 'x'.repeat(17 << 20)] }",
    ] {
        assert!(scripts.update(&updates(text), "u", None, "{}").is_err(), "{text}");
    }
}

#[test]
fn rows_are_bounded() {
    let (scripts, design) = (
        scripts(),
        design(
            "function(doc) { if (doc.much) for (;;) emit(doc._id, 'x'.repeat(10000)); if (doc.many) for (;;) try { emit() } catch (e) { return } if (doc.one) emit('y'.repeat(9 << 20)); emit(1) }",
        ),
    );
    let docs =
        [json!({"much": 1}), json!({"many": 1}), json!({"one": 1}), json!({})].map(|doc| doc.to_string()).to_vec();
    let mapped = scripts.map(Lane::Background, &design, &["bad".to_owned(), "good".to_owned()], docs).unwrap();
    for doc in &mapped[..3] {
        assert!(doc.views[0].as_ref().is_err_and(|message| message.contains("emitted too much")));
        assert_eq!(doc.views[1].as_ref().unwrap().len(), 1);
    }
    assert_eq!(mapped[3].views[0].as_ref().unwrap().len(), 1);
    let large = self::design("function(doc) { emit('y'.repeat(7 << 20)) }");
    // There are answers for as many as one call may have rows.
    let many = scripts.map(Lane::Background, &large, &["bad".to_owned()], vec!["{}".to_owned(); 40]).unwrap();
    assert!((15..25).contains(&many.len()) && many.iter().all(|doc| doc.views[0].is_ok()), "{}", many.len());
    is_well(&scripts, &large, "rows");
}

#[test]
fn one_bad_document_does_not_stop_an_index() {
    let bad = "function(doc) { if (doc.loop) for (;;) {} if (doc.memory) for (var a = [];;) a.push({}); if (doc.deep) (function f() { f() })(); emit(doc.n) }";
    let docs: Vec<Value> = vec![
        json!({"n": 1}),
        json!({"loop": 1}),
        json!({"n": 2}),
        json!({"memory": 1}),
        json!({"n": 3}),
        json!({"deep": 1}),
        json!({"n": 4}),
    ];
    let (scripts, design) = (scripts(), design(bad));
    let mapped = scripts
        .map(
            Lane::Background,
            &design,
            &["bad".to_owned(), "good".to_owned()],
            docs.iter().map(Value::to_string).collect(),
        )
        .unwrap();
    let bad: Vec<_> = mapped.iter().map(|doc| doc.views[0].clone().map(|rows| rows[0].0.clone())).collect();
    let ok = |n: &str| Ok(n.to_owned());
    let err = |text: &str| Err(text.to_owned());
    assert_eq!(
        bad,
        vec![
            ok("1"),
            err("took too long"),
            ok("2"),
            err("used too much memory"),
            ok("3"),
            err("called itself too deeply"),
            ok("4")
        ]
    );
    assert!(mapped[0].views[1].is_ok() && mapped[6].views[1].is_ok());
    // And one bad document does not refuse the others of a bulk.
    let validator =
        Design::new(&json!({ "validate_doc_update": "function(doc) { if (doc.loop) for (;;) {} }" }).to_string())
            .unwrap();
    let cases = docs[..3].iter().map(|doc| ValidateCase { new: doc.to_string(), old: None }).collect();
    let answers = scripts.validate(&validator, cases, "{}", "{}");
    assert!(matches!(&answers[..], [Ok(()), Err(Refusal::Error(ScriptError::TooLong { .. })), Ok(())]), "{answers:?}");
}

#[test]
fn a_batch_that_is_too_long_everywhere_ends_soon() {
    let scripts = Scripts::new(ScriptLimits { time_ms: 50, ..ScriptLimits::default() });
    let slow = design("function(doc) { for (;;) {} }");
    let (began, docs) = (Instant::now(), vec!["{}".to_owned(); 1_000]);
    let mapped = scripts.map(Lane::Background, &slow, &["bad".to_owned()], docs).unwrap();
    assert!(mapped.len() == 3 && mapped.iter().all(|doc| doc.costly), "{}", mapped.len());
    assert!(began.elapsed() < Duration::from_secs(5));
    is_well(&scripts, &slow, "slow");
}

#[test]
fn a_batch_that_is_slow_everywhere_is_answered_in_parts() {
    let scripts = Scripts::new(ScriptLimits { time_ms: 60, ..ScriptLimits::default() });
    let slow = design("function(doc) { for (var end = Date.now() + 20; Date.now() < end;) {} emit(1) }");
    for _ in 0..4 {
        let mapped = scripts.map(Lane::Background, &slow, &["bad".to_owned()], vec!["{}".to_owned(); 1_000]).unwrap();
        assert!((3..500).contains(&mapped.len()), "{}", mapped.len());
        assert!(mapped.iter().filter(|doc| doc.views[0].is_err()).count() <= 3);
    }
}

#[test]
fn what_a_client_sends_rests_no_function() {
    let validator = "function(doc, old, user) { if (doc.loop) for (;;) {} }";
    let design = Design::new(&json!({ "validate_doc_update": validator }).to_string()).unwrap();
    let scripts = Scripts::new(ScriptLimits { time_ms: 50, ..ScriptLimits::default() });
    let ask = |user: Value, doc: String| {
        let case = ValidateCase { new: doc, old: None };
        scripts.validate(&design, vec![case], &json!({ "name": user }).to_string(), "{}").remove(0)
    };
    // Too large for the memory that it may have, whatever the validator does.
    let bomb = format!("{{\"x\":[{}[]]}}", "[],".repeat(2_500_000));
    for _ in 0..4 {
        let refused = ask(json!("ann"), bomb.clone());
        assert!(matches!(refused, Err(Refusal::Error(ScriptError::TooMuchMemory { .. }))), "{refused:?}");
    }
    assert_eq!(ask(json!("ann"), "{}".to_owned()), Ok(()));
    // Who drives it to its limits rests alone.
    for _ in 0..3 {
        assert!(matches!(
            ask(json!("ann"), r#"{"loop":1}"#.to_owned()),
            Err(Refusal::Error(ScriptError::TooLong { .. }))
        ));
    }
    assert!(matches!(ask(json!("ann"), "{}".to_owned()), Err(Refusal::Error(ScriptError::Resting { .. }))));
    assert_eq!(ask(json!("bob"), "{}".to_owned()), Ok(()));
    assert_eq!(ask(Value::Null, "{}".to_owned()), Ok(()));
}

#[test]
fn a_filter_rests_for_those_who_drive_it_to_its_limits() {
    let filter = design("function(doc, req) { if (req.body) for (;;) {} return true }");
    let scripts = Scripts::new(ScriptLimits { time_ms: 50, ..ScriptLimits::default() });
    let ask = |user: &str, body: bool| {
        let req = json!({ "body": body, "userCtx": { "name": user, "roles": [] } }).to_string();
        scripts.filter(&filter, "bad", vec!["{}".to_owned()], &req)
    };
    for _ in 0..3 {
        assert!(matches!(ask("ann", true), Err(ScriptError::TooLong { .. })));
    }
    assert!(matches!(ask("ann", false), Err(ScriptError::Resting { .. })));
    assert_eq!(ask("bob", false), Ok(vec![true]));
}

#[test]
fn texts_that_are_hard_to_compile() {
    let one_of_many = (0..20_000).map(|n| format!("function f{n}() {{ return {n} }}\n")).collect::<String>();
    let texts = [
        format!("function(doc) {{ return {}1{} }}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("function(doc) {{ return {}1 }}", "-".repeat(200_000).replace("--", "- ")),
        format!("function(doc) {{ {} }}", "{".repeat(100_000)),
        format!("function(doc) {{ return [{}] }}", "1,".repeat(200_000)),
        format!("function(doc) {{ return 1 }}\n{one_of_many}"),
        format!("function(doc) {{ {} }}", (0..30_000).map(|n| format!("var v{n} = {n};")).collect::<String>()),
        format!("function(doc) {{ {} }}", (0..10_000).map(|n| format!("let v{n};")).collect::<String>()),
        format!("function(doc) {{ return `{}` }}", "${`".repeat(20_000)),
        format!("function(doc) {{ return {} }}", "x=>".repeat(20_000)),
        format!("function(doc) {{ return /{}/ }}", "(?:a".repeat(50_000)),
        "function(doc) { return '\u{0}\u{2028}' == 1 }".to_owned(),
        format!("function(doc) {{ return '{}' }}", "x".repeat(2 << 20)),
        "\u{0}".to_owned(),
        "function(doc) { return 1 } \u{0}".to_owned(),
    ];
    let scripts = scripts();
    for text in texts {
        let (design, began) = (design(&text), Instant::now());
        let compiled = scripts.compile(&design, &[FunctionName::Filter("bad".to_owned())]);
        assert!(!matches!(compiled, Err(ScriptError::Closed | ScriptError::Busy)), "{}", &text[..40.min(text.len())]);
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?} {}",
            began.elapsed(),
            &text[..text.floor_char_boundary(60)]
        );
        is_well(&scripts, &design, "compiled");
    }
}

#[test]
fn one_owner_does_not_starve_another() {
    let scripts = Scripts::new(ScriptLimits { time_ms: 30_000, threads: 3, ..ScriptLimits::default() });
    let ended = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 0..6 {
            let endless = design(&format!("function() {{ for (;;) {{}} /* {n} */ }}")).for_owner("a");
            let (scripts, ended) = (&scripts, &ended);
            scope.spawn(move || {
                assert!(run(scripts, &endless).is_err());
                ended.fetch_add(1, Ordering::SeqCst);
            });
        }
        let good = design("function() { return true }").for_owner("b");
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(500) {
            assert_eq!(run(&scripts, &good), Ok(vec![true]));
        }
        assert_eq!(ended.load(Ordering::SeqCst), 0, "it had to wait");
        scripts.close();
    });
}

#[test]
fn what_a_design_document_keeps_is_bounded() {
    let keeps = "(function() { var kept = []; return function(doc) { kept.push('x'.repeat(2 << 20)); return kept.length < 6 } })()";
    let (scripts, design) = (Scripts::new(ScriptLimits { threads: 1, ..ScriptLimits::default() }), design(keeps));
    // Some times it may keep its two megabytes, then it begins anew: it never has six of them.
    for round in 0..12 {
        assert_eq!(run(&scripts, &design), Ok(vec![true]), "{round}");
    }
    is_well(&scripts, &design, keeps);
}

#[test]
fn what_fails_again_and_again_rests() {
    let scripts = Scripts::new(ScriptLimits { time_ms: 50, ..ScriptLimits::default() });
    let endless = design("function() { for (;;) {} }");
    for _ in 0..3 {
        assert!(matches!(run(&scripts, &endless), Err(ScriptError::TooLong { .. })));
    }
    let began = Instant::now();
    match run(&scripts, &endless) {
        Err(ScriptError::Resting { for_ms, .. }) => assert!(for_ms > 0 && for_ms <= 1_000),
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() < Duration::from_millis(50));
    is_well(&scripts, &endless, "resting");
    // It is tried again.
    let deadline = Instant::now() + Duration::from_secs(10);
    while matches!(run(&scripts, &endless), Err(ScriptError::Resting { .. })) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_waits_to_be_run_after_a_call_is_let_go() {
    let scripts = scripts();
    let big = "var big = new Uint8Array(30000000).fill(7);";
    let before = resident_bytes();
    for n in 0..20 {
        for function in [
            format!("function (d) {{ {big} Promise.resolve(big).then(function () {{ return big; }}); return true; }}"),
            format!("function (d) {{ {big} function f() {{ Promise.resolve(big).then(f); }} f(); return true; }}"),
            format!(
                "function (d) {{ {big} function f() {{ Promise.resolve(big).then(f); for (;;); }} Promise.resolve(big).then(f); return true; }}"
            ),
            format!("function (d) {{ {big} (async function () {{ for (;;) await big; }})(); return true; }}"),
        ] {
            // Each time another one, so that none is kept from the call before.
            assert_eq!(run(&scripts, &design(&format!("{function} // {n}"))), Ok(vec![true]), "{function}");
        }
    }
    // Eighty calls with 30 MB each; some is still with the threads.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 400 << 20, "{grown}");
}
