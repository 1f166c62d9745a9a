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
        ("objs", "function(d){ var a={}; for(var i=0;;i++) a['k'+i]={a:a}; }"),
        ("symbols", "function(d){ for(var i=0;;i++) Symbol.for('k'+i); }"),
    ] {
        let before = rss();
        for i in 0..12 {
            let _r = s.filter(&d(&format!("{f} // {i}"), n), "f", vec!["{}".into()], "{}");
            if i == 0 {
                println!("{_r:?}");
            }
        }
        println!("{n}: rss {before} -> {}", rss());
    }
}
