//! One array of a finished store: reads its chunks from the shards' files or from a bucket.

use crate::arrays::ArraySpec;
use crate::remote::{Fetched, Remote, Unread};
use crate::shard::{self, ChunkRange, Scratch};
use crate::storage::{Blob, Storage};
use std::cell::RefCell;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::OnceLock;

#[derive(Debug)]
pub(crate) struct StoredArray {
    pub(crate) spec: ArraySpec,
    folder: PathBuf,
    /// The checksum of each chunk, shard after shard.
    checksums: Vec<u32>,
    /// Index of each shard, read at first use.
    indexes: Vec<OnceLock<Box<[ChunkRange]>>>,
}

impl StoredArray {
    /// An array of `num_shards` shards whose chunks have these checksums.
    pub(crate) fn new(store: &Storage, spec: ArraySpec, num_shards: usize, checksums: Vec<u32>) -> Self {
        let folder = store.join(&spec.path);
        StoredArray { spec, folder, checksums, indexes: (0..num_shards).map(|_| OnceLock::new()).collect() }
    }

    pub(crate) fn shard_path(&self, row: usize) -> PathBuf {
        self.folder.join(self.spec.shard_name(row))
    }

    /// Reads a chunk's values; the error is in words.
    pub(crate) fn read_chunk(&self, store: &Storage, row: usize, chunk: usize, out: &mut [u8]) -> Result<(), String> {
        let shard = store.open(&self.shard_path(row)).map_err(|e| shard::unreadable(&e))?;
        self.read_chunk_of(&shard, row, chunk, out)
    }

    /// As [`Self::read_chunk`], from an open shard.
    pub(crate) fn read_chunk_of(&self, shard: &Blob, row: usize, chunk: usize, out: &mut [u8]) -> Result<(), String> {
        let index = match self.indexes[row].get() {
            Some(index) => index,
            None => {
                let index = shard::read_index(shard, self.spec.chunks_per_shard())?;
                self.indexes[row].get_or_init(|| index)
            }
        };
        self.decode(shard, index[chunk], self.checksum(row, chunk)?, out)
    }

    /// As [`Self::read_chunk`], from a bucket. A damaged copy on the local disk is fetched again, and so is, once, a chunk that arrives
    /// damaged.
    pub(crate) fn fetch_chunk(&self, remote: &Remote, row: usize, chunk: usize, out: &mut [u8]) -> Result<(), Unread> {
        let name = self.chunk_name(row, chunk);
        let mut is_first = true;
        loop {
            let fetched = match remote.cached(&name) {
                Some(file) => Fetched { blob: Blob::File(file), is_copy: true },
                None => crate::storage::wait(self.fetch(remote, row, chunk))?,
            };
            let len = fetched.blob.len().map_err(|e| Unread::Damaged(e.to_string()))?;
            let expected = self.checksum(row, chunk).map_err(Unread::Damaged)?;
            match self.decode(&fetched.blob, ChunkRange::whole(len), expected, out) {
                Err(_) if fetched.is_copy || std::mem::take(&mut is_first) => remote.forget(&name),
                decoded => return decoded.map_err(Unread::Damaged),
            }
        }
    }

    /// Fetches a chunk to the local disk unless it is there.
    pub(crate) async fn fetch_ahead(&self, remote: &Remote, row: usize, chunk: usize) -> Result<(), Unread> {
        if remote.is_cached(&self.chunk_name(row, chunk)) {
            return Ok(());
        }
        self.fetch(remote, row, chunk).await.map(drop)
    }

    async fn fetch(&self, remote: &Remote, row: usize, chunk: usize) -> Result<Fetched, Unread> {
        let path = self.shard_path(row);
        let damaged_if_missing = |e: std::io::Error| match e.kind() {
            ErrorKind::NotFound | ErrorKind::UnexpectedEof => Unread::Damaged(shard::unreadable(&e)),
            _ => Unread::Io(path.clone(), e),
        };
        let index = match self.indexes[row].get() {
            Some(index) => index,
            None => {
                let len = shard::index_len(self.spec.chunks_per_shard());
                let mut index = Err(String::new());
                // It may arrive damaged, too.
                for _ in 0..2 {
                    let end = remote.fetch_end(&path, len).await.map_err(damaged_if_missing)?;
                    index = shard::parse_index(&end.bytes, end.len);
                    if index.is_ok() {
                        break;
                    }
                }
                let index = index.map_err(Unread::Damaged)?;
                self.indexes[row].get_or_init(|| index)
            }
        };
        remote.fetch(self.chunk_name(row, chunk), &path, index[chunk].bytes()).await.map_err(damaged_if_missing)
    }

    /// The checksum that belongs in a place.
    fn checksum(&self, row: usize, chunk: usize) -> Result<u32, String> {
        let at = row * self.spec.chunks_per_shard() + chunk;
        self.checksums.get(at).copied().ok_or_else(|| "the table of checksums lacks it".into())
    }

    fn decode(&self, file: &Blob, range: ChunkRange, expected: u32, out: &mut [u8]) -> Result<(), String> {
        thread_local! {
            static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) };
        }
        if !self.spec.is_compressed() {
            return shard::read_plain_chunk(file, range, Some(expected), out);
        }
        SCRATCH.with_borrow_mut(|slot| {
            if slot.is_none() {
                *slot = Some(Scratch::new().map_err(|e| e.to_string())?);
            }
            let scratch = slot.as_mut().ok_or("no memory to decompress into")?;
            shard::read_compressed_chunk(file, range, Some(expected), scratch, out)
        })
    }

    /// Name of a chunk among the copies on the local disk.
    fn chunk_name(&self, row: usize, chunk: usize) -> String {
        format!("{}.{row}.{chunk}", self.spec.path.replace('/', "."))
    }
}
