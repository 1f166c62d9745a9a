//! The settings of the ring, put in force: `_ring/config`, `_ring/keyring`, `_ring/node_config` and `w` of the apps.

use std::sync::Arc;
use std::time::Duration;

use adea_ring::config::{CONFIG_ID, PodState};
use adea_ring::node_config::NODE_CONFIG_ID;
use adea_ring::report::RingState;
use adea_ring::{PodId, RingConfig};
use rean_store::{Edit, StoreError};
use serde_json::{Map, Value};

use crate::apps;
use crate::error::ApiError;
use crate::node_config;
use crate::pod::Pod;
use crate::ring::app_w;
use crate::ring::follow::{Follow, Occasion};
use crate::ring::ring_doc::{self, ring_db};
use crate::workers::Stop;

/// The id of the document of the gossip's keys.
pub const KEYRING_ID: &str = "keyring";
/// A look without being told, in case one was missed.
const PAUSE: Duration = Duration::from_secs(60);

/// Checks an edit of one of these documents before it is stored.
///
/// # Errors
/// 400 naming the member that is wrong.
pub fn check(edit: &Edit) -> Result<(), ApiError> {
    let read = || serde_json::from_slice::<Value>(&edit.body).map_err(|_| ApiError::invalid_json());
    match edit.id.as_str() {
        CONFIG_ID => {
            RingConfig::parse(&read()?).map(|_| ()).map_err(|error| ApiError::bad_request(format!("config: {error}")))
        }
        KEYRING_ID => {
            let doc = read()?;
            for member in ["keys", "primary"] {
                if doc.get(member).is_none() {
                    return Err(ApiError::bad_request(format!("keyring: `{member}` is missing")));
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Refuses settings under which no pod of this ring could become write master: as writes go there, they could not be
/// changed any more. Nor may the last live pod that takes clients be removed or set inactive: its clients would have
/// nowhere to go, and what only it has would be lost.
///
/// # Errors
/// 400 naming the member that is wrong.
pub fn check_electable(pod: &Pod, edit: &Edit) -> Result<(), ApiError> {
    if edit.id != CONFIG_ID || edit.deleted {
        return Ok(());
    }
    let doc = serde_json::from_slice(&edit.body).map_err(|_| ApiError::invalid_json())?;
    let config = RingConfig::parse(&doc).map_err(|error| ApiError::bad_request(format!("config: {error}")))?;
    if pod.ring.is_alone() && config.state_of(pod.ring.me()) != PodState::Active {
        return Err(ApiError::bad_request("config: `pods`: this pod has no ring that could do without it"));
    }
    let Some(state) = pod.ring.state() else { return Ok(()) };
    check_states(pod, &state, &config)?;
    let members = state.members.iter().map(|known| &known.member).filter(|member| !member.left);
    let mut members = members.filter(|member| config.state_of(&member.id) != PodState::Removed);
    if members.all(|member| config.election.never.contains(&member.id)) {
        return Err(ApiError::bad_request("config: `election.never` names all pods: none could take writes"));
    }
    Ok(())
}

/// Refuses states of pods that leave no live one active, if this changes any.
fn check_states(pod: &Pod, state: &RingState, config: &RingConfig) -> Result<(), ApiError> {
    let is_active = |id: &PodId| config.state_of(id) == PodState::Active;
    let mut live = state.members.iter().map(|known| &known.member).filter(|member| member.alive);
    if pod.ring.config().pods == config.pods || live.any(|member| is_active(&member.id)) {
        return Ok(());
    }
    let reason = "config: `pods`: no pod that is there now would be active: set another one active first";
    Err(ApiError::bad_request(reason))
}

/// Keeps the settings in force until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let mut follow = Follow::new(&pod)?;
    let is_setting = |id: &str| matches!(id, CONFIG_ID | KEYRING_ID | NODE_CONFIG_ID) || id.starts_with(apps::PREFIX);
    loop {
        let for_pass = Arc::clone(&pod);
        tokio::task::spawn_blocking(move || pass(&for_pass))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        if follow.next(PAUSE, &mut stop, is_setting).await == Occasion::End {
            return Ok(());
        }
    }
}

/// Puts the settings in force. Blocking.
///
/// # Errors
/// When the store fails.
pub fn pass(pod: &Pod) -> Result<(), StoreError> {
    let ring = ring_db(pod)?;
    let config = ring_doc::live(&ring, CONFIG_ID)?.map(|leaf| leaf.body).unwrap_or_default();
    put_in_force(pod, config)?;
    pod.ring.set_keyring(ring_doc::live(&ring, KEYRING_ID)?.map(|leaf| leaf.body.into()));
    node_config::load(pod)?;
    app_w::load(pod)
}

/// A configuration that can't be read leaves the one before it in force, and of a later version's what this one knows is
/// put in force; both are told of in this pod's status.
fn put_in_force(pod: &Pod, doc: Map<String, Value>) -> Result<(), StoreError> {
    let records = &pod.ring.records;
    let error = match RingConfig::read(&Value::Object(doc)) {
        Ok((config, unknown)) => {
            records.stamps.set_max_drift(&pod.store, config.clock.max_drift_ms)?;
            pod.ring.set_config(config);
            let unknown = unknown.iter().map(|member| format!("`{member}`")).collect::<Vec<_>>().join(", ");
            (!unknown.is_empty())
                .then(|| format!("this pod's version does not know {unknown}: upgrade the pod; all else is in force"))
        }
        Err(error) => Some(format!("{error}; the configuration before it stays in force")),
    };
    let mut known = records.config_error.write();
    if *known != error {
        if let Some(reason) = &error {
            tracing::error!(reason, "the ring's configuration can't be used as it is");
        }
        *known = error;
        records.status.notify_one();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::ring::ring_doc;
    use serde_json::json;

    #[test]
    fn settings_are_checked_by_name() {
        let edit = |id: &str, body: serde_json::Value| ring_doc::edit(id, None, body.as_object().expect("an object"));
        let error = check(&edit("config", json!({"write": {"w": 0}}))).expect_err("refused");
        assert_eq!(error.status, 400);
        assert!(error.reason.contains("write.w"), "{}", error.reason);
        assert!(check(&edit("config", json!({"write": {"w": 2}}))).is_ok());
        let error = check(&edit("keyring", json!({"keys": []}))).expect_err("refused");
        assert!(error.reason.contains("primary"), "{}", error.reason);
        assert!(check(&edit("keyring", json!({"keys": [], "primary": "x"}))).is_ok());
        assert!(check(&edit("else", json!({"write": 5}))).is_ok());
    }
}
