//! A backup is read as it was written, and nothing that was done to it since goes unnoticed.

use std::io;

use serde_json::json;

use super::{Database, FormatError, Head, Kind, MAGIC, Reader, Record, Sum, Writer, check};

fn head() -> Head {
    Head {
        made_at: "2026-01-01T00:00:00Z".to_owned(),
        software: "0".to_owned(),
        pod: "pod".to_owned(),
        history: "00000000".to_owned(),
        seq: 7,
        whole: true,
        databases: vec!["a".to_owned()],
        config: None,
    }
}

fn database() -> Database {
    Database {
        name: "a".to_owned(),
        app: false,
        partitioned: false,
        seq: 7,
        instance: "00000000".to_owned(),
        doc_count: 1,
        doc_del_count: 0,
        revs_limit: 1_000,
        security: None,
        settings: None,
    }
}

/// A backup with a document of `filler` bytes and an attachment.
fn made(filler: usize) -> Vec<u8> {
    // Random letters, so that packing doesn't make one block of it all.
    let text: String = (0..filler).map(|_| char::from(b'a' + rand::random::<u8>() % 26)).collect();
    let doc = json!({"_id": "x", "_rev": "1-a", "text": text,
        "_attachments": {"b": {"length": 3, "follows": true}, "a": {"length": 2, "follows": true}}});
    let doc = doc.to_string();
    let sum = Sum { documents: 1, revisions: 1, bodiless: 0, attachments: 2, bytes: doc.len() as u64 + 5 };
    let mut out = Vec::new();
    let mut writer = Writer::new(|bytes: Vec<u8>| -> io::Result<()> {
        out.extend_from_slice(&bytes);
        Ok(())
    })
    .expect("begins");
    writer.json(Kind::Head, &head()).expect("head");
    writer.json(Kind::Database, &database()).expect("database");
    writer.record(Kind::Revision, doc.as_bytes()).expect("revision");
    writer.record(Kind::Piece, b"123").expect("piece");
    writer.record(Kind::Piece, b"45").expect("piece");
    writer.json(Kind::DatabaseEnd, &sum).expect("end");
    writer.json(Kind::End, &sum).expect("end");
    writer.finish().expect("ends");
    out
}

#[test]
fn what_was_written_is_read() {
    for filler in [0, 10, 2_000_000] {
        let file = made(filler);
        let (found, databases) = check(&file[..]).expect("whole");
        assert_eq!(found, head());
        assert_eq!(databases[0].0, database());
        let mut reader = Reader::new(&file[..]).expect("a backup");
        let mut pieces = Vec::new();
        while let Some(record) = reader.record().expect("whole") {
            if let Record::Piece(piece) = record {
                pieces.push(piece);
            }
        }
        assert_eq!(pieces, [b"123".to_vec(), b"45".to_vec()]);
        assert_eq!(reader.at(), file.len() as u64);
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    let file = made(100);
    for end in 0..file.len() {
        match check(&file[..end]) {
            Err(FormatError::CutOff { at }) => assert!(at <= end as u64),
            Err(FormatError::Foreign) if end < MAGIC.len() => {}
            other => panic!("{end}: {other:?}"),
        }
    }
    // At a border between blocks, and within a later one.
    let file = made(2_000_000);
    for end in [file.len() - 40, file.len() - 1, file.len() / 2] {
        assert!(matches!(check(&file[..end]), Err(FormatError::CutOff { .. })), "{end}");
    }
}

#[test]
fn any_byte_that_is_another_is_noticed() {
    let file = made(100);
    for at in 0..file.len() {
        let mut file = file.clone();
        file[at] ^= 0x10;
        match check(&file[..]) {
            Err(FormatError::Foreign | FormatError::Newer(_)) if at < MAGIC.len() => {}
            Err(FormatError::Damaged { .. } | FormatError::CutOff { .. }) => {}
            other => panic!("{at}: {other:?}"),
        }
    }
    let mut longer = made(100);
    longer.push(0);
    assert!(matches!(check(&longer[..]), Err(FormatError::Damaged { .. })));
    let mut newer = made(100);
    newer[6] = 2;
    assert!(matches!(check(&newer[..]), Err(FormatError::Newer(2))));
}

#[test]
fn lengths_that_lie_cost_no_memory() {
    for lengths in [[0xff; 8], [0, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f]] {
        let file = [&MAGIC[..], &lengths, &[0; 64]].concat();
        assert!(matches!(check(&file[..]), Err(FormatError::Damaged { .. })));
    }
}
