//! A finished store, opened for reading.

mod items;

pub(crate) use items::BatchItem;

use crate::arrays::{ArrayKind, ArraySpec};
use crate::checksums::Checksums;
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::manifest::{
    check_array_metadata, check_bytes, check_hash, complete_layout, group_files, hashed_files, read_checksums, read_manifest,
    read_table, recorded_hash,
};
use crate::remote::{CacheOptions, Remote};
use crate::shard;
use crate::slice_table::decode_slices;
use crate::storage::Storage;
use crate::stored_array::StoredArray;
use rayon::prelude::*;
use sam_ladder_formats::rows::decode_rows;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::store::{DECODER_WEIGHTS, RUNG_PROJECTION, StoreAttributes, VARIANTS_TABLE, scans_table, slices_table};
use sam_ladder_schemas::tables::{ScanRow, SliceRow, VariantRow};
use sam_ladder_schemas::variants::Variant;
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The reference segmentation of a scan, at the scan's own resolution.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceMask {
    /// Classes, `[d, h, w]`.
    pub labels: Vec<u8>,
    /// Depth, height and width.
    pub shape: [usize; 3],
}

/// A complete store. Reading is thread-safe.
#[derive(Debug)]
pub struct Store {
    storage: Storage,
    attributes: StoreAttributes,
    splits: [SplitArrays; 2],
    /// Checksums of the masks' chunks.
    masks: Checksums,
    /// For a store in a bucket: fetches its chunks and keeps them on a local disk.
    remote: Option<Remote>,
}

#[derive(Debug)]
struct SplitArrays {
    variants: Vec<Variant>,
    slices: Vec<SliceRow>,
    /// In the order of `cases`.
    scans: Vec<ScanRow>,
    cases: Vec<(String, Range<u32>)>,
    /// In the order of `ArrayKind::all`.
    arrays: Vec<StoredArray>,
}

impl Store {
    /// Opens a complete store, in a folder or at `s3://bucket/key`. Checks its manifest, the metadata of its groups and arrays, its tables,
    /// the decoder's weights and the presence of every shard. Chunks are checked when they are read; chunks of a store in a bucket are
    /// fetched at each read (but see [`Self::open_with`]).
    ///
    /// # Errors
    /// Names the file if the path is not a store, the store has another format version or is incomplete, a manifest, array metadata or
    /// table does not agree with the config, a shard is missing, or the bucket cannot be used.
    pub fn open(path: impl AsRef<Path>) -> Result<Store> {
        Self::open_with(path, None)
    }

    /// As [`Self::open`]; copies of a bucket's chunks are kept where `cache` says.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: impl AsRef<Path>, cache: Option<&CacheOptions>) -> Result<Store> {
        Self::open_at(Storage::at(path.as_ref())?, cache)
    }

    pub(crate) fn open_at(storage: Storage, cache: Option<&CacheOptions>) -> Result<Store> {
        let refused = storage.clone();
        Self::open_checked(storage, cache).map_err(|error| refused.refusal().unwrap_or(error))
    }

    fn open_checked(storage: Storage, cache: Option<&CacheOptions>) -> Result<Store> {
        let attributes = read_manifest(&storage)?;
        let layout = complete_layout(&storage, &attributes)?;
        for (name, bytes) in group_files() {
            let path = storage.join(name);
            check_bytes(&storage, &path, &bytes).map_err(|reason| Error::Manifest { path, reason })?;
        }
        for name in hashed_files(&attributes.config) {
            let file = storage.join(&name);
            if !storage.is_file(&file)? {
                return Err(Error::Missing { path: file });
            }
            check_hash(&storage, &attributes, &name).map_err(|reason| Error::Manifest { path: file, reason })?;
        }
        check_variants(&storage, &attributes, &layout)?;
        let mut checksums = read_checksums(&storage, &attributes, &layout)?;
        let [train, test] = Split::ALL;
        let mut open = |split| open_split(&storage, &attributes, &layout, split, &mut checksums);
        let splits = [open(train)?, open(test)?];
        let remote = storage.bucket().map(|bucket| Remote::new(bucket.clone(), storage.root(), cache)).transpose()?;
        let store = Store { storage, splits, masks: checksums, attributes, remote };
        store.check_files()?;
        Ok(store)
    }

    /// Folder of the store, or its place in a bucket.
    pub fn path(&self) -> &Path {
        self.storage.root()
    }

    /// Bytes of all its files.
    ///
    /// # Errors
    /// If the folder or the bucket cannot be listed.
    pub fn stored_bytes(&self) -> Result<u64> {
        self.storage.bytes()
    }

    /// Attributes of the root group: version, `cache_id`, config, sources.
    pub fn attributes(&self) -> &StoreAttributes {
        &self.attributes
    }

    /// Settings with which the tensors were made.
    pub fn config(&self) -> &PrecomputeConfig {
        &self.attributes.config
    }

    /// The variants of a split's slices, by index; `test` has the identity, and the reflections if the config says so.
    pub fn variants(&self, split: Split) -> &[Variant] {
        &self.split(split).variants
    }

    /// The slices of a split, by row: grouped by case, slices ascending. The order of the cases is that in which they came into the store.
    pub fn slices(&self, split: Split) -> &[SliceRow] {
        &self.split(split).slices
    }

    /// The scans of a split, in the order of its cases in the store: where their voxels lie in space, and what their values are like.
    pub fn scans(&self, split: Split) -> &[ScanRow] {
        &self.split(split).scans
    }

    /// The cases of a split, sorted.
    pub fn cases(&self, split: Split) -> Vec<String> {
        let mut cases: Vec<String> = self.split(split).cases.iter().map(|(case, _)| case.clone()).collect();
        cases.sort_unstable();
        cases
    }

    /// The rows of a case.
    ///
    /// # Errors
    /// [`Error::Absent`] for a case that is not there.
    pub fn case_rows(&self, split: Split, case: &str) -> Result<Range<u32>> {
        self.split(split).cases.iter().find(|(name, _)| name == case).map(|(_, rows)| rows.clone()).ok_or_else(|| Error::Absent {
            path: self.path().into(),
            what: format!("{split} case {case:?}"),
            known: self.cases(split).join(", "),
        })
    }

    /// The slices of a case, in the order of the store's rows, which is that of its mask.
    ///
    /// # Errors
    /// As [`Self::case_rows`].
    pub fn case_slices(&self, split: Split, case: &str) -> Result<&[SliceRow]> {
        let rows = self.case_rows(split, case)?;
        Ok(&self.slices(split)[rows.start as usize..rows.end as usize])
    }

    /// File of SAM's frozen prompt encoder and mask decoder, under the names of SAM's checkpoints. Read it with [`crate::read_file`], which
    /// also reads from buckets.
    pub fn decoder_path(&self) -> PathBuf {
        self.storage.join(DECODER_WEIGHTS)
    }

    /// SHA-256 of the rungs' projection, as the manifest records it; `None` for a store without one.
    pub fn rung_projection_sha256(&self) -> Option<&str> {
        recorded_hash(&self.attributes, RUNG_PROJECTION)
    }

    /// The bytes of the rungs' projection, a safetensors file; `None` for a store without one.
    ///
    /// # Errors
    /// [`Error::Manifest`] if it is not as the manifest records it.
    pub fn rung_projection(&self) -> Result<Option<Vec<u8>>> {
        if self.rung_projection_sha256().is_none() {
            return Ok(None);
        }
        read_table(&self.storage, &self.attributes, RUNG_PROJECTION).map(|bytes| Some(bytes.to_vec()))
    }

    /// The reference segmentation of a case.
    ///
    /// # Errors
    /// [`Error::Absent`] for a case that is not in the split, [`Error::Damaged`] when it cannot be read back as written, [`Error::Changed`]
    /// for a store that has changed since it was opened.
    pub fn mask(&self, split: Split, case: &str) -> Result<ReferenceMask> {
        let shape = mask_shape(self.case_slices(split, case)?);
        let [depth, height, width] = shape;
        let spec = ArraySpec::of_mask(split, case, shape);
        check_array_metadata(&self.storage, &spec).map_err(|error| self.changed().unwrap_or(error))?;
        let checksums = self.masks.of_shard(&spec.path, 0, depth).map(<[u32]>::to_vec).unwrap_or_default();
        let array = StoredArray::new(&self.storage, spec, 1, checksums);
        let mut labels = vec![0; depth * height * width];
        self.storage.twice(|| self.read_mask(&array, case, height * width, &mut labels))?;
        Ok(ReferenceMask { labels, shape })
    }

    /// Reads the mask of a case from its only shard, which is opened once.
    fn read_mask(&self, array: &StoredArray, case: &str, slice_len: usize, labels: &mut [u8]) -> Result<()> {
        let shard = self.storage.open(&array.shard_path(0));
        labels.par_chunks_mut(slice_len).enumerate().try_for_each(|(slice, out)| {
            let shard = shard.as_ref().map_err(shard::unreadable);
            shard.and_then(|shard| array.read_chunk_of(shard, 0, slice, out)).map_err(|reason| {
                self.changed().unwrap_or_else(|| Error::Damaged {
                    array: array.spec.path.clone(),
                    row: slice,
                    place: format!("case {case}"),
                    reason,
                    path: array.shard_path(0),
                })
            })
        })
    }

    /// [`Error::Changed`] if the store is no longer the one that was opened. What cannot be read is then not damaged.
    fn changed(&self) -> Option<Error> {
        let now = read_manifest(&self.storage).ok()?;
        (now.checksum != self.attributes.checksum).then(|| Error::Changed { path: self.path().into() })
    }

    fn array(&self, split: Split, kind: ArrayKind) -> &StoredArray {
        &self.split(split).arrays[kind.index(self.config())]
    }

    fn split(&self, split: Split) -> &SplitArrays {
        &self.splits[split as usize]
    }

    fn check_files(&self) -> Result<()> {
        for split in Split::ALL {
            let SplitArrays { slices, arrays, .. } = self.split(split);
            for array in arrays {
                let there = shards_in(&self.storage, &array.spec)?;
                if let Some(row) = (0..slices.len()).find(|row| !there.contains(row)) {
                    return Err(Error::Damaged {
                        array: array.spec.path.clone(),
                        row,
                        place: format!("case {}, slice {} of it", slices[row].case, slices[row].slice_index),
                        reason: "its file is missing".into(),
                        path: array.shard_path(row),
                    });
                }
            }
            for path in self.cases(split).iter().map(|case| mask_shard(&self.storage, split, case)) {
                if !self.storage.is_file(&path)? {
                    return Err(Error::Missing { path });
                }
            }
        }
        Ok(())
    }
}

/// Rows whose shards are in an array's folder; empty if there is no such folder.
pub(crate) fn shards_in(store: &Storage, spec: &ArraySpec) -> Result<HashSet<usize>> {
    let entries = store.list(&store.join(&spec.path))?.unwrap_or_default();
    Ok(entries.iter().filter(|entry| !entry.is_folder).filter_map(|entry| spec.row_of_shard_name(&entry.name)).collect())
}

/// File of a case's mask.
pub(crate) fn mask_shard(store: &Storage, split: Split, case: &str) -> PathBuf {
    store.join(ArraySpec::of_mask(split, case, [1; 3]).shard_path(0))
}

/// Shape of a case's mask, from the rows of its slices.
pub(crate) fn mask_shape(rows: &[SliceRow]) -> [usize; 3] {
    let [height, width] = rows.first().map_or([0; 2], |row| row.size);
    [rows.len(), height as usize, width as usize]
}

/// Checks that `variants.parquet` agrees with the layout's config.
pub(crate) fn check_variants(store: &Storage, attributes: &StoreAttributes, layout: &StoreLayout) -> Result<()> {
    let path = store.join(VARIANTS_TABLE);
    let expected = layout.variant_rows();
    if decode_rows::<VariantRow>(&path, read_table(store, attributes, VARIANTS_TABLE)?)? == expected {
        return Ok(());
    }
    let reason = format!("its rows are not the {} variants of the store's config", expected.len());
    Err(Error::Manifest { path, reason })
}

/// Reads a split's slice table and checks it against the layout's cases and sources.
pub(crate) fn read_slices(
    store: &Storage,
    attributes: &StoreAttributes,
    layout: &StoreLayout,
    split: Split,
) -> Result<Vec<SliceRow>> {
    let path = store.join(slices_table(split));
    let damaged = |reason: String| Error::Manifest { path: path.clone(), reason };
    let bytes = read_table(store, attributes, &slices_table(split))?;
    let slices = decode_slices(&path, bytes, &attributes.config.class_names)?;
    if slices.len() != layout.num_slices(split) {
        return Err(damaged(format!("expected {} rows, found {}", layout.num_slices(split), slices.len())));
    }
    let sources: HashSet<(&str, &str)> = attributes.sources.iter().map(|s| (s.path.as_str(), s.sha256.as_str())).collect();
    for (case, rows) in layout.cases_of(split) {
        for row in rows.clone() {
            let slice = &slices[row];
            let (expected, index) = (&case.case, row - rows.start);
            if slice.row as usize != row || slice.case != *expected || slice.slice_index as usize != index {
                let SliceRow { row: says, case, slice_index, .. } = slice;
                let found = format!("it says row {says}, slice {slice_index} of case {case}");
                return Err(damaged(format!("row {row} should be slice {index} of case {expected}, {found}")));
            }
            if !sources.contains(&(&slice.source, &slice.source_sha256)) {
                let SliceRow { source, source_sha256, .. } = slice;
                return Err(damaged(format!(
                    "row {row} is of {source} with SHA-256 {source_sha256}, which the manifest has not"
                )));
            }
        }
    }
    Ok(slices)
}

/// Reads a split's table of scans and checks it against the layout's cases; the shapes are checked against the slices, if they are given.
pub(crate) fn read_scans(
    store: &Storage,
    attributes: &StoreAttributes,
    layout: &StoreLayout,
    split: Split,
    slices: Option<&[SliceRow]>,
) -> Result<Vec<ScanRow>> {
    let path = store.join(scans_table(split));
    let damaged = |reason: String| Error::Manifest { path: path.clone(), reason };
    let scans: Vec<ScanRow> = decode_rows(&path, read_table(store, attributes, &scans_table(split))?)?;
    let cases: Vec<_> = layout.cases_of(split).collect();
    if scans.len() != cases.len() {
        return Err(damaged(format!("expected {} rows, found {}", cases.len(), scans.len())));
    }
    for (scan, (case, rows)) in scans.iter().zip(cases) {
        check_scan(scan, &case.case, rows.len()).map_err(damaged)?;
        let Some(slices) = slices else { continue };
        let (found, expected) = (scan.turned_shape(), mask_shape(&slices[rows.clone()]));
        if found != Some(expected) {
            return Err(damaged(format!("its case {} has the shape {found:?}, its slices {expected:?}", scan.case)));
        }
    }
    Ok(scans)
}

/// Checks that a row describes a scan of this name and so many slices; the error is in words.
pub(crate) fn check_scan(scan: &ScanRow, case: &str, slices: usize) -> Result<(), String> {
    if scan.case != case {
        return Err(format!("expected case {case}, found {}", scan.case));
    }
    if scan.turned_shape().is_none_or(|[depth, ..]| depth != slices) {
        let (shape, axes) = (&scan.shape, &scan.axes);
        return Err(format!("case {case}: its shape {shape:?} with the axes {axes:?} does not have its {slices} slices"));
    }
    if scan.affine.is_some() && scan.affine_rows().is_none() {
        return Err(format!("case {case}: its affine does not have 16 numbers"));
    }
    Ok(())
}

fn open_split(
    store: &Storage,
    attributes: &StoreAttributes,
    layout: &StoreLayout,
    split: Split,
    checksums: &mut Checksums,
) -> Result<SplitArrays> {
    let slices = read_slices(store, attributes, layout, split)?;
    let scans = read_scans(store, attributes, layout, split, Some(&slices))?;
    let cases = layout.cases_of(split).map(|(case, rows)| (case.case.clone(), rows.start as u32..rows.end as u32)).collect();
    let variants = layout.variants(split);
    let arrays = ArrayKind::all(&layout.attributes().config).into_iter().map(|kind| {
        let spec = layout.array(split, kind);
        check_array_metadata(store, &spec)?;
        let of_array = checksums.take(&spec.path);
        Ok(StoredArray::new(store, spec, slices.len(), of_array))
    });
    let arrays = arrays.collect::<Result<Vec<_>>>()?;
    Ok(SplitArrays { variants, slices, scans, cases, arrays })
}
