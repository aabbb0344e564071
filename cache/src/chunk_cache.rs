//! Copies of a bucket's chunks on a local disk: one file per chunk. When there is no more room, the least recently used ones are removed.
//!
//! Only a folder that carries our mark is touched: a new or an empty folder gets it, and one that holds anything else is refused. In it, only
//! files with the name of a chunk, in folders with the name of a store, are ever read, written or removed, and no link is followed.
//!
//! Several programs, and runs on different stores, share one folder. The file `ledger` holds an upper bound of the bytes in the folder. A
//! writer locks it and adds a file's bytes before it makes the file, so the limit always holds: a program that is killed leaves the ledger
//! too high, never too low, and the next clean-up counts again. A file's modification time says when it was last used.
//!
//! A copy is a chunk as stored, with its checksum, which is checked at each read, so a damaged copy is never used.

use crate::error::{Error, Refusal, Result};
use sam_ladder_formats::atomic::{TEMPORARY_SUFFIX, is_temporary_of, write_atomic};
use sam_ladder_formats::outputs::{is_real_folder, is_regular_file, is_there};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::{EMBEDDINGS, IMAGES, LABELS, QUANTIZATION};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Name of the file with the size of the others.
const LEDGER: &str = "ledger";
/// Bytes of the ledger's number.
const LEDGER_BYTES: u64 = 8;
/// Name of the mark, by which backup programs also know a cache (the Cache Directory Tagging Specification).
const MARK: &str = "CACHEDIR.TAG";
/// Content of the mark.
const MARK_TEXT: &str = "\
Signature: 8a477f597d28d172789f06886806bc55
# Copies of chunks of sam-ladder's stores. The program removes files here; the folder can be removed at any time.
";
/// Bytes of the ledger and the mark.
const OWN_BYTES: u64 = LEDGER_BYTES + MARK_TEXT.len() as u64;
/// A clean-up frees one part in this many of the space, so that clean-ups are rare.
const FREED_PART: u64 = 8;
/// Length of a store's name in the cache, in hexadecimal digits.
pub(crate) const STORE_NAME_LEN: usize = 16;

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
    ///
    /// # Errors
    /// A folder that is not ours and not empty, or in which a link or a file of another kind has the name of one of our files.
    pub(crate) fn open(folder: PathBuf, max_bytes: u64, id: &str) -> Result<Self> {
        let cache = ChunkCache { store: folder.join(id), folder, max_bytes, turn: Mutex::new(()) };
        match cache.check() {
            Ok(None) => Ok(cache),
            Ok(Some(answer)) => {
                let advice = "pass --cache-dir a folder of its own, which may be new; nothing was changed in this one".into();
                Err(Error::io("keep copies in", &cache.folder)(io::Error::other(Refusal { answer, advice })))
            }
            // What cannot even be listed is not written either: then no copies are kept.
            Err(_) => Ok(cache),
        }
    }

    /// In words: why the folder is not ours.
    fn check(&self) -> io::Result<Option<String>> {
        let folder = match fs::metadata(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if !folder.is_dir() {
            return Ok(Some("it is no folder".into()));
        }
        if !self.is_marked()? {
            let mut names = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            match names.iter().find(|name| !is_temporary_of(name, MARK)) {
                None => return Ok(None),
                // Another process may have begun the cache in the meantime.
                Some(_) if self.is_marked()? => {}
                Some(name) => {
                    return Ok(Some(format!(
                        "it holds {name}, and no {MARK} of sam-ladder says that it is a cache of this program"
                    )));
                }
            }
        }
        let ledger = self.folder.join(LEDGER);
        if is_there(&ledger) && !(is_regular_file(&ledger) && ledger.symlink_metadata()?.len() <= LEDGER_BYTES) {
            return Ok(Some(format!("its {LEDGER} is a link, or a file of another origin")));
        }
        if is_there(&self.store) && !is_real_folder(&self.store) {
            return Ok(Some(format!("{} in it is a link, or a file of another origin", file_name(&self.store))));
        }
        Ok(None)
    }

    /// Whether the folder has our mark.
    fn is_marked(&self) -> io::Result<bool> {
        let mark = self.folder.join(MARK);
        Ok(is_regular_file(&mark) && fs::read(&mark)? == MARK_TEXT.as_bytes())
    }

    pub(crate) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Opens a copy; an open copy can be read to its end even if it is removed meanwhile.
    pub(crate) fn get(&self, name: &str) -> Option<File> {
        let path = self.store.join(name);
        let file = Some(path)
            .filter(|path| is_real_folder(&self.store) && is_regular_file(path))
            .and_then(|path| File::open(path).ok())?;
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
        if len + OWN_BYTES > self.max_bytes || !is_chunk_name(name) {
            return Ok(());
        }
        let ledger = self.open_ledger()?;
        ledger.lock()?;
        let path = self.store.join(name);
        if is_there(&path) {
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
            self.make_store()?;
        }
        ledger.write_all_at(&(total + len).to_le_bytes(), 0)?;
        let aside = path.with_extension(ASIDE);
        // The ledger's lock is held, so no other process writes this file; a killed one may have left it.
        let written = remove_copy(&aside)
            .and_then(|()| File::create_new(&aside))
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&aside, &path));
        if written.is_err() {
            remove_copy(&aside).ok();
            ledger.write_all_at(&total.to_le_bytes(), 0)?;
        }
        written
    }

    /// Makes the folders, the mark and the ledger where they are missing.
    fn open_ledger(&self) -> io::Result<File> {
        fs::create_dir_all(&self.folder)?;
        // Between opening and the first copy anything may have been put there.
        if let Some(answer) = self.check()? {
            return Err(io::Error::other(answer));
        }
        let mark = self.folder.join(MARK);
        if !is_there(&mark) {
            write_atomic(&mark, MARK_TEXT.as_bytes()).map_err(io::Error::other)?;
        }
        self.make_store()?;
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.folder.join(LEDGER))
    }

    fn make_store(&self) -> io::Result<()> {
        match fs::create_dir(&self.store) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ if is_real_folder(&self.store) => Ok(()),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// Removes a copy that cannot be read. The ledger is not changed, and so is too high.
    pub(crate) fn remove(&self, name: &str) {
        if is_chunk_name(name) && is_real_folder(&self.store) {
            remove_copy(&self.store.join(name)).ok();
        }
    }

    /// Removes copies, least recently used first, until `len` bytes and some more fit; returns the bytes that are left. The ledger must be
    /// locked.
    fn make_room(&self, len: u64) -> io::Result<u64> {
        let mut copies = Vec::new();
        for store in fs::read_dir(&self.folder)? {
            let store = store?;
            if store.file_type()?.is_dir() && is_store_name(&store.file_name().to_string_lossy()) {
                list_copies(&store.path(), &mut copies)?;
            }
        }
        copies.sort();
        let mut total = OWN_BYTES + copies.iter().map(|copy| copy.len).sum::<u64>();
        if total + len <= self.max_bytes {
            return Ok(total);
        }
        let wanted = (self.max_bytes - self.max_bytes / FREED_PART).saturating_sub(len);
        for copy in &copies {
            if total <= wanted {
                break;
            }
            remove_copy(&copy.path)?;
            total -= copy.len;
            if let Some(store) = copy.path.parent() {
                // Fails unless the folder is empty.
                fs::remove_dir(store).ok();
            }
        }
        Ok(total)
    }
}

/// Extension of a copy that is being written.
const ASIDE: &str = TEMPORARY_SUFFIX.split_at(1).1;

/// Whether a name is that of a store's folder: the digits that [`crate::remote::Remote`] makes.
fn is_store_name(name: &str) -> bool {
    name.len() == STORE_NAME_LEN && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether a name is that of a copy, or of one that was being written: `train.images.12.3`, `train.images.12.tmp`.
fn is_chunk_name(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = name.split('.').collect();
    let &[split, array, row, chunk] = parts.as_slice() else { return false };
    Split::ALL.iter().any(|known| known.name() == split)
        && [EMBEDDINGS, IMAGES, LABELS, QUANTIZATION].contains(&array)
        && is_number(row)
        && (is_number(chunk) || chunk == ASIDE)
}

/// Removes a file if it is there; a link or a folder of that name is an error.
fn remove_copy(path: &Path) -> io::Result<()> {
    if !is_there(path) {
        return Ok(());
    }
    if !is_regular_file(path) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
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
        if !is_chunk_name(&copy.file_name().to_string_lossy()) {
            continue;
        }
        // Of a link this is the link's own, not its target's.
        match copy.metadata() {
            Ok(metadata) if !metadata.is_file() => {}
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
        ChunkCache::open(folder.into(), ROOM, &id.repeat(STORE_NAME_LEN)).unwrap()
    }

    /// Bytes of all files.
    fn taken(folder: &Path) -> u64 {
        let mut copies = Vec::new();
        for store in fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
            list_copies(&store.path(), &mut copies).unwrap();
        }
        OWN_BYTES + copies.iter().map(|copy| copy.len).sum::<u64>()
    }

    fn age(cache: &ChunkCache, name: &str, seconds: u64) {
        let then = SystemTime::now() - std::time::Duration::from_secs(seconds);
        File::open(cache.store.join(name)).unwrap().set_modified(then).unwrap();
    }

    #[test]
    fn what_was_used_last_stays() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), "a");
        for (i, name) in ["train.images.0.0", "train.images.0.1", "train.images.0.2"].iter().enumerate() {
            cache.insert(name, &[i as u8; 1000]);
            age(&cache, name, 30 - i as u64);
        }
        assert!(cache.touch("train.images.0.0") && cache.get("train.labels.0.0").is_none());
        cache.insert("train.images.0.3", &[3; 1000]);
        // The least recently used copy is removed, and the next one for the extra space.
        assert_eq!(
            ["train.images.0.0", "train.images.0.1", "train.images.0.2", "train.images.0.3"].map(|name| cache.touch(name)),
            [true, false, true, true]
        );
        assert!(taken(folder.path()) <= ROOM);
        cache.insert("train.labels.1.1", &[0; ROOM as usize]);
        assert!(cache.get("train.labels.1.1").is_none() && cache.touch("train.images.0.3"), "what never fits removes nothing");
    }

    #[test]
    fn a_ledger_that_is_wrong_or_lost_is_counted_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), "a");
        cache.insert("train.images.0.0", &[0; 1500]);
        fs::remove_file(folder.path().join(LEDGER)).unwrap();
        cache.insert("train.images.0.1", &[1; 1500]);
        // Killed after its entry: the ledger is too high.
        fs::write(folder.path().join(LEDGER), u64::MAX.to_le_bytes()).unwrap();
        // Killed while it wrote.
        fs::write(cache.store.join("train.images.7.tmp"), [0; 300]).unwrap();
        cache.insert("train.images.0.2", &[2; 500]);
        assert_eq!(taken(folder.path()), OWN_BYTES + 3800);
        fs::write(folder.path().join(LEDGER), b"cut").unwrap();
        cache.insert("train.images.0.3", &[3; 1500]);
        assert!(cache.touch("train.images.0.3") && taken(folder.path()) <= ROOM);
        cache.remove("train.images.0.3");
        assert!(!cache.touch("train.images.0.3"));
    }

    #[test]
    fn many_writers_keep_to_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for id in ["a", "b", "c"] {
                let cache = cache(folder.path(), id);
                scope.spawn(move || {
                    for i in 0..200usize {
                        cache.insert(&format!("train.images.{}.{}", i % 7, i % 13), &vec![1; 100 + 37 * i % 900]);
                    }
                });
            }
        });
        let taken = taken(folder.path());
        let ledger = fs::read(folder.path().join(LEDGER)).unwrap();
        let ledger = u64::from_le_bytes(std::array::from_fn(|i| ledger[i]));
        assert!(taken <= ledger && ledger <= ROOM, "{taken} bytes, the ledger says {ledger}");
    }

    /// A folder that another process has just begun to use is not taken for someone else's.
    #[test]
    fn a_cache_may_be_opened_while_another_process_begins_it() {
        for _ in 0..100 {
            let folder = tempfile::tempdir().unwrap();
            let other = cache(folder.path(), "b");
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| other.insert("train.images.0.0", &[0; 10]));
                while !writer.is_finished() {
                    cache(folder.path(), "a");
                }
            });
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_cache() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), b"").unwrap();
        let cache = cache(&folder.path().join("file/below"), "a");
        cache.insert("train.images.0.0", &[0; 10]);
        assert!(cache.get("train.images.0.0").is_none());
    }

    fn refused(folder: &Path) -> String {
        let error = ChunkCache::open(folder.into(), ROOM, &"a".repeat(STORE_NAME_LEN)).unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("--cache-dir")), "{error}");
        error.to_string()
    }

    #[test]
    fn a_folder_of_another_origin_is_refused_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("photos")).unwrap();
        fs::write(folder.path().join("photos/1.jpg"), vec![1; 5000]).unwrap();
        assert!(refused(folder.path()).contains("it holds photos"));
        // What another program calls a cache is none of ours, and neither is a file.
        fs::write(folder.path().join(MARK), "Signature: 8a477f597d28d172789f06886806bc55\n# cargo").unwrap();
        refused(folder.path());
        assert!(refused(&folder.path().join("photos/1.jpg")).contains("no folder"));
        // The folder becomes someone else's after it was opened.
        let late = folder.path().join("late");
        let cache = cache(&late, "a");
        fs::create_dir(&late).unwrap();
        fs::write(late.join("thesis.tex"), "mine").unwrap();
        cache.insert("train.images.0.0", &[0; 10]);
        assert_eq!(fs::read_dir(&late).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_a_copy_is_neither_removed_nor_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, elsewhere) = (folder.path().join("cache"), folder.path().join("elsewhere"));
        let store = "a".repeat(STORE_NAME_LEN);
        cache(&ours, "a").insert("train.images.0.0", &[0; 3000]);
        fs::create_dir(&elsewhere).unwrap();
        let kept = [
            elsewhere.join("train.images.0.1"),
            ours.join("train.images.0.1"),
            ours.join(&store).join("notes.txt"),
            ours.join(&store).join("train.images.0.1.bak"),
        ];
        for path in &kept {
            fs::write(path, vec![1; 3000]).unwrap();
        }
        fs::create_dir(ours.join("results")).unwrap();
        fs::write(ours.join("results/train.images.0.1"), "mine").unwrap();
        std::os::unix::fs::symlink(&elsewhere, ours.join("b".repeat(STORE_NAME_LEN))).unwrap();
        std::os::unix::fs::symlink(&kept[0], ours.join(&store).join("train.images.0.2")).unwrap();
        let then = fs::metadata(&kept[0]).unwrap().modified().unwrap();
        let cache = cache(&ours, "a");
        assert!(!cache.touch("train.images.0.2"));
        cache.insert("train.labels.0.0", &[0; 3000]);
        cache.insert("../../elsewhere/train.images.0.1", &[0; 10]);
        cache.remove("train.images.0.2");
        cache.remove("notes.txt");
        assert!(!cache.touch("train.images.0.0") && cache.touch("train.labels.0.0"));
        assert!(kept.iter().all(|path| fs::read(path).unwrap() == vec![1; 3000]));
        assert_eq!(fs::metadata(&kept[0]).unwrap().modified().unwrap(), then);
        assert!(ours.join("results/train.images.0.1").exists() && is_there(&ours.join(&store).join("train.images.0.2")));
        // A store's folder or a ledger that is a link.
        let error = ChunkCache::open(ours.clone(), ROOM, &"b".repeat(STORE_NAME_LEN)).unwrap_err().to_string();
        assert!(error.contains("is a link"), "{error}");
        fs::remove_file(ours.join(LEDGER)).unwrap();
        std::os::unix::fs::symlink(&kept[0], ours.join(LEDGER)).unwrap();
        assert!(refused(&ours).contains("ledger"));
        fs::remove_file(ours.join(LEDGER)).unwrap();
        fs::write(ours.join(LEDGER), "an accountant's book").unwrap();
        assert!(refused(&ours).contains("ledger"));
    }
}
