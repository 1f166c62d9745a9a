use super::*;
use crate::upgrade::OrderKey;

fn admin() -> AdminEntry {
    AdminEntry { name: "admin".to_owned(), password_hash: "$argon2id$x".to_owned() }
}

fn pod(id: &str) -> PodId {
    id.parse().expect("a pod's id")
}

fn made() -> (RingSecret, Token, TokenDoc) {
    let (ring, token) = (RingSecret::random(), Token::random(None));
    let doc = token.doc(&ring, &admin(), 2, 1_000, 500).expect("a document");
    (ring, token, doc)
}

fn welcome(ring: &RingSecret) -> Welcome {
    Welcome { ring_secret: Some(ring.to_hex()), admin: Some(admin()), ..Welcome::default() }
}

#[test]
fn tokens_as_text() {
    let token = Token::random(Some(OrderKey::random().public().fingerprint()));
    let text = token.to_text();
    assert_eq!(text.len(), 12 + 1 + 64);
    let again: Token = format!(" {text}\n").parse().expect("own form");
    assert_eq!((again.id, again.secret, again.order_key), (token.id, token.secret, token.order_key));
    assert!(!format!("{token:?}").contains(text.split_once('.').expect("a full stop").1));
    for bad in ["", "x", "00.00", &text[1..], &text[..76], &text[..44], &format!("{text}0"), &text.replace('.', ":")] {
        assert_eq!(bad.parse::<Token>().err(), Some(JoinError::Token), "{bad}");
    }
    // An earlier version's says nothing of the key for orders.
    let earlier: Token = text[..45].parse().expect("an earlier form");
    assert_eq!((earlier.secret, earlier.order_key, earlier.to_text().as_str()), (token.secret, None, &text[..45]));
}

#[test]
fn who_knows_the_token_gets_the_secret() {
    let (ring, token, doc) = made();
    let joiner = Joiner::new(&token, Intent::Join, pod("pod-2")).expect("a joiner");
    let grant = doc.open(&ring, &token.id()).expect("a grant");
    assert!(grant.proves(joiner.request()));
    let text = serde_json::to_string(joiner.request()).expect("JSON");
    assert!(!text.contains(&hex::encode(token.secret)));
    let request: JoinRequest = serde_json::from_str(&text).expect("a request");
    let answer = grant.answer(&request, &welcome(&ring)).expect("an answer");
    let text = serde_json::to_string(&answer).expect("JSON");
    assert!(!text.contains(&ring.to_hex()));
    let learnt = joiner.open(&answer).expect("opens");
    assert_eq!(learnt.ring_secret, Some(ring.to_hex()));
    assert_eq!(learnt.admin.expect("one").name, "admin");
}

#[test]
fn a_changed_or_foreign_request_proves_nothing() {
    let (ring, token, doc) = made();
    let grant = doc.open(&ring, &token.id()).expect("a grant");
    let joiner = Joiner::new(&token, Intent::Look, pod("pod-2")).expect("a joiner");
    let good = joiner.request().clone();
    let other = Token { secret: rand::random(), ..token.clone() };
    let other = Joiner::new(&other, Intent::Look, pod("pod-2")).expect("a joiner");
    for bad in [
        JoinRequest { intent: Intent::Join, ..good.clone() },
        JoinRequest { pod: pod("pod-3"), ..good.clone() },
        JoinRequest { nonce: "00".repeat(32), ..good.clone() },
        JoinRequest { key: "09".repeat(32), ..good.clone() },
        JoinRequest { token: TokenId([9; 6]), ..good.clone() },
        JoinRequest { format: 2, ..good.clone() },
        JoinRequest { proof: String::new(), ..good.clone() },
        other.request().clone(),
    ] {
        assert!(!grant.proves(&bad), "{bad:?}");
    }
    assert!(grant.proves(&good) && !Grant::dummy().proves(&good));
}

#[test]
fn an_answer_is_for_one_request_only() {
    let (ring, token, doc) = made();
    let grant = doc.open(&ring, &token.id()).expect("a grant");
    let first = Joiner::new(&token, Intent::Join, pod("pod-2")).expect("a joiner");
    let answer = grant.answer(first.request(), &welcome(&ring)).expect("an answer");
    // Not even another request of who knows the token opens what was recorded.
    let second = Joiner::new(&token, Intent::Join, pod("pod-2")).expect("a joiner");
    assert_eq!(second.open(&answer).err(), Some(JoinError::Answer));
    // And nobody else can seal one.
    let forged = Grant::dummy().answer(first.request(), &welcome(&ring)).expect("an answer");
    assert_eq!(first.open(&forged).err(), Some(JoinError::Answer));
    let low_order = JoinRequest {
        key: "00".repeat(32),
        ..Joiner::new(&token, Intent::Join, pod("pod-2")).expect("a joiner").request().clone()
    };
    assert_eq!(grant.answer(&low_order, &welcome(&ring)).err(), Some(JoinError::Agreement));
}

#[test]
fn a_document_holds_for_its_ring_and_its_bounds() {
    let (ring, token, doc) = made();
    let text = serde_json::to_string(&doc).expect("JSON");
    assert!(!text.contains(&hex::encode(token.secret)));
    assert!(doc.open(&RingSecret::random(), &token.id()).is_err());
    assert!(doc.open(&ring, &TokenId([1; 6])).is_err(), "another token's document");
    assert!(TokenDoc { uses: 3, ..doc.clone() }.open(&ring, &token.id()).is_err());
    assert!(TokenDoc { expires_at_ms: 9_999, ..doc.clone() }.open(&ring, &token.id()).is_err());
    assert_eq!((doc.left(1_499), doc.left(1_500)), (2, 0));
    let used = Use { pod: pod("pod-2"), key: String::new(), at_ms: 0 };
    assert_eq!(TokenDoc { used: vec![used.clone()], ..doc.clone() }.left(0), 1);
    assert_eq!(TokenDoc { used: vec![used; 3], ..doc.clone() }.left(0), 0);
    // A later version's members are borne.
    let later = text.replacen('{', r#"{"later":1,"#, 1);
    assert_eq!(serde_json::from_str::<TokenDoc>(&later).expect("a document"), doc);
}
