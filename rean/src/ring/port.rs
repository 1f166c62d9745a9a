//! The port for the other pods: the same service as on loopback, over TLS, for callers with a certificate of this ring.
//!
//! The requests on it carry signed identities too. What a link itself asks for comes as the pod; a forwarded write comes
//! as whoever sent it, so the certificate alone gives no right.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use adea_ring::tls::peer_id;
use adea_ring::{PodId, Signer};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::pod::Pod;
use crate::ring::places::Places;
use crate::ring::wire::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::server::{self, MAX_HEADERS_BYTES};

/// A handshake takes two round trips; a caller that needs longer is none of ours, or comes again.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at once: callers that show nothing hold a place for the timeout at most.
const MAX_HANDSHAKES: usize = 1_024;
/// Handshakes at once with one address: the pods of a large machine that all come back, and not so many that somebody
/// who shows nothing keeps the others out.
const MAX_HANDSHAKES_EACH: usize = 64;
/// Connections at once: one with writes from each of 2,000 pods, which is the largest ring that is thought of, and two
/// from each neighbour.
const MAX_CONNECTIONS: usize = 4_096;
/// Streams of one connection: writes that one pod forwards at once.
const MAX_STREAMS: u32 = 4_096;
/// A pod that has gone without a word is let go of after these, so that its places are free.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// With a request: the pod that sent it.
#[derive(Debug, Clone)]
pub struct FromPeer(pub PodId);

/// Accepts connections until `stop`; gives back the watch over those that are still open.
pub async fn serve(
    pod: &Arc<Pod>,
    signer: &Signer,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) -> GracefulShutdown {
    let graceful = GracefulShutdown::new();
    let Some(credentials) = pod.ring.credentials() else { return graceful };
    let acceptor = TlsAcceptor::from(credentials.server_config());
    let (handshakes, connections) = (Semaphore::new(MAX_HANDSHAKES), Semaphore::new(MAX_CONNECTIONS));
    let (handshakes, connections) = (Arc::new(handshakes), Arc::new(connections));
    let callers = Places::default();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return graceful,
            accepted = server::accept(&listener, &handshakes) => accepted,
        };
        let Some((stream, handshake)) = accepted else { continue };
        let Some(caller) = stream.peer_addr().ok().and_then(|caller| callers.take(caller.ip(), MAX_HANDSHAKES_EACH))
        else {
            pod.ring.peer_port.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let (pod, signer, acceptor) = (Arc::clone(pod), signer.clone(), acceptor.clone());
        let (watcher, connections) = (graceful.watcher(), Arc::clone(&connections));
        tokio::spawn(async move {
            let Some((stream, peer)) = shake_hands(&pod, &acceptor, stream).await else { return };
            drop((handshake, caller));
            // A ring that is larger than that gets no further connection, not a slower one.
            let Ok(_place) = connections.try_acquire_owned() else {
                tracing::warn!(%peer, "too many connections of other pods");
                return;
            };
            let service = server::service(pod, signer, Some(peer.clone()));
            let connection = builder().serve_connection(TokioIo::new(stream), service).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%peer, %error, "a connection of another pod ended early");
            }
        });
    }
}

/// Learns who calls; none if that is nobody of this ring.
async fn shake_hands(pod: &Pod, acceptor: &TlsAcceptor, stream: TcpStream) -> Option<(TlsStream<TcpStream>, PodId)> {
    let caller = stream.peer_addr().ok();
    let why = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => match stream.get_ref().1.peer_certificates().and_then(peer_id) {
            Some(peer) => return Some((stream, peer)),
            None => "its certificate names no pod".to_owned(),
        },
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it was too slow".to_owned(),
    };
    pod.ring.peer_port.refused.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(?caller, why, "a caller was refused at the port for pods");
    None
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
