//! The public port: accepting connections, the background tasks, and the way to a clean end.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::access_log::AccessLog;
use crate::auth::follow;
use crate::config::{AccessLogTarget, Config, Limits};
use crate::connection::{Connections, Phase};
use crate::plain::Redirect;
use crate::stack::Stack;
use crate::tls::{Tls, TlsError};

/// Connections that the kernel keeps for us while we are busy.
const BACKLOG: u32 = 1024;
/// How long to wait when the system has no more sockets for us.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often sessions are looked at that have come to their end.
const SWEEP: Duration = Duration::from_secs(1);
/// Before a background task that has panicked is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Why the proxy does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The public address can't be had.
    #[error("can't listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate of the public port can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The access log's file can't be opened.
    #[error("can't open the access log {path}: {source}")]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A bound public port.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
    stack: Arc<Stack>,
    tls: Option<(Arc<Tls>, Arc<Redirect>)>,
    /// The port with plain HTTP beside the public one.
    redirect: Option<TcpListener>,
}

impl Server {
    /// Binds the port. Nothing is served yet.
    ///
    /// # Errors
    /// When the address can't be had or the access log's file can't be opened.
    pub fn bind(config: &Config) -> Result<Self, RunError> {
        let access_log = AccessLog::open(&config.access_log).map_err(|source| {
            let path = match &config.access_log {
                AccessLogTarget::File(path) => path.clone(),
                AccessLogTarget::Off | AccessLogTarget::Log => PathBuf::new(),
            };
            RunError::AccessLog { path, source }
        })?;
        let (address, listener) = bind(config.listen)?;
        let stack = Arc::new(Stack::new(config, access_log));
        let tls = config.tls.as_ref().map(|tls| Tls::new(tls, &config.ring_secret, Arc::clone(&stack.metrics)));
        let tls = tls.transpose()?.map(|tls| {
            let certificates = Arc::clone(tls.certificates());
            let redirect = Redirect { certificates, port: config.public_port.unwrap_or(address.port()) };
            (Arc::new(tls), Arc::new(redirect))
        });
        let redirect = config.redirect.filter(|_| tls.is_some()).map(bind).transpose()?.map(|(_, listener)| listener);
        Ok(Self { listener, address, limits: config.limits.clone(), stack, tls, redirect })
    }

    /// The address that was bound for plain HTTP beside TLS.
    pub fn redirect_addr(&self) -> Option<SocketAddr> {
        self.redirect.as_ref()?.local_addr().ok()
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, and then until the last request is answered or the drain time is over.
    pub async fn serve(mut self, shutdown: impl Future<Output = ()>) {
        let mut tasks = JoinSet::new();
        for database in 0..follow::DATABASES.len() {
            let stack = Arc::clone(&self.stack);
            tasks.spawn(supervised(follow::DATABASES[database], move || {
                follow::follow(database, Arc::clone(&stack.authenticator), Arc::clone(&stack.upstream))
            }));
        }
        let stack = Arc::clone(&self.stack);
        tasks.spawn(supervised("session sweeper", move || sweep(Arc::clone(&stack))));

        let (phase, phases) = watch::channel(Phase::Serving);
        if let Some((tls, redirect)) = &self.tls {
            if let Some(listener) = self.redirect.take() {
                tasks.spawn(Arc::clone(redirect).listen(listener, phases.clone()));
            }
            let tls = Arc::clone(tls);
            tasks.spawn(supervised("certificate", move || tls.keeper()));
        }
        let permits = Arc::new(Semaphore::new(self.limits.max_connections));
        tracing::info!("listening on {}", self.address);
        tokio::select! {
            () = shutdown => {}
            () = self.accept(&permits, &phases) => {}
        }
        // The port is free for the next process from here on.
        let Self { listener, limits, stack, .. } = self;
        drop(listener);
        drop(phases);
        tracing::info!("draining");
        phase.send_replace(Phase::Draining);
        // Feeds have no end of their own; their clients come back, to the next process.
        stack.feeds.stop();
        let drained = tokio::time::timeout(limits.drain, phase.closed()).await;
        if drained.is_err() {
            tracing::warn!("requests are cut off: the drain time is over");
            phase.send_replace(Phase::Closed);
            // Each connection drops itself at this; the time is for what that takes.
            let _ = tokio::time::timeout(ACCEPT_PAUSE, phase.closed()).await;
        }
        tasks.shutdown().await;
    }

    async fn accept(&self, permits: &Arc<Semaphore>, phases: &watch::Receiver<Phase>) {
        let connections = Arc::new(Connections::new(&self.limits, self.tls.clone()));
        let addresses = Arc::new(Addresses::default());
        loop {
            // At the limit new clients wait in the kernel's queue.
            let Ok(permit) = Arc::clone(permits).acquire_owned().await else { return };
            let (stream, peer) = match self.listener.accept().await {
                Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(place) = addresses.enter(peer, self.limits.max_connections_per_address) else {
                self.stack.metrics.connections_refused.fetch_add(1, Relaxed);
                continue;
            };
            let (stack, connections) = (Arc::clone(&self.stack), Arc::clone(&connections));
            let phase = phases.clone();
            tokio::spawn(async move {
                stack.metrics.connections.fetch_add(1, Relaxed);
                let metrics = Arc::clone(&stack.metrics);
                serve_one(&connections, stack, stream, peer, phase).await;
                metrics.connections.fetch_sub(1, Relaxed);
                drop((place, permit));
            });
        }
    }
}

async fn serve_one(
    connections: &Connections,
    stack: Arc<Stack>,
    stream: TcpStream,
    peer: IpAddr,
    phase: watch::Receiver<Phase>,
) {
    // A connection that breaks right here breaks at its first read as well.
    let _ = stream.set_nodelay(true);
    connections.serve(stack, stream, peer, phase).await;
}

fn bind(address: SocketAddr) -> Result<(SocketAddr, TcpListener), RunError> {
    let bound = listen(address).and_then(|listener| Ok((listener.local_addr()?, listener)));
    bound.map_err(|source| RunError::Bind { address, source })
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it: clients that vanished without a word are found out in the end.
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Ends the feeds of sessions that have come to their end.
async fn sweep(stack: Arc<Stack>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        stack.authenticator.end_expired_feeds().await;
    }
}

/// Runs a background task that never ends; should it end, by a panic, it is started again.
async fn supervised<F, T>(name: &'static str, start: F)
where
    F: Fn() -> T,
    T: Future<Output = ()> + Send + 'static,
{
    loop {
        let mut task = JoinSet::new();
        task.spawn(start());
        if let Some(Err(error)) = task.join_next().await {
            tracing::error!(name, %error, "a background task failed");
        }
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

/// How many connections each address has.
#[derive(Default)]
struct Addresses {
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of an address; dropping it makes room for another.
struct Place {
    addresses: Arc<Addresses>,
    peer: IpAddr,
}

impl Addresses {
    fn enter(self: &Arc<Self>, peer: IpAddr, most: usize) -> Option<Place> {
        let mut open = self.open.lock();
        let count = open.entry(peer).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { addresses: Arc::clone(self), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.addresses.open.lock();
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}
