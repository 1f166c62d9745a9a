//! The Docker engine behind its socket: the few questions and orders that are needed, with errors that say what to do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as DockerError;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, NetworkCreateRequest, NetworkInspect};
use bollard::query_parameters::{
    CreateContainerOptions, InspectContainerOptions, InspectNetworkOptions, KillContainerOptions,
    RemoveContainerOptions, StartContainerOptions, StopContainerOptions, WaitContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use tokio::sync::Mutex;

/// An order to an engine takes seconds at most, except those about images; under load it may take its time.
const DEADLINE_S: u64 = 60;
/// How long the stop of a container may take before the engine kills it, in seconds.
const STOP_S: i32 = 15;

/// A Docker engine on this machine. Clones speak to the same one.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: PathBuf,
    /// None until the engine has told which version of its API it speaks.
    docker: Arc<Mutex<Option<Docker>>>,
}

/// What an engine can't do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody answers.
    #[error("Docker does not answer at {socket} ({reason}); is it running? `systemctl status docker` tells")]
    Away {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The engine refuses.
    #[error("Docker says: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// Something else went wrong between us.
    #[error("Docker's answer is not as expected: {0}")]
    Odd(String),
    /// Not ours.
    #[error("the {what} {whose}, so it is not touched; remove or rename it, or give this pod another name")]
    Foreign {
        /// The thing and its name.
        what: String,
        /// Why it isn't.
        whose: String,
    },
    /// The image is not there.
    #[error(
        "Docker has no image {0}; bring it there by `docker load` or `docker pull`, or set `runtime.docker.pull` to true"
    )]
    NoImage(String),
    /// A container has no address.
    #[error("the container {0} has no address on the pod's network")]
    NoAddress(String),
    /// A container has vanished.
    #[error("the container {0} was removed as soon as it was made")]
    Gone(String),
    /// A container has ended as soon as it was started.
    #[error("the container {name} ended at once ({how})")]
    Ended {
        /// Which.
        name: String,
        /// How.
        how: String,
    },
    /// A file on this machine.
    #[error("can't {step}: {source}")]
    Io {
        /// What was tried.
        step: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// An image can't be made.
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
}

impl Engine {
    /// The engine at a socket. Nothing is opened yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf(), docker: Arc::default() }
    }

    /// The connection, once the version of the API is agreed on.
    pub(super) async fn docker(&self) -> Result<Docker, EngineError> {
        let mut agreed = self.docker.lock().await;
        if let Some(docker) = &*agreed {
            return Ok(docker.clone());
        }
        let socket = self.socket.display().to_string();
        let docker = Docker::connect_with_unix(&socket, DEADLINE_S, API_DEFAULT_VERSION);
        let docker = docker.map_err(|err| self.error(err))?;
        let docker = docker.negotiate_version().await.map_err(|err| self.error(err))?;
        Ok(agreed.insert(docker).clone())
    }

    /// An error with what is known of it.
    pub(super) fn error(&self, err: DockerError) -> EngineError {
        match err {
            DockerError::DockerResponseServerError { status_code, message } => {
                EngineError::Refused { status: status_code, message }
            }
            DockerError::SocketNotFoundError(_) => self.away("there is no such socket".to_owned()),
            DockerError::RequestTimeoutError => self.away(format!("no answer in {DEADLINE_S} s")),
            DockerError::IOError { err } => self.away(err.to_string()),
            DockerError::HyperLegacyError { err } => self.away(with_causes(&err)),
            DockerError::HyperResponseError { err } => self.away(with_causes(&err)),
            DockerError::DockerStreamError { error } => EngineError::Refused { status: 0, message: error },
            other => EngineError::Odd(other.to_string()),
        }
    }

    fn away(&self, reason: String) -> EngineError {
        EngineError::Away { socket: self.socket.clone(), reason }
    }

    /// The engine's version.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn version(&self) -> Result<String, EngineError> {
        let version = self.docker().await?.version().await.map_err(|err| self.error(err))?;
        Ok(version.version.unwrap_or_default())
    }

    /// A container, by name or id; none if there is none.
    pub(super) async fn inspect(&self, name: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let docker = self.docker().await?;
        self.found(docker.inspect_container(name, None::<InspectContainerOptions>).await)
    }

    /// A network; none if there is none.
    pub(super) async fn network(&self, name: &str) -> Result<Option<NetworkInspect>, EngineError> {
        let docker = self.docker().await?;
        self.found(docker.inspect_network(name, None::<InspectNetworkOptions>).await)
    }

    pub(super) async fn create_network(&self, network: NetworkCreateRequest) -> Result<(), EngineError> {
        self.docker().await?.create_network(network).await.map(drop).map_err(|err| self.error(err))
    }

    pub(super) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, EngineError> {
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..CreateContainerOptions::default() };
        let created = self.docker().await?.create_container(Some(options), body).await;
        created.map(|created| created.id).map_err(|err| self.error(err))
    }

    pub(super) async fn start(&self, name: &str) -> Result<(), EngineError> {
        let docker = self.docker().await?;
        docker.start_container(name, None::<StartContainerOptions>).await.map_err(|err| self.error(err))
    }

    /// Stops a container, and waits for that.
    pub(super) async fn stop(&self, name: &str) -> Result<(), EngineError> {
        let options = StopContainerOptions { t: Some(STOP_S), ..StopContainerOptions::default() };
        let docker = self.docker().await?;
        self.found(docker.stop_container(name, Some(options)).await).map(drop)
    }

    /// Sends a signal; a container that is gone or doesn't run is no error.
    pub(super) async fn kill(&self, name: &str, signal: &str) -> Result<(), EngineError> {
        let options = KillContainerOptions { signal: signal.to_owned() };
        let docker = self.docker().await?;
        match self.found(docker.kill_container(name, Some(options)).await) {
            // "is not running", since the first version of the API.
            Err(EngineError::Refused { status: 409, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Removes a container that doesn't run, with what it has written outside of its mounts.
    pub(super) async fn remove(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptions { v: true, ..RemoveContainerOptions::default() };
        let docker = self.docker().await?;
        self.found(docker.remove_container(name, Some(options)).await).map(drop)
    }

    pub(super) async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        let docker = self.docker().await?;
        self.found(docker.remove_network(name).await).map(drop)
    }

    /// Resolves when a container runs no longer, or nobody can tell.
    pub(super) async fn wait(&self, id: &str) {
        let Ok(docker) = self.docker().await else { return };
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        let mut ends = Box::pin(docker.wait_container(id, Some(options)));
        let _ = ends.next().await;
    }

    /// What an engine answers about a thing; none if there is no such thing.
    pub(super) fn found<T>(&self, answer: Result<T, DockerError>) -> Result<Option<T>, EngineError> {
        match answer {
            Ok(found) => Ok(Some(found)),
            Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(err) => Err(self.error(err)),
        }
    }

    /// The same for orders that take as long as an image is large.
    pub(super) async fn patient(&self) -> Result<Docker, EngineError> {
        /// A large image over a slow line.
        const PATIENCE: Duration = Duration::from_secs(1_800);
        Ok(self.docker().await?.with_timeout(PATIENCE))
    }
}

/// An error with its causes: the outermost alone says no more than that something failed.
fn with_causes(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text = format!("{text}: {err}");
        cause = err.source();
    }
    text
}
