use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};
use serde_json::{Map, Value, json};

use super::{
    AttachmentSource, IncomingAttachment, IncomingDoc, MAX_ATTACHMENTS, MAX_BULK_DOCUMENTS, MAX_HISTORY, MAX_ID_BYTES,
    parse_document, parse_documents,
};

fn parse(text: &str) -> IncomingDoc {
    parse_document(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The error's name and reason.
fn refusal(text: &str) -> (&'static str, String) {
    let error = parse_document(text.as_bytes()).expect_err(text);
    assert_eq!(error.status(), 400, "{text}");
    (error.error(), error.reason())
}

fn body(doc: &IncomingDoc) -> &str {
    std::str::from_utf8(&doc.body).unwrap()
}

#[test]
fn special_members_are_taken_out() {
    let doc = parse(
        r#" { "_id": "a", "z": 9007199254740993, "_rev": "2-b", "_deleted": true, "access": ["x" , "y"],
            "in": {"_zork": 1}, "_revs_info": [], "_conflicts": 5, "_deleted_conflicts": [], "_local_seq": 3,
            "_replication_state": "error" } "#,
    );
    assert_eq!(doc.id.as_deref(), Some("a"));
    assert_eq!(doc.rev.as_ref().unwrap().to_string(), "2-b");
    assert!(doc.deleted && doc.revisions.is_none() && doc.attachments.is_none());
    assert_eq!(doc.access.as_deref(), Some(r#"["x" , "y"]"#));
    assert_eq!(
        body(&doc),
        r#"{"z":9007199254740993,"access":["x","y"],"in":{"_zork":1},"_replication_state":"error"}"#
    );
    assert_eq!(parse("{}").body, b"{}");
    assert_eq!(body(&parse(r#"{"a":1,"b":0,"a":2,"_deleted":false}"#)), r#"{"a":2,"b":0}"#);
}

#[test]
fn what_is_no_document_is_refused() {
    for text in ["", "{", "{\"a\":1,}", "\"", "\0", "{\"s\":\"\\ud800\"}", "[1", "{\"a\":1} x"] {
        assert_eq!(refusal(text), ("bad_request", "invalid UTF-8 JSON".to_owned()));
    }
    for text in ["[]", "\"x\"", " 1", "null", "true"] {
        assert_eq!(refusal(text), ("bad_request", "Document must be a JSON object".to_owned()));
    }
    for bytes in [&[0xff][..], &[0xed, 0xa0, 0x80], &[0xc0, 0xaf]] {
        let text = [b"{\"s\":\"", bytes, b"\"}"].concat();
        assert_eq!(parse_document(&text).unwrap_err().error(), "bad_request");
    }
}

#[test]
fn bad_special_members_are_refused() {
    let long = format!("_{}", "x".repeat(5000));
    assert_eq!(refusal(r#"{"_zork":1}"#).1, "Bad special document member: _zork");
    assert_eq!(refusal(&format!("{{\"{long}\":1}}")).1.len(), "Bad special document member: ".len() + 100);
    for text in [
        r#"{"_deleted":"x"}"#,
        r#"{"_deleted":null}"#,
        r#"{"\u005fzork":1}"#,
        r#"{"_":1}"#,
        r#"{"_attachments":"x"}"#,
        r#"{"_revisions":"x"}"#,
        r#"{"_revisions":{"start":"x","ids":1}}"#,
        r#"{"_revisions":{"start":1}}"#,
        r#"{"_revisions":{"start":1,"ids":["a","b"]}}"#,
        r#"{"_revisions":{"start":1,"ids":[]}}"#,
        r#"{"_revisions":{"start":-1,"ids":["a"]}}"#,
        r#"{"_revisions":{"start":2,"ids":["a",2]}}"#,
    ] {
        assert_eq!(refusal(text).0, "doc_validation", "{text}");
    }
    for text in [
        r#"{"_rev":7}"#,
        r#"{"_rev":null}"#,
        r#"{"_rev":"zork"}"#,
        r#"{"_rev":"1-"}"#,
        r#"{"_rev":"x-abc"}"#,
        r#"{"_rev":"-1-abc"}"#,
        r#"{"_rev":"0-x"}"#,
        r#"{"_revisions":{"start":2,"ids":["a b","c"]}}"#,
    ] {
        assert_eq!(refusal(text), ("bad_request", "Invalid rev format".to_owned()), "{text}");
    }
}

#[test]
fn ids_are_checked() {
    let long = format!(r#"{{"_id":"{}"}}"#, "x".repeat(MAX_ID_BYTES + 1));
    for text in [
        r#"{"_id":5}"#,
        r#"{"_id":""}"#,
        r#"{"_id":"_x"}"#,
        r#"{"_id":"_design/"}"#,
        r#"{"_id":"_local/"}"#,
        r#"{"_id":"_design"}"#,
        r#"{"_id":"a\u0000"}"#,
        &long,
    ] {
        assert_eq!(refusal(text).0, "illegal_docid", "{text}");
    }
    for id in ["_design/x", "_local/x", "a/b", "..", "Zoë漢字😀", "a b+c%?#&", "\"'`\\"] {
        assert_eq!(parse(&json!({ "_id": id }).to_string()).id.as_deref(), Some(id));
    }
}

#[test]
fn local_revisions_are_numbers() {
    let doc = parse(r#"{"_id":"_local/x","_rev":"0-12"}"#);
    assert_eq!((doc.rev, doc.local_rev), (None, Some(12)));
}

#[test]
fn histories_are_newest_first_and_bounded() {
    let doc = parse(r#"{"_rev":"3-c","_revisions":{"start":3,"ids":["c","b"]}}"#);
    let texts = |doc: &IncomingDoc| doc.revisions.iter().flatten().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&doc), ["3-c", "2-b"]);
    let doc = parse(r#"{"_revisions":{"ids":["c","b"],"start":3}}"#);
    assert_eq!(doc.rev.unwrap().to_string(), "3-c");
    assert_eq!(parse(r#"{"_revisions":{"start":0,"ids":[]}}"#).revisions, None);

    let ids: Vec<String> = (0..MAX_HISTORY + 5).map(|n| n.to_string()).collect();
    let doc = parse(&json!({ "_revisions": { "start": ids.len(), "ids": ids } }).to_string());
    assert_eq!(texts(&doc).len(), MAX_HISTORY);
    assert_eq!(texts(&doc)[0], format!("{}-0", ids.len()));
}

#[test]
fn attachments_keep_their_order_and_members() {
    let doc = parse(
        r#"{"_attachments":{"z":{"content_type":"text/plain","data":"AA\u003d\/"},
            "dir/\u00fc":{"stub":true,"revpos":2,"digest":"md5-x","length":3,"extra":[]},
            "f":{"follows":true,"length":9,"encoded_length":5,"encoding":"gzip"},"g":{"follows":true,"stub":false}}}"#,
    );
    let attachments = doc.attachments.unwrap();
    let names: Vec<_> = attachments.iter().map(|attachment| attachment.name.as_str()).collect();
    assert_eq!(names, ["z", "dir/ü", "f", "g"]);
    assert_eq!(attachments[0].source, AttachmentSource::Inline("AA=/".to_owned()));
    assert_eq!(
        attachments[1],
        IncomingAttachment {
            name: "dir/ü".to_owned(),
            content_type: None,
            revpos: Some(2),
            digest: Some("md5-x".to_owned()),
            encoding: None,
            length: Some(3),
            source: AttachmentSource::Stub,
            file: None,
        }
    );
    assert_eq!(attachments[2].source, AttachmentSource::Follows { length: Some(5) });
    assert_eq!(attachments[2].encoding.as_deref(), Some("gzip"));
    assert_eq!(attachments[3].source, AttachmentSource::Follows { length: None });
    assert_eq!(parse(r#"{"_attachments":{}}"#).attachments, Some(Vec::new()));
}

#[test]
fn bad_attachments_are_refused() {
    assert_eq!(
        refusal(r#"{"_attachments":{"_x":{"data":""}}}"#),
        ("bad_request", "Attachment name '_x' starts with prohibited character '_'".to_owned())
    );
    for entry in [
        r#""x":"x""#,
        r#""x":null"#,
        r#""x":{}"#,
        r#""x":{"data":1}"#,
        r#""":{"data":""}"#,
        r#""a\u0000":{"data":""}"#,
        r#""x":{"stub":"yes"}"#,
        r#""x":{"stub":true,"revpos":"1"}"#,
        r#""x":{"stub":true,"length":-1}"#,
        r#""x":{"data":"","content_type":1}"#,
        r#""x":{"data":null}"#,
    ] {
        assert_eq!(refusal(&format!("{{\"_attachments\":{{{entry}}}}}")).0, "bad_request", "{entry}");
    }
    let many: Map<String, Value> = (0..=MAX_ATTACHMENTS).map(|n| (n.to_string(), json!({ "stub": true }))).collect();
    let text = json!({ "_attachments": many }).to_string();
    assert_eq!(parse_document(text.as_bytes()).unwrap_err().status(), 413);
}

#[test]
fn batches_are_split_without_change() {
    let bulk = parse_documents(r#"{"new_edits":false,"docs":[ {"_id": "a"} , {}],"other":1}"#).unwrap();
    assert_eq!(bulk.docs, [r#"{"_id": "a"}"#, "{}"]);
    assert!(!bulk.new_edits);
    let empty = parse_documents(r#"{"docs":[]}"#).unwrap();
    assert!(empty.docs.is_empty() && empty.new_edits);
}

#[test]
fn bad_batches_are_refused() {
    for (text, reason) in [
        ("{}", "POST body must include `docs` parameter."),
        (r#"{"docs":{"a":1}}"#, "`docs` parameter must be an array."),
        (r#"{"docs":null}"#, "`docs` parameter must be an array."),
        (r#"{"docs":[{},1]}"#, "Document must be a JSON object"),
        (r#"{"docs":[],"new_edits":1}"#, "`new_edits` parameter must be a boolean."),
        ("[]", "Request body must be a JSON object"),
        ("null", "Request body must be a JSON object"),
        ("{\"docs\":[", "invalid UTF-8 JSON"),
        ("", "invalid UTF-8 JSON"),
    ] {
        let error = parse_documents(text).unwrap_err();
        assert_eq!((error.error(), error.reason().as_str()), ("bad_request", reason), "{text}");
    }
    let many = format!("{{\"docs\":[{}{{}}]}}", "{},".repeat(MAX_BULK_DOCUMENTS));
    assert_eq!(parse_documents(&many).unwrap_err().status(), 413);
}

#[test]
fn depth_is_no_danger() {
    let deep = format!("{{\"v\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(body(&parse(&deep)), deep);
    for member in ["_id", "_rev", "_attachments", "_revisions"] {
        let text = format!("{{\"{member}\":{}1{}}}", "{\"ids\":".repeat(100_000), "}".repeat(100_000));
        assert!(parse_document(text.as_bytes()).is_err());
    }
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<Option<bool>>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        "\\PC{0,8}|[\"\\\\ \\n\\t]{0,4}".prop_map(|value| json!(value)),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((any::<String>(), inner), 0..4).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..60), text in "[\\[\\]{}\",:\\\\_dirvstu0-9 ]{0,60}") {
        for bytes in [&bytes[..], text.as_bytes()] {
            if let Ok(doc) = parse_document(bytes) {
                serde_json::from_slice::<Value>(&doc.body).unwrap();
            }
        }
        let _ = parse_documents(&text).is_ok();
    }

    #[test]
    fn arbitrary_special_members_never_panic(value in values(), other in values()) {
        for key in ["_id", "_rev", "_deleted", "_revisions", "_attachments"] {
            let _ = parse_document(json!({ key: &value }).to_string().as_bytes()).is_ok();
        }
        let _ = parse_document(json!({ "_attachments": { "f": &value } }).to_string().as_bytes()).is_ok();
        let _ = parse_document(json!({ "_attachments": { "f": { "data": value } } }).to_string().as_bytes()).is_ok();
        let _ = parse_document(json!({ "_revisions": { "start": 2, "ids": other } }).to_string().as_bytes()).is_ok();
    }

    #[test]
    fn bodies_mean_what_was_sent(members in vec(("[^_]\\PC{0,6}|[\"\\\\ \\n]{0,3}", values()), 0..6), pretty in any::<bool>()) {
        let members: Map<String, Value> = members.into_iter().collect();
        let mut sent = members.clone();
        sent.insert("_id".to_owned(), json!("a"));
        sent.insert("_deleted".to_owned(), json!(true));
        let sent = Value::Object(sent);
        let text = if pretty { serde_json::to_string_pretty(&sent).unwrap() } else { sent.to_string() };
        let doc = parse_document(text.as_bytes()).unwrap();
        prop_assert_eq!(doc.access.map(|text| serde_json::from_str::<Value>(&text).unwrap()), members.get("access").cloned());
        prop_assert_eq!(String::from_utf8(doc.body).unwrap(), Value::Object(members).to_string());
    }
}
