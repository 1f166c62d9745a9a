use rean_store::rev::Rev;
use rean_store::{AttachmentEdit, AttachmentEditSource, Author, Edit, Who};
use serde_json::{Map, Value, json};

use super::{Plan, plan, set_hash};
use crate::accounts::Stored;
use crate::error::ApiError;

const REV: &str = "3-0123456789abcdef0123456789abcdef";

fn rev() -> Rev {
    REV.parse().expect("a revision")
}

fn admin() -> Author {
    Author::admin(who("root"))
}

fn user(name: &str) -> Author {
    Author::user(who(name))
}

fn who(name: &str) -> Who {
    Who { name: Some(name.to_owned()), ..Who::default() }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        other => panic!("{other} is no object"),
    }
}

fn stored(body: Value) -> Stored {
    Stored { rev: rev(), deleted: false, live_leaves: 1, body: object(body) }
}

fn edit(id: &str, body: Value) -> Edit {
    Edit {
        id: id.to_owned(),
        parent: Some(rev()),
        history: Vec::new(),
        deleted: false,
        body: body.to_string().into(),
        access: None,
        attachments: Vec::new(),
    }
}

fn ann(more: Value) -> Value {
    let mut body = object(json!({"name": "ann", "type": "user", "roles": []}));
    body.extend(object(more));
    Value::Object(body)
}

const ANN: &str = "org.couchdb.user:ann";

fn written(plan: Result<Plan, ApiError>) -> (Map<String, Value>, Option<String>) {
    match plan.expect("is allowed") {
        Plan::Written { body, password } => (body, password),
        other => panic!("{other:?}"),
    }
}

fn reason(plan: Result<Plan, ApiError>) -> String {
    let error = plan.expect_err("is refused");
    assert_eq!(error.error, "forbidden");
    error.reason.into_owned()
}

#[test]
fn documents_that_do_not_fit_are_refused_in_couchdbs_words() {
    for (id, body, word) in [
        ("bad", ann(json!({})), "Doc ID"),
        (ANN, ann(json!({"name": "bob"})), "Doc ID"),
        (ANN, ann(json!({"type": "robot"})), "type"),
        (ANN, ann(json!({"roles": "no"})), "array"),
        (ANN, ann(json!({"roles": ["_admin"]})), "system roles"),
        (ANN, ann(json!({"roles": [1]})), "strings"),
        (ANN, json!({"name": "ann", "type": "user"}), "exist"),
        (ANN, json!({"type": "user", "roles": []}), "name"),
        ("org.couchdb.user:_x", json!({"name": "_x", "type": "user", "roles": []}), "underscore"),
        ("org.couchdb.user:a:b", json!({"name": "a:b", "type": "user", "roles": []}), "`:`"),
        (ANN, ann(json!({"password": 5})), "string"),
        (ANN, ann(json!({"password": ""})), "bytes"),
        (ANN, ann(json!({"roles": vec!["r"; 101]})), "at most"),
    ] {
        let why = reason(plan(&edit(id, body), None, &admin(), false));
        assert!(why.contains(word), "{why}");
    }
}

#[test]
fn the_password_goes_and_the_hash_stays_until_there_is_a_new_one() {
    let (mut body, password) =
        written(plan(&edit(ANN, ann(json!({"password": "secret", "mail": null}))), None, &admin(), false));
    assert_eq!(password.as_deref(), Some("secret"));
    assert!(!body.contains_key("password") && body.contains_key("mail"));
    set_hash(&mut body, "$hash".to_owned());
    let old = stored(Value::Object(body));
    let (body, password) = written(plan(&edit(ANN, ann(json!({"more": 1}))), Some(&old), &admin(), false));
    assert_eq!(password, None);
    assert_eq!(body["derived_key"], "$hash");
    assert_eq!(body["password_scheme"], "argon2id");
}

#[test]
fn a_user_cannot_bring_a_hash_and_nobody_a_costly_one() {
    let old = stored(ann(json!({"derived_key": "$old", "password_scheme": "argon2id"})));
    let costly = "$argon2id$v=19$m=4194304,t=2,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA";
    let brought = || edit(ANN, ann(json!({"derived_key": costly, "password_scheme": "argon2id"})));
    let (body, _) = written(plan(&brought(), Some(&old), &user("ann"), false));
    assert_eq!(body["derived_key"], "$old");
    assert!(reason(plan(&brought(), Some(&old), &admin(), false)).contains("cost"));
}

#[test]
fn hashes_of_couchdb_stay_as_they_are_if_a_log_in_can_check_them() {
    let brought = |secret: Value| edit(ANN, ann(secret));
    let pbkdf2 = |iterations: u64| json!({"password_scheme": "pbkdf2", "derived_key": "abcd", "salt": "0f", "iterations": iterations});
    let simple = json!({"password_sha": "abcd", "salt": "0f"});
    for secret in [pbkdf2(10), simple.clone()] {
        let (body, password) = written(plan(&brought(secret.clone()), None, &admin(), true));
        assert_eq!(password, None);
        for (member, value) in object(secret) {
            assert_eq!(body[&member], value);
        }
    }
    assert!(reason(plan(&brought(pbkdf2(u64::MAX)), None, &admin(), true)).contains("cost"));
    // A user brings none, of whatever kind.
    let old = stored(ann(json!({"derived_key": "$old", "password_scheme": "argon2id"})));
    let (body, _) = written(plan(&brought(simple), Some(&old), &user("ann"), false));
    assert!(body["derived_key"] == "$old" && !body.contains_key("password_sha"));
}

#[test]
fn users_keep_to_their_own_document_and_roles() {
    let old = || stored(ann(json!({"roles": ["staff"]})));
    let write = |author: &Author, body: Value| plan(&edit(ANN, body), Some(&old()), author, false);
    assert!(write(&user("ann"), ann(json!({"roles": ["staff"], "password": "new"}))).is_ok());
    assert!(reason(write(&user("ann"), ann(json!({"roles": ["staff", "boss"]})))).contains("roles"));
    assert!(reason(write(&user("ann"), ann(json!({})))).contains("roles"));
    assert!(reason(write(&user("bob"), ann(json!({"roles": ["staff"]})))).contains("own"));
    let sign_up = |roles: Value| {
        let mut edit = edit(ANN, ann(json!({"password": "x", "roles": roles})));
        edit.parent = None;
        plan(&edit, None, &Author::user(Who::default()), false)
    };
    assert!(sign_up(json!([])).is_ok());
    assert!(reason(sign_up(json!(["boss"]))).contains("roles"));
}

#[test]
fn a_user_cannot_get_roles_back_through_conflicts() {
    let body = || ann(json!({"roles": ["staff"]}));
    let old = stored(body());
    // A fork by replication.
    assert!(plan(&edit(ANN, body()), Some(&old), &user("ann"), true).is_err());
    // Another revision than the one whose roles were compared.
    let mut other = edit(ANN, body());
    other.parent = None;
    let error = plan(&other, Some(&old), &user("ann"), false).expect_err("a conflict");
    assert_eq!(error.status, 409);
    // Deleting the winner when another revision would come up.
    let mut conflicting = stored(body());
    conflicting.live_leaves = 2;
    let mut removal = edit(ANN, body());
    removal.deleted = true;
    assert!(plan(&removal, Some(&conflicting), &user("ann"), false).is_err());
    assert!(plan(&removal, Some(&old), &user("ann"), false).is_ok());
    assert!(plan(&removal, Some(&old), &user("bob"), false).is_err());
    // Attachments have no place in an account.
    let mut attached = edit(ANN, body());
    attached.attachments.push(AttachmentEdit {
        name: "f".to_owned(),
        content_type: None,
        revpos: None,
        source: AttachmentEditSource::Stub { digest: None },
    });
    assert!(plan(&attached, Some(&old), &user("ann"), false).is_err());
}

#[test]
fn pods_pass_accounts_on_as_they_are() {
    let pod = Author::admin(who("_pod"));
    let edit = edit(ANN, ann(json!({"derived_key": "$brought"})));
    assert!(matches!(plan(&edit, None, &pod, true), Ok(Plan::Verbatim)));
    // Written by hand it is an account like any other.
    assert!(matches!(plan(&edit, None, &pod, false), Ok(Plan::Written { .. })));
}
