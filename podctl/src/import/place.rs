//! How far a copy is, kept in a `_local` document of the target: it goes where the target goes, and with it.

use anyhow::Context;
use http::{Method, StatusCode};
use rean::replicate::peer::Peer;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::server::ask;

/// Hex digits of the name: enough that two sources don't meet.
const DIGITS: usize = 32;

/// How far a copy is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Of the `_local` document.
    #[serde(rename = "_rev", default, skip_serializing_if = "Option::is_none")]
    rev: Option<String>,
    /// Where from, for people.
    pub source: String,
    /// All changes up to this one are at the target, but for design documents.
    pub since: Value,
    /// Whether the settings are: they are set once, so that what somebody changes at the target stays.
    pub settings: bool,
    /// Whether this copy made the target.
    pub made: bool,
}

/// The name of a copy's place.
pub fn name(server: &str, uuid: &str, db: &str, instance: &str) -> String {
    let all = serde_json::json!([server, uuid, db, instance]).to_string();
    format!("/_local/adea-copy-{}", &hex::encode(Sha256::digest(all))[..DIGITS])
}

impl Place {
    /// Where a copy begins.
    pub fn start(source: &str, made: bool) -> Self {
        Self { source: source.to_owned(), since: 0.into(), made, ..Self::default() }
    }

    /// Reads it; none if there is none.
    ///
    /// # Errors
    /// When the target can't be asked.
    pub async fn read(target: &Peer, name: &str) -> anyhow::Result<Option<Self>> {
        let answer = ask(target, &Method::GET, name, None).await?;
        match answer.status {
            StatusCode::OK => Ok(serde_json::from_slice(&answer.body).ok()),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(target.fault("reading how far the copy is", &answer).into()),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the target doesn't take it; also when another copy writes the same.
    pub async fn write(&mut self, target: &Peer, name: &str) -> anyhow::Result<()> {
        let body = serde_json::to_value(&*self).context("a place can't be written")?;
        let answer = ask(target, &Method::PUT, name, Some(&body)).await?;
        if answer.status == StatusCode::CONFLICT {
            anyhow::bail!("{}: another copy of the same database is under way", target.shown());
        }
        if !answer.status.is_success() {
            return Err(target.fault("marking how far the copy is", &answer).into());
        }
        let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        self.rev = told.get("rev").and_then(Value::as_str).map(str::to_owned);
        Ok(())
    }
}
