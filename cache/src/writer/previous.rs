//! What a store takes over instead of computing it again: the content of the finished store before scans or variants were added, or the
//! good chunks of damaged shards.
//!
//! While a store grows, `previous/` holds the manifest and the arrays that it had; while it is repaired, its manifest and the
//! damaged shards. `previous/zarr.json` is written before anything is moved and removed before anything is deleted, so that
//! whatever lies next to it can be relied on.
//!
//! A bucket has no atomic move, so two workers could take each other's new objects for old ones. There the old arrays are copied, never
//! over an existing object, and stay in their places until new ones replace them. Every object of the grown store bears its `cache_id`;
//! other objects are ignored.

use super::{CaseRecord, StoreWriter};
use crate::arrays::{ArrayKind, ArraySpec, METADATA};
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::manifest::{check_array_metadata, check_hash, manifest_bytes, parse_manifest, write_manifest};
use crate::shard;
use crate::storage::{Bucket, Storage};
use crate::store::{Store, read_scans, read_slices};
use rayon::prelude::*;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::store::{MASKS, StoreAttributes, scans_table, slices_table};
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use sam_ladder_schemas::variants::Variant;
use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Folder, in an unfinished store, of what it takes over.
const PREVIOUS: &str = "previous";

/// The store, or the shards, that an unfinished store takes over.
pub(super) struct Previous {
    folder: Storage,
    layout: StoreLayout,
    /// Whether these are the arrays of a smaller store, or else damaged shards of the same store.
    grows: bool,
    /// By split and kind, whether its array is the one that its manifest describes.
    usable: [Vec<bool>; 2],
    /// Its rows, by row of the new store.
    rows: [Vec<Option<usize>>; 2],
    /// Its indices of variants, by index in the new store.
    variants: [Vec<Option<usize>>; 2],
}

impl Previous {
    /// Completes the moves of an interrupted start; `None` if there is nothing to take over.
    pub(super) fn open(store: &Storage, layout: &StoreLayout) -> Result<Option<Self>> {
        let folder = store.below(PREVIOUS);
        let path = folder.join(METADATA);
        let bytes = match folder.read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io("read", &path))?,
        };
        let attributes = parse_manifest(&folder, &path, &bytes)?;
        let grows = attributes.cache_id != layout.attributes().cache_id;
        if grows {
            let requested = &layout.attributes().cache_id;
            for split in Split::ALL {
                match store.bucket() {
                    None => move_once(&store.join(split.name()), &folder.join(split.name()))?,
                    Some(bucket) => copy_old(bucket, requested, store, &folder, split)?,
                }
            }
            folder.sync_folder(folder.root())?;
            store.sync_folder(store.root())?;
        }
        let before = StoreLayout::of(&attributes)?;
        let rows = Split::ALL.map(|split| rows_before(&before, layout, split));
        let variants = Split::ALL.map(|split| {
            let there = before.variants(split);
            layout.variants(split).iter().map(|variant| there.iter().position(|v| v.kind == variant.kind)).collect()
        });
        let usable = Split::ALL.map(|split| {
            let whole = |&kind: &ArrayKind| !grows || check_array_metadata(&folder, &before.array(split, kind)).is_ok();
            ArrayKind::all(&attributes.config).iter().map(whole).collect()
        });
        Ok(Some(Previous { folder, layout: before, grows, usable, rows, variants }))
    }

    /// Whether a smaller store grows, or else a damaged one is repaired.
    pub(super) fn grows(&self) -> bool {
        self.grows
    }

    /// Moves what the grown store has unchanged: whole shards, masks, rows.
    pub(super) fn adopt(&self, writer: &StoreWriter) -> Result<()> {
        if !self.grows {
            return Ok(());
        }
        for split in Split::ALL {
            let same = self.variants[split as usize].iter().enumerate().all(|(i, variant)| *variant == Some(i))
                && self.layout.num_variants(split) == self.variants[split as usize].len();
            for (row, before) in self.rows[split as usize].iter().enumerate() {
                let Some(before) = before.filter(|_| same) else { continue };
                for &kind in ArrayKind::all(&self.layout.attributes().config) {
                    let Some(from) = self.shard(split, kind, before) else { continue };
                    let spec = writer.layout.array(split, kind);
                    take_over(&writer.storage, &from, &writer.storage.join(spec.shard_path(row)))?;
                }
            }
            self.adopt_cases(writer, split)?;
        }
        Ok(())
    }

    fn adopt_cases(&self, writer: &StoreWriter, split: Split) -> Result<()> {
        // A damaged table is not taken over: its cases are recorded again from their scans.
        let Some((rows, scans)) = self.tables(split) else { return Ok(()) };
        for ((case, before), scan) in self.layout.cases_of(split).zip(scans) {
            let Ok(now) = writer.layout.case_rows(split, &case.case) else { continue };
            if split == Split::Test {
                let mask = Path::new(split.name()).join(MASKS).join(&case.case);
                self.adopt_mask(writer, &mask, &ArraySpec::of_mask(&case.case, [1; 3]).shard_name(0))?;
            }
            if !writer.storage.is_file(&writer.progress_path(split, &case.case))? {
                let renumbered = now.zip(&rows[before.clone()]).map(|(row, slice)| SliceRow { row: row as u32, ..slice.clone() });
                writer.write_record(split, &CaseRecord { scan, slices: renumbered.collect() })?;
            }
        }
        Ok(())
    }

    /// A split's tables, if both are whole.
    fn tables(&self, split: Split) -> Option<(Vec<SliceRow>, Vec<ScanRow>)> {
        for table in [slices_table(split), scans_table(split)] {
            check_hash(&self.folder, self.layout.attributes(), &table).ok()?;
        }
        let slices = read_slices(&self.folder, &self.layout, split).ok()?;
        let scans = read_scans(&self.folder, &self.layout, split, Some(&slices)).ok()?;
        Some((slices, scans))
    }

    fn adopt_mask(&self, writer: &StoreWriter, mask: &Path, shard: &str) -> Result<()> {
        let [from, to] = [&self.folder, &writer.storage].map(|place| place.join(mask));
        if writer.storage.bucket().is_none() {
            return move_once(&from, &to);
        }
        for name in [METADATA, shard] {
            take_over(&writer.storage, &from.join(name), &to.join(name))?;
        }
        Ok(())
    }

    /// The undamaged chunks of a slice, as stored, by variant.
    pub(super) fn chunks(&self, split: Split, kind: ArrayKind, row: usize) -> Vec<Option<Vec<u8>>> {
        let read = || {
            let path = self.shard(split, kind, self.rows[split as usize][row]?)?;
            let file = self.folder.open(&path).ok()?;
            let index = shard::read_index(&file, self.layout.array(split, kind).chunks_per_shard()).ok()?;
            let chunk = |variant: &Option<usize>| shard::read_encoded(&file, index[(*variant)?]).ok();
            Some(self.variants[split as usize].iter().map(chunk).collect())
        };
        read().unwrap_or_default()
    }

    /// Deletes the shard that a slice was taken from, so that a growing store is not held twice.
    pub(super) fn forget(&self, split: Split, kind: ArrayKind, row: usize) -> Result<()> {
        // In a bucket, another worker may still copy it there again.
        if self.folder.bucket().is_some() {
            return Ok(());
        }
        let Some(path) = self.rows[split as usize][row].and_then(|row| self.shard(split, kind, row)) else { return Ok(()) };
        self.folder.remove(&path)
    }

    /// File of a shard in `previous/`; `None` if the array is not the one that the manifest there describes.
    fn shard(&self, split: Split, kind: ArrayKind, row: usize) -> Option<PathBuf> {
        let spec = self.layout.array(split, kind);
        self.usable[split as usize][kind as usize].then(|| self.folder.join(spec.shard_path(row)))
    }
}

/// For each row of a split, the earlier row of the same slice.
fn rows_before(before: &StoreLayout, now: &StoreLayout, split: Split) -> Vec<Option<usize>> {
    let mut rows = vec![None; now.num_slices(split)];
    for (case, there) in before.cases_of(split) {
        if let Ok(here) = now.case_rows(split, &case.case) {
            for (row, before) in here.zip(there.clone()) {
                rows[row] = Some(before);
            }
        }
    }
    rows
}

/// Whether a finished store is contained in what is requested, so that it has only to grow: more scans, more variants, all else
/// the same.
pub(super) fn grows(found: &StoreAttributes, layout: &StoreLayout) -> bool {
    let requested = layout.attributes();
    let PrecomputeConfig { augment, test_augment, rotation_step, .. } = requested.config;
    let same_variants = PrecomputeConfig { augment, test_augment, rotation_step, ..found.config.clone() };
    let Ok(before) = StoreLayout::of(found) else { return false };
    let kinds = |variants: Vec<Variant>| variants.into_iter().map(|variant| variant.kind).collect::<Vec<_>>();
    let more_variants = Split::ALL.into_iter().all(|split| {
        let now = kinds(layout.variants(split));
        kinds(before.variants(split)).iter().all(|kind| now.contains(kind))
    });
    found.complete
        && same_variants == requested.config
        && more_variants
        && found.sources.iter().all(|source| requested.sources.contains(source))
        && found.cases.iter().all(|case| requested.cases.contains(case))
}

/// Keeps a finished store's manifest in `previous/` and says that the store is not complete any more; its arrays are moved by
/// [`Previous::open`].
pub(super) fn begin_to_grow(store: &Storage, found: &StoreAttributes, requested: &StoreAttributes) -> Result<()> {
    Store::open_at(store.clone(), None)?;
    keep_manifest(store, found)?;
    write_manifest(store, requested)?;
    store.sync_folder(store.root())
}

/// Writes `previous/zarr.json`.
pub(super) fn keep_manifest(store: &Storage, attributes: &StoreAttributes) -> Result<()> {
    let folder = store.below(PREVIOUS);
    let bytes = manifest_bytes(attributes);
    // The same bytes mean that another process has begun, or that an earlier run was interrupted.
    if folder.read(&folder.join(METADATA)).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    remove(store)?;
    folder.create_folder(folder.root())?;
    folder.write(&folder.join(METADATA), bytes)?;
    folder.sync_folder(folder.root())?;
    store.sync_folder(store.root())
}

/// Whether there is anything to take over.
pub(super) fn is_there(store: &Storage) -> Result<bool> {
    store.is_file(&store.join(PREVIOUS).join(METADATA))
}

/// Where a file of the store is kept.
pub(super) fn kept(store: &Storage, below: &Path) -> PathBuf {
    store.join(PREVIOUS).join(below)
}

/// Removes `previous/`, its manifest first, so that the rest of an interrupted removal is never taken for a store.
pub(super) fn remove(store: &Storage) -> Result<()> {
    let folder = store.join(PREVIOUS);
    if is_there(store)? {
        store.remove(&folder.join(METADATA))?;
        store.sync_folder(&folder)?;
    }
    store.remove_folder(&folder)
}

/// Renames, unless an interrupted run or another process already did.
fn move_once(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    match std::fs::rename(from, to) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => Ok(()),
        other => other.map_err(Error::io("move", from)),
    }
}

/// Copies a split's objects below `previous/`, but for those that are there and those that are already of the grown store.
fn copy_old(bucket: &Bucket, requested: &str, store: &Storage, folder: &Storage, split: Split) -> Result<()> {
    let copied: HashSet<PathBuf> = folder.files()?.into_iter().collect();
    let objects = bucket.list_all(&store.join(split.name())).map_err(Error::io("list", store.join(split.name())))?;
    objects.par_iter().try_for_each(|from| {
        let below = from.strip_prefix(store.root()).unwrap_or(from);
        if copied.contains(below) {
            return Ok(());
        }
        let copy = || match bucket.read_other(from, requested)? {
            Some(bytes) => bucket.write_new(&folder.join(below), bytes).map(drop),
            None => Ok(()),
        };
        copy().map_err(Error::io("copy", from))
    })
}

/// Moves a file of the earlier store to the grown one unless it has the file; in a bucket, copies it.
fn take_over(store: &Storage, from: &Path, to: &Path) -> Result<()> {
    if store.bucket().is_none() {
        return move_once(from, to);
    }
    if store.is_file(to)? {
        return Ok(());
    }
    match store.read(from) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        bytes => store.write(to, bytes.map_err(Error::io("read", from))?),
    }
}
