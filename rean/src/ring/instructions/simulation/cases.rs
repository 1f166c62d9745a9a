//! Single cases of looks at instructions, on a pod of the simulation.

use rean_store::{Mode, Rev};
use serde_json::{Value, json};

use super::pod::{Pod, submit};
use crate::ring::instructions::carry_out::Reason;
use crate::ring::instructions::{Number, PREFIX};

const EPOCH: &str = "000000000001-0000-b";

fn number(number: u64) -> Number {
    format!("{EPOCH}.{number:010}").parse().expect("a number")
}

/// Has an instruction, or another document of the ring, come to a pod.
fn put(pod: &Pod, id: &str, body: Option<&Value>) {
    let edit = pod.edit(&pod.ring, id, body).expect("an edit");
    submit(&pod.ring, vec![edit], Mode::Interactive).remove(0).expect("written");
}

fn instruct(pod: &Pod, at: u64, body: &Value) {
    put(pod, &format!("{PREFIX}{}", number(at)), Some(body));
}

fn put_doc(pod: &Pod, id: &str, read: &str) -> Rev {
    let edit = pod.edit(&pod.db, id, Some(&json!({"access": {"read": [read]}}))).expect("an edit");
    submit(&pod.db, vec![edit], Mode::Interactive).remove(0).expect("written").rev
}

/// A move from where nothing is known to be, by a revision that has not come.
fn unknown_move(id: &str) -> Value {
    json!({"db": "notes", "id": id, "from": "0", "to": null, "rev": "2-0000000000000000000000000000000a"})
}

fn open(pod: &Pod) -> Option<(u64, Reason)> {
    pod.look().open.into_values().next().map(|(number, reason)| (number.number, reason))
}

#[test]
fn a_gap_is_noticed_and_what_lies_behind_it_is_carried_out_all_the_same() {
    let mut pod = Pod::new("a");
    put_doc(&pod, "d0", "user:ann");
    instruct(&pod, 1, &json!({"moves": []}));
    assert_eq!(open(&pod), None);
    instruct(&pod, 3, &json!({"prev": number(2).to_string(), "moves": [unknown_move("d0"), unknown_move("d1")]}));
    let gap = Some((3, Reason::Gap { prev: number(2).to_string() }));
    assert_eq!(open(&pod), gap);
    // It was taken out before this pod has seen it.
    instruct(&pod, 2, &json!({"moves": [unknown_move("d0")]}));
    put(&pod, &number(2).doc_id(), None);
    assert_eq!(open(&pod), gap);
    pod.passed.insert(number(3));
    let (db, id) = ("notes".to_owned(), "d0".to_owned());
    assert_eq!(open(&pod), Some((3, Reason::Waits { db: db.clone(), id })));
    // A revision that comes is what the document waited for; one that doesn't come at all is given up.
    let rev = put_doc(&pod, "d0", "user:bob");
    let moves =
        json!([{"db": "notes", "id": "d0", "from": "0", "to": null, "rev": rev.to_string()}, unknown_move("d1")]);
    instruct(&pod, 3, &json!({"prev": number(2).to_string(), "moves": moves}));
    pod.passed.clear();
    put(&pod, &number(2).doc_id(), Some(&json!({"moves": []})));
    assert_eq!(open(&pod), Some((3, Reason::Missing { db, id: "d1".to_owned() })));
    assert_eq!(pod.progress.reached(&number(1).epoch), 2);
    pod.passed.insert(number(3));
    assert_eq!(open(&pod), None);
    assert_eq!(pod.progress.reached(&number(1).epoch), 3);
}

#[test]
fn moves_in_a_database_that_was_deleted_are_not_looked_for_in_the_next_of_its_name() {
    let pod = Pod::new("a");
    put_doc(&pod, "d0", "user:ann");
    let of = |instance: &str| json!({"dbs": {"notes": {"instance": instance}}, "moves": [unknown_move("d0")]});
    instruct(&pod, 1, &of("0a0a0a0a"));
    assert!(matches!(open(&pod), Some((1, Reason::Waits { .. }))));
    put(&pod, "db:notes", Some(&json!({"app": true, "instance": "0a0a0a0a"})));
    assert!(matches!(open(&pod), Some((1, Reason::Waits { .. }))));
    put(&pod, "db:notes", Some(&json!({"app": true, "instance": "0b0b0b0b", "gone": ["0a0a0a0a"]})));
    assert_eq!(open(&pod), None);
}

#[test]
fn rules_that_the_master_had_are_waited_for() {
    let pod = Pod::new("a");
    let rev = put_doc(&pod, "d0", "user:ann");
    let moves = json!([{"db": "notes", "id": "d0", "from": "0", "to": null, "rev": rev.to_string()}]);
    let rules = "2-0000000000000000000000000000000a";
    instruct(&pod, 1, &json!({"dbs": {"notes": {"rules": rules}}, "moves": moves}));
    assert!(matches!(open(&pod), Some((1, Reason::Waits { .. }))));
    pod.write_rules(1);
    assert!(matches!(open(&pod), Some((1, Reason::Waits { .. }))), "other rules");
    let (rules, _) = pod.winner(&pod.ring, super::pod::RULES).expect("rules");
    instruct(&pod, 1, &json!({"dbs": {"notes": {"rules": rules.to_string()}}, "moves": moves}));
    assert!(matches!(open(&pod), Some((1, Reason::Waits { .. }))), "documents are still being placed");
    pod.place();
    assert_eq!(open(&pod), None);
}
