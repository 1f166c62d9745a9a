#![allow(missing_docs)]
use rean_script::*;
fn rss() -> usize {
    std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        >> 20
}
fn d(f: &str, owner: &str) -> Design {
    Design::new(&serde_json::json!({"_id":"_design/x","filters":{"f": f},"validate_doc_update": f}).to_string())
        .unwrap()
        .for_owner(owner)
}
#[test]
fn leak2() {
    let s = Scripts::new(ScriptLimits { threads: 2, ..ScriptLimits::default() });
    for (n, f) in [
        (
            "job",
            "function(d){ var big=new Uint8Array(30000000).fill(7); Promise.resolve(big).then(function(){return big}); return true; }",
        ),
        ("asyncfilter", "async function(d){ var big=new Uint8Array(30000000).fill(7); await 1; return big; }"),
        (
            "forever",
            "function(d){ var big=new Uint8Array(30000000).fill(7); function f(){ Promise.resolve(big).then(f); for(;;); } Promise.resolve(big).then(f); return true; }",
        ),
        (
            "thenable",
            "function(d){ var big=new Uint8Array(30000000).fill(7); var t={then:function(r){ r(t); }}; Promise.resolve(t); return true; }",
        ),
        ("chain", "function(d){ var p=Promise.resolve(1); for (var i=0;i<50000;i++) p=p.then(); return true; }"),
        (
            "many",
            "function(d){ for (var i=0;i<100000;i++) Promise.reject(i).then(null,function(){return i}); return true; }",
        ),
        ("gen", "async function*g(){ for(;;) { yield await 1; } } function(d){ return true }"),
        (
            "asyncgen",
            "function(d){ async function*g(){ var big=new Uint8Array(30000000).fill(7); for(;;) { yield await big; } } g().next(); return true }",
        ),
        ("async oom", "function(d){ var a=[]; for(;;) a.push((async function(){ await a })()); }"),
        ("import", "function(d){ import('x'); return true }"),
    ] {
        let before = rss();
        for i in 0..10 {
            let _r = s.filter(&d(&format!("{f} // {i}"), n), "f", vec!["{}".into()], "{}");
            if i == 0 {
                println!("{_r:?}");
            }
        }
        println!("{n}: rss {before} -> {}", rss());
    }
}
