//! All that a pod has in the engine, once it was removed from its ring.

use std::collections::HashMap;

use crate::docker::{Engine, EngineError, Owner, is_running};
use crate::plan::ALL;

/// The containers and the network of a pod.
#[derive(Debug, Clone)]
pub struct LeftOver {
    pub(super) engine: Engine,
    pub(super) owner: Owner,
}

impl LeftOver {
    /// Removes them, those that are this pod's by their labels; gives the names of what it has removed.
    ///
    /// # Errors
    /// When the engine doesn't answer or refuses. What belongs to others is no error, and stays.
    pub async fn remove(&self) -> Result<Vec<String>, EngineError> {
        let mut removed = Vec::new();
        for program in ALL {
            let name = self.owner.container(program);
            let Some(container) = self.engine.inspect(&name).await? else { continue };
            let labels = container.config.as_ref().and_then(|config| config.labels.as_ref());
            if !self.is_ours(&format!("container {name}"), labels) {
                continue;
            }
            if is_running(container.state.as_ref()) {
                self.engine.stop(&name).await?;
            }
            self.engine.remove(&name).await?;
            removed.push(name);
        }
        let name = self.owner.network();
        let Some(network) = self.engine.network(&name).await? else { return Ok(removed) };
        if self.is_ours(&format!("network {name}"), network.labels.as_ref()) {
            self.engine.remove_network(&name).await?;
            removed.push(name);
        }
        Ok(removed)
    }

    fn is_ours(&self, what: &str, labels: Option<&HashMap<String, String>>) -> bool {
        let checked = self.owner.check(what, labels);
        if let Err(err) = &checked {
            tracing::warn!("it stays: {err}");
        }
        checked.is_ok()
    }
}
