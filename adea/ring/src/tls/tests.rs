//! Handshakes in memory.

use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection};

use super::{Credentials, authority, dns_name, peer_id, server_name};
use crate::member::PodId;
use crate::secret::RingSecret;

fn pod(id: &str) -> PodId {
    id.parse().expect("a pod's id")
}

fn secret(byte: &str) -> RingSecret {
    RingSecret::from_hex(&byte.repeat(32)).expect("64 digits")
}

fn issue(byte: &str, id: &str) -> Credentials {
    Credentials::issue(&secret(byte), &pod(id)).expect("credentials")
}

/// Moves what one side has to say to the other; whether there was anything.
fn pass<A, B>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> Result<bool, rustls::Error> {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).expect("memory takes all");
    }
    let mut rest = wire.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).expect("memory gives all");
        to.process_new_packets()?;
    }
    Ok(!wire.is_empty())
}

/// A whole handshake: whom each side has then at the other end, as the server sees the client and the other way round.
fn meet(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    wanted: &PodId,
) -> Result<(Option<PodId>, Option<PodId>), rustls::Error> {
    let mut client = ClientConnection::new(client, server_name(wanted)).expect("a client");
    let mut server = ServerConnection::new(server).expect("a server");
    // A client's certificate is judged after the client thinks itself done: so until nobody has anything to say.
    while pass(&mut client, &mut server)? | pass(&mut server, &mut client)? {}
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!((client.alpn_protocol(), server.alpn_protocol()), (Some(&b"h2"[..]), Some(&b"h2"[..])));
    Ok((server.peer_certificates().and_then(peer_id), client.peer_certificates().and_then(peer_id)))
}

#[test]
fn pods_of_one_ring_know_one_another() {
    let (a, b) = (issue("5a", "pod-a"), issue("5a", "pod-b"));
    let met = meet(b.server_config(), a.client_config(), &pod("pod-b")).expect("a handshake");
    assert_eq!(met, (Some(pod("pod-a")), Some(pod("pod-b"))));
    assert_eq!(format!("{a:?}"), "Credentials(pod-a)");
}

#[test]
fn another_ring_is_refused_by_both_sides() {
    let (ours, theirs) = (issue("5a", "pod-a"), issue("5b", "pod-b"));
    assert!(meet(ours.server_config(), theirs.client_config(), &pod("pod-a")).is_err());
    assert!(meet(theirs.server_config(), ours.client_config(), &pod("pod-b")).is_err());
    // Each side by itself: a caller that trusts anybody's authority is still refused, and so is whom it calls.
    let careless = trusting("5a", Some(&secret("5b")));
    assert!(meet(ours.server_config(), careless, &pod("pod-a")).is_err());
}

#[test]
fn who_shows_nothing_is_refused() {
    let ours = issue("5a", "pod-a");
    assert!(meet(ours.server_config(), trusting("5a", None), &pod("pod-a")).is_err());
}

#[test]
fn another_pod_than_the_one_called_is_refused() {
    let (a, b) = (issue("5a", "pod-a"), issue("5a", "pod-b"));
    assert!(meet(b.server_config(), a.client_config(), &pod("pod-c")).is_err());
    assert!(meet(b.server_config(), a.client_config(), &pod("b")).is_err());
}

#[test]
fn every_id_has_a_name_of_its_own() {
    let long = "-".repeat(64);
    for id in ["a", "-", "0", "x", "xx", "pod-1", "-a-", "0x1f", &"9".repeat(32), &"a".repeat(33), long.as_str()] {
        let (a, b) = (issue("5a", id), issue("5a", "caller"));
        let met = meet(a.server_config(), b.client_config(), &pod(id)).expect(id);
        assert_eq!(met.1, Some(pod(id)));
    }
    assert_eq!(dns_name(&pod("pod-1")), "xpod-1x.pod.adea");
    assert_eq!(peer_id(&[]), None);
    assert_eq!(peer_id(&[vec![0x30, 0].into()]), None);
    // The authority's own certificate is no pod's.
    assert_eq!(peer_id(&[authority(&secret("5a")).expect("an authority").1]), None);
}

/// A client that trusts one ring's authority and shows a certificate of another, or none.
fn trusting(ring: &str, shown: Option<&RingSecret>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority(&secret(ring)).expect("an authority").1).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    if let Some(other) = shown {
        let credentials = Credentials::issue(other, &pod("pod-b")).expect("credentials");
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        let mut config = builder.with_client_cert_resolver(credentials.client.client_auth_cert_resolver.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        return Arc::new(config);
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}
