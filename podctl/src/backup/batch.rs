//! Writes documents of a backup: small ones together, those with large attachments one by one, streamed.

use std::sync::Arc;

use anyhow::{Context, bail};
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use rean::backup::format::Leaf;
use rean::multipart::{Attachment, PartWriter};
use rean::replicate::carry::Tally as _;
use rean::replicate::peer::{Peer, Sent, doc_path};
use rean_store::json::{push_string, scan_object};
use serde_json::{Value, json};

use super::stream::Records;
use crate::import::patience::patiently;
use crate::import::tally::Tally;

/// Documents of one request.
const BATCH_DOCS: usize = 500;
/// Their bytes, unless one alone is larger.
const BATCH_BYTES: usize = 4 << 20;
/// Attachments of a document up to this size together, in bytes, come with it, in Base64.
const INLINE_BYTES: u64 = 256 << 10;
/// Room that Base64 and the names around it take.
const MARGIN_BYTES: usize = 256;

/// Writes into one database.
pub struct Batch {
    target: Arc<Peer>,
    tally: Arc<Tally>,
    docs: Vec<Vec<u8>>,
    bytes: usize,
}

impl Batch {
    /// Nothing written yet.
    pub fn new(target: Arc<Peer>, tally: Arc<Tally>) -> Self {
        Self { target, tally, docs: Vec::new(), bytes: 0 }
    }

    /// Writes a leaf, now or with others; its attachments are read on from `records`.
    ///
    /// # Errors
    /// When the pod can't be asked, or the backup not be read. A document that the pod refuses is counted.
    pub async fn take(&mut self, text: Vec<u8>, records: &Records) -> anyhow::Result<()> {
        let leaf: Leaf<'_> = serde_json::from_slice(&text).context("a document of the backup has another form")?;
        let attached = leaf.attachments.iter().map(|(_, stub, _)| stub.length).fold(0, u64::saturating_add);
        self.count(attached.saturating_add(text.len() as u64));
        if leaf.attachments.is_empty() {
            return self.add(text).await;
        }
        if attached <= INLINE_BYTES {
            let mut data = Vec::with_capacity(leaf.attachments.len());
            for (_, stub, _) in &leaf.attachments {
                data.push(collect(records, stub.length).await?);
            }
            let doc = with_attachments(&text, &leaf, Some(&data))?;
            return self.add(doc).await;
        }
        // In order with what came before.
        self.flush().await?;
        self.upload(&text, &leaf, records).await
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// When the pod can't be asked.
    pub async fn flush(&mut self) -> anyhow::Result<()> {
        self.bytes = 0;
        let mut waiting = vec![std::mem::take(&mut self.docs)];
        while let Some(mut docs) = waiting.pop() {
            if docs.is_empty() {
                continue;
            }
            let body = Bytes::from([&b"{\"new_edits\":false,\"docs\":["[..], &docs.join(&b','), b"]}"].concat());
            let answer = patiently(|| async {
                let answer = self.target.ask(Method::POST, "/_bulk_docs", Some(Sent::json(body.clone()))).await?;
                match answer.status {
                    StatusCode::TOO_MANY_REQUESTS => Err(self.target.fault("writing documents", &answer)),
                    status if status.is_server_error() => Err(self.target.fault("writing documents", &answer)),
                    _ => Ok(answer),
                }
            })
            .await?;
            if answer.status.is_success() {
                self.count_written(docs.len() as u64, &answer.body);
            } else if !matches!(answer.status.as_u16(), 400 | 413 | 422) {
                return Err(self.target.fault("writing documents", &answer).into());
            } else if docs.len() > 1 {
                let second = docs.split_off(docs.len() / 2);
                waiting.extend([second, docs]);
            } else {
                let id = docs.first().map(|doc| id_of(doc)).unwrap_or_default();
                self.tally.refused(&id, &self.target.fault("writing it", &answer).to_string());
            }
        }
        Ok(())
    }

    async fn add(&mut self, doc: Vec<u8>) -> anyhow::Result<()> {
        if !self.docs.is_empty() && self.bytes + doc.len() > BATCH_BYTES {
            self.flush().await?;
        }
        self.bytes += doc.len();
        self.docs.push(doc);
        if self.docs.len() >= BATCH_DOCS { self.flush().await } else { Ok(()) }
    }

    fn count(&self, bytes: u64) {
        let mut progress = self.tally.progress().lock();
        progress.stats.read += 1;
        progress.stats.bytes = progress.stats.bytes.saturating_add(bytes);
    }

    fn count_written(&self, sent: u64, answer: &[u8]) {
        let rows: Vec<Value> = serde_json::from_slice(answer).unwrap_or_default();
        let mut refused = 0;
        for row in rows.iter().filter(|row| row.get("error").is_some_and(|error| !error.is_null())) {
            let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
            self.tally.refused(text("id"), &format!("{}: {}", text("error"), text("reason")));
            refused += 1;
        }
        self.tally.progress().lock().stats.written += sent.saturating_sub(refused);
    }

    /// Streams a document with its attachments. What is read from the file can't be sent again, so there is one try.
    async fn upload(&self, text: &[u8], leaf: &Leaf<'_>, records: &Records) -> anyhow::Result<()> {
        let mut parts = PartWriter::new();
        let content_type = parts.content_type("related");
        let doc = with_attachments(text, leaf, None)?;
        let mut first = parts.part(&[("Content-Type", "application/json")]).to_vec();
        first.extend_from_slice(&doc);
        let mut length = first.len() as u64;
        let mut pieces = vec![(Bytes::from(first), 0)];
        for (name, stub, _) in &leaf.attachments {
            let head = parts.attachment(Attachment {
                name,
                content_type: &stub.content_type,
                length: stub.length,
                encoding: None,
            });
            length += head.len() as u64 + stub.length;
            pieces.push((head, stub.length));
        }
        let end = parts.end();
        length += end.len() as u64;
        pieces.push((end, 0));
        let sent = Sent {
            content_type: HeaderValue::try_from(content_type).context("the boundary can't be sent")?,
            length,
            body: stream(pieces, records.clone()),
        };
        let path = format!("{}?new_edits=false", doc_path(&leaf.id));
        let answer = self.target.ask(Method::PUT, &path, Some(sent)).await?;
        match answer.status.as_u16() {
            200..300 => self.tally.progress().lock().stats.written += 1,
            // The pod has read no further than to its refusal, so the place in the file is lost.
            _ => bail!("{:?} with its attachments: {}", leaf.id, self.target.fault("writing it", &answer)),
        }
        Ok(())
    }
}

/// Text, and behind each so many bytes of the backup.
fn stream(pieces: Vec<(Bytes, u64)>, records: Records) -> Body {
    let state = (pieces.into_iter(), 0_u64, records);
    Body::from_stream(futures_util::stream::try_unfold(state, |(mut pieces, left, records)| async move {
        if left > 0 {
            let piece = records.piece().await.map_err(|error| std::io::Error::other(format!("{error:#}")))?;
            let left = left.checked_sub(piece.len() as u64);
            let left = left.ok_or_else(|| std::io::Error::other("an attachment of the backup is too long"))?;
            return Ok::<_, std::io::Error>(Some((Bytes::from(piece), (pieces, left, records))));
        }
        Ok(pieces.next().map(|(text, behind)| (text, (pieces, behind, records))))
    }))
}

/// So many bytes of the backup.
pub async fn collect(records: &Records, length: u64) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    while (out.len() as u64) < length {
        out.extend_from_slice(&records.piece().await?);
    }
    Ok(out)
}

/// The document with its attachments as they are sent: with their data, or as ones that follow. Without digests: the pod
/// makes them anew.
fn with_attachments(text: &[u8], leaf: &Leaf<'_>, data: Option<&[Vec<u8>]>) -> anyhow::Result<Vec<u8>> {
    let text = std::str::from_utf8(text).context("a document of the backup is no text")?;
    let more: usize = data.map_or(0, |data| data.iter().map(|data| data.len() * 4 / 3 + MARGIN_BYTES).sum());
    let mut out = Vec::with_capacity(text.len() + more);
    for member in scan_object(text).map_err(|_| anyhow::anyhow!("a document of the backup has another form"))? {
        out.push(if out.is_empty() { b'{' } else { b',' });
        push_string(&mut out, &member.key);
        out.push(b':');
        if member.key != "_attachments" {
            out.extend_from_slice(member.value.as_bytes());
            continue;
        }
        for (n, (name, stub, _)) in leaf.attachments.iter().enumerate() {
            out.push(if n == 0 { b'{' } else { b',' });
            push_string(&mut out, name);
            let mut members = json!({"content_type": stub.content_type, "revpos": stub.revpos});
            match data.and_then(|data| data.get(n)) {
                Some(data) => members["data"] = STANDARD.encode(data).into(),
                None => {
                    members["follows"] = true.into();
                    members["length"] = stub.length.into();
                }
            }
            out.push(b':');
            out.extend_from_slice(members.to_string().as_bytes());
        }
        out.push(b'}');
    }
    out.push(b'}');
    Ok(out)
}

fn id_of(doc: &[u8]) -> String {
    serde_json::from_slice::<Value>(doc)
        .ok()
        .and_then(|doc| Some(doc.get("_id")?.as_str()?.to_owned()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::with_attachments;
    use rean::backup::format::Leaf;
    use serde_json::{Value, json};

    #[test]
    fn attachments_come_along_or_follow() {
        let text = json!({"_id": "x", "_rev": "1-a", "_attachments": {
            "b": {"content_type": "t/b", "length": 1, "revpos": 2, "digest": "md5-x", "follows": true},
            "a": {"content_type": "t/a", "length": 2, "revpos": 1, "digest": "md5-y", "follows": true}}, "n": 1.50});
        let text = text.to_string();
        let leaf: Leaf<'_> = serde_json::from_str(&text).unwrap();
        let made = |data: Option<&[Vec<u8>]>| -> Value {
            serde_json::from_slice(&with_attachments(text.as_bytes(), &leaf, data).unwrap()).unwrap()
        };
        let follows = made(None);
        assert_eq!(
            follows["_attachments"]["b"],
            json!({"content_type": "t/b", "revpos": 2, "follows": true, "length": 1})
        );
        let names: Vec<&String> = follows["_attachments"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["b", "a"]);
        let inline = made(Some(&[b"x".to_vec(), b"yz".to_vec()]));
        assert_eq!(inline["_attachments"]["a"], json!({"content_type": "t/a", "revpos": 1, "data": "eXo="}));
        assert_eq!((&inline["_id"], &inline["n"]), (&json!("x"), &json!(1.5)));
    }
}
