//! The place of a store: a folder, or a key of an S3 bucket. All file access of the crate goes through here.
//!
//! Files are named by whole paths: `/data/s.zarr/zarr.json`, `s3://bucket/s.zarr/zarr.json`. A bucket has no folders and no renaming. A
//! write is one atomic `PUT`, so nothing is ever half-written, and a listing shows exactly what was written.

mod bucket;
mod fault;
mod place;
mod retry;
mod settings;
mod silence;

pub(crate) use bucket::{Bucket, CONCURRENCY, Object, wait};
pub use place::is_remote;

use crate::error::{Error, Result};
use object_store::GetRange;
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

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) is_folder: bool,
}

/// A file for reads at given offsets: an open file, or the bytes of an object.
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
    /// Opens the place of a store, which need not exist yet: a folder, or `s3://bucket/key` with the settings of the `AWS_*` environment
    /// variables.
    ///
    /// # Errors
    /// [`Error::File`] for a bucket that cannot be reached: a wrong address, wrong credentials, no such bucket.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let bucket = is_remote(path).then(|| Bucket::open(path)).transpose()?;
        Ok(Storage { root: path.into(), bucket })
    }

    /// As [`Self::at`], for a folder within it.
    pub(crate) fn below(&self, folder: &str) -> Self {
        Storage { root: self.root.join(folder), bucket: self.bucket.clone() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn join(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// Its bucket; `None` for a folder.
    pub(crate) fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    /// The first refusal of the bucket since it was opened: the work that met it has failed, whatever error it reported.
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

    /// Opens a file for reads at given offsets; in a bucket, the whole object is read into memory.
    pub(crate) fn open(&self, path: &Path) -> io::Result<Blob> {
        match &self.bucket {
            None => File::open(path).map(Blob::File),
            Some(bucket) => bucket.read(path).map(|bytes| Blob::Bytes(Arc::new(bytes))),
        }
    }

    /// Reads what can be checked, in a bucket once more if it is damaged: it may have arrived so.
    pub(crate) fn twice<T, E>(&self, mut read: impl FnMut() -> Result<T, E>) -> Result<T, E> {
        match read() {
            Err(_) if self.bucket.is_some() && self.refusal().is_none() => read(),
            done => done,
        }
    }

    /// At most the last `len` bytes of a file, and the number of all its bytes.
    pub(crate) fn read_end(&self, path: &Path, len: u64) -> io::Result<(Vec<u8>, u64)> {
        match &self.bucket {
            None => {
                let file = File::open(path)?;
                let file_len = file.metadata()?.len();
                let mut bytes = vec![0; len.min(file_len) as usize];
                let offset = file_len - bytes.len() as u64;
                file.read_exact_at(&mut bytes, offset)?;
                Ok((bytes, file_len))
            }
            Some(bucket) => wait(bucket.get(path, Some(GetRange::Suffix(len)))).map(|object| (object.bytes, object.len)),
        }
    }

    /// Waits until no other process holds the lock of the store's folder, and holds it until the file is dropped or the process ends. `None`
    /// where there are no locks: in a bucket, and on some file systems.
    pub(crate) fn lock(&self) -> Option<File> {
        let folder = self.bucket.is_none().then(|| File::open(&self.root).ok()).flatten()?;
        folder.lock().is_ok().then_some(folder)
    }

    /// Writes a file atomically; see [`atomic::write_atomic`].
    ///
    /// # Errors
    /// [`Error::File`] that names the file.
    pub(crate) fn write(&self, path: &Path, bytes: Vec<u8>) -> Result<()> {
        match &self.bucket {
            None => Ok(atomic::write_atomic(path, &bytes)?),
            Some(bucket) => bucket.write(path, bytes).map_err(Error::io("write", path)),
        }
    }

    /// # Errors
    /// [`Error::File`] for a bucket that does not answer.
    pub(crate) fn is_file(&self, path: &Path) -> Result<bool> {
        match &self.bucket {
            None => Ok(path.is_file()),
            Some(bucket) => bucket.is_object(path).map_err(Error::io("look for", path)),
        }
    }

    /// Entries of a folder; `None` if there is no such folder, or it is a file.
    ///
    /// # Errors
    /// [`Error::File`] that names the folder.
    pub(crate) fn list(&self, folder: &Path) -> Result<Option<Vec<Entry>>> {
        let list = || match &self.bucket {
            None => list_folder(folder),
            Some(bucket) => bucket.list(folder).map(|entries| (!entries.is_empty()).then_some(entries)),
        };
        list().map_err(Error::io("list", folder))
    }

    /// Paths of all files, relative to the root.
    ///
    /// # Errors
    /// [`Error::File`] that names the folder.
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

    /// Bytes of all files.
    ///
    /// # Errors
    /// [`Error::File`] that names the folder or file.
    pub(crate) fn bytes(&self) -> Result<u64> {
        match &self.bucket {
            None => {
                let len = |name: &PathBuf| {
                    let path = self.join(name);
                    path.metadata().map(|found| found.len()).map_err(Error::io("look for", &path))
                };
                self.files()?.iter().map(len).sum()
            }
            Some(bucket) => bucket.bytes_below(&self.root).map_err(Error::io("list", &self.root)),
        }
    }

    /// Removes a file if it exists.
    ///
    /// # Errors
    /// [`Error::File`] that names the file.
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

    /// Removes a folder and its content; another process may be doing the same.
    ///
    /// # Errors
    /// [`Error::File`] that names the folder.
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

    /// Moves a file, replacing an existing one. In a bucket the server copies it, and then it is removed: both may exist for a moment, but
    /// never neither.
    ///
    /// # Errors
    /// The system's, or the server's; `NotFound` when there is no such file.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match &self.bucket {
            None => fs::rename(from, to),
            Some(bucket) => {
                bucket.copy(from, to)?;
                bucket.remove(from)
            }
        }
    }

    /// Makes a folder and its parents; does nothing in a bucket.
    ///
    /// # Errors
    /// [`Error::File`] that names the folder.
    pub(crate) fn create_folder(&self, path: &Path) -> Result<()> {
        match &self.bucket {
            None => fs::create_dir_all(path).map_err(Error::io("create", path)),
            Some(_) => Ok(()),
        }
    }

    /// As [`atomic::sync_folder`]; does nothing in a bucket.
    ///
    /// # Errors
    /// [`Error::File`] that names the folder.
    pub(crate) fn sync_folder(&self, path: &Path) -> Result<()> {
        match &self.bucket {
            None => Ok(atomic::sync_folder(path)?),
            Some(_) => Ok(()),
        }
    }

    /// Removes temporary files of interrupted writes anywhere under the root, and syncs every folder.
    ///
    /// # Errors
    /// [`Error::File`] that names the file or folder.
    pub(crate) fn tidy_and_sync(&self) -> Result<()> {
        match &self.bucket {
            None => tidy_and_sync(&self.root),
            Some(_) => Ok(()),
        }
    }
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
        // Another process that finishes the store removed it.
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
