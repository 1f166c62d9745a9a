//! What a database has beside its documents: `_revs_limit` before them, as it cuts their histories; `_security` after
//! them, so that nobody but administrators sees a half.

use http::{Method, StatusCode};
use rean::replicate::peer::Peer;
use serde_json::Value;

use super::choice::{Choice, Way};
use super::copy::Ends;
use super::server::ask;

/// The most that a pod takes.
const MAX_REVS_LIMIT: u64 = 10_000;

/// Sets what must be set before the documents come.
///
/// # Errors
/// When an end can't be asked.
pub async fn before(ends: &Ends<'_>, source: &Peer, target: &Peer, choice: &Choice) -> anyhow::Result<()> {
    let answer = ask(source, &Method::GET, "/_revs_limit", None).await?;
    // Not every server has one.
    let Some(limit) = serde_json::from_slice::<u64>(&answer.body).ok().filter(|_| answer.status.is_success()) else {
        return Ok(());
    };
    let taken = if ends.options.way == Way::In { limit.clamp(1, MAX_REVS_LIMIT) } else { limit };
    if taken != limit {
        ends.teller.note(&choice.to, &format!("`_revs_limit` is {limit} there, and becomes {taken}"));
    }
    let answer = ask(target, &Method::PUT, "/_revs_limit", Some(&taken.into())).await?;
    if !answer.status.is_success() {
        ends.teller.note(&choice.to, &format!("`_revs_limit` {limit} was not taken: {}", answer.status));
    }
    Ok(())
}

/// Sets what is set when the documents are there.
///
/// # Errors
/// When an end can't be asked.
pub async fn after(ends: &Ends<'_>, source: &Peer, target: &Peer, choice: &Choice) -> anyhow::Result<()> {
    let answer = ask(source, &Method::GET, "/_security", None).await?;
    let security = serde_json::from_slice::<Value>(&answer.body).ok().filter(Value::is_object);
    let Some(security) = security.filter(|_| answer.status.is_success()) else {
        ends.teller.note(&choice.to, "the source does not tell its `_security`: only administrators get in for now");
        return Ok(());
    };
    if ends.options.as_apps && ends.options.way == Way::In {
        let text = "an app has no `_security`: say who reads and writes with `access` in documents, or in _ring/app:";
        ends.teller.note(&choice.to, &format!("{text}{}", choice.to));
        return Ok(());
    }
    let answer = ask(target, &Method::PUT, "/_security", Some(&security)).await?;
    match answer.status {
        status if status.is_success() => {}
        StatusCode::FORBIDDEN => {
            ends.teller.note(&choice.to, "is an app at the target: its `_security` there is left out");
        }
        _ => {
            let why = target.fault("setting `_security`", &answer);
            ends.teller.note(&choice.to, &format!("{why}: only administrators get in for now"));
        }
    }
    Ok(())
}
