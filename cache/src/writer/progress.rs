//! The folder `progress/` of an unfinished store: what its writers have recorded.
//!
//! A record is the truth about what was written. A file that does not agree with one is written again, whatever it holds: cut short, zeroed,
//! another slice's, or another store's. Each record carries its own hash; a damaged one counts as none.
//!
//! The name of a record has a key: a hash of all that determines the tensors of its case. So records of a scan that was replaced are not
//! mistaken for the new scan's, and stay right when rows move.

use crate::arrays::to_json;
use crate::error::{Error, Result};
use crate::storage::Storage;
use sam_ladder_formats::hash::sha256_hex;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::{CaseLayout, SourceFile, StoreAttributes};
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind;
use std::path::PathBuf;

/// Name of the folder.
const PROGRESS: &str = "progress";
/// Characters of a key.
const KEY_LEN: usize = 16;

/// A finished case, except for its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct CaseRecord {
    /// Its row of the table of scans.
    pub(super) scan: ScanRow,
    /// Its rows of the slice table.
    pub(super) rows: Vec<SliceRow>,
    /// The checksums of its mask's chunks.
    pub(super) mask: Vec<u32>,
}

/// The checksums of the shards that one writer has written of a case: by slice, then by name of the array.
pub(super) type ShardRecords = BTreeMap<usize, BTreeMap<String, Vec<u32>>>;

/// The hash of all that determines the tensors of a case.
pub(super) fn case_key(attributes: &StoreAttributes, case: &CaseLayout) -> String {
    let of_case = |source: &&SourceFile| case.sources.contains(&source.path);
    let sources: Vec<&SourceFile> = attributes.sources.iter().filter(of_case).collect();
    let all = json!({
        "format_version": attributes.format_version,
        "config": attributes.config,
        "case": case,
        "sources": sources,
    });
    let mut key = sha256_hex(all.to_string().as_bytes());
    key.truncate(KEY_LEN);
    key
}

/// Of what file of the store there is a record.
pub(super) struct FileRecord {
    /// Name of the record, without its ending.
    pub(super) stem: &'static str,
    /// In place of a case's key: what determines the file.
    pub(super) key: String,
}

impl FileRecord {
    fn name(&self) -> String {
        format!("{}.json", self.stem)
    }
}

/// The records of one store, and the name of one of its writers.
pub(super) struct Progress {
    storage: Storage,
    writer: String,
}

impl Progress {
    /// Of a store; `storage` is its root.
    pub(super) fn new(storage: &Storage) -> Self {
        // The standard library seeds each new hasher randomly.
        let random = RandomState::new().build_hasher().finish();
        Progress { storage: storage.clone(), writer: format!("{random:016x}") }
    }

    fn path(&self, name: String) -> PathBuf {
        self.storage.join(PROGRESS).join(name)
    }

    fn case_path(&self, split: Split, case: &str, key: &str) -> PathBuf {
        self.path(format!("{split}.{case}.{key}.rows.json"))
    }

    pub(super) fn write_case(&self, split: Split, case: &str, key: &str, record: &CaseRecord) -> Result<()> {
        self.write(self.case_path(split, case, key), key, &json!(record))
    }

    /// The record of a case; `None` if there is none or it is damaged.
    pub(super) fn case(&self, split: Split, case: &str, key: &str) -> Result<Option<CaseRecord>> {
        self.read(self.case_path(split, case, key), key)
    }

    /// Replaces this writer's record of a case's shards.
    pub(super) fn write_shards(&self, split: Split, case: &str, key: &str, record: &ShardRecords) -> Result<()> {
        self.write(self.path(format!("{split}.{case}.{key}.{}.json", self.writer)), key, &json!(record))
    }

    /// The records of all writers, by the cases' keys.
    pub(super) fn shards(&self) -> Result<HashMap<String, Vec<ShardRecords>>> {
        let mut all: HashMap<String, Vec<ShardRecords>> = HashMap::new();
        for entry in self.storage.list(&self.storage.join(PROGRESS))?.unwrap_or_default() {
            let mut parts = entry.name.rsplitn(4, '.');
            let (Some("json"), Some(writer), Some(key), Some(_)) = (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            if writer == "rows" {
                continue;
            }
            let key = key.to_owned();
            if let Some(record) = self.read(self.path(entry.name.clone()), &key)? {
                all.entry(key).or_default().push(record);
            }
        }
        Ok(all)
    }

    /// Records the SHA-256 of a file of the store.
    pub(super) fn write_file(&self, file: &FileRecord, sha256: &str) -> Result<()> {
        self.write(self.path(file.name()), &file.key, &json!(sha256))
    }

    /// The SHA-256 of a file of the store, if that file is recorded.
    pub(super) fn file(&self, file: &FileRecord) -> Result<Option<String>> {
        self.read(self.path(file.name()), &file.key)
    }

    /// Writes a record of what `key` names.
    fn write(&self, path: PathBuf, key: &str, content: &Value) -> Result<()> {
        self.storage.create_folder(&self.storage.join(PROGRESS))?;
        let sealed = json!({ "sha256": seal(key, content), "content": content });
        self.storage.write(&path, to_json(&sealed))
    }

    fn read<T: DeserializeOwned>(&self, path: PathBuf, key: &str) -> Result<Option<T>> {
        let bytes = match self.storage.read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io("read", &path))?,
        };
        let unsealed = || {
            let mut sealed: Value = serde_json::from_slice(&bytes).ok()?;
            let content = sealed.get_mut("content")?.take();
            let whole = sealed.get("sha256")?.as_str()? == seal(key, &content);
            whole.then(|| serde_json::from_value(content).ok()).flatten()
        };
        Ok(unsealed())
    }
}

/// The hash of a record's content and of what it is a record of: one in another's place is none.
fn seal(key: &str, content: &Value) -> String {
    sha256_hex(format!("{key} {content}").as_bytes())
}

/// Removes all records.
pub(super) fn remove(storage: &Storage) -> Result<()> {
    storage.remove_folder(&storage.join(PROGRESS))
}
