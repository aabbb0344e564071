//! Copies of a bucket's chunks on a local disk: one file per chunk. When there is no more room, the least recently used ones are removed.
//!
//! Several programs, and runs on different stores, share one folder. The file `ledger` holds an upper bound of the bytes in the folder. A
//! writer locks it and adds a file's bytes before it makes the file, so the limit always holds: a program that is killed leaves the ledger
//! too high, never too low, and the next clean-up counts again. A file's modification time says when it was last used.
//!
//! A copy is a chunk as stored, with its checksum, which is checked at each read, so a damaged copy is never used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Name of the file with the size of the others.
const LEDGER: &str = "ledger";
/// Bytes of the ledger itself.
const LEDGER_BYTES: u64 = 8;
/// A clean-up frees one part in this many of the space, so that clean-ups are rare.
const FREED_PART: u64 = 8;

/// The copies of one store, in a folder shared with others.
#[derive(Debug)]
pub(crate) struct ChunkCache {
    folder: PathBuf,
    max_bytes: u64,
    /// Folder of the store's copies.
    store: PathBuf,
    /// Keeps threads of one process apart; processes are kept apart by the ledger file's lock.
    turn: Mutex<()>,
}

impl ChunkCache {
    /// The cache in `folder` of the store called `id`; creates nothing until the first copy.
    pub(crate) fn new(folder: PathBuf, max_bytes: u64, id: String) -> Self {
        ChunkCache { store: folder.join(id), folder, max_bytes, turn: Mutex::new(()) }
    }

    pub(crate) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Opens a copy; an open copy can be read to its end even if it is removed meanwhile.
    pub(crate) fn get(&self, name: &str) -> Option<File> {
        let file = File::open(self.store.join(name)).ok()?;
        mark_used(&file);
        Some(file)
    }

    /// Whether there is a copy; marks it as used now.
    pub(crate) fn touch(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Keeps a copy if it fits. If the cache cannot be written, only time is lost.
    pub(crate) fn insert(&self, name: &str, bytes: &[u8]) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.try_insert(name, bytes);
    }

    fn try_insert(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len() as u64;
        if len + LEDGER_BYTES > self.max_bytes {
            return Ok(());
        }
        fs::create_dir_all(&self.store)?;
        let ledger = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.folder.join(LEDGER))?;
        ledger.lock()?;
        let path = self.store.join(name);
        if path.exists() {
            return Ok(());
        }
        let mut entry = [0; LEDGER_BYTES as usize];
        let mut total = match ledger.read_exact_at(&mut entry, 0) {
            Ok(()) => u64::from_le_bytes(entry),
            // New or truncated: forces a count.
            Err(_) => u64::MAX,
        };
        if total.checked_add(len).is_none_or(|sum| sum > self.max_bytes) {
            total = self.make_room(len)?;
            // Another process may have removed the store's empty folder.
            fs::create_dir_all(&self.store)?;
        }
        ledger.write_all_at(&(total + len).to_le_bytes(), 0)?;
        let aside = path.with_extension("tmp");
        // The ledger's lock is held, so no other process writes this file.
        let written = File::create(&aside).and_then(|mut file| file.write_all(bytes)).and_then(|()| fs::rename(&aside, &path));
        if written.is_err() {
            fs::remove_file(&aside).ok();
            ledger.write_all_at(&total.to_le_bytes(), 0)?;
        }
        written
    }

    /// Removes a copy that cannot be read. The ledger is not changed, and so is too high.
    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.store.join(name)).ok();
    }

    /// Removes copies, least recently used first, until `len` bytes and some more fit; returns the bytes that are left. The ledger must be
    /// locked.
    fn make_room(&self, len: u64) -> io::Result<u64> {
        let mut copies = Vec::new();
        for store in fs::read_dir(&self.folder)? {
            let store = store?;
            if store.file_type()?.is_dir() {
                list_copies(&store.path(), &mut copies)?;
            }
        }
        copies.sort();
        let mut total = LEDGER_BYTES + copies.iter().map(|copy| copy.len).sum::<u64>();
        if total + len <= self.max_bytes {
            return Ok(total);
        }
        let wanted = (self.max_bytes - self.max_bytes / FREED_PART).saturating_sub(len);
        for copy in &copies {
            if total <= wanted {
                break;
            }
            fs::remove_file(&copy.path)?;
            total -= copy.len;
            if let Some(store) = copy.path.parent() {
                // Fails unless the folder is empty.
                fs::remove_dir(store).ok();
            }
        }
        Ok(total)
    }
}

/// A copy, ordered by the time of its last use.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Copy {
    used: SystemTime,
    path: PathBuf,
    len: u64,
}

fn list_copies(store: &Path, copies: &mut Vec<Copy>) -> io::Result<()> {
    for copy in fs::read_dir(store)? {
        let copy = copy?;
        match copy.metadata() {
            Ok(metadata) => copies.push(Copy { used: metadata.modified()?, path: copy.path(), len: metadata.len() }),
            // Another process removed a damaged copy.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn mark_used(file: &File) {
    // On a file system without modification times, copies are removed in the order of writing.
    file.set_modified(SystemTime::now()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: u64 = 4000;

    fn cache(folder: &Path, id: &str) -> ChunkCache {
        ChunkCache::new(folder.into(), ROOM, id.into())
    }

    /// Bytes of all files.
    fn taken(folder: &Path) -> u64 {
        let mut copies = Vec::new();
        for store in fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
            list_copies(&store.path(), &mut copies).unwrap();
        }
        LEDGER_BYTES + copies.iter().map(|copy| copy.len).sum::<u64>()
    }

    fn age(cache: &ChunkCache, name: &str, seconds: u64) {
        let then = SystemTime::now() - std::time::Duration::from_secs(seconds);
        File::open(cache.store.join(name)).unwrap().set_modified(then).unwrap();
    }

    #[test]
    fn what_was_used_last_stays() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), "a");
        for (i, name) in ["a.0", "a.1", "a.2"].iter().enumerate() {
            cache.insert(name, &[i as u8; 1000]);
            age(&cache, name, 30 - i as u64);
        }
        assert!(cache.touch("a.0") && cache.get("b").is_none());
        cache.insert("a.3", &[3; 1000]);
        // The least recently used copy is removed, and the next one for the extra space.
        assert_eq!(["a.0", "a.1", "a.2", "a.3"].map(|name| cache.touch(name)), [true, false, true, true]);
        assert!(taken(folder.path()) <= ROOM);
        cache.insert("large", &[0; ROOM as usize]);
        assert!(cache.get("large").is_none() && cache.touch("a.3"), "what never fits removes nothing");
    }

    #[test]
    fn a_ledger_that_is_wrong_or_lost_is_counted_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), "a");
        cache.insert("a.0", &[0; 1500]);
        fs::remove_file(folder.path().join(LEDGER)).unwrap();
        cache.insert("a.1", &[1; 1500]);
        // Killed after its entry: the ledger is too high.
        fs::write(folder.path().join(LEDGER), u64::MAX.to_le_bytes()).unwrap();
        // Killed while it wrote.
        fs::write(cache.store.join("x.tmp"), [0; 300]).unwrap();
        cache.insert("a.2", &[2; 500]);
        assert_eq!(taken(folder.path()), LEDGER_BYTES + 3800);
        fs::write(folder.path().join(LEDGER), b"cut").unwrap();
        cache.insert("a.3", &[3; 1500]);
        assert!(cache.touch("a.3") && taken(folder.path()) <= ROOM);
        cache.remove("a.3");
        assert!(!cache.touch("a.3"));
    }

    #[test]
    fn many_writers_keep_to_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for id in ["a", "b", "c"] {
                let cache = cache(folder.path(), id);
                scope.spawn(move || {
                    for i in 0..200usize {
                        cache.insert(&format!("{}.{}", i % 7, i % 13), &vec![1; 100 + 37 * i % 900]);
                    }
                });
            }
        });
        let taken = taken(folder.path());
        let ledger = fs::read(folder.path().join(LEDGER)).unwrap();
        let ledger = u64::from_le_bytes(std::array::from_fn(|i| ledger[i]));
        assert!(taken <= ledger && ledger <= ROOM, "{taken} bytes, the ledger says {ledger}");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_cache() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), b"").unwrap();
        let cache = cache(&folder.path().join("file"), "a");
        cache.insert("a.0", &[0; 10]);
        assert!(cache.get("a.0").is_none());
    }
}
