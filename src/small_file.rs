//! Reads files that ought to be small: secrets and certificates.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

/// Reads the regular file `path`, never more of it than `most` bytes. Blocks on the file system.
///
/// # Errors
/// What the system says; a file that is longer, or none that ends.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Asked before opening: opening a named pipe would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    read_any(path, most)
}

/// The same of a pipe, too: waits until the other end has said all.
///
/// # Errors
/// What the system says; more than `most` bytes.
pub fn read_any(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(io::Error::other(format!("has more than {most} bytes"))),
        false => Ok(bytes),
    }
}
