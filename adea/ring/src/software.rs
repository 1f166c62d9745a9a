//! Which build this is: the version that all programs tell, set once by the binary that they are in.

use std::sync::OnceLock;

use serde::Serialize;
use serde_json::{Value, json};

static VERSION: OnceLock<&'static str> = OnceLock::new();
static EXTRA: OnceLock<()> = OnceLock::new();
/// A member that no version knows.
const EXTRA_MEMBER: &str = "of_a_later_version";

/// Sets the version that this process tells. Only the first call counts; a binary makes it before anything else.
pub fn set_version(version: &'static str) {
    let _ = VERSION.set(version);
}

/// The version of this build, such as `0.1.0`.
pub fn version() -> &'static str {
    VERSION.get().copied().unwrap_or(env!("CARGO_PKG_VERSION"))
}

/// From now on this process adds members that no version knows to all that it says to other programs: a build of a
/// later version in tests does so, to show that the others bear it.
pub fn set_extra() {
    let _ = EXTRA.set(());
}

/// What is said to another program, which may be of another version, as JSON. `inside`: the members that are objects of a
/// fixed form themselves.
///
/// # Errors
/// When it can't be written as JSON.
pub fn say(what: &impl Serialize, inside: &[&str]) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(what)?;
    if EXTRA.get().is_some() {
        add_extra(&mut value, inside);
    }
    Ok(value)
}

fn add_extra(value: &mut Value, inside: &[&str]) {
    let Value::Object(members) = value else { return };
    members.insert(EXTRA_MEMBER.to_owned(), json!({"form": [1, null, "x"]}));
    for name in inside {
        match members.get_mut(*name) {
            Some(Value::Array(items)) => items.iter_mut().for_each(|item| add_extra(item, inside)),
            Some(inner) => add_extra(inner, inside),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::add_extra;
    use crate::report::{Known, Said};
    use crate::{Member, PodId};

    #[test]
    fn a_row_with_more_members_is_read() {
        let id: PodId = "pod-1".parse().expect("a pod's id");
        let row =
            Known { member: Member::new(id, "here:1", 7), said: Said { url: Some("x".into()), ..Said::default() } };
        let mut value = serde_json::to_value(&row).expect("JSON");
        add_extra(&mut value, &["said"]);
        assert!(value["said"].get(super::EXTRA_MEMBER).is_some() && value.get(super::EXTRA_MEMBER).is_some());
        assert_eq!(serde_json::from_value::<Known>(value).expect("borne"), row);
    }
}
