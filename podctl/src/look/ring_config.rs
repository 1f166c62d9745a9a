//! The ring's configuration as a document that several operators may change at once.

use adea_ring::RingConfig;
use anyhow::{Context, bail};
use http::{Method, StatusCode};
use serde_json::{Map, Value};

use crate::exit::Refused;
use crate::http::{Conn, excerpt};
use crate::ring::documents;

/// Where it is.
const PATH: &str = "/_ring/config";
/// Tries to change it while others do.
const TRIES: usize = 5;

/// The document, without what the database adds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RingSettings {
    /// What somebody has set.
    pub members: Map<String, Value>,
    rev: Option<String>,
}

impl RingSettings {
    /// Reads it; nothing is set where there is none.
    ///
    /// # Errors
    /// When the pod doesn't answer with one.
    pub async fn read(conn: &mut Conn) -> anyhow::Result<Self> {
        let Some(Value::Object(mut members)) = documents::get(conn, PATH).await? else { return Ok(Self::default()) };
        let rev = members.get("_rev").and_then(Value::as_str).map(str::to_owned);
        members.retain(|name, _| !name.starts_with('_'));
        Ok(Self { members, rev })
    }

    /// Writes it, after the check that a pod makes too; whether nobody else has changed it meanwhile.
    ///
    /// # Errors
    /// When a member is wrong, which the error names, or the pod refuses it.
    pub async fn write(&self, conn: &mut Conn) -> anyhow::Result<bool> {
        check(&self.members)?;
        let mut doc = self.members.clone();
        if let Some(rev) = &self.rev {
            doc.insert("_rev".to_owned(), rev.as_str().into());
        }
        let (status, body) = conn.send(Method::PUT, PATH, Value::Object(doc).to_string()).await?;
        match status {
            StatusCode::CONFLICT => Ok(false),
            status if status.is_success() => Ok(true),
            status => bail!(Refused { method: Method::PUT, path: PATH.to_owned(), status, excerpt: excerpt(&body) }),
        }
    }

    /// Changes it, again and again until nobody else has changed it meanwhile.
    ///
    /// # Errors
    /// What `edit` says, or when others change it all the time.
    pub async fn change(
        conn: &mut Conn,
        edit: impl Fn(&mut Map<String, Value>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        for _ in 0..TRIES {
            let before = Self::read(conn).await?;
            let mut after = before.clone();
            edit(&mut after.members)?;
            if after == before || after.write(conn).await? {
                return Ok(after);
            }
        }
        bail!("somebody else changes the ring's configuration at this moment: try again")
    }
}

/// Whether it can be used.
///
/// # Errors
/// The member that is wrong.
pub fn check(members: &Map<String, Value>) -> anyhow::Result<RingConfig> {
    RingConfig::parse(&Value::Object(members.clone())).context("the ring's configuration")
}
