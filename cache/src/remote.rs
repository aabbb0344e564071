//! Chunks of a store in a bucket, fetched one by one when needed and kept on a local disk.
//!
//! A shard holds all (44) variants of its slice, and an epoch draws one of them, so fetching whole shards would read 44 times too much.
//! Chunks are therefore fetched by range, after the shard's index, which takes a kilobyte and stays in memory.

use crate::chunk_cache::{ChunkCache, STORE_NAME_LEN};
use crate::error::Result;
use crate::storage::{Blob, Bucket, CONCURRENCY, Object};
use object_store::GetRange;
use sam_ladder_formats::hash::sha256_hex;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OnceCell, Semaphore};

/// Where copies of a remote store's chunks are kept, and how many. Depends on the machine, not on the store or the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// A folder on a local disk, new or made for this purpose; any number of stores and programs may share it.
    pub folder: PathBuf,
    /// Limit of the bytes in the folder.
    pub max_bytes: u64,
}

/// Why a chunk could not be read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// The store is damaged, in words.
    Damaged(String),
    /// The server refused or did not answer.
    Io(PathBuf, io::Error),
}

/// A chunk as stored.
pub(crate) struct Fetched {
    pub(crate) blob: Blob,
    /// Whether it is a copy on the local disk.
    pub(crate) is_copy: bool,
}

/// Chunks that are being fetched, by their names in the cache.
type UnderWay = HashMap<String, Arc<OnceCell<Arc<Vec<u8>>>>>;

/// Fetches a store's chunks.
#[derive(Debug)]
pub(crate) struct Remote {
    bucket: Bucket,
    /// `None` keeps no copies: a chunk is fetched at each read.
    cache: Option<ChunkCache>,
    permits: Semaphore,
    /// Chunks that are being fetched: other threads that need one wait for it.
    under_way: Mutex<UnderWay>,
}

impl Remote {
    /// For the store at `place`. Its name in the cache depends on the manifest, so that a store made anew at the same place has another name.
    pub(crate) fn new(bucket: Bucket, place: &Path, options: Option<&CacheOptions>) -> Result<Self> {
        let version = bucket.version(&place.join(crate::arrays::METADATA))?;
        let mut id = sha256_hex(format!("{} {version}", place.display()).as_bytes());
        id.truncate(STORE_NAME_LEN);
        let cache = options.map(|options| ChunkCache::open(options.folder.clone(), options.max_bytes, &id)).transpose()?;
        Ok(Remote { bucket, cache, permits: Semaphore::new(CONCURRENCY), under_way: Mutex::default() })
    }

    /// Limit of the copies' bytes; 0 if no copies are kept.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.cache.as_ref().map_or(0, ChunkCache::max_bytes)
    }

    pub(crate) fn cached(&self, name: &str) -> Option<File> {
        self.cache.as_ref()?.get(name)
    }

    pub(crate) fn is_cached(&self, name: &str) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.touch(name))
    }

    pub(crate) fn forget(&self, name: &str) {
        if let Some(cache) = &self.cache {
            cache.remove(name);
        }
    }

    /// The last `len` bytes of an object.
    pub(crate) async fn fetch_end(&self, path: &Path, len: u64) -> io::Result<Object> {
        let _permit = self.permits.acquire().await;
        self.bucket.get(path, Some(GetRange::Suffix(len))).await
    }

    /// Fetches a range of an object and keeps it in the cache as `name`. If it is already being fetched, waits for that.
    pub(crate) async fn fetch(&self, name: String, path: &Path, range: Range<u64>) -> io::Result<Fetched> {
        let cell = self.lock().entry(name.clone()).or_default().clone();
        let fetched = cell.get_or_try_init(|| async {
            let _permit = self.permits.acquire().await;
            let object = self.bucket.get(path, Some(GetRange::Bounded(range))).await?;
            if let Some(cache) = &self.cache {
                cache.insert(&name, &object.bytes);
            }
            io::Result::Ok(Arc::new(object.bytes))
        });
        let fetched = fetched.await.cloned();
        self.lock().remove(&name);
        let bytes = fetched?;
        Ok(Fetched { blob: Blob::Bytes(bytes), is_copy: false })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
