//! Reads single chunks of a shard directly into the caller's memory.
//!
//! The layout is that of Zarr's `sharding_indexed` codec with the index at the end: the chunks, then one (offset, length) pair of
//! little-endian 64-bit numbers per chunk, then the CRC-32C of these pairs. A chunk is its bytes, or a zstd frame of them, followed by their
//! CRC-32C. `zarrs` could read it too, but returns fill values for missing chunks or files; here they are errors.

use crate::storage::Blob;
use crc_fast::crc32_iscsi;
use std::io;

/// Bytes of a CRC-32C, which the iSCSI protocol has made known.
const CHECKSUM_LEN: usize = 4;
const INDEX_ENTRY_LEN: usize = 16;

/// A shard's bytes from its chunks, as stored and in order.
pub(crate) fn assemble<C: AsRef<[u8]>>(chunks: &[C]) -> Vec<u8> {
    let content: usize = chunks.iter().map(|chunk| chunk.as_ref().len()).sum();
    let mut shard = Vec::with_capacity(content + chunks.len() * INDEX_ENTRY_LEN + CHECKSUM_LEN);
    for chunk in chunks {
        shard.extend_from_slice(chunk.as_ref());
    }
    let mut offset = 0u64;
    for chunk in chunks {
        let len = chunk.as_ref().len() as u64;
        shard.extend_from_slice(&offset.to_le_bytes());
        shard.extend_from_slice(&len.to_le_bytes());
        offset += len;
    }
    let checksum = crc32_iscsi(&shard[content..]);
    shard.extend_from_slice(&checksum.to_le_bytes());
    shard
}

/// The chunk, as stored, of a shard with only one.
pub(crate) fn only_chunk(mut shard: Vec<u8>) -> Result<Vec<u8>, String> {
    let content = shard.len().checked_sub(INDEX_ENTRY_LEN + CHECKSUM_LEN).ok_or("the shard is shorter than its index")?;
    let expected = [0u64.to_le_bytes(), (content as u64).to_le_bytes()].concat();
    if shard[content..content + INDEX_ENTRY_LEN] != expected {
        return Err("the shard's one chunk does not fill it".into());
    }
    shard.truncate(content);
    Ok(shard)
}

/// A chunk's place in its shard's file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChunkRange {
    offset: u64,
    len: u64,
}

impl ChunkRange {
    /// A file that is one chunk.
    pub(crate) fn whole(len: u64) -> Self {
        ChunkRange { offset: 0, len }
    }

    pub(crate) fn bytes(self) -> std::ops::Range<u64> {
        self.offset..self.offset + self.len
    }
}

/// A thread's buffers for reading chunks, reused from chunk to chunk.
pub(crate) struct Scratch {
    encoded: Vec<u8>,
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl Scratch {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Scratch { encoded: Vec::new(), decompressor: zstd::bulk::Decompressor::new()? })
    }
}

/// Says in words why a file cannot be read.
pub(crate) fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "its file is missing".into(),
        _ => format!("cannot read it: {error}"),
    }
}

/// Bytes of the index at the end of a shard of `chunks` chunks.
pub(crate) fn index_len(chunks: usize) -> u64 {
    (chunks as u64).saturating_mul(INDEX_ENTRY_LEN as u64).saturating_add(CHECKSUM_LEN as u64)
}

/// Reads and checks the index of a shard of `chunks` chunks.
pub(crate) fn read_index(file: &Blob, chunks: usize) -> Result<Box<[ChunkRange]>, String> {
    let file_len = file.len().map_err(|e| format!("cannot read its size: {e}"))?;
    let index_len = index_len(chunks);
    let index_offset = file_len.checked_sub(index_len).ok_or_else(|| cut_short(index_len, file_len))?;
    let mut bytes = vec![0; index_len as usize];
    file.read_exact_at(&mut bytes, index_offset).map_err(|e| format!("cannot read its index: {e}"))?;
    parse_index(&bytes, file_len)
}

/// Parses and checks `bytes`, the whole index at the end of a file of `file_len` bytes.
pub(crate) fn parse_index(bytes: &[u8], file_len: u64) -> Result<Box<[ChunkRange]>, String> {
    let index_offset = file_len.checked_sub(bytes.len() as u64).ok_or_else(|| cut_short(bytes.len() as u64, file_len))?;
    let entries = checked(bytes).map_err(|reason| format!("the shard's index has {reason}"))?;
    entries
        .chunks_exact(INDEX_ENTRY_LEN)
        .map(|entry| {
            let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| entry[at + i]));
            let range = ChunkRange { offset: number(0), len: number(8) };
            if range.offset == u64::MAX && range.len == u64::MAX {
                return Err("a chunk was never written".into());
            }
            match range.offset.checked_add(range.len) {
                Some(end) if end <= index_offset && range.len >= CHECKSUM_LEN as u64 => Ok(range),
                _ => Err(format!("the index points to {} bytes at {}, beyond its chunks", range.len, range.offset)),
            }
        })
        .collect()
}

fn cut_short(index_len: u64, file_len: u64) -> String {
    format!("the file is cut short: an index of {index_len} bytes was expected at its end, it has {file_len} bytes")
}

/// Reads one uncompressed chunk directly into `out`, which must have the chunk's length, and checks it; `expected` is the checksum that
/// belongs in this place.
pub(crate) fn read_plain_chunk(file: &Blob, range: ChunkRange, expected: Option<u32>, out: &mut [u8]) -> Result<(), String> {
    let len = out.len() as u64;
    if range.len != len + CHECKSUM_LEN as u64 {
        let held = range.len.saturating_sub(CHECKSUM_LEN as u64);
        return Err(format!("the chunk holds {held} bytes, expected {len}"));
    }
    let mut stored = [0; CHECKSUM_LEN];
    file.read_exact_at(out, range.offset)
        .and_then(|()| file.read_exact_at(&mut stored, range.offset + len))
        .map_err(|e| format!("cannot read the chunk: {e}"))?;
    compare_checksum(out, stored).map_err(|reason| format!("the chunk has {reason}"))?;
    in_its_place(u32::from_le_bytes(stored), expected)
}

/// The checksum at the end of a chunk as stored.
pub(crate) fn checksum_of(encoded: &[u8]) -> u32 {
    let at = encoded.len().saturating_sub(CHECKSUM_LEN);
    u32::from_le_bytes(std::array::from_fn(|i| encoded.get(at + i).copied().unwrap_or_default()))
}

/// Whether a chunk with the checksum `stored` is the one that belongs in this place.
fn in_its_place(stored: u32, expected: Option<u32>) -> Result<(), String> {
    match expected.filter(|&expected| expected != stored) {
        None => Ok(()),
        Some(expected) => Err(format!("it holds another chunk's values (checksum {stored:08x}, expected {expected:08x})")),
    }
}

/// Bytes at the end of a shard of `chunks` chunks that [`last_checksum`] needs.
pub(crate) fn end_len(chunks: usize) -> u64 {
    index_len(chunks).saturating_add(CHECKSUM_LEN as u64)
}

/// The checksum of the last chunk of a shard of `chunks` chunks, from `end`, the last [`end_len`] bytes of its `file_len` bytes. Checks the
/// index, and that the chunks fill the file.
pub(crate) fn last_checksum(end: &[u8], file_len: u64, chunks: usize) -> Result<u32, String> {
    let at = end.len().checked_sub(index_len(chunks) as usize).filter(|&at| at >= CHECKSUM_LEN);
    let at = at.ok_or_else(|| cut_short(end_len(chunks), file_len))?;
    check_filled(&parse_index(&end[at..], file_len)?, file_len)?;
    Ok(checksum_of(&end[..at]))
}

/// The checksum at the end of each chunk, none of which is compared with its chunk.
pub(crate) fn checksums(file: &Blob, chunks: usize) -> Result<Vec<u32>, String> {
    let read = |range: &ChunkRange| {
        let mut stored = [0; CHECKSUM_LEN];
        file.read_exact_at(&mut stored, range.bytes().end - CHECKSUM_LEN as u64)
            .map_err(|e| format!("cannot read the chunk: {e}"))?;
        Ok(u32::from_le_bytes(stored))
    };
    read_index(file, chunks)?.iter().map(read).collect()
}

/// Checks every chunk of a shard: that its bytes have its checksum, and that this is the one that belongs there.
pub(crate) fn check_whole(file: &Blob, expected: &[u32]) -> Result<(), String> {
    let index = read_index(file, expected.len())?;
    check_filled(&index, file.len().map_err(|e| format!("cannot read its size: {e}"))?)?;
    index.iter().zip(expected).try_for_each(|(&range, &expected)| read_encoded(file, range, Some(expected)).map(drop))
}

/// Checks that the chunks are contiguous and fill the file up to its index, so that a checksum covers every byte.
pub(crate) fn check_filled(index: &[ChunkRange], file_len: u64) -> Result<(), String> {
    let mut end = 0;
    for (i, range) in index.iter().enumerate() {
        if range.offset != end {
            return Err(format!("chunk {i} lies at byte {}, expected {end}", range.offset));
        }
        end += range.len;
    }
    let expected = end + (index.len() * INDEX_ENTRY_LEN + CHECKSUM_LEN) as u64;
    if file_len == expected { Ok(()) } else { Err(format!("the file has {file_len} bytes, expected {expected}")) }
}

/// One chunk as stored, checked; `expected` is the checksum that belongs in this place.
pub(crate) fn read_encoded(file: &Blob, range: ChunkRange, expected: Option<u32>) -> Result<Vec<u8>, String> {
    let mut encoded = vec![0; range.len as usize];
    file.read_exact_at(&mut encoded, range.offset).map_err(|e| format!("cannot read the chunk: {e}"))?;
    checked(&encoded).map_err(|reason| format!("the chunk has {reason}"))?;
    in_its_place(checksum_of(&encoded), expected)?;
    Ok(encoded)
}

/// As [`read_plain_chunk`], for a compressed chunk.
pub(crate) fn read_compressed_chunk(
    file: &Blob,
    range: ChunkRange,
    expected: Option<u32>,
    scratch: &mut Scratch,
    out: &mut [u8],
) -> Result<(), String> {
    scratch.encoded.resize(range.len as usize, 0);
    file.read_exact_at(&mut scratch.encoded, range.offset).map_err(|e| format!("cannot read the chunk: {e}"))?;
    let frame = checked(&scratch.encoded).map_err(|reason| format!("the chunk has {reason}"))?;
    in_its_place(checksum_of(&scratch.encoded), expected)?;
    let len = scratch.decompressor.decompress_to_buffer(frame, out).map_err(|e| format!("cannot decompress the chunk: {e}"))?;
    if len != out.len() {
        return Err(format!("the chunk holds {len} bytes, expected {}", out.len()));
    }
    Ok(())
}

/// `bytes` without the CRC-32C at their end, if it is right.
fn checked(bytes: &[u8]) -> Result<&[u8], String> {
    let len = bytes.len().checked_sub(CHECKSUM_LEN).ok_or("no room for its checksum")?;
    let (content, stored) = bytes.split_at(len);
    compare_checksum(content, std::array::from_fn(|i| stored[i]))?;
    Ok(content)
}

fn compare_checksum(content: &[u8], stored: [u8; CHECKSUM_LEN]) -> Result<(), String> {
    let (stored, computed) = (u32::from_le_bytes(stored), crc32_iscsi(content));
    if stored == computed { Ok(()) } else { Err(format!("checksum {computed:08x}, expected {stored:08x}")) }
}
