//! The order of an upgrade: what software, for which pods, signed by the ring's operator.
//!
//! An administrator may write any document of `_ring`, and so may each pod's containers; but to put programs on machines
//! is more than to run a database. So an order counts only with a signature by the [key for orders](OrderKey). It covers
//! all members of the document, those of later versions too.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::member::PodId;
use crate::upgrade::{OrderKey, OrderPublicKey, Progress, Step};

/// The form of orders that this version writes, and the newest that it reads.
const FORMAT: u32 = 2;
/// The form of orders that were signed with the ring's secret, which containers hold.
const OLD_FORMAT: u64 = 1;
/// The most pods: as many as rings were tried with.
pub const MAX_PODS: usize = 2_000;
/// A pod has at least so long to be well under the new software, in seconds.
pub const MIN_PATIENCE_S: u64 = 5;
/// The most, in seconds: a day.
pub const MAX_PATIENCE_S: u64 = 86_400;
/// An order counts no more than so much before it was made, in milliseconds: a day. No clock that anybody looks at is so
/// wrong, and one from the year 2100 would keep a pod from all that come after it.
const MAX_AHEAD_MS: u64 = 86_400_000;
/// The longest text in an order, in bytes: a name of an image with a registry, a path and a digest.
const MAX_TEXT_BYTES: usize = 512;

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Of the document's form.
    pub format: u32,
    /// Which: 16 hexadecimal digits.
    pub id: String,
    /// The image that containers are made from; none: the software is a program file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Where the software comes from.
    pub source: Source,
    /// Of the archive or program file, in hexadecimal; with [`Source::Ring`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_sha256: Option<String>,
    /// The same of the order before: it is kept, for a way back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// The version that the software is, in words for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software: Option<String>,
    /// One by one, in this order.
    pub pods: Vec<PodId>,
    /// When it was made, in milliseconds since 1970.
    pub made_at_ms: u64,
    /// How long each pod has to get the new software, and then again to be well under it, in seconds.
    pub patience_s: u64,
    /// Whether it is to be carried out.
    pub state: OrderState,
    /// Whether pods that are busy with another order leave that where it is: the way on when there is no way back.
    #[serde(default, skip_serializing_if = "is_false")]
    pub force: bool,
}

fn is_false(force: &bool) -> bool {
    !force
}

/// Where software comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The document `image:SHA256` of `_ring`.
    Ring,
    /// A registry, by an image's name with its digest.
    Registry,
}

/// Whether an order is to be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// It is.
    Running,
    /// It was called off: who has begun goes back.
    Stopped,
}

/// Why a document is no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A member is missing or wrong.
    #[error("upgrade: {0}")]
    Form(String),
    /// It is of a later version.
    #[error("upgrade: it has the format {0}, and this version knows {FORMAT}: make it with the podctl of this ring")]
    Format(u64),
    /// It is of an earlier version.
    #[error(
        "upgrade: it has the format {OLD_FORMAT}, signed with the ring's secret, which counts no more: order the upgrade \
         anew, with this version's podctl, on the machine that has the ring's order.key"
    )]
    Old,
    /// It isn't signed with the key that is known here.
    #[error(
        "upgrade: it is not signed with the key for orders that this pod knows: order upgrades with `podctl upgrade` on \
         the machine that has the ring's order.key; `podctl upgrade key` shows which key a machine knows"
    )]
    Signature,
    /// No key is known here.
    #[error(
        "upgrade: this pod knows no key for orders, so it follows none: `podctl upgrade key` on its machine says what to do"
    )]
    NoKey,
}

impl Order {
    /// An order to be carried out, with an id of its own.
    pub fn new(source: Source, image: Option<String>, pods: Vec<PodId>, made_at_ms: u64) -> Self {
        Self {
            format: FORMAT,
            id: hex::encode(rand::random::<[u8; 8]>()),
            image,
            source,
            archive_sha256: None,
            previous: None,
            software: None,
            pods,
            made_at_ms,
            patience_s: 300,
            state: OrderState::Running,
            force: false,
        }
    }

    /// Reads a document, whoever has signed it. Members that begin with `_` are the database's own; those that this
    /// version doesn't know don't count.
    ///
    /// # Errors
    /// When it is no order.
    pub fn parse(doc: &Value) -> Result<Self, OrderError> {
        match doc.get("format").and_then(Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(OLD_FORMAT) => return Err(OrderError::Old),
            Some(format) => return Err(OrderError::Format(format)),
            None => return Err(form("`format` is missing")),
        }
        let order = Self::deserialize(doc).map_err(|error| form(&error.to_string()))?;
        order.check()?;
        Ok(order)
    }

    /// Reads a document that has to be signed with the key that is known here.
    ///
    /// # Errors
    /// When it is no order, was not signed so, or no key is known.
    pub fn verify(doc: &Value, key: Option<&OrderPublicKey>) -> Result<Self, OrderError> {
        let order = Self::parse(doc)?;
        let key = key.ok_or(OrderError::NoKey)?;
        let signature = doc.get("signature").and_then(Value::as_str).unwrap_or_default();
        if key.has_signed(&canonical(doc), signature) { Ok(order) } else { Err(OrderError::Signature) }
    }

    /// The document, signed.
    pub fn sign(&self, key: &OrderKey) -> Map<String, Value> {
        let doc = serde_json::to_value(self).unwrap_or_default();
        let signature = key.sign(&canonical(&doc));
        let Value::Object(mut doc) = doc else { return Map::new() };
        doc.insert("signature".to_owned(), signature.into());
        doc
    }

    /// Whether this says later what is to be done than `other`: a replayed order never does.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let key = |order: &Self| (order.made_at_ms, order.id.clone(), order.state);
        key(self) > key(other)
    }

    /// Whether it says that it was made so long after `now_ms`, in milliseconds since 1970, that no pod follows it.
    pub fn is_ahead_of(&self, now_ms: u64) -> bool {
        self.made_at_ms > now_ms.saturating_add(MAX_AHEAD_MS)
    }

    /// The document of `_ring` that holds the software; none when it comes from a registry.
    pub fn archive_id(&self) -> Option<String> {
        self.archive_sha256.as_ref().map(|digest| format!("{}{digest}", super::IMAGE_PREFIX))
    }

    /// Whether there is nothing left to do for any pod; `progress`: what each says, `None` for one that is not waited for.
    pub fn is_settled(&self, progress: impl Fn(&PodId) -> Option<Option<Progress>>) -> bool {
        let said: Vec<Option<Step>> = self
            .pods
            .iter()
            .filter_map(progress)
            .map(|said| said.filter(|said| said.order == self.id).map(|said| said.step))
            .collect();
        let is_back = |step: &Option<Step>| matches!(step, Some(Step::RollingBack | Step::RolledBack));
        if self.state == OrderState::Stopped || said.iter().any(is_back) {
            said.iter().flatten().all(|step| !step.is_busy() && *step != Step::Done)
        } else {
            said.iter().all(|step| *step == Some(Step::Done))
        }
    }

    fn check(&self) -> Result<(), OrderError> {
        if self.id.len() != 16 || !is_hex(&self.id) {
            return Err(form("`id` must be 16 hexadecimal digits"));
        }
        if self.pods.is_empty() || self.pods.len() > MAX_PODS {
            return Err(form("`pods` must be from 1 to 2000"));
        }
        if self.pods.iter().enumerate().any(|(place, pod)| self.pods[..place].contains(pod)) {
            return Err(form("`pods` names one twice"));
        }
        if !(MIN_PATIENCE_S..=MAX_PATIENCE_S).contains(&self.patience_s) {
            return Err(form("`patience_s` must be from 5 to 86400"));
        }
        let is_digest = |digest: &String| digest.len() == 64 && is_hex(digest);
        if ![&self.archive_sha256, &self.previous].into_iter().flatten().all(is_digest) {
            return Err(form("`archive_sha256` and `previous` must be 64 hexadecimal digits"));
        }
        let is_text = |text: &String| {
            (1..=MAX_TEXT_BYTES).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_graphic())
                && !text.starts_with('-')
        };
        if ![&self.image, &self.software].into_iter().flatten().all(is_text) {
            return Err(form("`image` and `software` must be short texts without spaces"));
        }
        match (self.source, &self.archive_sha256, &self.image) {
            (Source::Ring, Some(_), _) => Ok(()),
            (Source::Ring, None, _) => Err(form("`archive_sha256` is missing")),
            (Source::Registry, None, Some(image)) if is_pinned(image) => Ok(()),
            // What a tag names can change between one pod and the next.
            (Source::Registry, None, Some(_)) => Err(form("`image` from a registry must end in @sha256:DIGEST")),
            (Source::Registry, None, None) => Err(form("`image` is missing")),
            (Source::Registry, Some(_), _) => Err(form("`archive_sha256` is only for software in the ring")),
        }
    }
}

/// Whether an image's name says by itself which image it is.
fn is_pinned(image: &str) -> bool {
    image.split_once("@sha256:").is_some_and(|(name, digest)| !name.is_empty() && digest.len() == 64 && is_hex(digest))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn form(reason: &str) -> OrderError {
    OrderError::Form(reason.to_owned())
}

/// What is signed: the document without the signature and the database's own members, as JSON without spaces, its
/// members sorted by name.
fn canonical(doc: &Value) -> String {
    let mut text = String::new();
    if let Value::Object(members) = doc {
        let members = members.iter().filter(|(name, _)| *name != "signature" && !name.starts_with('_'));
        write_object(&mut text, members.collect());
    }
    text
}

fn write_canonical(text: &mut String, value: &Value) {
    match value {
        Value::Object(members) => write_object(text, members.iter().collect()),
        Value::Array(items) => {
            text.push('[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    text.push(',');
                }
                write_canonical(text, item);
            }
            text.push(']');
        }
        // A text can take all of it.
        other => {
            let _ = write!(text, "{other}");
        }
    }
}

fn write_object(text: &mut String, mut members: Vec<(&String, &Value)>) {
    members.sort_by_key(|(name, _)| *name);
    text.push('{');
    for (place, (name, value)) in members.into_iter().enumerate() {
        if place > 0 {
            text.push(',');
        }
        // As above.
        let _ = write!(text, "{}:", Value::from(name.as_str()));
        write_canonical(text, value);
    }
    text.push('}');
}

#[cfg(test)]
mod tests {
    use super::{Order, OrderError, OrderState, Source};
    use crate::upgrade::{OrderKey, Progress, Step};
    use serde_json::{Value, json};

    fn order() -> Order {
        let pods = vec!["a".parse().expect("an id"), "b".parse().expect("an id")];
        Order { archive_sha256: Some("0".repeat(64)), ..Order::new(Source::Ring, None, pods, 1_000) }
    }

    #[test]
    fn a_signed_order_is_read_back() {
        let key = OrderKey::random();
        let mut doc = order().sign(&key);
        doc.insert("_id".to_owned(), "upgrade".into());
        doc.insert("_rev".to_owned(), "1-a".into());
        let read = Order::verify(&Value::Object(doc.clone()), Some(&key.public())).expect("our own");
        assert_eq!((read.pods.len(), read.state), (2, OrderState::Running));
        // Whatever the order of its members: a store may sort them.
        let mut sorted: Vec<_> = doc.clone().into_iter().collect();
        sorted.sort_by(|a, b| b.0.cmp(&a.0));
        assert!(Order::verify(&Value::Object(sorted.into_iter().collect()), Some(&key.public())).is_ok());
        assert_eq!(Order::verify(&Value::Object(doc), Some(&OrderKey::random().public())), Err(OrderError::Signature));
    }

    #[test]
    fn without_a_key_no_order_counts() {
        let doc = Value::Object(order().sign(&OrderKey::random()));
        assert_eq!(Order::verify(&doc, None), Err(OrderError::NoKey));
        let mut old = doc;
        old["format"] = json!(1);
        assert_eq!(Order::verify(&old, None), Err(OrderError::Old));
    }

    #[test]
    fn whoever_changes_anything_can_t_sign_it() {
        let key = OrderKey::random();
        let doc = order().sign(&key);
        for (member, value) in [
            ("state", json!("stopped")),
            ("archive_sha256", json!("1".repeat(64))),
            ("pods", json!(["a"])),
            ("patience_s", json!(301)),
            ("later", json!({"x": 1})),
            ("signature", json!("")),
            ("signature", json!("zz")),
            ("signature", json!(5)),
        ] {
            let mut changed = doc.clone();
            changed.insert(member.to_owned(), value);
            assert_eq!(
                Order::verify(&Value::Object(changed), Some(&key.public())),
                Err(OrderError::Signature),
                "{member}"
            );
        }
        let mut changed = doc.clone();
        changed.remove("signature");
        assert_eq!(Order::verify(&Value::Object(changed), Some(&key.public())), Err(OrderError::Signature));
    }

    #[test]
    fn a_later_version_s_members_are_signed_and_borne() {
        let key = OrderKey::random();
        let mut doc = serde_json::to_value(order()).expect("JSON");
        doc["later"] = json!({"b": [1, {"y": "\u{e9}\n", "x": null}], "a": true});
        let text = super::canonical(&doc);
        assert!(text.contains(r#""later":{"a":true,"b":[1,{"x":null,"y":"é\n"}]}"#), "{text}");
        doc["signature"] = key.sign(&text).into();
        assert!(Order::verify(&doc, Some(&key.public())).is_ok());
        doc["later"]["a"] = json!(false);
        assert_eq!(Order::verify(&doc, Some(&key.public())), Err(OrderError::Signature));
    }

    #[test]
    fn what_is_no_order_is_named() {
        let good = serde_json::to_value(order()).expect("JSON");
        assert!(Order::parse(&good).is_ok());
        let digest = "a".repeat(64);
        for (member, value, named) in [
            ("format", json!(3), "format 3"),
            ("format", json!(1), "order the upgrade anew"),
            ("format", Value::Null, "format"),
            ("id", json!("x"), "`id`"),
            ("id", json!("A".repeat(16)), "`id`"),
            ("pods", json!([]), "`pods`"),
            ("pods", json!(["a", "a"]), "twice"),
            ("pods", json!(["A b"]), "a-z"),
            ("patience_s", json!(4), "patience"),
            ("archive_sha256", json!("../../etc"), "archive_sha256"),
            ("archive_sha256", Value::Null, "archive_sha256"),
            ("previous", json!("x"), "previous"),
            ("image", json!("a b"), "`image`"),
            ("image", json!("--privileged"), "`image`"),
            ("image", json!(""), "`image`"),
            ("software", json!("x".repeat(513)), "`software`"),
            ("source", json!("moon"), "moon"),
            ("source", json!("registry"), "`image` is missing"),
            ("state", json!("paused"), "paused"),
        ] {
            let mut doc = good.clone();
            doc[member] = value;
            if member == "source" {
                doc["archive_sha256"] = Value::Null;
            }
            let error = Order::parse(&doc).expect_err(named).to_string();
            assert!(error.contains(named), "{member}: {error}");
        }
        let mut registry = good.clone();
        (registry["source"], registry["archive_sha256"]) = (json!("registry"), Value::Null);
        registry["image"] = json!("example.org/adea:1");
        assert!(Order::parse(&registry).expect_err("a tag").to_string().contains("@sha256"));
        registry["image"] = json!(format!("example.org/adea@sha256:{digest}"));
        assert!(Order::parse(&registry).is_ok());
        assert!(Order::parse(&json!([])).is_err() && Order::parse(&Value::Null).is_err());
    }

    #[test]
    fn what_comes_later_counts() {
        let first = order();
        let stopped = Order { state: OrderState::Stopped, ..first.clone() };
        let second = Order { made_at_ms: 1_001, ..order() };
        assert!(stopped.is_newer_than(&first) && !first.is_newer_than(&stopped) && !first.is_newer_than(&first));
        assert!(second.is_newer_than(&stopped) && !stopped.is_newer_than(&second));
        assert!(!Order { made_at_ms: super::MAX_AHEAD_MS + 5, ..order() }.is_ahead_of(5));
        let never = Order { made_at_ms: u64::MAX, ..first };
        assert!(never.is_ahead_of(5) && !never.is_ahead_of(u64::MAX));
    }

    #[test]
    fn when_nothing_is_left_to_do() {
        let running = order();
        let stopped = Order { state: OrderState::Stopped, ..running.clone() };
        let settled = |order: &Order, a: Option<Step>, b: Option<Step>| {
            let said = |step: Option<Step>| step.map(|step| Progress { order: order.id.clone(), step, reason: None });
            order.is_settled(|pod| Some(said(if pod.as_str() == "a" { a } else { b })))
        };
        let (done, back, ready) = (Some(Step::Done), Some(Step::RolledBack), Some(Step::Ready));
        assert!(settled(&running, done, done) && !settled(&running, done, ready) && !settled(&running, done, None));
        assert!(settled(&running, ready, back) && !settled(&running, done, back));
        assert!(!settled(&running, ready, Some(Step::RollingBack)));
        assert!(settled(&stopped, ready, None) && !settled(&stopped, done, None));
        assert!(!settled(&stopped, Some(Step::CatchingUp), None));
        assert!(running.is_settled(|_| None), "all are gone");
    }
}
