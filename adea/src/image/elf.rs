//! What a program file says of itself (System V ABI, "Executable and Linking Format").

use std::io::{self, Read, Seek, SeekFrom};

/// Whether a program needs others to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linked {
    /// It names an interpreter, which loads its libraries.
    Dynamically,
    /// It has all in itself.
    Statically,
}

/// What a program's head tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// As container images call it.
    pub architecture: &'static str,
    /// How it is linked.
    pub linked: Linked,
}

/// The segment that names an interpreter.
const PT_INTERP: u32 = 3;
/// Real programs have about ten segments.
const MAX_SEGMENTS: u16 = 1_000;
const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: u16 = 56;

/// Reads a program's head; the inner error says why it is none.
///
/// # Errors
/// When the file can't be read.
pub fn read_head(file: &mut (impl Read + Seek)) -> io::Result<Result<Head, &'static str>> {
    let mut header = [0; HEADER_BYTES];
    match file.read_exact(&mut header) {
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(Err("it is too short")),
        other => other?,
    }
    // 64 bits, little-endian.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(Err("it is not a 64-bit program for Linux"));
    }
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let architecture = match u16_at(18) {
        62 => "amd64",
        183 => "arm64",
        243 => "riscv64",
        _ => return Ok(Err("it is for another processor than amd64, arm64 or riscv64")),
    };
    let mut offset = [0; 8];
    offset.copy_from_slice(&header[32..40]);
    let (size, count) = (u16_at(54), u16_at(56));
    if size != SEGMENT_BYTES || count > MAX_SEGMENTS {
        return Ok(Err("its head makes no sense"));
    }
    file.seek(SeekFrom::Start(u64::from_le_bytes(offset)))?;
    let mut linked = Linked::Statically;
    for _ in 0..count {
        let mut segment = [0; SEGMENT_BYTES as usize];
        match file.read_exact(&mut segment) {
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(Err("it is cut off")),
            other => other?,
        }
        if u32::from_le_bytes([segment[0], segment[1], segment[2], segment[3]]) == PT_INTERP {
            linked = Linked::Dynamically;
        }
    }
    Ok(Ok(Head { architecture, linked }))
}
