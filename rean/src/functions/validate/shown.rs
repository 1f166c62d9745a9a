//! Documents as a validator is shown them, in CouchDB's form.

use std::io::Write;

use rean_store::json::push_string;
use rean_store::{
    Attachment, AttachmentEdit, AttachmentEditSource, Body, Db, Edit, Mode, OldRevision, Rev, digest_text,
};

use crate::render;

/// The new document: `_rev` and `_revisions` are those that it came with, the parent's if the store is to name it.
/// `inherited`: what its attachment stubs may mean.
pub fn new_document(edit: &Edit, mode: Mode, inherited: &[Attachment]) -> String {
    let came_with: &[Rev] = match mode {
        Mode::Interactive => edit.parent.as_slice(),
        Mode::Replicated => &edit.history,
    };
    let mut out = Vec::with_capacity(edit.body.len() + 256);
    out.extend_from_slice(b"{\"_id\":");
    push_string(&mut out, &edit.id);
    if let Some(rev) = came_with.first() {
        render::push_rev(&mut out, b",\"_rev\":", rev);
    }
    if edit.body.len() > 2 {
        out.push(b',');
        out.extend_from_slice(&edit.body[1..edit.body.len() - 1]);
    }
    if edit.deleted {
        out.extend_from_slice(b",\"_deleted\":true");
    }
    push_revisions(&mut out, came_with);
    if !edit.attachments.is_empty() {
        let generation = match mode {
            Mode::Interactive => edit.parent.as_ref().map_or(1, |rev| rev.generation.saturating_add(1)),
            Mode::Replicated => edit.history.first().map_or(1, |rev| rev.generation),
        };
        out.extend_from_slice(b",\"_attachments\":{");
        for (n, attachment) in edit.attachments.iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            push_attachment(&mut out, attachment, generation, inherited);
        }
        out.push(b'}');
    }
    out.push(b'}');
    text(out)
}

/// The stored revision that the new one follows.
pub fn old_document(db: &Db, id: &str, old: &OldRevision, body: Option<&Body>) -> String {
    let mut out = Vec::new();
    if let Some(rev) = old.history.first() {
        render::push_plain(&mut out, id, rev, old.deleted, body);
        out.pop();
    }
    let most = usize::try_from(db.revs_limit()).unwrap_or(usize::MAX);
    push_revisions(&mut out, &old.history[..old.history.len().min(most)]);
    out.push(b'}');
    text(out)
}

fn push_revisions(out: &mut Vec<u8>, history: &[Rev]) {
    // Writing to a vector can't fail.
    let _ = write!(out, ",\"_revisions\":{{\"start\":{},\"ids\":[", history.first().map_or(0, |rev| rev.generation));
    for (n, rev) in history.iter().enumerate() {
        render::push_rev(out, if n == 0 { b"" } else { b"," }, &rev.hash);
    }
    out.extend_from_slice(b"]}");
}

fn push_attachment(out: &mut Vec<u8>, edit: &AttachmentEdit, generation: u64, inherited: &[Attachment]) {
    push_string(out, &edit.name);
    let kind = edit.content_type.as_deref();
    match &edit.source {
        AttachmentEditSource::Blob(blob) => {
            let revpos = edit.revpos.unwrap_or(generation).min(generation);
            let kind = kind.unwrap_or("application/octet-stream");
            push_stub(out, kind, revpos, &blob.digest_md5(), blob.length());
        }
        AttachmentEditSource::Existing(stored) => {
            push_stub(out, &stored.content_type, generation, &stored.digest_md5, stored.length);
        }
        AttachmentEditSource::Stub { digest } => {
            let is_meant = |stored: &&Attachment| {
                stored.name == edit.name
                    && digest.as_ref().is_none_or(|digest| *digest == digest_text(&stored.digest_md5))
            };
            match inherited.iter().find(is_meant) {
                Some(stored) => {
                    push_stub(out, &stored.content_type, stored.revpos, &stored.digest_md5, stored.length);
                }
                // The store will refuse it.
                None => out.extend_from_slice(b":{\"stub\":true}"),
            }
        }
    }
}

fn push_stub(out: &mut Vec<u8>, kind: &str, revpos: u64, md5: &[u8; 16], length: u64) {
    out.extend_from_slice(b":{\"content_type\":");
    push_string(out, kind);
    let digest = digest_text(md5);
    let _ = write!(out, ",\"revpos\":{revpos},\"digest\":\"{digest}\",\"length\":{length},\"stub\":true}}");
}

/// All of it was made of text.
fn text(out: Vec<u8>) -> String {
    String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::new_document;
    use rean_store::{AttachmentEdit, AttachmentEditSource, Edit, Mode, Rev};
    use serde_json::{Value, json};

    fn edit(parent: Option<&str>, history: &[&str]) -> Edit {
        let rev = |text: &str| text.parse::<Rev>().expect("a revision");
        Edit {
            id: "a\"b".to_owned(),
            parent: parent.map(rev),
            history: history.iter().map(|text| rev(text)).collect(),
            deleted: false,
            body: r#"{"x":1}"#.into(),
            access: None,
            attachments: Vec::new(),
        }
    }

    fn shown(edit: &Edit, mode: Mode) -> Value {
        serde_json::from_str(&new_document(edit, mode, &[])).expect("JSON")
    }

    #[test]
    fn a_new_document_is_shown_with_what_it_came_with() {
        let first = shown(&edit(None, &[]), Mode::Interactive);
        assert_eq!(first, json!({"_id": "a\"b", "x": 1, "_revisions": {"start": 0, "ids": []}}));
        let next = shown(&edit(Some("2-bb"), &[]), Mode::Interactive);
        assert_eq!(next["_rev"], "2-bb");
        assert_eq!(next["_revisions"], json!({"start": 2, "ids": ["bb"]}));
        let mut replicated = edit(None, &["2-bb", "1-aa"]);
        replicated.deleted = true;
        replicated.body = "{}".into();
        let source = AttachmentEditSource::Stub { digest: None };
        replicated.attachments = vec![AttachmentEdit { name: "f".into(), content_type: None, revpos: None, source }];
        let shown = shown(&replicated, Mode::Replicated);
        let expected = json!({
            "_id": "a\"b", "_rev": "2-bb", "_deleted": true, "_revisions": {"start": 2, "ids": ["bb", "aa"]},
            "_attachments": {"f": {"stub": true}},
        });
        assert_eq!(shown, expected);
    }
}
