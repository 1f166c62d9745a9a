//! Whether this pod takes clients. One that the operator has set inactive, or has removed, goes on replicating, and
//! sends its clients to the others: new requests get 503, and open feeds end.
//!
//! It is here and not in the proxy, so that each way to the documents is shut, whichever proxy it comes through, and so
//! that the settings are read in one place. Administrators and the pod's own programs are let in, so that it can be set
//! active again; `_session` and `_pods` are there for everyone, so that clients find the other pods, and so is `_join`,
//! as a new pod is no client.

use adea_ring::config::PodState;
use adea_ring::report::RingState;
use adea_ring::{Identity, RingConfig};
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::databases::json_line;
use crate::pod::Pod;
use crate::ring::Ring;
use crate::route::{Request, Response};

/// Seconds after which a client may ask this pod again: an operator needs longer to set it active again, and the other
/// pods are there at once.
const RETRY_AFTER_S: u64 = 10;
/// What is there for everyone.
const OPEN: [&str; 3] = ["_join", "_pods", "_session"];
/// Other pods that are named: a client tries one after the other, and `_pods` has all.
const MAX_NAMED: usize = 20;

/// Whether clients are let in.
#[derive(Debug, Default)]
pub struct Clients {
    turned_away: watch::Sender<bool>,
}

/// Tells a feed when its reader is turned away.
#[derive(Debug, Default)]
pub struct Welcome(Option<watch::Receiver<bool>>);

impl Clients {
    /// Lets clients in, or turns them away from now on.
    pub fn set(&self, are_let_in: bool) {
        self.turned_away.send_if_modified(|away| std::mem::replace(away, !are_let_in) == are_let_in);
    }

    /// Whether clients are turned away.
    pub fn are_turned_away(&self) -> bool {
        *self.turned_away.borrow()
    }

    /// How long somebody's feed of a database may go on.
    pub fn welcome(&self, who: &Identity, db_name: &str) -> Welcome {
        let is_let_in = who.is_admin() || OPEN.contains(&db_name);
        Welcome((!is_let_in).then(|| self.turned_away.subscribe()))
    }
}

impl Welcome {
    /// Whether the reader is still welcome.
    pub fn holds(&self) -> bool {
        self.0.as_ref().is_none_or(|away| !*away.borrow())
    }

    /// Resolves when the reader is turned away.
    pub async fn over(&mut self) {
        if let Some(away) = &mut self.0
            && away.wait_for(|away| *away).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

/// The answer to a client that is turned away; none for all others.
pub fn refusal(pod: &Pod, who: &Identity, request: &Request) -> Option<Response> {
    let is_let_in = request.from_peer.is_some() || who.is_admin() || OPEN.contains(&request.db_name());
    if is_let_in || !pod.ring.clients.are_turned_away() {
        return None;
    }
    let reason = match pod.ring.pod_state() {
        PodState::Removed => "This pod has left its ring: ask another one.",
        PodState::Active | PodState::Inactive => "This pod takes no clients for now: ask another one.",
    };
    let answer = json!({"error": "inactive", "reason": reason, "pods": others(&pod.ring)});
    let mut response = json_line(StatusCode::SERVICE_UNAVAILABLE, &answer);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    Some(response)
}

/// The answer to `GET /_up` of a pod that takes no clients, in the form of CouchDB's maintenance mode
/// (<https://docs.couchdb.org/en/stable/api/server/common.html#up>); none while it takes them.
pub fn down(pod: &Pod) -> Option<Response> {
    let is_down = pod.ring.clients.are_turned_away();
    is_down.then(|| json_line(StatusCode::NOT_FOUND, &json!({"status": "inactive"})))
}

/// Where clients may go instead.
fn others(ring: &Ring) -> Value {
    ring.state().map_or_else(|| json!([]), |state| active_urls(&state, &ring.config()).into())
}

fn active_urls(state: &RingState, config: &RingConfig) -> Vec<String> {
    let active = state.members.iter().filter(|known| {
        let member = &known.member;
        member.is_live() && member.id != state.me && config.state_of(&member.id) == PodState::Active
    });
    active.filter_map(|known| known.said.url.clone()).take(MAX_NAMED).collect()
}

#[cfg(test)]
mod tests {
    use super::Clients;
    use adea_ring::Identity;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn who_is_turned_away_learns_it_and_the_others_go_on() {
        let clients = Clients::default();
        let (ann, admin) = (Identity { name: Some("ann".into()), roles: Vec::new() }, Identity::system());
        let mut welcome = clients.welcome(&ann, "notes");
        let [mut of_admin, mut of_pods] = [clients.welcome(&admin, "notes"), clients.welcome(&ann, "_pods")];
        let wait = Duration::from_secs(60);
        assert!(tokio::time::timeout(wait, welcome.over()).await.is_err() && welcome.holds());
        clients.set(false);
        assert!(tokio::time::timeout(wait, welcome.over()).await.is_ok() && !welcome.holds());
        assert!(!clients.welcome(&ann, "notes").holds());
        assert!(of_admin.holds() && of_pods.holds());
        assert!(tokio::time::timeout(wait, of_admin.over()).await.is_err());
        assert!(tokio::time::timeout(wait, of_pods.over()).await.is_err());
        clients.set(true);
        assert!(clients.welcome(&ann, "notes").holds() && !clients.are_turned_away());
    }
}
