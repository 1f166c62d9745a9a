//! The door for new pods: whom a token lets in, how often, and what those learn who have none.

#[path = "harness/ring.rs"]
mod ring;

use std::time::{Duration, Instant};

use adea_ring::join::{AdminEntry, Intent, JoinAnswer, JoinRequest, Joiner, Token, TokenDoc, Welcome};
use adea_ring::report::{RingState, Role};
use adea_ring::upgrade::{OrderKey, OrderTrust};
use adea_ring::{Identity, RingSecret};
use ring::{Answer, TestRing, admin, id, until};
use serde_json::{Value, json};

/// Long enough for each test.
const HOUR_MS: u64 = 3_600_000;

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("not so late")
}

fn administrator() -> AdminEntry {
    AdminEntry { name: "admin".to_owned(), password_hash: "$argon2id$hash".to_owned() }
}

fn joiner(token: &Token, intent: Intent, pod: &str) -> Joiner {
    Joiner::new(token, intent, id(pod)).expect("a joiner")
}

/// Puts a token's document into the ring.
async fn keep(ring: &TestRing, token: &Token, doc: &TokenDoc) {
    ring.put(0, &admin(), &format!("/_ring/{}", token.id().doc_id()), json!(doc)).await.expect(201);
}

async fn make(ring: &TestRing, uses: u32) -> Token {
    let token = Token::random(None);
    let doc = token.doc(&ring.secret, &administrator(), uses, now_ms(), HOUR_MS).expect("a document");
    keep(ring, &token, &doc).await;
    token
}

async fn post(ring: &TestRing, at: usize, request: &JoinRequest) -> Answer {
    ring.post(at, &Identity::anonymous(), "/_join", json!(request)).await
}

/// One exchange, which lets the pod in.
async fn let_in(ring: &TestRing, at: usize, token: &Token, pod: &str) -> Welcome {
    let joiner = joiner(token, Intent::Join, pod);
    let answer = post(ring, at, joiner.request()).await;
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    open(joiner, &answer.expect(200))
}

fn open(joiner: Joiner, answer: &Value) -> Welcome {
    let answer: JoinAnswer = serde_json::from_value(answer.clone()).expect("an answer");
    joiner.open(&answer).expect("opens")
}

async fn uses_of(ring: &TestRing, token: &Token) -> Vec<String> {
    let doc = ring.get(0, &admin(), &format!("/_ring/{}", token.id().doc_id())).await.expect(200);
    let used = doc["used"].as_array().cloned().unwrap_or_default();
    used.iter().map(|used| used["pod"].as_str().expect("a pod").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_in_as_many_pods_as_it_says_through_whichever_pod() {
    let ring = TestRing::with_master(2, 0).await;
    let order_trust = Some(OrderTrust { key: OrderKey::random().public(), at: Some(id("pod-1")) });
    let epoch = ring.pod(0).ring.start().expect("it is master").epoch;
    ring.tell(0, &RingState { order_trust: order_trust.clone(), ..ring.state(0, Role::Master(epoch)) }).await;
    let token = make(&ring, 2).await;
    let looking = joiner(&token, Intent::Look, "pod-new");
    let seen = open_look(&ring, looking).await;
    assert!(seen.ring_secret.is_none() && seen.admin.is_none());
    assert_eq!(seen.order_trust, order_trust, "it is no secret, and looked at before a use is spent");
    assert_eq!(seen.seeds.len(), 2);
    assert_eq!(seen.seeds[0], ring.at(0).ring_address.to_string());
    assert_eq!(uses_of(&ring, &token).await, [] as [&str; 0]);

    let welcome = let_in(&ring, 1, &token, "pod-new").await;
    assert_eq!(welcome.ring_secret, Some(ring.secret.to_hex()));
    assert_eq!(welcome.order_trust, order_trust);
    assert_eq!(welcome.admin.expect("one").password_hash, "$argon2id$hash");
    assert_eq!(welcome.uuid, ring.pod(0).uuid);
    assert!(welcome.urls.contains(&"http://pod-2.example".to_owned()));
    let_in(&ring, 0, &token, "pod-newer").await;
    assert_eq!(uses_of(&ring, &token).await, ["pod-new", "pod-newer"]);
    let third = joiner(&token, Intent::Join, "pod-newest");
    post(&ring, 1, third.request()).await.expect(403);
    let look = joiner(&token, Intent::Look, "pod-newest");
    post(&ring, 1, look.request()).await.expect(403);
}

async fn open_look(ring: &TestRing, looking: Joiner) -> Welcome {
    let answer = post(ring, 1, looking.request()).await.expect(200);
    open(looking, &answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_no_good_token_is_answered_alike_and_takes_alike() {
    let ring = TestRing::with_master(1, 0).await;
    let (used, revoked, good) = (make(&ring, 1).await, make(&ring, 1).await, make(&ring, 1).await);
    let_in(&ring, 0, &used, "pod-a").await;
    let path = format!("/_ring/{}", revoked.id().doc_id());
    let rev = ring.get(0, &admin(), &path).await.expect(200)["_rev"].as_str().expect("a revision").to_owned();
    ring.send(0, &admin(), "DELETE", &format!("{path}?rev={rev}"), None).await.expect(200);
    let expired = Token::random(None);
    let doc = expired.doc(&ring.secret, &administrator(), 1, now_ms() - HOUR_MS, HOUR_MS - 1).expect("a document");
    keep(&ring, &expired, &doc).await;
    let wrong: Token = format!("{}.{}", good.id(), "00".repeat(16)).parse().expect("a token");
    let mut answers = Vec::new();
    for token in [&used, &revoked, &expired, &wrong, &Token::random(None)] {
        let joiner = joiner(token, Intent::Join, "pod-b");
        let began = Instant::now();
        let answer = post(&ring, 0, joiner.request()).await;
        assert!(began.elapsed() >= Duration::from_millis(150), "an early answer tells something");
        assert_eq!(answer.status, 403);
        answers.push((answer.text(), answer.headers.len()));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    // A wrong one has not cost the right one its use.
    let_in(&ring, 0, &good, "pod-b").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_race_for_the_last_use_through_two_pods_one_is_let_in() {
    let ring = TestRing::with_master(3, 0).await;
    for round in 0..5 {
        let token = make(&ring, 1).await;
        let names = [format!("pod-a{round}"), format!("pod-b{round}"), format!("pod-c{round}")];
        let joiners: Vec<Joiner> = names.iter().map(|name| joiner(&token, Intent::Join, name)).collect();
        let (a, b, c) = tokio::join!(
            post(&ring, 0, joiners[0].request()),
            post(&ring, 1, joiners[1].request()),
            post(&ring, 2, joiners[2].request()),
        );
        let mut statuses = [a.status.as_u16(), b.status.as_u16(), c.status.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 403, 403]);
        assert_eq!(uses_of(&ring, &token).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_repeated_counts_once_and_helps_nobody_else() {
    let ring = TestRing::with_master(1, 0).await;
    let token = make(&ring, 1).await;
    let first = joiner(&token, Intent::Join, "pod-a");
    let request = first.request().clone();
    // The first answer is lost, the second one arrives.
    post(&ring, 0, &request).await.expect(200);
    let answer = post(&ring, 0, &request).await.expect(200);
    assert_eq!(uses_of(&ring, &token).await, ["pod-a"]);
    // Who has recorded all that, and even finds the token afterwards, can open none of it.
    let recorded: JoinAnswer = serde_json::from_value(answer.clone()).expect("an answer");
    assert!(joiner(&token, Intent::Join, "pod-a").open(&recorded).is_err());
    assert!(!answer.to_string().contains(&ring.secret.to_hex()));
    assert_eq!(open(first, &answer).ring_secret, Some(ring.secret.to_hex()));
    // Nor change it into another request.
    let other = joiner(&token, Intent::Join, "pod-a");
    let mut changed = request.clone();
    changed.key.clone_from(&other.request().key);
    post(&ring, 0, &changed).await.expect(403);
    let mut renamed = request;
    renamed.pod = id("pod-z");
    post(&ring, 0, &renamed).await.expect(403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_refused_and_costs_no_use() {
    let ring = TestRing::with_master(2, 0).await;
    let token = make(&ring, 5).await;
    for (pod, why) in [("pod-1", "is the name of a pod"), ("pod-2", "is the name of a pod")] {
        for intent in [Intent::Look, Intent::Join] {
            let refused = post(&ring, 1, joiner(&token, intent, pod).request()).await.expect(409);
            assert!(refused["reason"].as_str().expect("a reason").contains(why), "{refused}");
        }
    }
    let_in(&ring, 0, &token, "pod-new").await;
    // It has not come up yet, and another machine wants the same name, with another token.
    let other = make(&ring, 1).await;
    let refused = post(&ring, 0, joiner(&other, Intent::Join, "pod-new").request()).await.expect(409);
    assert!(refused["reason"].as_str().expect("a reason").contains("a moment ago"), "{refused}");
    assert_eq!(uses_of(&ring, &other).await.len(), 0);
    ring.configure(json!({"pods": {"pod-old": "removed"}})).await;
    let refused = post(&ring, 0, joiner(&other, Intent::Join, "pod-old").request()).await.expect(409);
    assert!(refused["reason"].as_str().expect("a reason").contains("was removed"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_read_and_write_ring_documents_can_make_no_token_and_open_none() {
    let ring = TestRing::with_master(1, 0).await;
    let token = make(&ring, 1).await;
    let path = format!("/_ring/{}", token.id().doc_id());
    let shown = ring.get(0, &admin(), &path).await.expect(200);
    let doc: TokenDoc = serde_json::from_value(shown.clone()).expect("a document");
    assert!(doc.open(&RingSecret::random(), &token.id()).is_err());
    // One made without the ring's secret.
    let forged = Token::random(None);
    let made = forged.doc(&RingSecret::random(), &administrator(), 1, now_ms(), HOUR_MS).expect("a document");
    keep(&ring, &forged, &made).await;
    post(&ring, 0, joiner(&forged, Intent::Join, "pod-a").request()).await.expect(403);
    // A good one with more uses, or a longer life; a copy under a new id is another token's.
    for (member, value) in [("uses", json!(50)), ("expires_at_ms", json!(now_ms() + 50 * HOUR_MS))] {
        let mut doc = shown.clone();
        doc[member] = value;
        ring.put(0, &admin(), &path, doc).await.expect(403);
    }
    let copy = Token::random(None);
    keep(&ring, &copy, &doc).await;
    post(&ring, 0, joiner(&copy, Intent::Join, "pod-a").request()).await.expect(403);
    let_in(&ring, 0, &token, "pod-a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_used_up_stays_that() {
    let ring = TestRing::with_master(1, 0).await;
    let token = make(&ring, 1).await;
    let (id, path) = (token.id().doc_id(), format!("/_ring/{}", token.id().doc_id()));
    let mut fresh = ring.get(0, &admin(), &path).await.expect(200);
    let_in(&ring, 0, &token, "pod-a").await;
    let used = ring.get(0, &admin(), &path).await.expect(200);
    let reset = json!({"_rev": used["_rev"], "used": []});
    let mut changed = fresh.clone();
    changed.as_object_mut().expect("an object").extend(reset.as_object().expect("one").clone());
    ring.put(0, &admin(), &path, changed.clone()).await.expect(403);
    let bulk = |doc: Value, new_edits: bool| json!({"docs": [doc], "new_edits": new_edits});
    changed["_id"] = id.as_str().into();
    let answer = ring.post(0, &admin(), "/_ring/_bulk_docs", bulk(changed.clone(), true)).await.expect(201);
    assert_eq!(answer[0]["error"], "forbidden");
    // As if another pod had written it, with a revision that wins.
    changed["_rev"] = format!("9-{}", "f".repeat(32)).into();
    let answer = ring.post(0, &admin(), "/_ring/_bulk_docs", bulk(changed, false)).await.expect(201);
    assert_eq!(answer[0]["error"], "forbidden");
    let purge = json!({ id.as_str(): [used["_rev"]] });
    ring.post(0, &admin(), "/_ring/_purge", purge).await.expect(403);
    // Revoked, and made again as it was.
    let rev = used["_rev"].as_str().expect("a revision");
    ring.send(0, &admin(), "DELETE", &format!("{path}?rev={rev}"), None).await.expect(200);
    fresh.as_object_mut().expect("an object").remove("_rev");
    ring.put(0, &admin(), &path, fresh).await.expect(403);
    post(&ring, 0, joiner(&token, Intent::Join, "pod-b").request()).await.expect(403);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_to_join_is_refused() {
    let ring = TestRing::with_master(2, 0).await;
    let nobody = Identity::anonymous();
    ring.get(1, &nobody, "/_join").await.expect(405);
    ring.get(0, &nobody, "/_join/x").await.expect(401);
    for body in [json!({}), json!([]), json!({"format": 1, "token": "x"}), json!("x".repeat(5_000))] {
        ring.post(1, &nobody, "/_join", body).await.expect(400);
    }
    let token = make(&ring, 1).await;
    let mut later = joiner(&token, Intent::Join, "pod-a").request().clone();
    later.format = 2;
    let refused = post(&ring, 1, &later).await.expect(400);
    assert!(refused["reason"].as_str().expect("a reason").contains("form 1"), "{refused}");
    // A ring without a write master asks for patience.
    for at in [0, 1] {
        ring.tell(at, &ring.state(at, Role::Waiting)).await;
    }
    ring.configure(json!({"write": {"wait_ms": 100}})).await;
    let waiting = post(&ring, 1, joiner(&token, Intent::Join, "pod-a").request()).await;
    assert_eq!((waiting.status.as_u16(), waiting.header("retry-after")), (503, Some("1")));
    ring.elect(1).await;
    until("it lets in again", || async {
        post(&ring, 0, joiner(&token, Intent::Look, "pod-a").request()).await.status == 200
    })
    .await;
}
