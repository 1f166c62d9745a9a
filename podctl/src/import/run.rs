//! All databases that were chosen, one after the other.

use anyhow::{Context, bail};
use serde_json::json;

use super::choice::{Way, Wish, choose};
use super::copy::{Ends, Options, Outcome, copy};
use super::server::Server;
use super::teller::{Teller, size};

/// Copies. What is done is marked, so that it can be gone on with.
///
/// # Errors
/// What stopped it; at the end, if documents were refused or the sides differ.
pub async fn run(
    source: &Server,
    target: &Server,
    wish: &Wish,
    options: Options,
    teller: &Teller,
) -> anyhow::Result<()> {
    let source_is = source.welcome().await?;
    let target_is = target.welcome().await?;
    if source.shown() == target.shown() || (source_is.uuid == target_is.uuid && !source_is.uuid.is_empty()) {
        bail!("both ends are the same server");
    }
    let pod = if options.way == Way::In { &target_is } else { &source_is };
    if !pod.is_pod {
        bail!("{} is no pod", pod.shown);
    }
    let all = if wish.databases.is_empty() { Some(source.databases().await?) } else { None };
    let choices = choose(wish, all.as_deref(), options.way)?;
    teller.say(&format!("from {} to {}: {} databases", source_is.shown, target_is.shown, choices.len()));
    teller.event(
        &json!({"event": "begin", "source": source_is.shown, "target": target_is.shown, "databases": choices.len()}),
    );
    let ends = Ends { source, source_is: &source_is, target, options, teller };
    let mut sum = Outcome::default();
    let mut differences = 0;
    for choice in &choices {
        let outcome = copy(&ends, choice).await.with_context(|| {
            format!("{} is not done; what is done is marked: give --continue to go on from there", choice.from)
        })?;
        tell(teller, &choice.to, &outcome);
        sum.documents += outcome.documents;
        sum.written += outcome.written;
        sum.refused += outcome.refused;
        differences += outcome.differences.unwrap_or(0);
    }
    teller.event(&json!({
        "event": "end", "databases": choices.len(), "documents": sum.documents, "written": sum.written,
        "refused": sum.refused, "differences": differences,
    }));
    match (sum.refused, differences) {
        (0, 0) => Ok(()),
        (refused, 0) => bail!("{refused} documents were refused"),
        (0, differences) => bail!("{differences} differences are left"),
        (refused, differences) => bail!("{refused} documents were refused, and {differences} differences are left"),
    }
}

fn tell(teller: &Teller, db: &str, outcome: &Outcome) {
    let Outcome { documents, written, refused, differences, bytes } = *outcome;
    let mut text = format!("{documents} documents, {written} revisions written ({})", size(bytes));
    if refused > 0 {
        text.push_str(&format!(", {refused} refused"));
    }
    match differences {
        Some(0) => text.push_str(", compared"),
        Some(n) => text.push_str(&format!(", {n} differences")),
        None => text.push_str(", not compared"),
    }
    teller.say(&format!("{db}: {text}"));
    teller.event(&json!({
        "event": "done", "db": db, "documents": documents, "written": written, "refused": refused,
        "differences": differences, "bytes": bytes, "compared": differences.is_some(),
    }));
}
