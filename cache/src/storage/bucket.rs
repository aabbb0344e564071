//! A store's part of an S3 bucket: the few calls that the rest of the crate needs, each of which waits for its answer.
//!
//! Transient failures (broken connections, cut answers, 5xx, 429) are tried again with growing pauses; errors returned here are final.

use super::Entry;
use super::fault::explain;
use super::place::parse;
use super::retry::{Patience, patiently, policy, random_word};
use super::settings;
use super::silence::{Listening, silent_since};
use crate::error::{Error, Refusal, Result};
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as Key;
use object_store::{
    Attribute, Attributes, ClientConfigKey, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload,
};
use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio::runtime::{Builder, Runtime};

/// Metadata of an object that was written on condition that it did not exist: which attempt wrote it.
const ATTEMPT: &str = "sam-ladder-attempt";
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
    /// How long a request is tried again.
    patience: Patience,
    /// Set once a request was given up because the server hangs: others then need not wait as long to learn it.
    hangs: Arc<OnceLock<Refusal>>,
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
        let bucket = |patience| {
            let (client, patience) = client(&name, patience).map_err(Error::io("use", place))?;
            let (hangs, refused) = (Arc::default(), Arc::default());
            Ok(Bucket { name: name.clone(), client: client.into(), patience, hangs, refused })
        };
        bucket(Patience::FIRST)?.list(place).map_err(Error::io("use", place))?;
        bucket(Patience::USUAL)
    }

    /// Makes a request until it succeeds or is finally refused. `path` is for messages.
    async fn ask<T, F>(&self, path: &Path, request: impl FnMut() -> F) -> io::Result<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        if let Some(refusal) = self.hangs.get() {
            return Err(io::Error::other(refusal.clone()));
        }
        patiently(self.patience, request).await.map_err(|error| self.fail(path, error))
    }

    /// What the server refused, or why it did not answer, if that ever happened: then nothing that was read since the place was opened
    /// shows that an object is damaged.
    pub(super) fn refusal(&self) -> Option<Error> {
        let (path, refusal) = self.refused.get()?;
        Some(Error::io("use", path)(io::Error::other(refusal.clone())))
    }

    fn fail(&self, path: &Path, error: object_store::Error) -> io::Error {
        let explained = explain(&error);
        if let Some(refusal) = explained.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>()) {
            self.refused.get_or_init(|| (path.into(), refusal.clone()));
            if silent_since(&error).is_some() {
                self.hangs.get_or_init(|| refusal.clone());
            }
        }
        explained
    }

    /// An object's version, which changes with each write.
    pub(crate) fn version(&self, path: &Path) -> Result<String> {
        let head = || {
            let key = self.key(path)?;
            let meta = wait(self.ask(path, || self.client.head(&key)))?;
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
        let request = || async {
            let answer = self.client.get_opts(&key, options.clone()).await?;
            let len = answer.meta.size;
            Ok(Object { bytes: answer.bytes().await?.into(), len })
        };
        self.ask(path, request).await
    }

    /// The attempt that wrote an object.
    fn attempt(&self, path: &Path) -> io::Result<Option<String>> {
        let key = self.key(path)?;
        let options = GetOptions { head: true, ..GetOptions::default() };
        let request = || self.client.get_opts(&key, options.clone());
        let answer = wait(self.ask(path, request))?;
        Ok(answer.attributes.get(&Attribute::Metadata(ATTEMPT.into())).map(|attempt| attempt.as_ref().to_owned()))
    }

    /// Writes an object, replacing an existing one.
    pub(super) fn write(&self, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
        self.put(path, bytes, PutMode::Overwrite, None)
    }

    /// Writes an object unless it exists; returns whether it was written.
    pub(crate) fn write_new(&self, path: &Path, bytes: Vec<u8>) -> io::Result<bool> {
        let attempt = format!("{:016x}", random_word());
        match self.put(path, bytes, PutMode::Create, Some(&attempt)) {
            // If only the answer to an attempt was lost, the next attempt finds its object.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(self.attempt(path)?.as_deref() == Some(&attempt)),
            other => other.map(|()| true),
        }
    }

    fn put(&self, path: &Path, bytes: Vec<u8>, mode: PutMode, attempt: Option<&str>) -> io::Result<()> {
        let key = self.key(path)?;
        let mut attributes = Attributes::new();
        if let Some(attempt) = attempt {
            attributes.insert(Attribute::Metadata(ATTEMPT.into()), attempt.to_string().into());
        }
        let options = PutOptions { mode, attributes, ..PutOptions::default() };
        // Its clones share the bytes.
        let payload = PutPayload::from(bytes);
        wait(self.ask(path, || self.client.put_opts(&key, payload.clone(), options.clone()))).map(drop)
    }

    pub(super) fn is_object(&self, path: &Path) -> io::Result<bool> {
        let key = self.key(path)?;
        match wait(self.ask(path, || self.client.head(&key))) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// Entries directly under a key.
    pub(super) fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        let key = self.key(folder)?;
        let found = wait(self.ask(folder, || self.client.list_with_delimiter(Some(&key))))?;
        let entry = |path: &Key, is_folder| path.filename().map(|name| Entry { name: name.into(), is_folder });
        let folders = found.common_prefixes.iter().filter_map(|path| entry(path, true));
        Ok(folders.chain(found.objects.iter().filter_map(|object| entry(&object.location, false))).collect())
    }

    /// All objects under a key.
    pub(crate) fn list_all(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let place = |object: &ObjectMeta| PathBuf::from(format!("s3://{}/{}", self.name, object.location));
        Ok(self.objects(folder)?.iter().map(place).collect())
    }

    /// Bytes of all objects under a key.
    pub(super) fn bytes_below(&self, folder: &Path) -> io::Result<u64> {
        Ok(self.objects(folder)?.iter().map(|object| object.size).sum())
    }

    fn objects(&self, folder: &Path) -> io::Result<Vec<ObjectMeta>> {
        let key = self.key(folder)?;
        wait(self.ask(folder, || self.client.list(Some(&key)).try_collect()))
    }

    /// Copies an object on the server, replacing an existing one; `NotFound` as for a file.
    pub(super) fn copy(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_key, to_key) = (self.key(from)?, self.key(to)?);
        wait(self.ask(from, || self.client.copy(&from_key, &to_key)))
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        let key = self.key(path)?;
        wait(self.ask(path, || self.client.delete(&key)))
    }

    fn key(&self, path: &Path) -> io::Result<Key> {
        let invalid = |reason: String| io::Error::new(ErrorKind::InvalidInput, reason);
        let (_, key) = parse(path).map_err(invalid)?;
        Key::parse(&key).map_err(|e| invalid(e.to_string()))
    }
}

/// A client, and its patience, of which a variable may state a part.
fn client(bucket: &str, patience: Patience) -> io::Result<(AmazonS3, Patience)> {
    // Fails if another TLS provider is already installed, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = settings::read(std::env::vars_os()).map_err(|refusal| io::Error::new(ErrorKind::InvalidInput, refusal))?;
    let patience = Patience { silence: settings.silence.unwrap_or(patience.silence), ..patience };
    let listening = Listening { silence: patience.of_an_attempt() };
    let mut builder = AmazonS3Builder::new().with_retry(policy(patience)).with_http_connector(listening);
    for (key, value) in [(ClientConfigKey::Timeout, TIMEOUT), (ClientConfigKey::ConnectTimeout, CONNECT_TIMEOUT)] {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    for (key, value) in settings.values {
        builder = builder.with_config(key, value);
    }
    // The bucket is the place's, whatever a variable says.
    builder = builder.with_bucket_name(bucket);
    if settings.is_plain {
        builder = builder.with_allow_http(true);
    }
    Ok((builder.build().map_err(|error| explain(&error))?, patience))
}

/// Waits for an answer. Any number of threads may wait at the same time, but no thread of the runtime.
pub(crate) fn wait<F: Future>(answer: F) -> F::Output {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let build = || Builder::new_multi_thread().worker_threads(RUNTIME_THREADS).thread_name("s3").enable_all().build();
    RUNTIME.get_or_init(|| build().expect("the system gives a process two threads and a socket")).block_on(answer)
}
