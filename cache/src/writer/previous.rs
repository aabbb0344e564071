//! What a store takes over instead of computing it: the finished store that it was before scans or variants were added, or the
//! good chunks of damaged shards.
//!
//! While a store grows, `previous/` holds the manifest and the arrays that it had; while it is repaired, its manifest and the
//! damaged shards. `previous/zarr.json` is written before anything is moved and removed before anything is deleted, so that
//! whatever it stands beside can be relied on.

use super::finish::remove_folder;
use super::{StoreWriter, create_folder};
use crate::atomic::{sync_folder, write_atomic};
use crate::error::{Error, Result};
use crate::layout::{ArrayKind, METADATA};
use crate::manifest::{check_array_metadata, check_hash, manifest_bytes, parse_manifest, write_manifest};
use crate::plan::StoreLayout;
use crate::shard;
use crate::store::{Store, read_slices};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::store::{MASKS, StoreAttributes, slices_table};
use sam_ladder_schemas::tables::SliceRow;
use sam_ladder_schemas::variants::Variant;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Folder below an unfinished store of what it takes over.
const PREVIOUS: &str = "previous";

/// The store, or the shards, that an unfinished store takes over.
pub(super) struct Previous {
    folder: PathBuf,
    layout: StoreLayout,
    /// Whether these are the arrays of a smaller store, and not the damaged shards of the same.
    grows: bool,
    /// Which of its arrays, by split and kind, are those that its manifest describes.
    usable: [Vec<bool>; 2],
    /// Rows there, by row of the store.
    rows: [Vec<Option<usize>>; 2],
    /// Indices of variants there, by index of the store.
    variants: [Vec<Option<usize>>; 2],
}

impl Previous {
    /// What an interrupted start may still have to move aside is moved; `None` when there is nothing to take over.
    pub(super) fn open(store: &Path, layout: &StoreLayout) -> Result<Option<Self>> {
        let folder = store.join(PREVIOUS);
        let path = folder.join(METADATA);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io("read", &path))?,
        };
        let attributes = parse_manifest(&folder, &path, &bytes)?;
        let grows = attributes.cache_id != layout.attributes().cache_id;
        if grows {
            for split in Split::ALL {
                move_once(&store.join(split.name()), &folder.join(split.name()))?;
            }
            sync_folder(&folder)?;
            sync_folder(store)?;
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

    /// Moves over what the grown store has unchanged: whole shards, masks, rows.
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
                    move_once(&from, &spec.folder(&writer.path).join(spec.shard_name(row)))?;
                }
            }
            self.adopt_cases(writer, split)?;
        }
        Ok(())
    }

    fn adopt_cases(&self, writer: &StoreWriter, split: Split) -> Result<()> {
        // A damaged table is not taken over: its cases are recorded anew from their scans.
        let whole = check_hash(&self.folder, self.layout.attributes(), &slices_table(split));
        let Ok(rows) = whole.map_err(drop).and_then(|()| read_slices(&self.folder, &self.layout, split).map_err(drop)) else {
            return Ok(());
        };
        for (case, before) in self.layout.cases_of(split) {
            let Ok(now) = writer.layout.case_rows(split, &case.case) else { continue };
            if split == Split::Test {
                let mask = Path::new(split.name()).join(MASKS).join(&case.case);
                move_once(&self.folder.join(&mask), &writer.path.join(&mask))?;
            }
            if !writer.progress_path(split, &case.case).is_file() {
                let renumbered = now.zip(&rows[before.clone()]).map(|(row, slice)| SliceRow { row: row as u32, ..slice.clone() });
                writer.write_record(split, &case.case, &renumbered.collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    /// The chunks of a slice by variant, as stored, those that are whole.
    pub(super) fn chunks(&self, split: Split, kind: ArrayKind, row: usize) -> Vec<Option<Vec<u8>>> {
        let read = || {
            let path = self.shard(split, kind, self.rows[split as usize][row]?)?;
            let file = shard::open(&path).ok()?;
            let index = shard::read_index(&file, self.layout.array(split, kind).chunks_per_shard()).ok()?;
            let chunk = |variant: &Option<usize>| shard::read_encoded(&file, index[(*variant)?]).ok();
            Some(self.variants[split as usize].iter().map(chunk).collect())
        };
        read().unwrap_or_default()
    }

    /// Deletes the shard that a slice was taken from, so that a growing store is not held twice.
    pub(super) fn forget(&self, split: Split, kind: ArrayKind, row: usize) -> Result<()> {
        let Some(path) = self.rows[split as usize][row].and_then(|row| self.shard(split, kind, row)) else { return Ok(()) };
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// File of a shard there; `None` when the array is not the one that the manifest beside it describes.
    fn shard(&self, split: Split, kind: ArrayKind, row: usize) -> Option<PathBuf> {
        let spec = self.layout.array(split, kind);
        self.usable[split as usize][kind as usize].then(|| spec.folder(&self.folder).join(spec.shard_name(row)))
    }
}

/// By row of a split the row of the same slice before.
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

/// Whether a finished store is contained in what is asked for, so that it has only to grow: more scans, more variants, all else
/// the same.
pub(super) fn grows(found: &StoreAttributes, layout: &StoreLayout) -> bool {
    let asked = layout.attributes();
    let PrecomputeConfig { augment, test_augment, rotation_step, .. } = asked.config;
    let same_variants = PrecomputeConfig { augment, test_augment, rotation_step, ..found.config.clone() };
    let Ok(before) = StoreLayout::of(found) else { return false };
    let kinds = |variants: Vec<Variant>| variants.into_iter().map(|variant| variant.kind).collect::<Vec<_>>();
    let more_variants = Split::ALL.into_iter().all(|split| {
        let now = kinds(layout.variants(split));
        kinds(before.variants(split)).iter().all(|kind| now.contains(kind))
    });
    found.complete
        && same_variants == asked.config
        && more_variants
        && found.sources.iter().all(|source| asked.sources.contains(source))
        && found.cases.iter().all(|case| asked.cases.contains(case))
}

/// Keeps a finished store's manifest in `previous/` and says that the store is not complete any more; its arrays are moved by
/// [`Previous::open`].
pub(super) fn begin_to_grow(store: &Path, found: &StoreAttributes, asked: &StoreAttributes) -> Result<()> {
    Store::open(store)?;
    keep_manifest(store, found)?;
    write_manifest(store, asked)?;
    sync_folder(store)
}

/// Writes `previous/zarr.json`.
pub(super) fn keep_manifest(store: &Path, attributes: &StoreAttributes) -> Result<()> {
    let folder = store.join(PREVIOUS);
    let bytes = manifest_bytes(attributes);
    // With the same bytes there, another process has begun, or an earlier run was interrupted.
    if fs::read(folder.join(METADATA)).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    remove(store)?;
    create_folder(&folder)?;
    write_atomic(&folder.join(METADATA), &bytes)?;
    sync_folder(&folder)?;
    sync_folder(store)
}

/// Whether there is something to take over.
pub(super) fn is_there(store: &Path) -> bool {
    store.join(PREVIOUS).join(METADATA).exists()
}

/// Where a file below the store is kept.
pub(super) fn kept(store: &Path, below: &Path) -> PathBuf {
    store.join(PREVIOUS).join(below)
}

/// Removes `previous/`, its manifest first: what is left of an interrupted removal is never taken for a store.
pub(super) fn remove(store: &Path) -> Result<()> {
    let folder = store.join(PREVIOUS);
    let manifest = folder.join(METADATA);
    match fs::remove_file(&manifest) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        removed => {
            removed.map_err(Error::io("remove", &manifest))?;
            sync_folder(&folder)?;
        }
    }
    remove_folder(&folder)
}

/// Renames unless it was done before, by an interrupted run or by another process.
pub(super) fn move_once(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    match fs::rename(from, to) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => Ok(()),
        other => other.map_err(Error::io("move", from)),
    }
}
