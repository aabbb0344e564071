//! Making a store: resumable, atomic, and the same bytes for the same config whatever happened on the way.
//!
//! The manifest with the whole config is written first, with `complete: false`. A slice is done when the shards of all
//! arrays bear their final names; a case when its rows are recorded in `progress/` (and its mask is there, for a test case).
//! [`StoreWriter::finish`] turns the recorded rows into the tables, removes `progress/` and sets `complete: true`, last.

use crate::atomic::{TEMPORARY_SUFFIX, sync_folder, write_atomic};
use crate::compare::differences;
use crate::error::{Error, Result};
use crate::layout::{self, ArrayKind, ArraySpec, METADATA, ShardEncoder};
use crate::number;
use crate::plan::StoreLayout;
use crate::slice_table::{batch_to_slices, slices_to_batch, variants_to_batch};
use crate::store::{Mask, Store, check_array_metadata, mask_shard, read_manifest, shards_in, split_variants};
use crate::table::{read_table, write_table};
use rayon::prelude::*;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::store::{DECODER_WEIGHTS, StoreAttributes, VARIANTS_TABLE, slices_table};
use sam_ladder_schemas::tables::SliceRow;
use serde_json::json;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Folder below an unfinished store of the finished cases' rows.
const PROGRESS: &str = "progress";

/// The tensors of one slice with all its variants.
#[derive(Debug, Clone, Copy)]
pub struct SliceTensors<'a> {
    /// `[variant, 256, g, g]`.
    pub embeddings: &'a [f32],
    /// `[variant, s, s]`, or `[variant, c, s, s]` for more than one channel.
    pub images: &'a [f32],
    /// `[variant, s/4, s/4]`.
    pub labels: &'a [u8],
}

/// What is at the path of a store that is to be written.
#[derive(Debug)]
pub enum Opened {
    /// A new store, or an unfinished one of the same config.
    Writer(Box<StoreWriter>),
    /// A finished store of the same config: there is nothing to do.
    Complete(Box<Store>),
}

/// Writes a store. Different slices may be written from different threads.
pub struct StoreWriter {
    path: PathBuf,
    layout: StoreLayout,
    splits: [SplitWriter; 2],
}

/// The values of one array of a slice in the store's number format.
struct Stored {
    bytes: Vec<u8>,
    /// Of 8-bit numbers, for each variant the scale and the offset of its channels.
    quantization: Vec<Vec<f32>>,
}

struct SplitWriter {
    /// In the order of `ArrayKind::all`.
    arrays: Vec<ShardEncoder>,
    /// For each array the rows whose shards are there.
    done: Mutex<Vec<HashSet<usize>>>,
}

impl std::fmt::Debug for StoreWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreWriter").field("path", &self.path).field("cases", &self.layout.num_cases()).finish()
    }
}

impl StoreWriter {
    /// Creates a store at `path`, or continues the one of the same config that is there: an unfinished one, or one of whose files
    /// some are missing.
    ///
    /// # Errors
    /// [`Error::OtherConfig`] lists, side by side, what an existing store was made with and what is asked for;
    /// [`Error::NotAStore`] for anything else that is there, which stays untouched; [`Error::Io`].
    pub fn open_or_create(path: impl AsRef<Path>, layout: StoreLayout) -> Result<Opened> {
        let path = path.as_ref();
        if is_new(path)? {
            fs::create_dir_all(path).map_err(Error::io("create", path))?;
            write_manifest(path, layout.attributes())?;
        } else {
            let found = read_manifest(path).map_err(|error| match error {
                Error::NotAStore { path, reason, .. } => {
                    Error::NotAStore { path, reason, advice: "give --store a folder that does not exist" }
                }
                other => other,
            })?;
            if found.cache_id != layout.attributes().cache_id {
                if !only_untouched_cases_differ(path, &found, &layout)? {
                    let told = |a: &StoreAttributes| json!({ "config": a.config, "sources": a.sources });
                    let differences = differences(&told(&found), "store", &told(layout.attributes()), "asked");
                    return Err(Error::OtherConfig { path: path.into(), differences });
                }
                write_manifest(path, layout.attributes())?;
            }
            if found.complete {
                match Store::open(path) {
                    // Files were lost or, being damaged, deleted: they are made anew.
                    Err(Error::Damaged { .. } | Error::Missing { .. }) => write_manifest(path, layout.attributes())?,
                    opened => return Ok(Opened::Complete(Box::new(opened?))),
                }
            }
        }
        for group in layout::groups() {
            create_group(&path.join(group))?;
        }
        let splits = [split_writer(path, &layout, Split::Train)?, split_writer(path, &layout, Split::Test)?];
        Ok(Opened::Writer(Box::new(StoreWriter { path: path.into(), layout, splits })))
    }

    /// Folder of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the store is made for.
    pub fn layout(&self) -> &StoreLayout {
        &self.layout
    }

    /// Whether the shards of a slice are there.
    pub fn is_slice_done(&self, split: Split, row: usize) -> bool {
        lock(&self.split(split).done).iter().all(|rows| rows.contains(&row))
    }

    /// Whether a case needs nothing more: its slices, its rows and, for a test case, its mask are there.
    ///
    /// # Errors
    /// [`Error::Values`] when the layout has no such case.
    pub fn is_case_done(&self, split: Split, case: &str) -> Result<bool> {
        let mut rows = self.layout.case_rows(split, case)?;
        let recorded = self.progress_path(split, case).is_file() || self.path.join(slices_table(split)).is_file();
        let masked = split == Split::Train || mask_shard(&self.path, case).is_file();
        Ok(recorded && masked && rows.all(|row| self.is_slice_done(split, row)))
    }

    /// Writes the shards of a slice; those that are there already are left.
    ///
    /// # Errors
    /// [`Error::Values`] for tensors of the wrong size and for values that are not finite in the store's number format;
    /// [`Error::Io`] that names the file, after which the slice can be written again.
    pub fn write_slice(&self, split: Split, row: usize, tensors: &SliceTensors<'_>) -> Result<()> {
        let config = &self.layout.attributes().config;
        let num_variants = self.layout.num_variants(split);
        let named = |kind: ArrayKind| format!("{split}/{} of slice {row}", kind.name());
        if row >= self.layout.num_slices(split) {
            let reason = format!("the split has {} slices", self.layout.num_slices(split));
            return Err(Error::Values { what: format!("{split} slice {row}"), reason });
        }
        let lens = [tensors.embeddings.len(), tensors.images.len(), tensors.labels.len()];
        for (kind, len) in [ArrayKind::Embeddings, ArrayKind::Images, ArrayKind::Labels].into_iter().zip(lens) {
            let expected = num_variants * kind.item_len(config);
            if len != expected {
                return Err(Error::Values { what: named(kind), reason: format!("expected {expected} values, got {len}") });
            }
        }
        if let Some(class) = tensors.labels.iter().find(|&&class| usize::from(class) >= config.num_classes()) {
            let reason = format!("label {class} is not below the number of classes {}", config.num_classes());
            return Err(Error::Values { what: named(ArrayKind::Labels), reason });
        }
        let embeddings = self.to_stored(ArrayKind::Embeddings, tensors.embeddings, &named)?;
        let images = self.to_stored(ArrayKind::Images, tensors.images, &named)?;
        for (i, &kind) in ArrayKind::all(config).iter().enumerate() {
            if lock(&self.split(split).done)[i].contains(&row) {
                continue;
            }
            let encoder = &self.split(split).arrays[i];
            let bytes = match kind {
                ArrayKind::Labels => encoder.encode(tensors.labels)?,
                ArrayKind::Images => encoder.encode(&images.bytes)?,
                ArrayKind::Embeddings => encoder.encode(&embeddings.bytes)?,
                ArrayKind::Quantization => {
                    let pairs: Vec<&[f32]> =
                        embeddings.quantization.iter().zip(&images.quantization).flat_map(|(e, i)| [&e[..], &i[..]]).collect();
                    encoder.encode(bytemuck::cast_slice(&pairs.concat()))?
                }
            };
            write_atomic(&encoder.spec().folder(&self.path).join(encoder.spec().shard_name(row)), &bytes)?;
            lock(&self.split(split).done)[i].insert(row);
        }
        Ok(())
    }

    /// Values in the store's number format, one variant a task.
    fn to_stored(&self, kind: ArrayKind, values: &[f32], named: &dyn Fn(ArrayKind) -> String) -> Result<Stored> {
        let config = &self.layout.attributes().config;
        let item_len = kind.item_len(config);
        let encode = |item: &[f32]| match config.dtype {
            StoreDtype::Q8 => number::quantize(item, kind.channels(config)),
            dtype => number::encode(item, dtype).map(|bytes| (bytes, Vec::new())),
        };
        let items: Vec<_> = values.par_chunks(item_len).map(encode).collect();
        let mut stored = Stored { bytes: Vec::with_capacity(values.len() * config.dtype.bytes()), quantization: Vec::new() };
        for (variant, item) in items.into_iter().enumerate() {
            let (bytes, quantization) = item.map_err(|at| Error::Values {
                what: format!("{}, variant {variant}", named(kind)),
                reason: format!(
                    "value {} is not finite as {:?}; check the scan and the weights, or give --dtype bf16 or f32",
                    values[variant * item_len + at],
                    config.dtype
                ),
            })?;
            stored.bytes.extend_from_slice(&bytes);
            stored.quantization.push(quantization);
        }
        Ok(stored)
    }

    /// Records a case whose slices are all written: its rows and, for a test case, its reference segmentation.
    ///
    /// # Errors
    /// [`Error::Values`] when rows or mask are not those of the case's layout, [`Error::Incomplete`] when a slice is not there,
    /// [`Error::Io`].
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
        if let Some(row) = expected.clone().find(|&row| !self.is_slice_done(split, row)) {
            return Err(Error::Incomplete { path: self.path.clone(), detail: format!("{split} slice {row} is not written") });
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
        let path = self.progress_path(split, case);
        create_folder(&self.path.join(PROGRESS))?;
        write_atomic(&path, &layout::to_json(&json!(rows)))
    }

    fn write_mask(&self, case: &str, mask: &Mask) -> Result<()> {
        let encoder = ArraySpec::of_mask(case, mask.shape).encoder()?;
        let spec = encoder.spec();
        create_array(&self.path, spec)?;
        write_atomic(&spec.folder(&self.path).join(spec.shard_name(0)), &encoder.encode(&mask.labels)?)
    }

    /// Writes SAM's prompt encoder and mask decoder, as the bytes of a safetensors file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_decoder(&self, safetensors: &[u8]) -> Result<()> {
        write_atomic(&self.path.join(DECODER_WEIGHTS), safetensors)
    }

    /// Writes the tables, marks the store complete and opens it.
    ///
    /// # Errors
    /// [`Error::Incomplete`] that counts what is missing, [`Error::Io`], and those of [`Store::open`].
    pub fn finish(self) -> Result<Store> {
        self.check_done()?;
        let table_error = |path: &Path| {
            let path = path.to_path_buf();
            |e: arrow::error::ArrowError| Error::Table { action: "write", path, reason: e.to_string() }
        };
        let config = &self.layout.attributes().config;
        let path = self.path.join(VARIANTS_TABLE);
        write_table(&path, &variants_to_batch(&split_variants(config, Split::Train)).map_err(table_error(&path))?)?;
        for split in Split::ALL {
            let path = self.path.join(slices_table(split));
            // With a table there already, an earlier run came this far and may have removed the recorded rows.
            let recorded = self.layout.cases_of(split).all(|(case, _)| self.progress_path(split, &case.case).is_file());
            if recorded || !path.is_file() {
                let rows = self.recorded_rows(split)?;
                write_table(&path, &slices_to_batch(&rows, &config.class_names).map_err(table_error(&path))?)?;
            } else {
                batch_to_slices(&read_table(&path)?, &config.class_names)
                    .map_err(|reason| Error::Manifest { path: path.clone(), reason })?;
            }
        }
        let progress = self.path.join(PROGRESS);
        if progress.exists() {
            fs::remove_dir_all(&progress).map_err(Error::io("remove", &progress))?;
        }
        tidy_and_sync(&self.path)?;
        let attributes = StoreAttributes { complete: true, ..self.layout.attributes().clone() };
        write_manifest(&self.path, &attributes)?;
        sync_folder(&self.path)?;
        Store::open(&self.path)
    }

    fn check_done(&self) -> Result<()> {
        let mut missing = Vec::new();
        for split in Split::ALL {
            let total = self.layout.num_slices(split);
            let done = (0..total).filter(|&row| self.is_slice_done(split, row)).count();
            if done < total {
                missing.push(format!("{done} of {total} {split} slices are done"));
            }
            for (case, _) in self.layout.cases_of(split) {
                if done == total && !self.is_case_done(split, &case.case)? {
                    missing.push(format!("{split} case {} is not recorded", case.case));
                }
            }
        }
        if !self.path.join(DECODER_WEIGHTS).is_file() {
            missing.push(format!("{DECODER_WEIGHTS} is missing"));
        }
        if missing.is_empty() { Ok(()) } else { Err(Error::Incomplete { path: self.path.clone(), detail: missing.join("; ") }) }
    }

    fn recorded_rows(&self, split: Split) -> Result<Vec<SliceRow>> {
        let mut all = Vec::with_capacity(self.layout.num_slices(split));
        for (case, _) in self.layout.cases_of(split) {
            let path = self.progress_path(split, &case.case);
            let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
            let rows: Vec<SliceRow> =
                serde_json::from_slice(&bytes).map_err(|e| Error::Manifest { path: path.clone(), reason: e.to_string() })?;
            all.extend(rows);
        }
        Ok(all)
    }

    fn progress_path(&self, split: Split, case: &str) -> PathBuf {
        progress_path(&self.path, split, case)
    }

    fn split(&self, split: Split) -> &SplitWriter {
        &self.splits[split as usize]
    }
}

/// Whether an unfinished store lacks nothing but scans that have changed since, and holds nothing of those yet: a damaged scan was
/// replaced by a good copy. What the store holds is then right for the new sources too.
fn only_untouched_cases_differ(store: &Path, found: &StoreAttributes, layout: &StoreLayout) -> Result<bool> {
    let asked = layout.attributes();
    let paths = |attributes: &StoreAttributes| attributes.sources.iter().map(|source| source.path.clone()).collect::<Vec<_>>();
    if found.complete || found.config != asked.config || paths(found) != paths(asked) {
        return Ok(false);
    }
    let changed: HashSet<&str> =
        found.sources.iter().zip(&asked.sources).filter(|(a, b)| a != b).map(|(source, _)| source.path.as_str()).collect();
    for split in Split::ALL {
        let touched: Vec<_> =
            layout.cases_of(split).filter(|(case, _)| case.sources.iter().any(|path| changed.contains(path.as_str()))).collect();
        for &kind in ArrayKind::all(&asked.config) {
            let spec = ArraySpec::of_split(&asked.config, split, kind, [layout.num_slices(split), layout.num_variants(split)]);
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
        if entry.map_err(Error::io("list", path))?.file_name() != format!("{METADATA}{TEMPORARY_SUFFIX}").as_str() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn write_manifest(store: &Path, attributes: &StoreAttributes) -> Result<()> {
    write_atomic(&store.join(METADATA), &layout::to_json(&layout::root_metadata(attributes)))
}

fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io("create", path))
}

fn create_group(folder: &Path) -> Result<()> {
    create_folder(folder)?;
    let path = folder.join(METADATA);
    if path.is_file() { Ok(()) } else { write_atomic(&path, &layout::to_json(&layout::group_metadata(json!({})))) }
}

fn create_array(store: &Path, spec: &ArraySpec) -> Result<()> {
    create_folder(&spec.folder(store))?;
    let path = spec.folder(store).join(METADATA);
    if path.is_file() { check_array_metadata(store, spec) } else { write_atomic(&path, &layout::to_json(&spec.metadata()?)) }
}

fn split_writer(store: &Path, layout: &StoreLayout, split: Split) -> Result<SplitWriter> {
    let size = [layout.num_slices(split), layout.num_variants(split)];
    let config = &layout.attributes().config;
    let encoder = |&kind: &ArrayKind| {
        let spec = ArraySpec::of_split(config, split, kind, size);
        create_array(store, &spec)?;
        spec.encoder()
    };
    let arrays = ArrayKind::all(config).iter().map(encoder).collect::<Result<Vec<_>>>()?;
    let done = |encoder: &ShardEncoder| shards_in(&encoder.spec().folder(store), encoder.spec());
    let done = arrays.iter().map(done).collect::<Result<Vec<_>>>()?;
    Ok(SplitWriter { arrays, done: Mutex::new(done) })
}

/// Removes what interrupted writes left aside, and syncs every folder.
fn tidy_and_sync(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let path = entry.path();
        if entry.file_type().map_err(Error::io("list", &path))?.is_dir() {
            tidy_and_sync(&path)?;
        } else if entry.file_name().to_string_lossy().ends_with(TEMPORARY_SUFFIX) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    sync_folder(folder)
}
