//! chitchat's messages over UDP, sealed.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tracing::warn;

use super::counters::{Counters, Dropped};
use super::keyring::Keyring;
use super::parts::{MAX_DATAGRAM_BYTES, Part, Parts};
use super::seal::{Opener, Sealer};
use crate::PodId;

/// After so many errors in a row the socket is taken for broken. ICMP's answers to what was sent to a pod that is gone
/// come as errors of the next reading, so some are normal.
const MAX_ERRORS: u32 = 100;

/// Rest after an error, so that a broken socket doesn't take a whole core until it is given up.
const ERROR_REST: Duration = Duration::from_millis(10);

/// What the shell and the socket share.
#[derive(Debug)]
pub(super) struct Shared {
    keyring: RwLock<Arc<Keyring>>,
    pub(super) counters: Counters,
    /// Peers that are yet to get the last part of a handshake: with it they know all that this pod says.
    awaited: watch::Sender<HashSet<SocketAddr>>,
}

/// Gives chitchat a socket that is bound already.
pub(super) struct SealedTransport {
    socket: Mutex<Option<SealedSocket>>,
}

struct SealedSocket {
    udp: UdpSocket,
    shared: Arc<Shared>,
    sealer: Sealer,
    opener: Opener,
    parts: Parts,
    buffer: Vec<u8>,
    errors: u32,
}

impl Shared {
    pub(super) fn new(keyring: Keyring) -> Self {
        let (awaited, _) = watch::channel(HashSet::new());
        Self { keyring: RwLock::new(Arc::new(keyring)), counters: Counters::default(), awaited }
    }

    pub(super) fn set_keyring(&self, keyring: Keyring) {
        *self.keyring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keyring);
    }

    /// From now on, until handshakes with these peers are over.
    pub(super) fn wait_for(&self, peers: HashSet<SocketAddr>) -> watch::Receiver<HashSet<SocketAddr>> {
        self.awaited.send_replace(peers);
        self.awaited.subscribe()
    }

    fn keyring(&self) -> Arc<Keyring> {
        self.keyring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn over_with(&self, peer: SocketAddr) {
        self.awaited.send_if_modified(|peers| peers.remove(&peer));
    }
}

impl SealedTransport {
    pub(super) fn new(udp: UdpSocket, shared: Arc<Shared>, me: &PodId, generation: u64) -> Self {
        let socket = SealedSocket {
            udp,
            shared,
            sealer: Sealer::new(me.clone(), generation),
            opener: Opener::new(me.clone(), generation),
            parts: Parts::default(),
            buffer: vec![0; MAX_DATAGRAM_BYTES],
            errors: 0,
        };
        Self { socket: Mutex::new(Some(socket)) }
    }
}

#[async_trait]
impl Transport for SealedTransport {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Box::new(socket.context("the socket was taken before")?))
    }
}

#[async_trait]
impl Socket for SealedSocket {
    /// Never fails: what is wrong with a way to one peer is nothing to stop for, and gossip repeats itself.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let keyring = self.shared.keyring();
        let bytes = message.serialize_to_vec();
        let Some(parts) = Part::cut(&bytes) else {
            self.shared.counters.dropped(Dropped::Unsent, to);
            return Ok(());
        };
        for (part, bytes) in parts {
            let datagram = self.sealer.seal(&keyring, part, bytes);
            match self.udp.send_to(&datagram, to).await {
                Ok(_) => self.shared.counters.sent(datagram.len()),
                Err(_) => self.shared.counters.dropped(Dropped::Unsent, to),
            }
        }
        if matches!(message, ChitchatMessage::Ack { .. }) {
            self.shared.over_with(to);
        }
        Ok(())
    }

    /// May be dropped while it waits.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            match self.udp.recv_from(&mut self.buffer).await {
                Ok((bytes, from)) => {
                    self.errors = 0;
                    self.shared.counters.received(bytes);
                    match self.take(bytes) {
                        Ok(Some(message)) => return Ok((from, message)),
                        Ok(None) => {}
                        Err(why) => self.shared.counters.dropped(why, from),
                    }
                }
                Err(error) => self.note_error(error).await?,
            }
        }
    }
}

impl SealedSocket {
    /// The message that the first `bytes` of the buffer complete.
    fn take(&mut self, bytes: usize) -> Result<Option<ChitchatMessage>, Dropped> {
        let opened = self.opener.open(&self.shared.keyring(), &self.buffer[..bytes])?;
        let Some(message) = self.parts.join(opened) else { return Ok(None) };
        let mut rest = message.as_slice();
        match ChitchatMessage::deserialize(&mut rest) {
            Ok(message) if rest.is_empty() => Ok(Some(message)),
            _ => Err(Dropped::Malformed),
        }
    }

    async fn note_error(&mut self, error: io::Error) -> anyhow::Result<()> {
        self.errors += 1;
        if self.errors >= MAX_ERRORS {
            return Err(error).context("receive datagrams");
        }
        if self.errors == MAX_ERRORS / 2 {
            warn!(%error, "gossip: can't receive datagrams");
        }
        tokio::time::sleep(ERROR_REST).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use chitchat::transport::{Socket, Transport};
    use chitchat::{ChitchatMessage, Deserializable, Serializable};
    use tokio::net::UdpSocket;
    use tokio::time::timeout;

    use super::{MAX_DATAGRAM_BYTES, SealedTransport, Shared};
    use crate::RingSecret;
    use crate::gossip::keyring::Keyring;
    use crate::gossip::parts::Part;
    use crate::gossip::seal::Sealer;

    const DEADLINE: Duration = Duration::from_secs(10);

    struct End {
        socket: Box<dyn Socket>,
        shared: Arc<Shared>,
        address: SocketAddr,
    }

    async fn end(keyring: &Keyring, name: &str) -> End {
        let udp = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = udp.local_addr().expect("bound");
        let shared = Arc::new(Shared::new(keyring.clone()));
        let transport = SealedTransport::new(udp, shared.clone(), &name.parse().expect("a pod's id"), 1);
        let socket = transport.open(address).await.expect("bound");
        assert!(transport.open(address).await.is_err(), "there is one socket");
        End { socket, shared, address }
    }

    /// The first message of a handshake with a ring's id of so many bytes: chitchat's form of it, with no pods.
    fn message(bytes: u16) -> ChitchatMessage {
        let mut text = vec![0x53, 0xb0, 0, 0, 0, 0];
        text.extend(bytes.to_le_bytes());
        text.extend(vec![b'x'; usize::from(bytes)]);
        ChitchatMessage::deserialize(&mut text.as_slice()).expect("chitchat's form")
    }

    #[tokio::test]
    async fn messages_of_all_sizes() {
        let keyring = Keyring::base(&RingSecret::random());
        let (mut a, mut b) = (end(&keyring, "a").await, end(&keyring, "b").await);
        for (bytes, datagrams) in [(0, 1), (30_000, 1), (65_300, 1), (u16::MAX, 2)] {
            let before = a.shared.counters.snapshot().sent;
            a.socket.send(b.address, message(bytes)).await.expect("sent");
            let (from, came) = timeout(DEADLINE, b.socket.recv()).await.expect("in time").expect("received");
            assert_eq!((from, came == message(bytes)), (a.address, true));
            assert_eq!(a.shared.counters.snapshot().sent - before, datagrams, "{bytes}");
        }
        assert!(message(u16::MAX).serialize_to_vec().len() > MAX_DATAGRAM_BYTES);
    }

    #[tokio::test]
    async fn what_is_wrong_is_counted() {
        let keyring = Keyring::base(&RingSecret::random());
        let mut end = end(&keyring, "a").await;
        let other = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a free port");
        let mut sealer = Sealer::new("b".parse().expect("a pod's id"), 1);
        let good = message(10).serialize_to_vec();
        let trailing = [good.as_slice(), b"more"].concat();
        let sealed = sealer.seal(&keyring, Part::WHOLE, &good);
        for datagram in [
            &b"zork"[..],
            &[],
            &[1; 100],
            &sealer.seal(&keyring, Part::WHOLE, &good[..good.len() - 1]),
            &sealer.seal(&keyring, Part::WHOLE, &trailing),
            &sealer.seal(&keyring, Part::WHOLE, b""),
            &sealed,
            &sealed,
            &sealer.seal(&keyring, Part::WHOLE, &good),
        ] {
            other.send_to(datagram, end.address).await.expect("sent");
        }
        for _ in 0..2 {
            let (_, came) = timeout(DEADLINE, end.socket.recv()).await.expect("in time").expect("received");
            assert!(came == message(10));
        }
        let counters = end.shared.counters.snapshot();
        let dropped = [counters.garbage, counters.foreign, counters.malformed, counters.replayed, counters.own];
        assert_eq!((counters.received, dropped), (9, [2, 1, 3, 1, 0]));
    }

    #[tokio::test]
    async fn peers_that_are_gone_break_nothing() {
        let keyring = Keyring::base(&RingSecret::random());
        let (mut a, mut b) = (end(&keyring, "a").await, end(&keyring, "b").await);
        let gone = end(&keyring, "gone").await.address;
        let unreachable = SocketAddr::from(([255, 255, 255, 255], 1));
        for _ in 0..200 {
            a.socket.send(gone, message(1)).await.expect("never fails");
        }
        a.socket.send(unreachable, message(1)).await.expect("never fails");
        assert_eq!(a.shared.counters.snapshot().unsent, 1, "no right to broadcast");
        b.socket.send(a.address, message(1)).await.expect("sent");
        let (from, _) = timeout(DEADLINE, a.socket.recv()).await.expect("in time").expect("received");
        assert_eq!(from, b.address);
    }
}
