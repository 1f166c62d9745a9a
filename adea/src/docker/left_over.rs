//! What a pod needs no more: images of software that it ran before the last, and all it has in the engine once it was
//! removed from its ring.

use std::collections::{BTreeSet, HashMap};

use bollard::models::ContainerSummary;
use bollard::query_parameters::{ListContainersOptions, ListImagesOptions, RemoveImageOptions};

use crate::docker::container::{DATA_LABEL, POD_LABEL};
use crate::docker::{Engine, EngineError, Owner, is_running};
use crate::image::{OWN_LABEL, PROGRAM};
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

impl Engine {
    /// Removes the images of this program that no container needs, but for these; gives the names or ids of what it has
    /// removed. With several pods on one engine nothing is: which image another pod may go back to is not known here.
    ///
    /// # Errors
    /// When the engine doesn't answer or refuses. That somebody else needs an image is no error.
    pub async fn remove_old_images(&self, kept: &BTreeSet<String>) -> Result<Vec<String>, EngineError> {
        let docker = self.docker().await?;
        let everywhere = ListContainersOptions { all: true, ..ListContainersOptions::default() };
        let containers = docker.list_containers(Some(everywhere)).await.map_err(|err| self.error(err))?;
        if count_pods(&containers) > 1 {
            return Ok(Vec::new());
        }
        let mut needed: BTreeSet<String> = containers.into_iter().filter_map(|container| container.image_id).collect();
        for name in kept {
            needed.extend(self.image(name).await?.map(|image| image.id));
        }
        let ours = format!("{OWN_LABEL}={PROGRAM}");
        let filters = HashMap::from([("label".to_owned(), vec![ours])]);
        let options = ListImagesOptions { filters: Some(filters), ..ListImagesOptions::default() };
        let images = docker.list_images(Some(options)).await.map_err(|err| self.error(err))?;
        let mut removed = Vec::new();
        for image in images {
            // What the engine was asked for is looked at all the same: it is about deleting.
            if needed.contains(&image.id) || image.labels.get(OWN_LABEL).map(String::as_str) != Some(PROGRAM) {
                continue;
            }
            let answer = docker.remove_image(&image.id, None::<RemoveImageOptions>, None).await;
            match self.found(answer) {
                Ok(_) => removed.push(image.repo_tags.into_iter().next().unwrap_or(image.id)),
                // It has names that somebody gave it, or a container that was made a moment ago.
                Err(EngineError::Refused { status: 409, .. }) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(removed)
    }
}

/// How many pods have containers.
fn count_pods(containers: &[ContainerSummary]) -> usize {
    let labels = containers.iter().filter_map(|container| container.labels.as_ref());
    let pods = labels.filter_map(|labels| Some((labels.get(POD_LABEL)?, labels.get(DATA_LABEL))));
    pods.collect::<BTreeSet<_>>().len()
}
