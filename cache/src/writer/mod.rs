//! Making a store: resumable, atomic, and the same bytes for the same config whatever happened on the way.
//!
//! The manifest with the whole config is written first, with `complete: false`. A slice is done when the shards of all
//! arrays bear their final names; a case is recorded when its rows are in `progress/` (and its mask is there, for a test case).
//! [`StoreWriter::finish`] turns the recorded rows into the tables, removes `progress/` and sets `complete: true`, last. Any
//! number of processes may fill the same store at once, each its own slices.

mod finish;
mod previous;
mod repair;
mod slice;
mod survey;

pub use repair::begin_repair;
pub use slice::{SliceTensors, Wanted};
pub use survey::images_stored;

use crate::atomic::{is_temporary_of, write_atomic};
use crate::compare::differences;
use crate::error::{Error, Result};
use crate::layout::{ArrayKind, ArraySpec, ChunkEncoder, METADATA, to_json};
use crate::manifest::{array_file, check_array_metadata, group_files, read_manifest, write_manifest};
use crate::plan::StoreLayout;
use crate::shard;
use crate::store::{Mask, Store, mask_shard, shards_in};
use previous::Previous;
use rayon::prelude::*;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::{DECODER_WEIGHTS, MANIFEST_COPY, StoreAttributes, slices_table};
use sam_ladder_schemas::tables::SliceRow;
use serde_json::json;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Folder below an unfinished store of the cases' rows.
const PROGRESS: &str = "progress";

/// What is at the path of a store that is to be written.
#[derive(Debug)]
pub enum Opened {
    /// A new store, an unfinished one of the same config, or a finished one that is to grow.
    Writer(Box<StoreWriter>),
    /// A finished store of the same config: there is nothing to do.
    Complete(Box<Store>),
}

/// Writes a store. Different slices may be written from different threads.
pub struct StoreWriter {
    path: PathBuf,
    layout: StoreLayout,
    splits: [SplitWriter; 2],
    /// Where tensors can be taken from instead of being computed.
    previous: Option<Previous>,
}

struct SplitWriter {
    /// In the order of `ArrayKind::all`.
    arrays: Vec<ChunkEncoder>,
    /// For each array the rows whose shards are there.
    done: Mutex<Vec<HashSet<usize>>>,
}

impl std::fmt::Debug for StoreWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreWriter").field("path", &self.path).field("cases", &self.layout.num_cases()).finish()
    }
}

impl StoreWriter {
    /// Creates a store at `path`, or goes on with what is there: an unfinished store of the same config, one of whose files some
    /// are missing, or a finished store to which the layout adds scans or variants and changes nothing else.
    ///
    /// # Errors
    /// [`Error::OtherConfig`] lists, side by side, what an existing store was made with and what is asked for;
    /// [`Error::NotAStore`] for anything else that is there, which stays untouched; [`Error::Io`].
    pub fn open_or_create(path: impl AsRef<Path>, layout: StoreLayout) -> Result<Opened> {
        let path = path.as_ref();
        let asked = layout.attributes();
        if is_new(path)? {
            fs::create_dir_all(path).map_err(Error::io("create", path))?;
            write_manifest(path, asked)?;
        } else {
            let found = read_manifest(path).map_err(|error| match error {
                Error::NotAStore { path, reason, .. } => {
                    Error::NotAStore { path, reason, advice: "give --store a folder that does not exist" }
                }
                other => other,
            })?;
            if found.cache_id == asked.cache_id && found.cases == asked.cases {
                if found.complete {
                    match Store::open(path) {
                        // Files were lost or, being damaged, deleted: they are made anew.
                        Err(Error::Damaged { .. } | Error::Missing { .. }) => write_manifest(path, asked)?,
                        opened => return Ok(Opened::Complete(Box::new(opened?))),
                    }
                }
            } else if previous::grows(&found, &layout) {
                previous::begin_to_grow(path, &found, asked)?;
            } else if only_untouched_cases_differ(path, &found, &layout)? {
                write_manifest(path, asked)?;
            } else {
                return Err(Error::OtherConfig { path: path.into(), differences: told_differences(&found, asked) });
            }
        }
        let previous = Previous::open(path, &layout)?;
        for (name, bytes) in group_files() {
            let file = path.join(name);
            create_folder(file.parent().unwrap_or(path))?;
            if !file.is_file() {
                write_atomic(&file, &bytes)?;
            }
        }
        let splits = [split_writer(path, &layout, Split::Train)?, split_writer(path, &layout, Split::Test)?];
        let writer = StoreWriter { path: path.into(), layout, splits, previous };
        if let Some(previous) = &writer.previous {
            previous.adopt(&writer)?;
        }
        writer.refresh()?;
        Ok(Opened::Writer(Box::new(writer)))
    }

    /// Folder of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the store is made for.
    pub fn layout(&self) -> &StoreLayout {
        &self.layout
    }

    /// Looks again at what is there: other processes may have written since.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn refresh(&self) -> Result<()> {
        for split in &self.splits {
            for (i, encoder) in split.arrays.iter().enumerate() {
                let there = shards_in(&encoder.spec().folder(&self.path), encoder.spec())?;
                lock(&split.done)[i] = there;
            }
        }
        Ok(())
    }

    /// Whether the shards of a slice are there.
    pub fn is_slice_done(&self, split: Split, row: usize) -> bool {
        lock(&self.split(split).done).iter().all(|rows| rows.contains(&row))
    }

    /// Whether the rows of a case are recorded and, for a test case, its mask is there.
    pub fn is_case_recorded(&self, split: Split, case: &str) -> bool {
        let recorded = self.progress_path(split, case).is_file() || self.path.join(slices_table(split)).is_file();
        recorded && (split == Split::Train || mask_shard(&self.path, case).is_file())
    }

    /// Whether a case needs nothing more: its slices, its rows and, for a test case, its mask are there.
    ///
    /// # Errors
    /// [`Error::Values`] when the layout has no such case.
    pub fn is_case_done(&self, split: Split, case: &str) -> Result<bool> {
        let mut rows = self.layout.case_rows(split, case)?;
        Ok(self.is_case_recorded(split, case) && rows.all(|row| self.is_slice_done(split, row)))
    }

    /// Whether the decoder's weights are there.
    pub fn has_decoder(&self) -> bool {
        self.path.join(DECODER_WEIGHTS).is_file()
    }

    /// Records a case: its rows and, for a test case, its reference segmentation.
    ///
    /// # Errors
    /// [`Error::Values`] when rows or mask are not those of the case's layout, [`Error::Io`].
    pub fn write_case(&self, split: Split, case: &str, rows: &[SliceRow], mask: Option<&Mask>) -> Result<()> {
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
        self.write_record(split, case, rows)
    }

    fn write_record(&self, split: Split, case: &str, rows: &[SliceRow]) -> Result<()> {
        create_folder(&self.path.join(PROGRESS))?;
        write_atomic(&self.progress_path(split, case), &to_json(&json!(rows)))
    }

    fn write_mask(&self, case: &str, mask: &Mask) -> Result<()> {
        let encoder = ArraySpec::of_mask(case, mask.shape).encoder()?;
        let spec = encoder.spec();
        create_array(&self.path, spec)?;
        let chunks: Vec<Vec<u8>> =
            mask.labels.par_chunks(spec.chunk_bytes()).map(|slice| encoder.encode(slice)).collect::<Result<_>>()?;
        write_atomic(&spec.folder(&self.path).join(spec.shard_name(0)), &shard::assemble(&chunks))
    }

    /// Writes SAM's prompt encoder and mask decoder, as the bytes of a safetensors file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_decoder(&self, safetensors: &[u8]) -> Result<()> {
        write_atomic(&self.path.join(DECODER_WEIGHTS), safetensors)
    }

    fn progress_path(&self, split: Split, case: &str) -> PathBuf {
        progress_path(&self.path, split, case)
    }

    fn split(&self, split: Split) -> &SplitWriter {
        &self.splits[split as usize]
    }
}

/// Each differing value of two stores' configs and sources.
fn told_differences(found: &StoreAttributes, asked: &StoreAttributes) -> String {
    let told = |a: &StoreAttributes| json!({ "config": a.config, "sources": a.sources });
    let differing = differences(&told(found), "store", &told(asked), "asked");
    if !differing.is_empty() {
        return differing;
    }
    differences(&json!({ "cases": found.cases }), "store", &json!({ "cases": asked.cases }), "asked")
}

/// Whether an unfinished store lacks nothing but scans that have changed since, and holds nothing of those yet: a damaged scan was
/// replaced by a good copy. What the store holds is then right for the new sources too.
fn only_untouched_cases_differ(store: &Path, found: &StoreAttributes, layout: &StoreLayout) -> Result<bool> {
    let asked = layout.attributes();
    let paths = |attributes: &StoreAttributes| attributes.sources.iter().map(|source| source.path.clone()).collect::<Vec<_>>();
    if found.complete || found.config != asked.config || paths(found) != paths(asked) || previous::is_there(store) {
        return Ok(false);
    }
    let changed: HashSet<&str> =
        found.sources.iter().zip(&asked.sources).filter(|(a, b)| a != b).map(|(source, _)| source.path.as_str()).collect();
    for split in Split::ALL {
        let touched: Vec<_> =
            layout.cases_of(split).filter(|(case, _)| case.sources.iter().any(|path| changed.contains(path.as_str()))).collect();
        for &kind in ArrayKind::all(&asked.config) {
            let spec = layout.array(split, kind);
            let there = shards_in(&spec.folder(store), &spec)?;
            if check_array_metadata(store, &spec).is_err()
                || touched.iter().any(|(_, rows)| rows.clone().any(|row| there.contains(&row)))
            {
                return Ok(false);
            }
        }
        if touched.iter().any(|(case, _)| progress_path(store, split, &case.case).is_file()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn progress_path(store: &Path, split: Split, case: &str) -> PathBuf {
    store.join(PROGRESS).join(format!("{split}.{case}.json"))
}

/// A poisoned lock still guards a set of finished shards: every insertion is a single step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whether nothing is at `path` but what a start that was cut off at once can leave.
fn is_new(path: &Path) -> Result<bool> {
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Ok(false),
        other => other.map_err(Error::io("list", path))?,
    };
    for entry in entries {
        let name = entry.map_err(Error::io("list", path))?.file_name();
        let name = name.to_string_lossy();
        if name != MANIFEST_COPY && ![METADATA, MANIFEST_COPY].iter().any(|of| is_temporary_of(&name, of)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io("create", path))
}

fn create_array(store: &Path, spec: &ArraySpec) -> Result<()> {
    create_folder(&spec.folder(store))?;
    let (name, bytes) = array_file(spec)?;
    let path = store.join(name);
    if path.is_file() { check_array_metadata(store, spec) } else { write_atomic(&path, &bytes) }
}

fn split_writer(store: &Path, layout: &StoreLayout, split: Split) -> Result<SplitWriter> {
    let encoder = |kind: ArrayKind| {
        let spec = layout.array(split, kind);
        create_array(store, &spec)?;
        spec.encoder()
    };
    let kinds = ArrayKind::all(&layout.attributes().config);
    let arrays = kinds.iter().map(|&kind| encoder(kind)).collect::<Result<Vec<_>>>()?;
    Ok(SplitWriter { arrays, done: Mutex::new(vec![HashSet::new(); kinds.len()]) })
}
