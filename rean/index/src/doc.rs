//! A document as map functions get it.

use crate::spec::IndexDoc;
use rean_store::{IndexLive, digest_text};
use serde_json::{Map, Value, json};

/// A live document with `_id`, `_rev`, its conflicts, stubs of its attachments and, if wanted, the sequence of its change
/// (<https://docs.couchdb.org/en/stable/replication/conflicts.html#view-map-functions>).
pub(crate) fn index_doc(id: &str, live: &IndexLive, local_seq: Option<u64>) -> IndexDoc {
    let rev = live.rev.to_string();
    let mut json = format!("{{\"_id\":{},\"_rev\":\"{rev}\"", Value::from(id));
    if let Some(seq) = local_seq {
        json.push_str(&format!(",\"_local_seq\":{seq}"));
    }
    for (name, revs) in [("_conflicts", &live.conflicts), ("_deleted_conflicts", &live.deleted_conflicts)] {
        if !revs.is_empty() {
            let revs: Vec<String> = revs.iter().map(ToString::to_string).collect();
            json.push_str(&format!(",\"{name}\":{}", Value::from(revs)));
        }
    }
    if !live.body.attachments.is_empty() {
        let stub = |attachment: &rean_store::Attachment| {
            let stub = json!({
                "content_type": attachment.content_type,
                "revpos": attachment.revpos,
                "digest": digest_text(&attachment.digest_md5),
                "length": attachment.length,
                "stub": true,
            });
            (attachment.name.clone(), stub)
        };
        let stubs: Map<String, Value> = live.body.attachments.iter().map(stub).collect();
        json.push_str(&format!(",\"_attachments\":{}", Value::from(stubs)));
    }
    // The members of the body, which is an object without blanks around it.
    let body = String::from_utf8_lossy(&live.body.json);
    let members = body.trim().strip_prefix('{').unwrap_or("}");
    if members.trim_start() != "}" {
        json.push(',');
    }
    json.push_str(members);
    IndexDoc { id: id.to_owned(), rev, json }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rean_store::{Attachment, Body, Rev};

    #[test]
    fn all_that_functions_look_at_is_there() {
        let rev: Rev = "2-0123456789abcdef0123456789abcdef".parse().unwrap();
        let first: Rev = "1-0123456789abcdef0123456789abcdef".parse().unwrap();
        let body = Body { attachments: Vec::new(), json: r#"{"a":[1]}"#.into() };
        let mut live =
            IndexLive { rev: rev.clone(), body, place: None, conflicts: Vec::new(), deleted_conflicts: Vec::new() };
        let parsed = |live: &IndexLive, seq| serde_json::from_str::<Value>(&index_doc("x\"y", live, seq).json).unwrap();
        let rev = "2-0123456789abcdef0123456789abcdef";
        assert_eq!(parsed(&live, None), json!({"_id": "x\"y", "_rev": rev, "a": [1]}));
        live.body.json = "{}".into();
        assert_eq!(parsed(&live, Some(7)), json!({"_id": "x\"y", "_rev": rev, "_local_seq": 7}));
        live.body.attachments.push(Attachment {
            name: "f.txt".to_owned(),
            content_type: "text/plain".to_owned(),
            digest_md5: [0; 16],
            length: 3,
            revpos: 2,
            blob: 1,
        });
        let stub = json!({"content_type": "text/plain", "revpos": 2, "digest": "md5-AAAAAAAAAAAAAAAAAAAAAA==", "length": 3, "stub": true});
        assert_eq!(parsed(&live, None)["_attachments"]["f.txt"], stub);
        (live.conflicts, live.deleted_conflicts) = (vec![first.clone()], vec![first]);
        let other = json!([live.conflicts[0].to_string()]);
        let doc = parsed(&live, None);
        assert_eq!((&doc["_conflicts"], &doc["_deleted_conflicts"]), (&other, &other));
    }
}
