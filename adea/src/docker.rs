//! The runtime that runs programs as containers of a Docker engine on this machine.
//!
//! What flows through: a [`Launch`] becomes a [container](container) of the pod's own network, with next to no rights;
//! its log is [followed](follow) into a file of the data folder. The [engine](engine) is spoken to over its socket.
//!
//! What always holds:
//! - a container is touched only if its labels say that it is this pod's, of this ring and this data folder;
//! - nothing that is wanted is remembered here alone: whatever this agent has forgotten, the labels tell the next one;
//! - what the agent writes as root lies in folders that no container can write to.

mod container;
mod engine;
#[cfg(test)]
pub(crate) mod fake_engine;
mod follow;
mod images;
mod left_over;
mod prepare;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, ContainerState};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::blueprint::{Blueprint, tls_copies};
use crate::config::{Config, DockerConfig, LogTo};
use crate::docker::container::{Owner, Recipe};
use crate::docker::follow::Follower;
use crate::folder::Folder;
use crate::health;
use crate::image::Image;
use crate::plan::{ALL, Desired, Launch, Program};
use crate::runtime::{Found, Instance, Runtime, RuntimeError, Sighting, Signal};

pub use engine::{Engine, EngineError};
pub use images::{Brought, ImageInfo};
pub use left_over::LeftOver;
pub use prepare::PrepareError;

/// How often to look whether certificates have been renewed.
const COPIES_LOOK: Duration = Duration::from_secs(60);
/// How long the last words of a container that is about to be removed are waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Programs as containers.
#[derive(Debug)]
pub struct DockerRuntime {
    engine: Engine,
    recipe: Recipe,
    folder: Folder,
    log_to: LogTo,
    pull: bool,
    /// The image that can be made from a program of this machine.
    own_image: Option<Arc<Image>>,
    /// Files of the machine that containers get copies of, and when that was last looked after.
    copies: Vec<(PathBuf, &'static str)>,
    copied: Instant,
    known: BTreeMap<Program, Known>,
    followers: BTreeMap<Program, Follower>,
    ended: Arc<Notify>,
    watches: JoinSet<()>,
}

/// A container that was started or found.
#[derive(Debug)]
struct Known {
    id: String,
    pid: u32,
}

impl DockerRuntime {
    /// Puts what containers need into the data folder, and says what is to run.
    ///
    /// # Errors
    /// When files can't be read, written or given to the containers' user, or there is no image and none can be made.
    pub fn prepare(config: &Config, docker: &DockerConfig, folder: &Folder) -> Result<(Self, Blueprint), PrepareError> {
        let (ring_id, ring_file_hash) = prepare::ring_file(&config.ring_file, folder, docker.user)?;
        prepare::folders(folder, docker.user)?;
        let copies = tls_copies(config.proxy.tls.as_ref());
        prepare::copies(&copies, folder, docker.user)?;
        let own_image = match &docker.image {
            Some(_) => None,
            None => Some(Arc::new(prepare::own_image(config.program.as_deref())?)),
        };
        let name = docker.image.clone().or(own_image.as_ref().map(|image| image.id().name.clone())).unwrap_or_default();
        let owner = Owner { pod_id: config.pod_id.clone(), ring_id, data: folder.root().display().to_string() };
        let runtime = Self {
            engine: Engine::new(&docker.socket),
            recipe: Recipe { owner, docker: docker.clone(), log: config.log.clone() },
            folder: folder.clone(),
            log_to: config.log_to,
            pull: docker.pull,
            own_image,
            copies,
            copied: Instant::now(),
            known: BTreeMap::new(),
            followers: BTreeMap::new(),
            ended: Arc::new(Notify::new()),
            watches: JoinSet::new(),
        };
        Ok((runtime, Blueprint::of_containers(config, folder, name, ring_file_hash)))
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What is to go when the pod was removed from its ring.
    pub fn left_over(&self) -> LeftOver {
        LeftOver { engine: self.engine.clone(), owner: self.recipe.owner.clone() }
    }

    /// The container of a program, if there is one; one that has its name and isn't ours is an error.
    async fn inspect(&self, program: Program) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let name = self.recipe.owner.container(program);
        let Some(container) = self.engine.inspect(&name).await? else { return Ok(None) };
        let labels = container.config.as_ref().and_then(|config| config.labels.as_ref());
        self.recipe.owner.check(&format!("container {name}"), labels)?;
        Ok(Some(container))
    }

    /// Whether a container is what a launch would make.
    async fn fits(
        &self,
        container: &ContainerInspectResponse,
        program: Program,
        launch: &Launch,
    ) -> Result<bool, EngineError> {
        let labels = container.config.as_ref().and_then(|config| config.labels.as_ref());
        let made_by = labels.and_then(|labels| labels.get(container::LAUNCH_LABEL));
        if made_by != Some(&self.recipe.hash(program, launch)) {
            return Ok(false);
        }
        // The same name may mean another image by now; one that is gone can't be compared.
        let image = self.engine.image(&launch.software).await?;
        Ok(image.is_none_or(|image| container.image.as_ref() == Some(&image.id)))
    }

    async fn instance(
        &self,
        container: &ContainerInspectResponse,
        program: Program,
        launch: &Launch,
    ) -> Result<Instance, EngineError> {
        let version = match &container.image {
            Some(id) => self.engine.image(id).await?.and_then(|image| image.version),
            None => None,
        };
        let ip = self.address(container).ok_or_else(|| EngineError::NoAddress(self.recipe.owner.container(program)))?;
        Ok(Instance {
            pid: pid(container.state.as_ref()),
            addr: SocketAddr::new(ip, launch.up.port()),
            container: Some(self.recipe.owner.container(program)),
            version,
        })
    }

    /// Where a container is on the pod's own network.
    fn address(&self, container: &ContainerInspectResponse) -> Option<IpAddr> {
        let networks = container.network_settings.as_ref()?.networks.as_ref()?;
        let endpoint = networks.get(&self.recipe.owner.network())?;
        let addresses = [&endpoint.ip_address, &endpoint.global_ipv6_address];
        addresses.into_iter().flatten().find_map(|address| address.parse().ok())
    }

    async fn try_find(&mut self, desired: &Desired) -> Result<Vec<Found>, EngineError> {
        let mut found = Vec::new();
        for program in ALL {
            let Some(container) = self.inspect(program).await? else { continue };
            if !is_running(container.state.as_ref()) {
                continue;
            }
            let (instance, launch) = match desired.get(&program) {
                Some(launch) => {
                    let fits = self.fits(&container, program, launch).await?;
                    (self.instance(&container, program, launch).await?, fits.then(|| launch.clone()))
                }
                None => (self.instance(&container, program, &Launch::unfit()).await?, None),
            };
            self.keep(program, &container, instance.pid);
            found.push(Found { program, instance, launch });
        }
        Ok(found)
    }

    async fn try_start(&mut self, program: Program, launch: &Launch) -> Result<Instance, EngineError> {
        self.ensure_network().await?;
        self.ensure_image(&launch.software).await?;
        let name = self.recipe.owner.container(program);
        let left = self.inspect(program).await?;
        let mut is_there = false;
        if let Some(container) = left {
            let is_running = is_running(container.state.as_ref());
            let fits = self.fits(&container, program, launch).await?;
            if is_running && fits {
                let instance = self.instance(&container, program, launch).await?;
                self.keep(program, &container, instance.pid);
                return Ok(instance);
            }
            if is_running {
                // Somebody has started it beside this agent.
                self.engine.stop(&name).await?;
            }
            if fits {
                is_there = true;
            } else {
                if let Some(follower) = self.followers.get_mut(&program) {
                    follower.last_words(LAST_WORDS).await;
                }
                self.engine.remove(&name).await?;
            }
        }
        if !is_there {
            self.engine.create(&name, self.recipe.container(program, launch)).await?;
        }
        self.engine.start(&name).await?;
        let container = self.inspect(program).await?.ok_or_else(|| EngineError::Gone(name.clone()))?;
        if !is_running(container.state.as_ref()) {
            self.keep(program, &container, 0);
            return Err(EngineError::Ended { name, how: describe(container.state.as_ref()) });
        }
        let instance = self.instance(&container, program, launch).await?;
        self.keep(program, &container, instance.pid);
        Ok(instance)
    }

    async fn ensure_network(&self) -> Result<(), EngineError> {
        let name = self.recipe.owner.network();
        match self.engine.network(&name).await? {
            Some(network) => self.recipe.owner.check(&format!("network {name}"), network.labels.as_ref()),
            None => self.engine.create_network(self.recipe.network()).await,
        }
    }

    /// Sees to it that the engine has the image.
    async fn ensure_image(&self, name: &str) -> Result<(), EngineError> {
        if self.engine.image(name).await?.is_some() {
            return Ok(());
        }
        match &self.own_image {
            Some(image) if image.id().name == name => {
                tracing::info!("making the image {name} from this program");
                self.engine.load_image(Arc::clone(image)).await?;
            }
            _ if self.pull => {
                tracing::info!("fetching the image {name}");
                self.engine.pull(name).await?;
            }
            _ => return Err(EngineError::NoImage(name.to_owned())),
        }
        match self.engine.image(name).await? {
            Some(_) => Ok(()),
            None => Err(EngineError::NoImage(name.to_owned())),
        }
    }

    /// Remembers a container, follows its log and waits for its end.
    fn keep(&mut self, program: Program, container: &ContainerInspectResponse, pid: u32) {
        let Some(id) = container.id.clone() else { return };
        if self.log_to == LogTo::Files {
            let path = self.folder.container_logs().join(format!("{program}.log"));
            let follower =
                self.followers.entry(program).or_insert_with(|| Follower::new(path, self.recipe.docker.user));
            follower.follow(self.engine.clone(), id.clone());
        }
        let (engine, ended, watched) = (self.engine.clone(), Arc::clone(&self.ended), id.clone());
        self.watches.spawn(async move {
            engine.wait(&watched).await;
            ended.notify_one();
        });
        while self.watches.try_join_next().is_some() {}
        self.known.insert(program, Known { id, pid });
    }

    async fn try_look(&mut self) -> Result<Vec<Sighting>, EngineError> {
        let mut sightings = Vec::new();
        for (program, known) in &self.known {
            let ended = match self.engine.inspect(&known.id).await? {
                None => Some("its container is gone".to_owned()),
                Some(container) => {
                    let state = container.state.as_ref();
                    match is_running(state) {
                        true if pid(state) == known.pid => None,
                        true => Some("somebody has started it again".to_owned()),
                        false => Some(describe(state)),
                    }
                }
            };
            sightings.push(Sighting { program: *program, pid: known.pid, ended });
        }
        Ok(sightings)
    }

    /// Brings the copies of certificates up to date, which may have been renewed.
    fn renew_copies(&mut self) {
        if self.copies.is_empty() || self.copied.elapsed() < COPIES_LOOK {
            return;
        }
        self.copied = Instant::now();
        if let Err(err) = prepare::copies(&self.copies, &self.folder, self.recipe.docker.user) {
            tracing::warn!("the proxy goes on with the certificate that it has: {err}");
        }
    }
}

impl Runtime for DockerRuntime {
    const OUTLIVES_AGENT: bool = true;

    async fn find(&mut self, desired: &Desired) -> Result<Vec<Found>, RuntimeError> {
        self.try_find(desired).await.map_err(|err| RuntimeError::new("see what runs", err))
    }

    async fn start(&mut self, program: Program, launch: &Launch) -> Result<Instance, RuntimeError> {
        self.try_start(program, launch).await.map_err(|err| RuntimeError::new(format!("start {program}"), err))
    }

    async fn signal(&mut self, program: Program, signal: Signal) -> Result<(), RuntimeError> {
        let Some(known) = self.known.get(&program) else { return Ok(()) };
        let (name, step) = match signal {
            Signal::Terminate => ("SIGTERM", "stop"),
            Signal::Kill => ("SIGKILL", "kill"),
        };
        let sent = self.engine.kill(&known.id, name).await;
        sent.map_err(|err| RuntimeError::new(format!("{step} {program}"), err))
    }

    async fn look(&mut self) -> Result<Vec<Sighting>, RuntimeError> {
        self.renew_copies();
        self.try_look().await.map_err(|err| RuntimeError::new("see what runs", err))
    }

    async fn healthy(&mut self, _program: Program, addr: SocketAddr) -> bool {
        health::is_well(addr).await
    }

    async fn changed(&mut self) {
        self.ended.notified().await;
    }
}

fn is_running(state: Option<&ContainerState>) -> bool {
    state.and_then(|state| state.running).unwrap_or(false)
}

fn pid(state: Option<&ContainerState>) -> u32 {
    state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)
}

/// How a container has ended.
fn describe(state: Option<&ContainerState>) -> String {
    let Some(state) = state else { return "unknown".to_owned() };
    let code = state.exit_code.unwrap_or(-1);
    let mut text = format!("exit status: {code}");
    if state.oom_killed == Some(true) {
        text.push_str(", killed as it took more memory than it may");
    }
    if let Some(error) = state.error.as_ref().filter(|error| !error.is_empty()) {
        text.push_str(", ");
        text.push_str(error);
    }
    text
}
