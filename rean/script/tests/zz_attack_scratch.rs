#![allow(missing_docs)]
use rean_script::*;
fn rss() -> usize { std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096 >> 20 }
fn d(f: &str, owner: &str) -> Design {
    Design::new(&serde_json::json!({"_id":"_design/x","filters":{"f": f},"validate_doc_update": f}).to_string()).unwrap().for_owner(owner)
}
#[test]
fn leak2() {
    let s = Scripts::new(ScriptLimits { threads: 1, time_ms: 500, ..ScriptLimits::default() });
    for (n, f) in [
        ("forever", "function(d){ var big=new Uint8Array(30000000); function f(){ Promise.resolve(big).then(f); for(;;); } Promise.resolve(big).then(f); return true; }"),
        ("again", "function(d){ var big=new Uint8Array(30000000); function f(){ Promise.resolve(big).then(f); } Promise.resolve(big).then(f); return true; }"),
        ("asyncloop", "function(d){ var big=new Uint8Array(30000000); async function f(){ for(;;) await big; } f(); return true; }"),
        ("chain", "function(d){ var p=Promise.resolve(1); for (var i=0;i<20000;i++) p=p.then(); return true; }"),
        ("async oom", "function(d){ var a=[]; for(;;) a.push((async function(){ await a })()); }"),
    ] {
        let before = rss();
        for i in 0..3 {
            let t = std::time::Instant::now();
            let r = s.filter(&d(&format!("{f} // {i}"), n), "f", vec!["{}".into()], "{}");
            eprintln!("{r:?} {:?}", t.elapsed());
        }
        eprintln!("{n}: rss {before} -> {}", rss());
    }
}
