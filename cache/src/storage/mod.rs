//! Where a store lies: in a folder, or below a key of an S3 bucket. What the rest of the crate does with files goes through here.
//!
//! Files are named by whole paths: `/data/s.zarr/zarr.json`, `s3://bucket/s.zarr/zarr.json`. A bucket has no folders, no renaming and
//! nothing half-written: a write is one `PUT`, which is there whole or not at all, and what is listed is what was written.

mod bucket;
mod fault;
mod place;

pub(crate) use bucket::{Bucket, CONCURRENCY, Object, wait};
pub use place::is_remote;

use crate::error::{Error, Result};
use sam_ladder_formats::atomic;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A store's place, opened.
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    root: PathBuf,
    /// `None` for a folder.
    bucket: Option<Bucket>,
}

/// What lies directly in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) is_folder: bool,
}

/// A file that is read at given places: an open one, or the bytes of an object.
#[derive(Debug)]
pub(crate) enum Blob {
    File(File),
    Bytes(Arc<Vec<u8>>),
}

impl Blob {
    pub(crate) fn len(&self) -> io::Result<u64> {
        match self {
            Blob::File(file) => Ok(file.metadata()?.len()),
            Blob::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    pub(crate) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Blob::File(file) => file.read_exact_at(out, offset),
            Blob::Bytes(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.checked_add(out.len()).filter(|&end| end <= bytes.len()).ok_or(ErrorKind::UnexpectedEof)?;
                out.copy_from_slice(&bytes[start..end]);
                Ok(())
            }
        }
    }
}

impl Storage {
    /// Opens the place of a store, which need not be there yet: a folder, or `s3://bucket/key` with the settings of the `AWS_*`
    /// environment variables.
    ///
    /// # Errors
    /// [`Error::Io`] for a bucket that cannot be reached: a wrong address, wrong credentials, no such bucket.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let bucket = is_remote(path).then(|| Bucket::open(path)).transpose()?;
        Ok(Storage { root: path.into(), bucket })
    }

    /// As [`Self::at`] below a folder of it.
    pub(crate) fn below(&self, folder: &str) -> Self {
        Storage { root: self.root.join(folder), bucket: self.bucket.clone() }
    }

    /// The same place, where the arrays and tables of another `cache_id` than the given one are as if they were not there: what a
    /// growing store held before is still in its place in a bucket.
    pub(crate) fn of_generation(&self, cache_id: &str) -> Self {
        let bucket = self.bucket.clone().map(|bucket| bucket.of_generation(cache_id));
        Storage { bucket, ..self.clone() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn join(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// The bucket that it lies in; `None` for a folder.
    pub(crate) fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    /// What a bucket refused since it was opened: the work that met it has failed, whatever else it made of that.
    pub(crate) fn refusal(&self) -> Option<Error> {
        self.bucket.as_ref().and_then(Bucket::refusal)
    }

    /// All bytes of a file.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match &self.bucket {
            None => fs::read(path),
            Some(bucket) => bucket.read(path),
        }
    }

    /// Opens a file to read it at given places; of a bucket, the whole object is held.
    pub(crate) fn open(&self, path: &Path) -> io::Result<Blob> {
        match &self.bucket {
            None => File::open(path).map(Blob::File),
            Some(bucket) => bucket.read(path).map(|bytes| Blob::Bytes(Arc::new(bytes))),
        }
    }

    /// Writes a file so that all of it is there, or what was there before. See [`atomic::write_atomic`].
    ///
    /// # Errors
    /// [`Error::Io`] that names the file.
    pub(crate) fn write(&self, path: &Path, bytes: Vec<u8>) -> Result<()> {
        match &self.bucket {
            None => Ok(atomic::write_atomic(path, &bytes)?),
            Some(bucket) => bucket.write(path, bytes).map_err(Error::io("write", path)),
        }
    }

    /// # Errors
    /// [`Error::Io`] for a bucket that does not answer.
    pub(crate) fn is_file(&self, path: &Path) -> Result<bool> {
        match &self.bucket {
            None => Ok(path.is_file()),
            Some(bucket) => bucket.is_object(path).map_err(Error::io("look for", path)),
        }
    }

    /// What lies directly in a folder; `None` when there is no such folder, or a file instead.
    ///
    /// # Errors
    /// [`Error::Io`] that names the folder.
    pub(crate) fn list(&self, folder: &Path) -> Result<Option<Vec<Entry>>> {
        let list = || match &self.bucket {
            None => list_folder(folder),
            Some(bucket) => bucket.list(folder).map(|entries| (!entries.is_empty()).then_some(entries)),
        };
        list().map_err(Error::io("list", folder))
    }

    /// Paths below the root of all files.
    ///
    /// # Errors
    /// [`Error::Io`] that names the folder.
    pub(crate) fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        match &self.bucket {
            None => collect_files(&self.root, &self.root, &mut found)?,
            Some(bucket) => {
                let objects = bucket.list_all(&self.root).map_err(Error::io("list", &self.root))?;
                found.extend(objects.iter().filter_map(|path| path.strip_prefix(&self.root).ok()).map(Path::to_path_buf));
            }
        }
        Ok(found)
    }

    /// Removes a file if it is there.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file.
    pub(crate) fn remove(&self, path: &Path) -> Result<()> {
        let removed = match &self.bucket {
            None => fs::remove_file(path),
            Some(bucket) => bucket.remove(path),
        };
        match removed {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
            _ => Ok(()),
        }
    }

    /// Removes a folder and all that is in it; another process may be doing so too.
    ///
    /// # Errors
    /// [`Error::Io`] that names the folder.
    pub(crate) fn remove_folder(&self, path: &Path) -> Result<()> {
        match &self.bucket {
            None => match fs::remove_dir_all(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
                _ => Ok(()),
            },
            Some(bucket) => {
                for object in bucket.list_all(path).map_err(Error::io("list", path))? {
                    self.remove(&object)?;
                }
                Ok(())
            }
        }
    }

    /// Moves a file over another. In a bucket it is written anew and then removed: both may be there for a moment, neither never.
    ///
    /// # Errors
    /// The system's, or the server's; `NotFound` when there is no such file.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match &self.bucket {
            None => fs::rename(from, to),
            Some(bucket) => {
                bucket.write(to, bucket.read(from)?)?;
                bucket.remove(from)
            }
        }
    }

    /// Makes a folder with those above it; a bucket needs none.
    ///
    /// # Errors
    /// [`Error::Io`] that names the folder.
    pub(crate) fn create_folder(&self, path: &Path) -> Result<()> {
        match &self.bucket {
            None => fs::create_dir_all(path).map_err(Error::io("create", path)),
            Some(_) => Ok(()),
        }
    }

    /// As [`atomic::sync_folder`]; what a bucket has taken it keeps.
    ///
    /// # Errors
    /// [`Error::Io`] that names the folder.
    pub(crate) fn sync_folder(&self, path: &Path) -> Result<()> {
        match &self.bucket {
            None => Ok(atomic::sync_folder(path)?),
            Some(_) => Ok(()),
        }
    }

    /// Removes what interrupted writes left aside anywhere below the root, and syncs every folder.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file or folder.
    pub(crate) fn tidy_and_sync(&self) -> Result<()> {
        match &self.bucket {
            None => tidy_and_sync(&self.root),
            Some(_) => Ok(()),
        }
    }
}

/// Reads a file of a store, wherever that lies.
///
/// # Errors
/// [`Error::Io`] that names the file.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    let read = match path.parent().filter(|_| is_remote(path)) {
        None => fs::read(path),
        Some(folder) => Bucket::open(folder)?.read(path),
    };
    read.map_err(Error::io("read", path))
}

fn list_folder(folder: &Path) -> io::Result<Option<Vec<Entry>>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        other => other?,
    };
    let entry = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        Ok(Entry { name: entry.file_name().to_string_lossy().into_owned(), is_folder })
    };
    entries.map(entry).collect::<io::Result<Vec<_>>>().map(Some)
}

fn collect_files(root: &Path, folder: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let path = entry.path();
        if entry.file_type().map_err(Error::io("list", &path))?.is_dir() {
            collect_files(root, &path, found)?;
        } else if let Ok(below) = path.strip_prefix(root) {
            found.insert(below.to_path_buf());
        }
    }
    Ok(())
}

fn tidy_and_sync(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        // Another process that finishes the store has removed it.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::io("list", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("list", folder))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            tidy_and_sync(&entry.path())?;
        }
    }
    atomic::tidy(folder)?;
    Ok(atomic::sync_folder(folder)?)
}
