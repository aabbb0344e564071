//! The checksum of a model's file: a CRC-32C of all its bytes, within the program's own entry of the safetensors metadata. While it is
//! computed, zeros stand in its place. A file without one (of another program, or an older version) is not checked.

use crate::error::{Result, TrainError, io};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Key of the checksum.
pub(crate) const KEY: &str = "crc32c";
/// What stands in its place while it is computed.
pub(crate) const ZEROS: &str = "00000000";
/// What is before it in the header: JSON within a string of JSON.
const BEFORE: &str = "\\\"crc32c\\\":\\\"";
/// Largest header that is searched.
const LARGEST_HEADER: u64 = 100 << 20;
/// Bytes of a file that are read at once.
const BUFFER: usize = 1 << 20;

/// Writes the checksum of `bytes` over the zeros in its place.
pub(crate) fn seal(bytes: &mut [u8]) {
    let sum = crc32c::crc32c(bytes);
    if let Some(at) = header_of(bytes).and_then(place) {
        bytes[8 + at..][..ZEROS.len()].copy_from_slice(format!("{sum:08x}").as_bytes());
    }
}

/// Checks the bytes of a file; `path` is for messages.
///
/// # Errors
/// [`TrainError::RunDamaged`] with the expected and the found checksum.
pub(crate) fn check(path: &Path, bytes: &[u8]) -> Result<()> {
    check_parts(path, bytes).map_err(io(path))?
}

/// Checks a file, block by block.
///
/// # Errors
/// As [`check`]; the operating system's, naming the file.
pub(crate) fn check_file(path: &Path) -> Result<()> {
    check_parts(path, File::open(path).map_err(io(path))?).map_err(io(path))?
}

fn check_parts(path: &Path, mut file: impl Read) -> std::io::Result<Result<()>> {
    let mut start = [0; 8];
    match file.read_exact(&mut start) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Ok(())),
        other => other?,
    }
    let length = u64::from_le_bytes(start);
    if length > LARGEST_HEADER {
        return Ok(Ok(()));
    }
    let mut header = Vec::new();
    file.by_ref().take(length).read_to_end(&mut header)?;
    let Some(at) = place(&header) else { return Ok(Ok(())) };
    let expected = String::from_utf8_lossy(&header[at..][..ZEROS.len()]).into_owned();
    header[at..][..ZEROS.len()].copy_from_slice(ZEROS.as_bytes());
    let mut sum = crc32c::crc32c_append(crc32c::crc32c(&start), &header);
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => sum = crc32c::crc32c_append(sum, &buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let found = format!("{sum:08x}");
    if found == expected {
        return Ok(Ok(()));
    }
    let reason = format!("is damaged: its CRC-32C is {found}, expected {expected}");
    Ok(Err(TrainError::RunDamaged { path: path.into(), reason }))
}

/// The header of a safetensors file: after its length.
fn header_of(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// Where the checksum is in a header.
fn place(header: &[u8]) -> Option<usize> {
    let before = header.windows(BEFORE.len()).position(|window| window == BEFORE.as_bytes())?;
    let at = before + BEFORE.len();
    (header.len() >= at + ZEROS.len()).then_some(at)
}
