//! The delete instructions: each is the record of the moves of one commit, and every pod says which it has carried out.

use anyhow::bail;
use serde_json::{Value, json};

use crate::command::revocations::Args;
use crate::ring::documents::starting_with;
use crate::ring::status::{Pods, age_of, ago};
use crate::ring::table::Table;

const PREFIX: &str = "instruction:";

/// One instruction.
struct Instruction {
    /// `EPOCH.NNNNNNNNNN`; sorts as text.
    seq: String,
    moves: usize,
    age_ms: Option<u64>,
    /// The pods that have not carried it out.
    missing: Vec<String>,
}

/// Shows the instructions that are not carried out everywhere, or all.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let mut conn = args.target.connect().await?;
    // The pods' word is read first: what they have not carried out by then may be in the list, and not the reverse.
    let pods = Pods::read(&mut conn).await?;
    let (docs, more) = starting_with(&mut conn, "_ring", PREFIX).await?;
    let all: Vec<Instruction> = docs.iter().filter_map(|doc| Instruction::read(doc, &pods)).collect();
    let open = all.iter().filter(|instruction| !instruction.missing.is_empty()).count();
    let shown: Vec<&Instruction> = all.iter().filter(|one| args.done || !one.missing.is_empty()).collect();
    if args.json {
        let rows: Vec<Value> = shown.iter().map(|one| one.json()).collect();
        println!("{}", json!({"instructions": rows, "open": open, "kept": all.len(), "more": more}));
    } else if shown.is_empty() {
        println!("all {} kept instructions are carried out on all pods", all.len());
    } else {
        print!("{}", table(&shown));
        if more {
            println!("... and more");
        }
    }
    if open == 0 {
        return Ok(());
    }
    let away = pods.away();
    let next = if away.is_empty() {
        "ask again in a moment; if it stays so, look at `podctl ring status` and the pods' logs".to_owned()
    } else {
        format!("{} away: who lost a right may still read there, until it is back", listed(&away))
    };
    bail!("{open} of {} instructions are not carried out everywhere; {next}", all.len())
}

impl Instruction {
    fn read(doc: &Value, pods: &Pods) -> Option<Self> {
        let seq = doc["_id"].as_str()?.strip_prefix(PREFIX)?.to_owned();
        let (epoch, number) = seq.rsplit_once('.')?;
        let number: u64 = number.parse().ok()?;
        // Each pod says up to which number of each epoch it has carried out all.
        let is_done = |own: &Value| own["carried_out_in"][epoch].as_u64().is_some_and(|done| done >= number);
        let missing = pods.rows.iter().filter(|row| !row.has_left() && !is_done(&row.own));
        Some(Self {
            missing: missing.map(|row| row.id.clone()).collect(),
            moves: doc["moves"].as_array().map_or(0, Vec::len),
            age_ms: doc["stamp"].as_str().and_then(age_of),
            seq,
        })
    }

    fn json(&self) -> Value {
        json!({"seq": self.seq, "moves": self.moves, "age_ms": self.age_ms, "missing": self.missing})
    }
}

fn table(shown: &[&Instruction]) -> String {
    let mut table = Table::new(&["instruction", "moves", "made", "not carried out by"]);
    for one in shown {
        let missing = if one.missing.is_empty() { "-".to_owned() } else { one.missing.join(", ") };
        table.push(vec![
            one.seq.clone(),
            one.moves.to_string(),
            one.age_ms.map_or_else(|| "-".to_owned(), ago),
            missing,
        ]);
    }
    table.text()
}

fn listed(ids: &[&str]) -> String {
    let verb = if ids.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", ids.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{Instruction, table};
    use crate::ring::status::{Pods, Row};
    use serde_json::{Value, json};

    fn pods() -> Pods {
        let row = |id: &str, carried_out: Value, alive: Value| Row {
            id: id.to_owned(),
            own: json!({"carried_out_in": {"0190a1b2c3d4-0000-a": carried_out}}),
            seen: if alive.is_null() { Value::Null } else { json!({"alive": alive, "role": "follower"}) },
        };
        let rows = vec![
            row("a", json!(2), json!(true)),
            row("b", json!(1), json!(true)),
            row("c", Value::Null, json!(false)),
            row("gone", Value::Null, Value::Null),
        ];
        Pods { asked: None, master: None, rows }
    }

    #[test]
    fn names_the_pods_that_lag() {
        let doc =
            |seq: &str| json!({"_id": format!("instruction:{seq}"), "moves": [1, 2], "stamp": "0190a1b2c3d4-0000-a"});
        let two = Instruction::read(&doc("0190a1b2c3d4-0000-a.0000000002"), &pods()).expect("an instruction");
        assert_eq!((two.moves, two.missing.as_slice()), (2, ["b".to_owned(), "c".to_owned()].as_slice()));
        assert!(two.age_ms.is_some());
        let next_epoch = Instruction::read(&doc("0190a1b2c3d5-0000-a.0000000001"), &pods()).expect("an instruction");
        assert_eq!(next_epoch.missing, ["a", "b", "c"]);
        assert!(table(&[&two]).contains("b, c"));
        assert!(Instruction::read(&json!({"_id": "config"}), &pods()).is_none());
    }
}
