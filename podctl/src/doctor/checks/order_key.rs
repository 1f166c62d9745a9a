//! Whether orders of upgrades count on this machine, and whether the key that signs them is kept well.

use super::HERE;
use crate::doctor::facts::OrderKeyFacts;
use crate::doctor::finding::Finding;

const CHECK: &str = "orders";

/// What is found about the key.
pub fn order_key(facts: &OrderKeyFacts) -> Vec<Finding> {
    let path = &facts.path;
    let Some(trusted) = &facts.trusted else {
        return vec![Finding::warn(
            CHECK,
            HERE,
            "the ring file has no key for orders: an earlier version has written it",
            "the pod follows no order of an upgrade, as it can't tell who has signed it",
            "podctl upgrade key: it says what to do here",
        )];
    };
    let mut findings = Vec::new();
    if let Some(key) = &facts.awaited {
        findings.push(Finding::bad(
            CHECK,
            HERE,
            "orders count here only from a time on that is yet to come: some clock was wrong when the machine got its key",
            "the pod refuses the orders of machines whose clocks are right",
            format!("set this machine's clock (timedatectl set-ntp true), then: podctl upgrade key --trust {key}"),
        ));
    }
    let Some((rights, private)) = &facts.private else {
        findings.push(Finding::well(
            CHECK,
            HERE,
            format!("the pod follows the orders of {trusted}, which are signed elsewhere"),
        ));
        return findings;
    };
    if rights.mode & 0o077 != 0 {
        findings.push(Finding::bad(
            CHECK,
            HERE,
            format!("{path} can be read or changed by others (mode {:o})", rights.mode),
            "whoever reads it can put programs on all machines of the ring",
            format!("chmod 600 {path}; if others have been on this machine: podctl upgrade key --replace"),
        ));
    }
    match private {
        Err(why) => findings.push(Finding::warn(
            CHECK,
            HERE,
            why.clone(),
            "no upgrade can be ordered with it",
            "bring it back from a copy, or podctl upgrade key --replace",
        )),
        Ok(fingerprint) if fingerprint != trusted => findings.push(Finding::warn(
            CHECK,
            HERE,
            format!("{path} is the key {fingerprint}, and the pod follows the orders of {trusted}"),
            "what it signs is refused here",
            format!("delete {path}, if the key was replaced on another machine; `podctl upgrade key` shows more"),
        )),
        Ok(_) => findings.push(Finding::well(CHECK, HERE, format!("orders of upgrades are signed here, with {path}"))),
    }
    findings
}
