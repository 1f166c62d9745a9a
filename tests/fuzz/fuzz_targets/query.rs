//! Paths, parameters and the arguments of lists.
#![no_main]

use axum::body::Body;
use libfuzzer_sys::fuzz_target;
use rean::list_args::ListArgs;
use rean::query::Query;
use rean::route::Request;
use rean::views::args::ViewArgs;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (raw, body) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(query) = Query::parse(Some(raw)) {
        for (name, _) in query.pairs() {
            assert!(query.get(name).is_some());
            let _ = (query.bool(name), query.flag(name), query.u64(name), query.json::<serde_json::Value>(name));
        }
        let _ = ListArgs::from_query(&query);
        let _ = ListArgs::from_body(&query, body.as_bytes());
        let _ = ListArgs::queries(&query, body.as_bytes());
        let _ = ViewArgs::from_query(&query).map(|args| args.check(true));
        let _ = ViewArgs::from_body(&query, body.as_bytes());
        let _ = ViewArgs::queries(&query, body.as_bytes());
    }
    if let Ok(request) = http::Request::builder().uri(raw).body(Body::empty())
        && let Ok(request) = Request::from_http(request)
    {
        assert!(request.segments.iter().all(|segment| !segment.is_empty()), "an empty segment");
    }
});
