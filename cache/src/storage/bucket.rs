//! A store's part of an S3 bucket: the few calls that the rest of the crate needs, each of which waits for its answer.
//!
//! The library retries after transient failures (broken connections, 5xx, 429) with growing pauses; errors returned here are final.

use super::Entry;
use super::fault::explain;
use super::place::parse;
use crate::error::{Error, Refusal, Result};
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ClientConfigKey, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
};
use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// Number of retries of a request, and for how long. Work that takes hours must survive a server's restart.
const RETRIES: (usize, Duration) = (12, Duration::from_secs(120));
/// The same for the first request to a bucket: a mistyped address should fail quickly.
const FIRST_RETRIES: (usize, Duration) = (2, Duration::from_secs(5));
/// Time limit of one request, unless `AWS_TIMEOUT` is set: a shard may have a few hundred megabytes.
const TIMEOUT: &str = "300 seconds";
const CONNECT_TIMEOUT: &str = "5 seconds";
/// Threads that wait for sockets; the calling threads do the work.
const RUNTIME_THREADS: usize = 2;
/// Requests that one call makes at the same time.
pub(crate) const CONCURRENCY: usize = 32;

/// Objects below one key of a bucket.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    name: String,
    client: Arc<AmazonS3>,
    /// The first request that was refused for another reason than that the object is not there.
    refused: Arc<OnceLock<(PathBuf, Refusal)>>,
}

/// Bytes of an object, all or those requested, and what is known of the whole.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) bytes: Vec<u8>,
    /// Bytes of the whole object.
    pub(crate) len: u64,
}

impl Bucket {
    /// Connects by the `AWS_*` environment variables, and asks once for what lies at the place: a user who may not use the bucket learns it
    /// at once.
    ///
    /// # Errors
    /// [`Error::File`] that says what to do.
    pub(crate) fn open(place: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::io("use", place)(io::Error::new(ErrorKind::InvalidInput, reason));
        let (name, _) = parse(place).map_err(wrong)?;
        let connect = |retries| client(&name, retries).map_err(|e| Error::io("use", place)(explain(&e)));
        let bucket = |client| Bucket { name: name.clone(), client: Arc::new(client), refused: Arc::default() };
        bucket(connect(FIRST_RETRIES)?).list(place).map_err(Error::io("use", place))?;
        Ok(bucket(connect(RETRIES)?))
    }

    /// What the server refused, or why it did not answer, if that ever happened: then nothing that was read since the place was opened
    /// shows that an object is damaged.
    pub(super) fn refusal(&self) -> Option<Error> {
        let (path, refusal) = self.refused.get()?;
        Some(Error::io("use", path)(io::Error::other(refusal.clone())))
    }

    fn fail(&self, path: &Path, error: object_store::Error) -> io::Error {
        let error = explain(&error);
        if let Some(refusal) = error.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>()) {
            self.refused.get_or_init(|| (path.into(), refusal.clone()));
        }
        error
    }

    /// An object's version, which changes with each write.
    pub(crate) fn version(&self, path: &Path) -> Result<String> {
        let head = || {
            let meta = wait(self.client.head(&self.key(path)?)).map_err(|e| self.fail(path, e))?;
            Ok(format!("{} {}", meta.last_modified.to_rfc3339(), meta.e_tag.unwrap_or_default()))
        };
        head().map_err(Error::io("look for", path))
    }

    /// All bytes of an object; `NotFound` as for a file.
    pub(super) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        wait(self.get(path, None)).map(|object| object.bytes)
    }

    /// The bytes of an object or of a range of it, with properties of the whole object.
    pub(crate) async fn get(&self, path: &Path, range: Option<GetRange>) -> io::Result<Object> {
        let key = self.key(path)?;
        let options = GetOptions { range, ..GetOptions::default() };
        let answer = self.client.get_opts(&key, options).await.map_err(|e| self.fail(path, e))?;
        let len = answer.meta.size;
        let bytes = answer.bytes().await.map_err(|e| self.fail(path, e))?;
        Ok(Object { bytes: bytes.into(), len })
    }

    /// Writes an object, replacing an existing one.
    pub(super) fn write(&self, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
        self.put(path, bytes, PutMode::Overwrite)
    }

    /// Writes an object unless it exists; returns whether it was written.
    pub(crate) fn write_new(&self, path: &Path, bytes: Vec<u8>) -> io::Result<bool> {
        match self.put(path, bytes, PutMode::Create) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn put(&self, path: &Path, bytes: Vec<u8>, mode: PutMode) -> io::Result<()> {
        let key = self.key(path)?;
        let options = PutOptions { mode, ..PutOptions::default() };
        wait(self.client.put_opts(&key, bytes.into(), options)).map(drop).map_err(|e| self.fail(path, e))
    }

    pub(super) fn is_object(&self, path: &Path) -> io::Result<bool> {
        match wait(self.client.head(&self.key(path)?)).map_err(|e| self.fail(path, e)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// Entries directly under a key.
    pub(super) fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        let key = self.key(folder)?;
        let found = wait(self.client.list_with_delimiter(Some(&key))).map_err(|e| self.fail(folder, e))?;
        let entry = |path: &Key, is_folder| path.filename().map(|name| Entry { name: name.into(), is_folder });
        let folders = found.common_prefixes.iter().filter_map(|path| entry(path, true));
        Ok(folders.chain(found.objects.iter().filter_map(|object| entry(&object.location, false))).collect())
    }

    /// All objects under a key.
    pub(crate) fn list_all(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let key = self.key(folder)?;
        let found: Vec<_> = wait(self.client.list(Some(&key)).try_collect()).map_err(|e| self.fail(folder, e))?;
        Ok(found.iter().map(|object| PathBuf::from(format!("s3://{}/{}", self.name, object.location))).collect())
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        wait(self.client.delete(&self.key(path)?)).map_err(|e| self.fail(path, e))
    }

    fn key(&self, path: &Path) -> io::Result<Key> {
        let invalid = |reason: String| io::Error::new(ErrorKind::InvalidInput, reason);
        let (_, key) = parse(path).map_err(invalid)?;
        Key::parse(&key).map_err(|e| invalid(e.to_string()))
    }
}

fn client(bucket: &str, (max_retries, retry_timeout): (usize, Duration)) -> object_store::Result<AmazonS3> {
    // Fails if another TLS provider is already installed, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(15), base: 2.0 };
    let mut builder =
        AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(RetryConfig { backoff, max_retries, retry_timeout });
    let timeouts = [
        ("AWS_TIMEOUT", ClientConfigKey::Timeout, TIMEOUT),
        ("AWS_CONNECT_TIMEOUT", ClientConfigKey::ConnectTimeout, CONNECT_TIMEOUT),
    ];
    for (variable, key, value) in timeouts {
        if std::env::var_os(variable).is_none() {
            builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
        }
    }
    // A user who writes http:// wants a plain connection.
    let address = builder.get_config_value(&AmazonS3ConfigKey::Endpoint).unwrap_or_default();
    if address.starts_with("http://") {
        builder = builder.with_allow_http(true);
    }
    builder.build()
}

/// Waits for an answer. Any number of threads may wait at the same time, but no thread of the runtime.
pub(crate) fn wait<F: Future>(answer: F) -> F::Output {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let build = || Builder::new_multi_thread().worker_threads(RUNTIME_THREADS).thread_name("s3").enable_all().build();
    RUNTIME.get_or_init(|| build().expect("the system gives a process two threads and a socket")).block_on(answer)
}
