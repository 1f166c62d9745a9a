//! The image's only layer: the program, and the folders that it is given.

use std::fs::File;
use std::io::{self, Read, Write};

use super::{PROGRAM, USER, rewind};

/// A tar archive is made of blocks of this size, and ends with two empty ones.
const BLOCK_BYTES: u64 = 512;
/// Folders that the program writes to: its data, the proxy's, and what is of no use any more once it has ended. They
/// are in the image so that new volumes get their owner from there.
const FOLDERS: [&str; 3] = ["data", "proxy", "tmp"];

/// A layer, to be written once.
pub struct Layer {
    program: File,
    /// The length of the program.
    pub program_bytes: u64,
}

impl Layer {
    /// A layer with this program.
    pub fn open(mut program: File) -> io::Result<Self> {
        let program_bytes = rewind(&mut program)?;
        Ok(Self { program, program_bytes })
    }

    /// How long it is as a tar archive: a header each, and the program filled up to whole blocks.
    pub fn bytes(&self) -> u64 {
        (FOLDERS.len() as u64 + 1 + self.program_bytes.div_ceil(BLOCK_BYTES) + 2) * BLOCK_BYTES
    }

    /// Writes it.
    pub fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        let [data, proxy, tmp] = FOLDERS;
        folder(&mut tar, data, 0o755, USER)?;
        let mut header = header(0o755, 0, self.program_bytes);
        // A program that has grown since is cut here, and one that has shrunk found out by its digest.
        tar.append_data(&mut header, PROGRAM, (&mut self.program).take(self.program_bytes))?;
        folder(&mut tar, proxy, 0o755, USER)?;
        folder(&mut tar, tmp, 0o700, USER)?;
        tar.finish()
    }
}

/// A header that tells neither when nor where.
pub fn header(mode: u32, user: u32, bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(mode);
    header.set_uid(u64::from(user));
    header.set_gid(u64::from(user));
    header.set_mtime(0);
    header.set_size(bytes);
    header
}

/// Adds a folder.
pub fn folder(tar: &mut tar::Builder<impl Write>, name: &str, mode: u32, user: u32) -> io::Result<()> {
    let mut header = header(mode, user, 0);
    header.set_entry_type(tar::EntryType::Directory);
    tar.append_data(&mut header, format!("{name}/"), io::empty())
}
