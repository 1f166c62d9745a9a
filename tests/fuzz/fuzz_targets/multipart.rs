//! Multipart bodies, cut into pieces anywhere: no cut changes what is read.
#![no_main]

use bytes::Bytes;
use futures_executor::block_on;
use futures_util::stream;
use libfuzzer_sys::fuzz_target;
use rean::multipart::{Multipart, boundary_of};

type Parts = Vec<(Vec<(String, Option<String>)>, Vec<u8>)>;

fuzz_target!(|data: &[u8]| {
    let Some((&size, body)) = data.split_first() else { return };
    if let Ok(text) = std::str::from_utf8(body) {
        let _ = boundary_of(text);
    }
    let whole = read(body, body.len().max(1));
    let cut = read(body, usize::from(size).max(1));
    assert_eq!(whole, cut, "in pieces of {size}");
});

/// All parts, and whether the body came to its proper end.
fn read(body: &[u8], size: usize) -> (Parts, bool) {
    let pieces: Vec<Result<Bytes, std::io::Error>> =
        body.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let mut multipart = Multipart::new(stream::iter(pieces), "b");
    block_on(async {
        let mut parts: Parts = Vec::new();
        loop {
            let headers = match multipart.next_part().await {
                Ok(Some(headers)) => headers,
                Ok(None) => return (parts, true),
                Err(_) => return (parts, false),
            };
            let seen = ["content-type", "content-disposition", "content-length"];
            let seen = seen.map(|name| (name.to_owned(), headers.get(name).map(str::to_owned)));
            let (_, _) = (headers.filename(), headers.content_length());
            parts.push((seen.to_vec(), Vec::new()));
            loop {
                match multipart.chunk().await {
                    Ok(Some(chunk)) => parts.last_mut().expect("one was pushed").1.extend_from_slice(&chunk),
                    Ok(None) => break,
                    // How much of a broken part has come depends on where it was cut.
                    Err(_) => {
                        parts.pop();
                        return (parts, false);
                    }
                }
            }
        }
    })
}
