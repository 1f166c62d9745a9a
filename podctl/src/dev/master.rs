//! Whether the pods agree on who takes the writes.

use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::dev::pods::Pod;
use crate::http::Peer;

/// Long enough for pods that wait for others which don't come (3 s), and for some changes of mind on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// What the pods have come to.
pub struct Agreement {
    /// The pod that takes the writes, as all of them say; none when they have not come to one in time.
    pub master: Option<String>,
    /// What they say instead, for people.
    pub trouble: String,
}

/// Waits until all pods name the same master, or until it is no use to wait longer.
pub async fn until_agreed(pods: &[Pod], name: &str, password: &str) -> anyhow::Result<Agreement> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut said = Vec::new();
        for pod in pods {
            said.push(said_by(&Peer::parse(&pod.url())?.with_login(name, password)?).await);
        }
        if let Some(Ok(first)) = said.first()
            && said.iter().all(|said| said.as_ref() == Ok(first))
        {
            return Ok(Agreement { master: Some(first.clone()), trouble: String::new() });
        }
        if Instant::now() > deadline {
            let lines = pods.iter().zip(said).map(|(pod, said)| match said {
                Ok(master) => format!("{} says {master}", pod.id),
                Err(why) => format!("{}: {why}", pod.id),
            });
            return Ok(Agreement { master: None, trouble: lines.collect::<Vec<_>>().join("; ") });
        }
        sleep(POLL).await;
    }
}

/// Whom a pod takes for the master.
async fn said_by(peer: &Peer) -> Result<String, String> {
    let root = async { peer.connect().await?.expect(Method::GET, "/", "").await };
    let root: Value = root.await.map_err(|err: anyhow::Error| err.to_string())?;
    let about = &root["adea"];
    match about["master"]["pod"].as_str() {
        Some(master) => Ok(master.to_owned()),
        None => Err(format!("no master; it is {}", about["role"].as_str().unwrap_or("silent about its role"))),
    }
}
