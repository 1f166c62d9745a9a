//! Images of small programs.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Image, ImageError, archive, full_name, has_tag};

/// The head of a program with one segment, and something after it.
fn program(segment: u32, body: usize) -> Vec<u8> {
    let mut text = vec![0; 64 + 56];
    text[..6].copy_from_slice(b"\x7fELF\x02\x01");
    text[18] = 62;
    text[32] = 64;
    text[54] = 56;
    text[56] = 1;
    text[64..68].copy_from_slice(&segment.to_le_bytes());
    text.extend((0..body).map(|n| u8::try_from(n % 251).unwrap()));
    text
}

fn put(dir: &Path, text: &[u8]) -> PathBuf {
    let path = dir.join("program");
    std::fs::write(&path, text).unwrap();
    path
}

fn files(archive: &[u8]) -> BTreeMap<String, (tar::Header, Vec<u8>)> {
    let mut tar = tar::Archive::new(archive);
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut text = Vec::new();
        entry.read_to_end(&mut text).unwrap();
        (entry.path().unwrap().display().to_string(), (entry.header().clone(), text))
    });
    entries.collect()
}

#[test]
fn the_same_program_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    // Lengths around whole blocks.
    for body in [0, 392, 393, 100_000] {
        let path = put(dir.path(), &program(1, body));
        let (mut one, mut two) = (Vec::new(), Vec::new());
        let id = archive(&path, "1.2.3", None, &mut one).unwrap();
        std::fs::remove_file(&path).unwrap();
        let path = put(dir.path(), &program(1, body));
        assert_eq!(archive(&path, "1.2.3", None, &mut two).unwrap(), id);
        assert!(one == two, "{body}");
        assert_eq!(id.name, format!("adea:1.2.3-{}", &id.layer[7..19]));
    }
}

#[test]
fn an_archive_is_what_engines_read() {
    let dir = tempfile::tempdir().unwrap();
    let text = program(1, 5_000);
    let path = put(dir.path(), &text);
    let mut out = Vec::new();
    let id = archive(&path, "1.2.3", Some("registry.example.org:5000/adea:x"), &mut out).unwrap();
    let files = files(&out);
    let json = |name: &str| -> Value { serde_json::from_slice(&files[name].1).unwrap() };
    for (name, (header, text)) in &files {
        assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (0, 0), "{name}");
        if let Some(digest) = name.strip_prefix("blobs/sha256/").filter(|digest| !digest.is_empty()) {
            assert_eq!(hex::encode(Sha256::digest(text)), digest);
        }
    }
    let docker = &json("manifest.json")[0];
    assert_eq!(docker["RepoTags"][0], "registry.example.org:5000/adea:x");
    let config = json(docker["Config"].as_str().unwrap());
    assert_eq!(config["rootfs"]["diff_ids"][0], id.layer);
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], "1.2.3");
    assert_eq!(config["config"]["Labels"]["org.adea.image"], "podctl", "by it old ones are found");
    let layer = super::tests::files(&files[docker["Layers"][0].as_str().unwrap()].1);
    assert_eq!(layer.len(), 4);
    assert_eq!(layer["podctl"].1, text);
    assert_eq!(layer["podctl"].0.mode().unwrap(), 0o755);
    for folder in ["data/", "proxy/", "tmp/"] {
        assert_eq!(layer[folder].0.uid().unwrap(), 65_532, "{folder}");
    }
    let index = json("index.json");
    let manifest = index["manifests"][0]["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
    assert_eq!(json(&manifest)["config"]["digest"], id.config);
}

#[test]
fn what_is_no_static_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |text: &[u8]| Image::of(&put(dir.path(), text), "1", None).unwrap_err();
    let dynamic = refused(&program(3, 10));
    assert!(matches!(dynamic, ImageError::Dynamic(_)) && dynamic.to_string().contains("+crt-static"), "{dynamic}");
    for text in [&b""[..], b"#!/bin/sh\n", &program(1, 0)[..100], &[0x7f; 200]] {
        assert!(matches!(refused(text), ImageError::NoProgram { .. }), "{text:?}");
    }
    let mut odd = program(1, 0);
    odd[18] = 40;
    assert!(matches!(refused(&odd), ImageError::NoProgram { .. }));
    odd = program(1, 0);
    (odd[56], odd[57]) = (0xff, 0xff);
    assert!(matches!(refused(&odd), ImageError::NoProgram { .. }));
}

#[test]
fn a_program_that_changes_meanwhile_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::of(&put(dir.path(), &program(1, 1_000)), "1", None).unwrap();
    put(dir.path(), &program(7, 1_000));
    assert!(matches!(image.write(Vec::new()), Err(ImageError::Changed(_))));
    put(dir.path(), &program(1, 9_000));
    assert!(matches!(image.write(Vec::new()), Err(ImageError::Changed(_))));
}

#[test]
fn names() {
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), &program(1, 0));
    for name in ["adea", "host:5000/adea", "adea:", ":x", "a b:1", "adea@sha256:00", "-adea:1", ""] {
        assert!(matches!(Image::of(&path, "1", Some(name)), Err(ImageError::Name(_))), "{name}");
    }
    assert!(has_tag("host:5000/adea:1"));
    assert_eq!(full_name("adea:1"), "docker.io/library/adea:1");
    assert_eq!(full_name("me/adea:1"), "docker.io/me/adea:1");
    assert_eq!(full_name("host:5000/adea:1"), "host:5000/adea:1");
    assert_eq!(Image::of(&path, "1.0+x", None).unwrap().id().name.split_once('-').unwrap().0, "adea:1.0");
}
