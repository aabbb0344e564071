//! What an unfinished store knows of the finished one that it was, before scans or variants were added or damage was found: the folder
//! `previous/`.
//!
//! It holds the finished store's manifest and tables and, if the store is repaired, its damaged shards. Other shards and the masks stay in
//! their places: rows keep their numbers when a store grows, and a shard that gets more variants is replaced in one step. A chunk is taken over
//! if it has the checksum that the finished store's table records.
//!
//! `previous/zarr.json` is written last and removed first, so that whatever lies next to it can be relied on.

use super::progress::CaseRecord;
use crate::arrays::{ArrayKind, ArraySpec, METADATA};
use crate::checksums::Checksums;
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::manifest::{manifest_bytes, parse_manifest, read_checksums, recorded_hash};
use crate::shard;
use crate::storage::Storage;
use crate::store::{read_scans, read_slices};
use sam_ladder_formats::hash::sha256_hex;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::store::{CHECKSUMS_TABLE, StoreAttributes, scans_table, slices_table};
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use sam_ladder_schemas::variants::Variant;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Folder, in an unfinished store, of what it was.
const PREVIOUS: &str = "previous";

/// The finished store that an unfinished one was.
pub(super) struct Previous {
    store: Storage,
    folder: Storage,
    layout: StoreLayout,
    /// The checksums of its chunks; `None` if their table is damaged: then nothing is taken over.
    checksums: Option<Checksums>,
    /// Its slices; `None` if their table is damaged.
    slices: [Option<Vec<SliceRow>>; 2],
    /// Its scans; `None` if their table is damaged.
    scans: [Option<Vec<ScanRow>>; 2],
    /// Its manifest.
    attributes: StoreAttributes,
    /// Its rows, by row of the new store.
    rows: [Vec<Option<usize>>; 2],
    /// Its indices of variants, by index in the new store.
    variants: [Vec<Option<usize>>; 2],
}

impl Previous {
    /// What `store` was before it was laid out as `layout`; `None` if it is new.
    pub(super) fn open(store: &Storage, layout: &StoreLayout) -> Result<Option<Self>> {
        let folder = store.below(PREVIOUS);
        let Some(attributes) = manifest(store)? else { return Ok(None) };
        let before = StoreLayout::of(&attributes)?;
        let checksums = read_checksums(&folder, &attributes, &before).ok();
        let slices = Split::ALL.map(|split| read_slices(&folder, &attributes, &before, split).ok());
        let scans = Split::ALL.map(|split| read_scans(&folder, &attributes, &before, split, None).ok());
        let rows = Split::ALL.map(|split| rows_before(&before, layout, split));
        let variants = Split::ALL.map(|split| {
            let there = before.variants(split);
            layout.variants(split).iter().map(|variant| there.iter().position(|v| v.kind == variant.kind)).collect()
        });
        Ok(Some(Previous { store: store.clone(), folder, layout: before, checksums, slices, scans, attributes, rows, variants }))
    }

    /// The checksums of a slice's shard, if it has the same variants now.
    pub(super) fn checksums(&self, split: Split, kind: ArrayKind, row: usize) -> Option<Vec<u32>> {
        let variants = &self.variants[split as usize];
        let same = variants.len() == self.layout.num_variants(split)
            && variants.iter().enumerate().all(|(i, variant)| *variant == Some(i));
        same.then(|| self.shard(split, kind, row)).flatten().map(|(_, checksums)| checksums.to_vec())
    }

    /// The undamaged chunks of a slice, as stored, by variant.
    pub(super) fn chunks(&self, split: Split, kind: ArrayKind, row: usize) -> Vec<Option<Vec<u8>>> {
        let read = || {
            let (below, checksums) = self.shard(split, kind, row)?;
            let aside = self.folder.open(&self.folder.join(&below));
            let file = aside.or_else(|_| self.store.open(&self.store.join(&below))).ok()?;
            let index = shard::read_index(&file, checksums.len()).ok()?;
            let chunk = |variant: &Option<usize>| {
                let variant = (*variant)?;
                shard::read_encoded(&file, index[variant], Some(checksums[variant])).ok()
            };
            Some(self.variants[split as usize].iter().map(chunk).collect())
        };
        read().unwrap_or_default()
    }

    /// Path within the store of the shard that a slice had, and its checksums.
    fn shard(&self, split: Split, kind: ArrayKind, row: usize) -> Option<(PathBuf, &[u32])> {
        let before = (*self.rows[split as usize].get(row)?)?;
        let spec = self.layout.array(split, kind);
        let checksums = self.checksums.as_ref()?.of_shard(&spec.path, before, spec.chunks_per_shard())?;
        Some((spec.shard_path(before), checksums))
    }

    /// What it recorded of a case.
    pub(super) fn case(&self, split: Split, case: &str) -> Option<CaseRecord> {
        let rows = self.layout.case_rows(split, case).ok()?;
        let path = ArraySpec::of_mask(split, case, [rows.len(), 1, 1]).path;
        let mask = self.checksums.as_ref()?.of_shard(&path, 0, rows.len())?.to_vec();
        let scan = self.scans[split as usize].as_ref()?.iter().find(|scan| scan.case == case)?.clone();
        Some(CaseRecord { scan, rows: self.slices[split as usize].as_ref()?.get(rows)?.to_vec(), mask })
    }

    /// SHA-256 of a file that is neither array nor metadata.
    pub(super) fn file(&self, name: &str) -> Option<&str> {
        recorded_hash(&self.attributes, name)
    }
}

/// For each row of a split, the earlier row of the same slice of the same scan.
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

/// Whether a store is contained in what is requested, so that it has only to grow: more scans, more variants, labels at half the
/// image's side, all else the same.
pub(super) fn grows(found: &StoreAttributes, layout: &StoreLayout) -> bool {
    let requested = layout.attributes();
    // Draws of another seed are other variants.
    let PrecomputeConfig { augment, test_augment, rotation_step, draws, draw_seed, .. } = requested.config;
    let half_labels = found.config.half_labels || requested.config.half_labels;
    let variants = PrecomputeConfig { augment, test_augment, rotation_step, draws, draw_seed, ..found.config.clone() };
    let same_otherwise = PrecomputeConfig { half_labels, ..variants };
    let Ok(before) = StoreLayout::of(found) else { return false };
    let kinds = |variants: Vec<Variant>| variants.into_iter().map(|variant| variant.kind).collect::<Vec<_>>();
    let more_variants = Split::ALL.into_iter().all(|split| {
        let now = kinds(layout.variants(split));
        kinds(before.variants(split)).iter().all(|kind| now.contains(kind))
    });
    same_otherwise == requested.config
        && more_variants
        && found.sources.iter().all(|source| requested.sources.contains(source))
        && found.cases.iter().all(|case| requested.cases.contains(case))
}

/// The manifest of the finished store that an unfinished one was; `None` if there is none that can be read.
pub(super) fn manifest(store: &Storage) -> Result<Option<StoreAttributes>> {
    let folder = store.below(PREVIOUS);
    let path = folder.join(METADATA);
    match folder.read(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        bytes => Ok(parse_manifest(&folder, &path, &bytes.map_err(Error::io("read", &path))?).ok()),
    }
}

/// Keeps a finished store's manifest and undamaged tables in `previous/`.
pub(super) fn keep(store: &Storage, attributes: &StoreAttributes) -> Result<()> {
    let folder = store.below(PREVIOUS);
    let bytes = manifest_bytes(attributes);
    // The same bytes mean that another process has begun, or that an earlier run was interrupted.
    if folder.read(&folder.join(METADATA)).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    remove(store)?;
    folder.create_folder(folder.root())?;
    let tables = Split::ALL.into_iter().flat_map(|split| [slices_table(split), scans_table(split)]);
    for name in tables.chain([CHECKSUMS_TABLE.to_string()]) {
        let path = folder.join(&name);
        folder.create_folder(path.parent().unwrap_or(folder.root()))?;
        match store.read(&store.join(&name)) {
            // A damaged table is of no use.
            Ok(bytes) if recorded_hash(attributes, &name) == Some(&sha256_hex(&bytes)) => folder.write(&path, bytes)?,
            _ => {}
        }
    }
    folder.write(&folder.join(METADATA), bytes)?;
    folder.sync_folder(folder.root())?;
    store.sync_folder(store.root())
}

/// Where a file of the store is kept.
pub(super) fn kept(store: &Storage, below: &Path) -> PathBuf {
    store.join(PREVIOUS).join(below)
}

/// Removes `previous/`, its manifest first, so that the rest of an interrupted removal is never taken for a store.
pub(super) fn remove(store: &Storage) -> Result<()> {
    let folder = store.join(PREVIOUS);
    if store.is_file(&folder.join(METADATA))? {
        store.remove(&folder.join(METADATA))?;
        store.sync_folder(&folder)?;
    }
    store.remove_folder(&folder)
}
