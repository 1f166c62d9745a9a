//! The failure detector's settings, in rings that run in virtual time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{ChannelTransport, Socket, Transport};
use chitchat::{ChitchatHandle, ChitchatId, ChitchatMessage, spawn_chitchat};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{GossipConfig, Keyring};
use crate::RingSecret;

/// A pod whose process can be made to stand still.
struct Pod {
    handle: ChitchatHandle,
    stalled: watch::Sender<bool>,
}

struct StallingTransport {
    inner: ChannelTransport,
    stalled: watch::Receiver<bool>,
}

struct StallingSocket {
    inner: Box<dyn Socket>,
    stalled: watch::Receiver<bool>,
}

#[async_trait]
impl Transport for StallingTransport {
    async fn open(&self, listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let inner = self.inner.open(listen_addr).await?;
        Ok(Box::new(StallingSocket { inner, stalled: self.stalled.clone() }))
    }
}

#[async_trait]
impl Socket for StallingSocket {
    /// chitchat's loop sends in each round and waits for it, so this holds all of it up.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.stalled.wait_for(|stalled| !stalled).await?;
        self.inner.send(to, message).await
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        self.stalled.wait_for(|stalled| !stalled).await?;
        self.inner.recv().await
    }
}

fn address(pod: u16) -> SocketAddr {
    ([127, 0, 0, 1], 1 + pod).into()
}

async fn ring(pods: u16) -> Vec<Pod> {
    let wires = ChannelTransport::default();
    let mut ring = Vec::new();
    for pod in 0..pods {
        let config = GossipConfig {
            me: format!("pod-{pod}").parse().expect("a pod's id"),
            generation: 1,
            ring_id: "test".to_owned(),
            listen: address(pod),
            advertise: address(pod),
            seeds: Vec::new(),
            interval_ms: 150,
            phi: 8.0,
            keyring: Keyring::base(&RingSecret::random()),
        };
        let (stalled, stalls) = watch::channel(false);
        let transport = StallingTransport { inner: wires.clone(), stalled: stalls };
        let mut settings = config.chitchat(ChitchatId::new(config.me.as_str(), 1, address(pod)));
        settings.seed_nodes = vec![address(0).to_string()];
        let handle = spawn_chitchat(settings, Vec::new(), &transport).await.expect("started");
        ring.push(Pod { handle, stalled });
        sleep(Duration::from_millis(37)).await;
    }
    for pod in &ring {
        until(|| async { pod.live().await == usize::from(pods) }).await;
    }
    sleep(Duration::from_secs(5)).await;
    ring
}

async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < deadline, "did not happen");
        sleep(Duration::from_millis(5)).await;
    }
}

impl Pod {
    async fn live(&self) -> usize {
        self.handle.with_chitchat(|chitchat| chitchat.live_nodes().count()).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_pod_is_found_dead_in_time() {
    for pods in [2, 3, 5, 10] {
        let mut took_ms: Vec<u128> = Vec::new();
        for _ in 0..10 {
            let mut ring = ring(pods).await;
            let killed = ring.pop().expect("a pod");
            killed.handle.abort();
            let since = Instant::now();
            for pod in &ring {
                until(|| async { pod.live().await < usize::from(pods) }).await;
                took_ms.push(since.elapsed().as_millis());
            }
        }
        took_ms.sort_unstable();
        let (least, median, most) = (took_ms[0], took_ms[took_ms.len() / 2], took_ms[took_ms.len() - 1]);
        println!("{pods} pods: found dead after {least} to {most} ms, half within {median} ms");
        assert!(least >= 850 && median <= 1_500 && most <= 2_000, "{took_ms:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_stands_still_for_half_a_second_lives() {
    for pods in [2, 3, 5, 10] {
        let ring = Arc::new(ring(pods).await);
        let watchers: Vec<_> = (0..ring.len())
            .map(|at| {
                let ring = ring.clone();
                tokio::spawn(async move {
                    loop {
                        sleep(Duration::from_millis(5)).await;
                        let live = ring[at].live().await;
                        assert_eq!(live, ring.len(), "a false alarm at pod {at} of {pods}");
                    }
                })
            })
            .collect();
        for turn in 0..40 {
            let stalled = &ring[turn % ring.len()].stalled;
            stalled.send_replace(true);
            sleep(Duration::from_millis(500)).await;
            stalled.send_replace(false);
            sleep(Duration::from_millis(400 + 13 * turn as u64)).await;
        }
        for watcher in watchers {
            assert!(!watcher.is_finished(), "a false alarm: {:?}", watcher.await);
            watcher.abort();
        }
    }
}
