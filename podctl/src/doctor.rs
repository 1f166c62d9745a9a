//! `podctl doctor`: common faults, found and explained.
//!
//! [`gather`] asks the ring and looks at this machine; [`checks`] are functions of what was found, each of which says
//! what is wrong, why that matters and what to do.

mod checks;
mod engine;
mod facts;
mod finding;
mod gather;

use serde_json::{Value, json};

use crate::command::doctor::Args;
use crate::exit;
use crate::look::ask::say;
use crate::paint::Paint;
use finding::{Finding, Level};

/// Looks, and tells.
///
/// # Errors
/// Also when something is wrong, after it has been told.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let facts = gather::gather(args).await;
    let findings = checks::all(&facts);
    let bad = findings.iter().filter(|finding| finding.level == Level::Bad).count();
    if args.ask.json {
        let rows: Vec<Value> = findings.iter().map(Finding::json).collect();
        say(&format!("{}\n", json!({"well": bad == 0, "findings": rows})))?;
    } else {
        say(&finding::text(&findings, args.verbose, Paint::stdout()))?;
    }
    match bad {
        0 => Ok(()),
        1 => Err(exit::not_well("1 thing is wrong")),
        count => Err(exit::not_well(format!("{count} things are wrong"))),
    }
}
