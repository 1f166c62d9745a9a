//! Rings of pods that gossip over UDP on the loopback.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use adea_ring::gossip::{Gossip, GossipConfig, GossipError, Heard, Keyring, KeyringDoc, MAX_FACTS_BYTES};
use adea_ring::{PodId, RingSecret};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Far more than anything here takes, also where fifteen pods in one process share a core with other tests.
const DEADLINE: Duration = Duration::from_secs(60);

fn pod(name: &str) -> PodId {
    name.parse().expect("a pod's id")
}

fn config(secret: &RingSecret, name: &str, seeds: &[String]) -> GossipConfig {
    GossipConfig {
        me: pod(name),
        generation: 1,
        ring_id: "a-ring".to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: ([127, 0, 0, 1], 0).into(),
        seeds: seeds.to_vec(),
        interval_ms: 150,
        phi: 8.0,
        keyring: Keyring::base(secret),
    }
}

async fn start(config: GossipConfig) -> Gossip {
    Gossip::start(config).await.expect("gossip starts")
}

/// So many pods, `pod-0` on; all but the first know only the first's address.
async fn ring(secret: &RingSecret, pods: usize) -> Vec<Gossip> {
    let first = start(config(secret, "pod-0", &[])).await;
    let seeds = [first.address().to_string()];
    let mut ring = vec![first];
    for at in 1..pods {
        ring.push(start(config(secret, &format!("pod-{at}"), &seeds)).await);
    }
    for gossip in &ring {
        until(gossip, "all see all", |heard| alive(heard).len() == pods).await;
    }
    ring
}

fn alive(heard: &[Heard]) -> Vec<&str> {
    heard.iter().filter(|pod| pod.alive).map(|pod| pod.id.as_str()).collect()
}

fn of<'a>(heard: &'a [Heard], name: &str) -> Option<&'a Heard> {
    heard.iter().find(|pod| pod.id.as_str() == name)
}

async fn until(gossip: &Gossip, what: &str, holds: impl Fn(&[Heard]) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let heard = gossip.heard().await;
        if holds(&heard) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: at {} there is {heard:#?}", gossip.address());
        sleep(Duration::from_millis(10)).await;
    }
}

fn free_address() -> SocketAddr {
    UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr()).expect("a free port")
}

#[tokio::test]
async fn five_pods_from_one_seed() {
    let mut ring = ring(&RingSecret::random(), 5).await;
    for (at, gossip) in ring.iter().enumerate() {
        gossip.say(&json!({"at": at})).await.expect("small");
    }
    for gossip in &ring {
        until(gossip, "all have heard all", |heard| {
            heard.len() == 5 && heard.iter().enumerate().all(|(at, pod)| pod.facts == json!({"at": at}))
        })
        .await;
    }
    ring[3].say(&json!({"at": "last"})).await.expect("small");
    let deadline = Instant::now() + DEADLINE;
    while of(&ring[0].heard().await, "pod-3").is_none_or(|pod| pod.facts["at"] != "last") {
        let changed = tokio::time::timeout_at(deadline, ring[0].changed()).await;
        assert!(changed.is_ok(), "a change that nobody was told of");
    }
    let version = of(&ring[0].heard().await, "pod-3").map(|pod| pod.version);
    ring[3].say(&json!({"at": "last"})).await.expect("small");
    assert_eq!(of(&ring[3].heard().await, "pod-3").map(|pod| pod.version), version, "nothing new");
    let counters = ring[0].counters();
    assert!(counters.sent > 0 && counters.received > 0);
    let dropped = [counters.garbage, counters.foreign, counters.replayed, counters.malformed, counters.unsent];
    assert_eq!(dropped, [0; 5]);
}

#[tokio::test]
async fn crashed_left_and_back() {
    let secret = RingSecret::random();
    let mut ring = ring(&secret, 4).await;
    let left = ring.pop().expect("a pod");
    left.leave(&json!({"left": true})).await.expect("small");
    let heard = ring[0].heard().await;
    let left = of(&heard, "pod-3").expect("a pod that was there");
    assert_eq!((left.alive, &left.facts), (true, &json!({"left": true})), "heard before it was found gone");

    let crashed = ring.pop().expect("a pod");
    let port = crashed.address();
    drop(crashed);
    for gossip in &ring {
        until(gossip, "both are gone", |heard| alive(heard) == ["pod-0", "pod-1"]).await;
        let heard = gossip.heard().await;
        assert_eq!(of(&heard, "pod-3").map(|pod| pod.facts["left"].clone()), Some(json!(true)));
        assert_eq!(of(&heard, "pod-2").map(|pod| pod.facts.clone()), Some(Value::Null));
    }

    // It comes back at its port, and is found there: it knows nobody.
    let again = GossipConfig { generation: 2, listen: port, advertise: port, ..config(&secret, "pod-2", &[]) };
    let again = start(again).await;
    again.say(&json!({"again": true})).await.expect("small");
    ring.push(again);
    for gossip in &ring {
        until(gossip, "it is back", |heard| {
            let back = of(heard, "pod-2").filter(|pod| pod.alive && pod.generation == 2);
            back.is_some_and(|pod| pod.facts == json!({"again": true}))
        })
        .await;
    }
    // One that takes itself for an earlier start is not heard.
    let seeds = [ring[0].address().to_string()];
    let stale = start(GossipConfig { generation: 1, ..config(&secret, "pod-2", &seeds) }).await;
    let deadline = Instant::now() + DEADLINE;
    while ring[0].counters().replayed == 0 {
        assert!(Instant::now() < deadline, "a stale start that was not refused");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(alive(&stale.heard().await), ["pod-2"]);
    assert_eq!(of(&ring[0].heard().await, "pod-2").map(|pod| pod.generation), Some(2));
}

#[tokio::test]
async fn a_seed_that_comes_late_or_is_told_late() {
    let secret = RingSecret::random();
    let (late, named) = (free_address(), free_address());
    let seeds = [late.to_string(), format!("localhost:{}", named.port()), "nowhere.invalid:1".to_owned()];
    let early = start(config(&secret, "pod-0", &seeds)).await;
    // Its own address as a seed does no harm.
    early.add_seeds(&[early.address().to_string()]).expect("an address");
    assert_eq!(alive(&early.heard().await), ["pod-0"]);
    let second = start(GossipConfig { listen: late, advertise: late, ..config(&secret, "pod-1", &[]) }).await;
    until(&early, "the late seed", |heard| alive(heard) == ["pod-0", "pod-1"]).await;
    let third = start(GossipConfig { listen: named, advertise: named, ..config(&secret, "pod-2", &[]) }).await;
    until(&third, "a seed that is tried though others live", |heard| alive(heard).len() == 3).await;
    let fourth = start(config(&secret, "pod-3", &[])).await;
    fourth.add_seeds(&[second.address().to_string()]).expect("an address");
    until(&early, "who was told later", |heard| alive(heard).len() == 4).await;
    assert!(matches!(early.add_seeds(&["nowhere".to_owned()]), Err(GossipError::Seed(_))));
}

#[tokio::test]
async fn keys_rotate_and_nobody_is_lost() {
    let secret = RingSecret::random();
    let ring = ring(&secret, 3).await;
    let base = KeyringDoc::of_base(&secret);
    let (added, id) = base.add(&secret).expect("room");
    let used = added.use_(id).expect("known");
    let removed = used.remove(base.primary).expect("not in use");
    for doc in [&added, &used, &removed] {
        for (at, gossip) in ring.iter().enumerate() {
            gossip.set_keyring(Keyring::of_doc(&secret, doc).expect("own"));
            // What is said while keys differ is heard, too.
            let said = json!({"keys": doc.keys.len(), "primary": doc.primary, "at": at});
            gossip.say(&said).await.expect("small");
            for other in &ring {
                until(other, "heard", |heard| of(heard, &format!("pod-{at}")).is_some_and(|pod| pod.facts == said))
                    .await;
                assert_eq!(alive(&other.heard().await).len(), 3);
            }
        }
    }
    assert_eq!(ring.iter().map(|gossip| gossip.counters().foreign).sum::<u64>(), 0, "no datagram was lost");

    let seeds = [ring[0].address().to_string()];
    let old = start(config(&secret, "pod-old", &seeds)).await;
    let deadline = Instant::now() + DEADLINE;
    while ring[0].counters().foreign == 0 {
        assert!(Instant::now() < deadline, "a removed key that is not refused");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ring[0].heard().await.len(), 3);
    assert_eq!(old.heard().await.len(), 1);
    old.set_keyring(Keyring::of_doc(&secret, &removed).expect("own"));
    until(&ring[2], "with the new key", |heard| alive(heard).len() == 4).await;
}

#[tokio::test]
async fn garbage_is_counted_and_harmless() {
    let secret = RingSecret::random();
    let ring = ring(&secret, 3).await;
    let elsewhere = start(config(&RingSecret::random(), "pod-x", &[ring[0].address().to_string()])).await;
    let wrong_id = config(&secret, "pod-y", &[ring[0].address().to_string()]);
    let wrong_id = start(GossipConfig { ring_id: "another".to_owned(), ..wrong_id }).await;
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
    let mut sent: u64 = 0;
    let deadline = Instant::now() + DEADLINE;
    while ring[0].counters().garbage < 1_000 || ring[0].counters().foreign < 1_000 {
        assert!(Instant::now() < deadline, "{:?} of {sent}", ring[0].counters());
        for _ in 0..20 {
            let mut noise = vec![0; rand::rng().random_range(0..300)];
            rand::rng().fill(noise.as_mut_slice());
            socket.send_to(&noise, ring[0].address()).expect("sent");
            let key_id = hex::decode(Keyring::base(&secret).primary().to_string()).expect("hexadecimal");
            let formed = [&[1], key_id.as_slice(), &[7; 80]].concat();
            socket.send_to(&formed, ring[0].address()).expect("sent");
            sent += 2;
        }
        sleep(Duration::from_millis(5)).await;
    }
    ring[0].say(&json!({"still": "there"})).await.expect("small");
    let still = |heard: &[Heard]| of(heard, "pod-0").is_some_and(|pod| pod.alive && !pod.facts.is_null());
    until(&ring[2], "it works on", still).await;
    for gossip in &ring {
        assert_eq!((gossip.heard().await.len(), gossip.failure()), (3, None));
    }
    assert_eq!((elsewhere.heard().await.len(), wrong_id.heard().await.len()), (1, 1));
}

#[tokio::test]
async fn more_facts_than_a_datagram_holds() {
    let secret = RingSecret::random();
    let ring = ring(&secret, 14).await;
    for gossip in &ring {
        let mut noise = [0_u8; 4_000];
        rand::rng().fill(noise.as_mut_slice());
        let noise: String = noise.iter().map(|byte| char::from(b'!' + byte % 90)).filter(|c| *c != '"').collect();
        gossip.say(&json!({"noise": noise, "more": noise.chars().rev().collect::<String>()})).await.expect("fits");
    }
    let joins = start(config(&secret, "joins", &[ring[5].address().to_string()])).await;
    until(&joins, "all facts", |heard| heard.iter().filter(|pod| !pod.facts.is_null()).count() == 14).await;
    until(&ring[0], "the new one", |heard| of(heard, "joins").is_some_and(|pod| pod.alive)).await;
    assert_eq!(joins.counters().malformed, 0);
    let large = json!("x".repeat(MAX_FACTS_BYTES));
    assert!(matches!(joins.say(&large).await, Err(GossipError::TooLarge(_))));
}

#[tokio::test]
async fn wrong_settings() {
    let secret = RingSecret::random();
    let good = || config(&secret, "pod-0", &[]);
    let first = start(good()).await;
    for (member, wrong) in [
        ("interval_ms", GossipConfig { interval_ms: 1, ..good() }),
        ("phi", GossipConfig { phi: f64::NAN, ..good() }),
        ("advertise", GossipConfig { advertise: ([0, 0, 0, 0], 1).into(), ..good() }),
        ("ring_id", GossipConfig { ring_id: String::new(), ..good() }),
        ("seeds", config(&secret, "pod-0", &["nowhere".to_owned()])),
        ("listen", GossipConfig { listen: first.address(), ..good() }),
    ] {
        let error = Gossip::start(wrong).await.err().expect(member);
        assert!(error.to_string().contains(member), "{error}");
    }
    // The port is free again when it has stopped.
    let address = first.address();
    first.stop().await;
    start(GossipConfig { listen: address, ..good() }).await;
}

/// How much a ring talks when nothing happens; prints it.
#[tokio::test]
async fn an_idle_ring_is_quiet() {
    let ring = ring(&RingSecret::random(), 5).await;
    for gossip in &ring {
        gossip.say(&json!({"address": gossip.address(), "version": "0.1.0", "role": "follower"})).await.expect("small");
    }
    for gossip in &ring {
        until(gossip, "all facts", |heard| heard.iter().all(|pod| !pod.facts.is_null())).await;
    }
    let before: Vec<_> = ring.iter().map(Gossip::counters).collect();
    let since = Instant::now();
    sleep(Duration::from_secs(2)).await;
    let seconds = since.elapsed().as_secs_f64();
    for (gossip, before) in ring.iter().zip(before) {
        let after = gossip.counters();
        let datagrams = (after.sent - before.sent) as f64 / seconds;
        let bytes = (after.sent_bytes - before.sent_bytes) as f64 / seconds;
        println!("{datagrams:.0} datagrams and {bytes:.0} bytes a second");
        assert!(datagrams < 100.0 && bytes < 100_000.0, "{datagrams} {bytes}");
    }
}

/// How long a crash goes unnoticed; prints it.
#[tokio::test]
async fn a_crash_is_noticed() {
    let secret = RingSecret::random();
    let mut ring = ring(&secret, 5).await;
    let mut took_ms = Vec::new();
    for generation in 2..6 {
        let crashed = ring.pop().expect("a pod");
        drop(crashed);
        let since = Instant::now();
        for gossip in &ring {
            until(gossip, "found dead", |heard| !alive(heard).contains(&"pod-4")).await;
            took_ms.push(since.elapsed().as_millis());
        }
        let seeds = [ring[0].address().to_string()];
        ring.push(start(GossipConfig { generation, ..config(&secret, "pod-4", &seeds) }).await);
        for gossip in &ring {
            until(gossip, "back", |heard| alive(heard).len() == 5).await;
        }
    }
    took_ms.sort_unstable();
    println!("found dead after {took_ms:?} ms");
    assert!(took_ms[took_ms.len() / 2] < 3_000, "{took_ms:?}");
}
