//! Makes a store: resumable and atomic, with the same bytes for the same config whatever interrupts it.
//!
//! The manifest with the whole config is written first, with `complete: false`. A slice is done when the shards of all arrays have their
//! final names. A case is recorded when its rows are in `progress/`, and for a test case when its mask is written too.
//! [`StoreWriter::finish`] turns the recorded rows into the tables, removes `progress/`, and finally sets `complete: true`. Any number of
//! processes may fill the same store at the same time, each its own slices.

mod finish;
mod previous;
mod repair;
mod slice;
mod survey;

pub use repair::begin_repair;
pub use slice::{SliceTensors, Wanted};
pub use survey::images_stored;

use crate::arrays::{ArrayKind, ArraySpec, ChunkEncoder, METADATA, to_json};
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::manifest::{array_file, check_array_metadata, group_files, read_manifest, write_manifest};
use crate::shard;
use crate::storage::Storage;
use crate::store::{ReferenceMask, Store, check_scan, mask_shard, shards_in};
use previous::Previous;
use rayon::prelude::*;
use sam_ladder_formats::atomic::is_temporary_of;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::differences::differences;
use sam_ladder_schemas::store::{DECODER_WEIGHTS, MANIFEST_COPY, StoreAttributes, scans_table, slices_table};
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Folder of the cases' rows in an unfinished store.
const PROGRESS: &str = "progress";

/// What is recorded of a case until the store is finished: its rows of both tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct CaseRecord {
    scan: ScanRow,
    slices: Vec<SliceRow>,
}

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
    splits: [SplitWriter; 2],
    /// Where tensors can be taken from instead of being computed.
    previous: Option<Previous>,
}

struct SplitWriter {
    /// In the order of `ArrayKind::all`.
    arrays: Vec<ChunkEncoder>,
    /// For each array, the rows whose shards are written.
    done: Mutex<Vec<HashSet<usize>>>,
}

impl std::fmt::Debug for StoreWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreWriter").field("path", &self.path()).field("cases", &self.layout.num_cases()).finish()
    }
}

impl StoreWriter {
    /// Creates a store at `path`, a folder or `s3://bucket/key`, or continues what is there: an unfinished store of the same config, one of whose files some
    /// are missing, or a finished store to which the layout adds scans or variants and changes nothing else.
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
        let requested = layout.attributes();
        if is_new(storage)? {
            storage.create_folder(storage.root())?;
            write_manifest(storage, requested)?;
        } else {
            let found = read_manifest(storage).map_err(|error| match error {
                Error::NotAStore { path, reason, .. } => {
                    Error::NotAStore { path, reason, advice: "pass --store a folder that does not exist yet" }
                }
                other => other,
            })?;
            if found.cache_id == requested.cache_id && found.cases == requested.cases {
                if found.complete {
                    match Store::open_at(storage.clone(), None) {
                        // Files were lost or, being damaged, deleted: they are made anew.
                        Err(Error::Damaged { .. } | Error::Missing { .. }) => write_manifest(storage, requested)?,
                        opened => {
                            let opened = opened?;
                            // A worker may have been killed while it finished a store that another had finished before.
                            storage.tidy_and_sync()?;
                            return Ok(Opened::Complete(Box::new(opened)));
                        }
                    }
                }
            } else if previous::grows(&found, &layout) {
                previous::begin_to_grow(storage, &found, requested)?;
            } else if only_untouched_cases_differ(storage, &found, &layout)? {
                write_manifest(storage, requested)?;
            } else {
                return Err(Error::OtherConfig {
                    path: storage.root().into(),
                    differences: differences_between(&found, requested),
                });
            }
        }
        let previous = Previous::open(storage, &layout)?;
        let storage = match &previous {
            Some(previous) if previous.grows() => storage.of_generation(&requested.cache_id),
            _ => storage.clone(),
        };
        for (name, bytes) in group_files() {
            let file = storage.join(name);
            storage.create_folder(file.parent().unwrap_or(storage.root()))?;
            if !storage.is_file(&file)? {
                storage.write(&file, bytes)?;
            }
        }
        let splits = [split_writer(&storage, &layout, Split::Train)?, split_writer(&storage, &layout, Split::Test)?];
        let writer = StoreWriter { storage, layout, splits, previous };
        if let Some(previous) = &writer.previous {
            previous.adopt(&writer)?;
        }
        writer.refresh()?;
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

    /// Looks again at the written shards: other processes may have written more.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn refresh(&self) -> Result<()> {
        for split in &self.splits {
            for (i, encoder) in split.arrays.iter().enumerate() {
                let there = shards_in(&self.storage, encoder.spec())?;
                lock(&split.done)[i] = there;
            }
        }
        Ok(())
    }

    /// Whether all shards of a slice are written.
    pub fn is_slice_done(&self, split: Split, row: usize) -> bool {
        lock(&self.split(split).done).iter().all(|rows| rows.contains(&row))
    }

    /// Whether the rows of a case are recorded and, for a test case, its mask is written.
    ///
    /// # Errors
    /// [`Error::File`] for a bucket that does not answer.
    pub fn is_case_recorded(&self, split: Split, case: &str) -> Result<bool> {
        let there = |path: PathBuf| self.storage.is_file(&path);
        let in_table = |table: String| there(self.storage.join(table));
        let recorded =
            there(self.progress_path(split, case))? || (in_table(slices_table(split))? && in_table(scans_table(split))?);
        Ok(recorded && (split == Split::Train || there(mask_shard(&self.storage, case))?))
    }

    /// Whether a case is complete: its slices, its rows and, for a test case, its mask are written.
    ///
    /// # Errors
    /// [`Error::Values`] if the layout has no such case; [`Error::File`] for a bucket that does not answer.
    pub fn is_case_done(&self, split: Split, case: &str) -> Result<bool> {
        let mut rows = self.layout.case_rows(split, case)?;
        Ok(self.is_case_recorded(split, case)? && rows.all(|row| self.is_slice_done(split, row)))
    }

    /// Whether the decoder's weights are written.
    ///
    /// # Errors
    /// [`Error::File`] for a bucket that does not answer.
    pub fn has_decoder(&self) -> Result<bool> {
        self.storage.is_file(&self.storage.join(DECODER_WEIGHTS))
    }

    /// Records a case: its scan, its slices and, for a test case, its reference segmentation.
    ///
    /// # Errors
    /// [`Error::Values`] if they do not match the case's layout, [`Error::File`].
    pub fn write_case(&self, split: Split, scan: &ScanRow, rows: &[SliceRow], mask: Option<&ReferenceMask>) -> Result<()> {
        let case = scan.case.as_str();
        let refuse = |reason: String| Error::Values { what: format!("{split} case {case}"), reason };
        let expected = self.layout.case_rows(split, case)?;
        let num_organs = self.layout.attributes().config.class_names.len();
        let right = |(i, row): (usize, &SliceRow)| {
            let place = (row.row as usize, row.slice_index as usize) == (expected.start + i, i);
            place && row.case == case && row.voxels.len() == num_organs
        };
        if rows.len() != expected.len() || !rows.iter().enumerate().all(right) {
            let range = format!("{}..{}", expected.start, expected.end);
            return Err(refuse(format!("expected rows {range} with {num_organs} voxel counts each, got {rows:?}")));
        }
        check_scan(scan, case, rows.len()).map_err(refuse)?;
        if scan.turned_shape().is_none_or(|[_, height, width]| rows[0].size != [height as u32, width as u32]) {
            return Err(refuse(format!("its shape {:?} is not that of its slices, {:?}", scan.shape, rows[0].size)));
        }
        if let Some(class) = mask.iter().flat_map(|mask| &mask.labels).find(|&&class| usize::from(class) > num_organs) {
            return Err(refuse(format!("class {class} in its mask is not below the number of classes {}", num_organs + 1)));
        }
        match (split, mask) {
            (Split::Train, None) => {}
            (Split::Test, Some(mask))
                if mask.labels.len() == mask.shape.iter().product::<usize>() && mask.shape[0] == rows.len() =>
            {
                self.write_mask(case, mask)?;
            }
            _ => return Err(refuse("a test case needs a mask of its shape, a training case has none".into())),
        }
        self.write_record(split, &CaseRecord { scan: scan.clone(), slices: rows.to_vec() })
    }

    fn write_record(&self, split: Split, record: &CaseRecord) -> Result<()> {
        self.storage.create_folder(&self.storage.join(PROGRESS))?;
        self.storage.write(&self.progress_path(split, &record.scan.case), to_json(&json!(record)))
    }

    fn write_mask(&self, case: &str, mask: &ReferenceMask) -> Result<()> {
        let encoder = ArraySpec::of_mask(case, mask.shape).encoder()?;
        let spec = encoder.spec();
        create_array(&self.storage, spec)?;
        let chunks: Vec<Vec<u8>> =
            mask.labels.par_chunks(spec.chunk_bytes()).map(|slice| encoder.encode(slice)).collect::<Result<_>>()?;
        self.storage.write(&self.storage.join(spec.shard_path(0)), shard::assemble(&chunks))
    }

    /// Writes SAM's prompt encoder and mask decoder, given as the bytes of a safetensors file.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_decoder(&self, safetensors: &[u8]) -> Result<()> {
        self.storage.write(&self.storage.join(DECODER_WEIGHTS), safetensors.to_vec())
    }

    fn progress_path(&self, split: Split, case: &str) -> PathBuf {
        progress_path(&self.storage, split, case)
    }

    fn split(&self, split: Split) -> &SplitWriter {
        &self.splits[split as usize]
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

/// Whether the sources of an unfinished store differ only in scans of which the store holds nothing yet, as when a damaged scan was
/// replaced by a good copy. The store's content is then right for the new sources too.
fn only_untouched_cases_differ(store: &Storage, found: &StoreAttributes, layout: &StoreLayout) -> Result<bool> {
    let requested = layout.attributes();
    let paths = |attributes: &StoreAttributes| attributes.sources.iter().map(|source| source.path.clone()).collect::<Vec<_>>();
    if found.complete || found.config != requested.config || paths(found) != paths(requested) || previous::is_there(store)? {
        return Ok(false);
    }
    let changed: HashSet<&str> =
        found.sources.iter().zip(&requested.sources).filter(|(a, b)| a != b).map(|(source, _)| source.path.as_str()).collect();
    for split in Split::ALL {
        let touched: Vec<_> =
            layout.cases_of(split).filter(|(case, _)| case.sources.iter().any(|path| changed.contains(path.as_str()))).collect();
        for &kind in ArrayKind::all(&requested.config) {
            let spec = layout.array(split, kind);
            let there = shards_in(store, &spec)?;
            if check_array_metadata(store, &spec).is_err()
                || touched.iter().any(|(_, rows)| rows.clone().any(|row| there.contains(&row)))
            {
                return Ok(false);
            }
        }
        for (case, _) in touched {
            if store.is_file(&progress_path(store, split, &case.case))? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn progress_path(store: &Storage, split: Split, case: &str) -> PathBuf {
    store.join(PROGRESS).join(format!("{split}.{case}.json"))
}

/// A poisoned lock still guards valid data: every insertion is a single step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whether there is nothing, or only what a start that was interrupted at once can leave.
fn is_new(store: &Storage) -> Result<bool> {
    let Some(entries) = store.list(store.root())? else { return Ok(!store.root().exists()) };
    let of_a_start = |name: &str| name == MANIFEST_COPY || [METADATA, MANIFEST_COPY].iter().any(|of| is_temporary_of(name, of));
    Ok(entries.iter().all(|entry| of_a_start(&entry.name)))
}

fn create_array(store: &Storage, spec: &ArraySpec) -> Result<()> {
    store.create_folder(&store.join(&spec.path))?;
    let (name, bytes) = array_file(spec)?;
    let path = store.join(name);
    if store.is_file(&path)? { check_array_metadata(store, spec) } else { store.write(&path, bytes) }
}

fn split_writer(store: &Storage, layout: &StoreLayout, split: Split) -> Result<SplitWriter> {
    let encoder = |kind: ArrayKind| {
        let spec = layout.array(split, kind);
        create_array(store, &spec)?;
        spec.encoder()
    };
    let kinds = ArrayKind::all(&layout.attributes().config);
    let arrays = kinds.iter().map(|&kind| encoder(kind)).collect::<Result<Vec<_>>>()?;
    Ok(SplitWriter { arrays, done: Mutex::new(vec![HashSet::new(); kinds.len()]) })
}
