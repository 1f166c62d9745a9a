use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::{
    Attachment, MAX_BOUNDARY_BYTES, MAX_HEADER_BYTES, MAX_PARTS, Multipart, MultipartError, PartHeaders, PartWriter,
    boundary_of,
};

type Parts = Vec<(PartHeaders, Vec<u8>)>;

/// Reads a body that arrives in these pieces.
fn read_pieces(pieces: &[&[u8]], boundary: &str) -> Result<Parts, MultipartError> {
    let pieces: Vec<_> = pieces.iter().map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
    let mut multipart = Multipart::new(stream::iter(pieces), boundary);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut parts = Vec::new();
        while let Some(headers) = multipart.next_part().await? {
            let mut content = Vec::new();
            while let Some(chunk) = multipart.chunk().await? {
                assert!(!chunk.is_empty());
                content.extend_from_slice(&chunk);
            }
            parts.push((headers, content));
        }
        assert!(multipart.next_part().await?.is_none() && multipart.chunk().await?.is_none());
        Ok(parts)
    })
}

fn read(body: &str) -> Result<Parts, MultipartError> {
    read_pieces(&[body.as_bytes()], "b")
}

fn contents(body: &str) -> Vec<String> {
    let parts = read(body).unwrap_or_else(|error| panic!("{body:?}: {error}"));
    parts.into_iter().map(|(_, content)| String::from_utf8(content).unwrap()).collect()
}

#[test]
fn a_document_and_its_files() {
    let body = "preamble\r\n--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b \t\r\n\
        content-disposition: attachment;\r\n filename=\"a \\\"1\\\".txt\"\r\nContent-Length:  3\r\n\r\n\r\n1\r\n--b\r\n\r\n\r\n--b--\r\nepilogue";
    let parts = read(body).unwrap();
    assert_eq!(parts[0].0.get("content-type"), Some("application/json"));
    assert_eq!((parts[0].0.filename(), parts[0].0.content_length()), (None, None));
    assert_eq!(parts[1].0.filename().as_deref(), Some("a \"1\".txt"));
    assert_eq!(parts[1].0.content_length(), Some(3));
    assert_eq!(parts[2].0, PartHeaders::default());
    assert_eq!(contents(body), ["{}", "\r\n1", ""]);
    assert_eq!(contents("--b--"), [""; 0]);
}

#[test]
fn what_looks_like_a_boundary_is_content() {
    for content in [
        "\r\n--c",
        "--b",
        "x--b--",
        "\r\n--bb\r\n",
        "\r\n--b x\r\n",
        "\r\n--b-\r\n",
        "\n--b\n",
        "\r\r\n-",
        "\r\n--b\r",
        "\r\n",
    ] {
        let body = format!("--b\r\n\r\n{content}\r\n--b--");
        assert_eq!(contents(&body), [content], "{content:?}");
    }
}

#[test]
fn a_part_that_is_not_read_is_skipped() {
    let body = Bytes::from_static(b"--b\r\n\r\nskip\r\n--b\r\nX: 1\r\n\r\nread\r\n--b--");
    let mut multipart = Multipart::new(stream::iter([Ok::<_, Infallible>(body)]), "b");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        multipart.next_part().await.unwrap().unwrap();
        let second = multipart.next_part().await.unwrap().unwrap();
        assert_eq!(second.get("x"), Some("1"));
        assert_eq!(multipart.chunk().await.unwrap().unwrap(), "read");
    });
}

#[test]
fn broken_bodies_are_refused() {
    for body in [
        "",
        "no boundary",
        "--b",
        "--b\r\n",
        "--b\r\n\r\nx",
        "--b\r\n\r\nx\r\n--b",
        "--b\r\n\r\nx\r\n--b-",
        "--b\r\nno colon\r\n\r\nx\r\n--b--",
    ] {
        assert!(matches!(read(body), Err(MultipartError::Malformed(_))), "{body:?}");
    }
    let broken = stream::iter([Ok(Bytes::from_static(b"--b\r\n\r\nx")), Err("gone")]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut multipart = Multipart::new(broken, "b");
    runtime.block_on(async {
        multipart.next_part().await.unwrap().unwrap();
        assert_eq!(multipart.chunk().await.unwrap().unwrap(), "x");
        assert!(matches!(multipart.chunk().await, Err(MultipartError::Body(_))));
        assert!(multipart.next_part().await.unwrap().is_none());
    });
}

#[test]
fn headers_and_parts_are_bounded() {
    let long = format!("--b\r\nX: {}", "x".repeat(MAX_HEADER_BYTES));
    assert!(matches!(read(&long), Err(MultipartError::TooLarge)));
    assert!(matches!(read(&format!("{long}\r\n\r\n\r\n--b--")), Err(MultipartError::TooLarge)));
    let part = "--b\r\n\r\nx\r\n";
    assert_eq!(contents(&format!("{}--b--", part.repeat(MAX_PARTS))).len(), MAX_PARTS);
    assert!(matches!(read(&format!("{}--b--", part.repeat(MAX_PARTS + 1))), Err(MultipartError::TooLarge)));
}

#[test]
fn boundaries_come_from_the_content_type() {
    for (content_type, boundary) in [
        ("multipart/related; boundary=abc", "abc"),
        ("Multipart/Mixed;BOUNDARY=\"a b;=\\\"c\" ; x=y", "a b;=\"c"),
        ("multipart/related; type=\"application/json; boundary=no\"; boundary = yes;", "yes"),
        ("multipart/related; flag; boundary=abc", "abc"),
    ] {
        assert_eq!(boundary_of(content_type).unwrap(), boundary);
    }
    let long = format!("multipart/mixed; boundary={}", "x".repeat(MAX_BOUNDARY_BYTES + 1));
    for content_type in [
        "",
        "multipart/related",
        "application/json; boundary=a",
        "multipart/mixed; boundary=",
        "multipart/mixed; boundary=\"a\r\n\"",
        "multipart/mixed; boundary=\"a \"",
        "multipart/mixed; boundary=é",
        "multipärt/x; boundary=a",
        &long,
    ] {
        assert!(boundary_of(content_type).is_err(), "{content_type}");
    }
}

#[test]
fn header_values_cannot_make_headers() {
    let mut writer = PartWriter::new();
    let attachment =
        Attachment { name: "a\r\nEvil: 1\"\\", content_type: "x/y\r\n\r\nz", length: 0, encoding: Some("gzip") };
    let text = String::from_utf8(writer.attachment(attachment).to_vec()).unwrap();
    assert_eq!(
        text,
        format!(
            "--{}\r\nContent-Disposition: attachment; filename=\"a  Evil: 1\\\"\\\\\"\r\nContent-Type: x/y    z\r\n\
             Content-Length: 0\r\nContent-Encoding: gzip\r\n\r\n",
            writer.boundary()
        )
    );
}

/// Contents that are full of what the reader looks for.
fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..40),
        "(\r|\n|\r\n|-|--|b|x| |\r\n--b|\r\n--bx|\r\n--b-x){0,12}".prop_map(String::into_bytes),
    ]
}

/// Cuts a body at these places.
fn cut<'a>(body: &'a [u8], cuts: &[proptest::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
    places.extend([0, body.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn what_was_written_is_read_however_it_arrives(
        files in vec(("\\PC{1,12}", content()), 0..5),
        cuts in vec(any::<proptest::sample::Index>(), 0..30),
    ) {
        let mut writer = PartWriter::new();
        let boundary = boundary_of(&writer.content_type("related")).unwrap();
        let mut body = Vec::new();
        for (name, content) in &files {
            let length = content.len() as u64;
            body.extend_from_slice(&writer.attachment(Attachment { name, content_type: "a/b", length, encoding: None }));
            body.extend_from_slice(content);
        }
        body.extend_from_slice(&writer.end());
        let parts = read_pieces(&cut(&body, &cuts), &boundary).unwrap();
        let read: Vec<_> = parts.into_iter().map(|(headers, content)| (headers.filename().unwrap(), content)).collect();
        prop_assert_eq!(read, files);
    }

    #[test]
    fn arrival_does_not_change_what_is_read(contents in vec(content(), 0..6), cuts in vec(any::<proptest::sample::Index>(), 0..30)) {
        let mut body = b"--b\r\n\r\n".to_vec();
        for content in contents {
            body.extend_from_slice(&content);
            body.extend_from_slice(b"\r\n--b\r\n\r\n");
        }
        body.extend_from_slice(b"\r\n--b--");
        let whole = read_pieces(&[&body], "b").map_err(|error| error.to_string());
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        for pieces in [cut(&body, &cuts), bytes] {
            let parts = read_pieces(&pieces, "b").map_err(|error| error.to_string());
            prop_assert_eq!(&parts, &whole);
        }
    }

    #[test]
    fn nothing_panics(body in vec(any::<u8>(), 0..200), text in "(--b|\r\n|: |x|-){0,30}", header in "multipart/\\PC{0,40}|multipart/x(;|=|\"|\\\\|boundary|é| ){0,12}") {
        let _ = read_pieces(&[&body], "b").is_ok();
        let _ = read(&text).is_ok();
        let _ = boundary_of(&header).is_ok();
    }
}
