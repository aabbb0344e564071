//! SHA-256, in hexadecimal.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of a file that are read at once.
const BUFFER: usize = 1 << 20;

/// SHA-256 of some bytes.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hexadecimal(Sha256::digest(bytes).as_ref())
}

/// SHA-256 of a file, read block by block. `progress` receives the number of bytes of each block.
///
/// # Errors
/// [`Error::Io`] that names the file.
pub fn sha256_of_file(path: &Path, progress: impl Fn(u64)) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if read == 0 {
            return Ok(hexadecimal(hasher.finalize().as_ref()));
        }
        hasher.update(&buffer[..read]);
        progress(read as u64);
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn bytes_and_files_have_the_known_hash() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_hex(b"abc"), expected);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, b"abc").unwrap();
        let read = Cell::new(0);
        assert_eq!(sha256_of_file(&path, |bytes| read.set(read.get() + bytes)).unwrap(), expected);
        assert_eq!(read.get(), 3);
        let missing = sha256_of_file(&folder.path().join("nowhere"), |_| ()).unwrap_err();
        assert!(missing.to_string().contains("nowhere") && missing.hint().is_some());
    }
}
