//! Makes a store: resumable and atomic, with the same bytes for the same config whatever interrupts it.
//!
//! The manifest with the whole config is written first, with `complete: false`. A slice is done when the shards of all arrays have their
//! final names, and agree with the checksums that `progress/` records of them. A case is recorded when its rows are in `progress/` and
//! its mask is written. [`StoreWriter::finish`] turns the records into the tables, sets `complete: true`, and removes `progress/`. Any number of processes may fill the same store at the same time, each its own slices.

mod case;
mod done;
mod finish;
mod open;
mod previous;
mod progress;
mod repair;
mod slice;
mod survey;

pub use repair::begin_repair;
pub use slice::{SliceTensors, Wanted};
pub use survey::{Stored, Survey, images_stored, stored, survey};

use crate::arrays::{ArrayKind, ArraySpec, ChunkEncoder};
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::manifest::{array_file, check_bytes, group_files, read_manifest};
use crate::rung_sample;
use crate::storage::Storage;
use crate::store::Store;
use done::State;
use open::Ready;
use previous::Previous;
use progress::{FileRecord, Progress, case_key};
use sam_ladder_formats::hash::sha256_hex;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::differences::differences;
use sam_ladder_schemas::store::{CaseLayout, DECODER_WEIGHTS, RUNG_PROJECTION, StoreAttributes};
use serde_json::json;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Mutex;

/// What [`StoreWriter::open_or_create`] found.
#[derive(Debug)]
pub enum Opened {
    /// A new store, an unfinished one of the same config, or a finished one that grows.
    Writer(Box<StoreWriter>),
    /// A finished store of the same config: there is nothing to do.
    Complete(Box<Store>),
}

/// Writes a store. Different slices may be written from different threads.
pub struct StoreWriter {
    storage: Storage,
    layout: StoreLayout,
    /// For each split, in the order of `ArrayKind::all`.
    arrays: [Vec<ChunkEncoder>; 2],
    /// For each split, the keys of its cases' records.
    keys: [HashMap<String, String>; 2],
    /// Where tensors can be taken from instead of being computed.
    previous: Option<Previous>,
    progress: Progress,
    state: Mutex<State>,
    /// Held while records are written, so that an older one does not replace a newer one.
    saving: Mutex<()>,
}

impl std::fmt::Debug for StoreWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreWriter").field("path", &self.path()).field("cases", &self.layout.num_cases()).finish()
    }
}

impl StoreWriter {
    /// Creates a store at `path`, a folder or `s3://bucket/key`, or continues what is there: an unfinished store of the same config, of which
    /// scans may be left out, added or replaced; one whose files some are missing; or a finished store to which the layout adds scans or
    /// variants and changes nothing else. The writer's layout has the order of rows that the store has.
    ///
    /// # Errors
    /// [`Error::OtherConfig`] lists, side by side, what an existing store was made with and what is requested;
    /// [`Error::NotAStore`] for anything else that is there, which stays untouched; [`Error::File`].
    pub fn open_or_create(path: impl AsRef<Path>, layout: StoreLayout) -> Result<Opened> {
        let storage = Storage::at(path.as_ref())?;
        let opened = Self::open_at(&storage, layout);
        // A server's refusal would look like a missing file.
        opened.map_err(|error| storage.refusal().unwrap_or(error))
    }

    fn open_at(storage: &Storage, layout: StoreLayout) -> Result<Opened> {
        // Held until the records are read, which are removed when another process finishes the store.
        let (ready, _lock) = open::prepare(storage, &layout)?;
        let layout = match ready {
            Ready::Unfinished(layout) => *layout,
            Ready::Complete(store) => return Ok(Opened::Complete(store)),
        };
        let previous = Previous::open(storage, &layout)?;
        for (name, bytes) in group_files() {
            write_unless_there(storage, &name, bytes)?;
        }
        let [train, test] = Split::ALL;
        let arrays = [encoders(storage, &layout, train)?, encoders(storage, &layout, test)?];
        let key = |(case, _): (&CaseLayout, _)| (case.case.clone(), case_key(layout.attributes(), case));
        let keys = Split::ALL.map(|split| layout.cases(split).map(key).collect());
        let progress = Progress::new(storage);
        let state = State::new(ArrayKind::all(&layout.attributes().config).len());
        let (state, saving) = (Mutex::new(state), Mutex::new(()));
        let writer = StoreWriter { storage: storage.clone(), layout, arrays, keys, previous, progress, state, saving };
        writer.refresh()?;
        // Where there are no locks, that may have happened meanwhile.
        if writer.is_finished() {
            return Ok(Opened::Complete(Box::new(Store::open_at(storage.clone(), None)?)));
        }
        Ok(Opened::Writer(Box::new(writer)))
    }

    /// Folder of the store, or its place in a bucket.
    pub fn path(&self) -> &Path {
        self.storage.root()
    }

    /// The store's layout.
    pub fn layout(&self) -> &StoreLayout {
        &self.layout
    }

    /// Whether the decoder's weights are written and are those that are recorded.
    ///
    /// # Errors
    /// [`Error::File`] for a bucket that does not answer.
    pub fn has_decoder(&self) -> Result<bool> {
        Ok(self.recorded_file(DECODER_WEIGHTS)?.is_some())
    }

    /// Writes SAM's prompt encoder and mask decoder, given as the bytes of a safetensors file.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_decoder(&self, safetensors: &[u8]) -> Result<()> {
        self.write_file(DECODER_WEIGHTS, safetensors)
    }

    /// The bytes of the rungs' projection, if they are written and are those that are recorded.
    ///
    /// # Errors
    /// [`Error::File`] for a bucket that does not answer.
    pub fn rung_projection(&self) -> Result<Option<Vec<u8>>> {
        self.recorded_file(RUNG_PROJECTION)
    }

    /// Writes the rungs' projection, given as the bytes of a safetensors file. All of a store's rungs have the one that it was begun with.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_rung_projection(&self, safetensors: &[u8]) -> Result<()> {
        self.write_file(RUNG_PROJECTION, safetensors)
    }

    fn recorded_file(&self, name: &'static str) -> Result<Option<Vec<u8>>> {
        let path = self.storage.join(name);
        match self.storage.read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            bytes => {
                let bytes = bytes.map_err(Error::io("read", &path))?;
                let found = sha256_hex(&bytes);
                let is_recorded = self.file_hash(name)?.is_some_and(|recorded| recorded == found) || self.is_finished();
                Ok(is_recorded.then_some(bytes))
            }
        }
    }

    fn file_hash(&self, name: &'static str) -> Result<Option<String>> {
        let before = || self.previous.as_ref().and_then(|previous| previous.file(name).map(str::to_owned));
        Ok(self.progress.file(&self.file_record(name))?.or_else(before))
    }

    fn write_file(&self, name: &'static str, bytes: &[u8]) -> Result<()> {
        self.storage.write(&self.storage.join(name), bytes.to_vec())?;
        self.progress.write_file(&self.file_record(name), &sha256_hex(bytes))
    }

    fn file_record(&self, name: &str) -> FileRecord {
        match name {
            RUNG_PROJECTION => FileRecord { stem: "rung_projection", key: rung_sample::key(self.layout.attributes()) },
            _ => FileRecord { stem: "decoder", key: "decoder".into() },
        }
    }

    /// Checks that the store still has this writer's layout.
    fn check_layout(&self) -> Result<()> {
        let (now, ours) = (read_manifest(&self.storage)?, self.layout.attributes());
        let same = now.cache_id == ours.cache_id && now.cases == ours.cases;
        if same { Ok(()) } else { Err(Error::Changed { path: self.storage.root().into() }) }
    }

    fn key(&self, split: Split, case: &str) -> Result<&str> {
        self.keys[split as usize].get(case).map(String::as_str).ok_or_else(|| Error::Values {
            what: format!("{split} case {case:?}"),
            reason: "it is not in the store's layout".into(),
        })
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        // What is not recorded is made again.
        self.save(true).ok();
    }
}

/// Each differing value of two stores' configs and sources.
fn differences_between(found: &StoreAttributes, requested: &StoreAttributes) -> String {
    let named = |a: &StoreAttributes| json!({ "config": a.config, "sources": a.sources });
    let differing = differences(&named(found), "store", &named(requested), "requested");
    if !differing.is_empty() {
        return differing;
    }
    differences(&json!({ "cases": found.cases }), "store", &json!({ "cases": requested.cases }), "requested")
}

/// A poisoned lock still guards valid data: every insertion is a single step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Writes a file whose bytes follow from the manifest, unless it has them.
fn write_unless_there(store: &Storage, name: &Path, bytes: Vec<u8>) -> Result<()> {
    let path = store.join(name);
    if check_bytes(store, &path, &bytes).is_ok() {
        return Ok(());
    }
    store.create_folder(path.parent().unwrap_or(store.root()))?;
    store.write(&path, bytes)
}

fn create_array(store: &Storage, spec: &ArraySpec) -> Result<()> {
    let (name, bytes) = array_file(spec)?;
    write_unless_there(store, &name, bytes)
}

fn encoders(store: &Storage, layout: &StoreLayout, split: Split) -> Result<Vec<ChunkEncoder>> {
    let encoder = |&kind: &ArrayKind| {
        let spec = layout.array(split, kind);
        create_array(store, &spec)?;
        spec.encoder()
    };
    ArrayKind::all(&layout.attributes().config).iter().map(encoder).collect()
}
