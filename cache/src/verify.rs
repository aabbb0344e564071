//! Checks a whole finished store: every chunk against its checksum, every file against the manifest.

use crate::arrays::{ArrayKind, ArraySpec, METADATA};
use crate::checksums::{self, Checksums, encode_checksums};
use crate::error::Result;
use crate::layout::StoreLayout;
use crate::manifest::{
    array_file, check_bytes, check_hash, complete_layout, group_files, hashed_files, manifest_bytes, parse_manifest,
    read_checked, read_checksums, read_manifest, read_mask_shape, recorded_hash,
};
use crate::shard::{self, Scratch};
use crate::storage::Storage;
use crate::store::{check_variants, mask_shape, read_scans, read_slices};
use rayon::prelude::*;
use sam_ladder_formats::hash::sha256_hex;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::{
    CHECKSUMS_TABLE, DECODER_WEIGHTS, MANIFEST_COPY, RUNG_PROJECTION, StoreAttributes, VARIANTS_TABLE, scans_table, slices_table,
};
use sam_ladder_schemas::tables::SliceRow;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Result of [`verify`].
#[derive(Debug)]
pub struct VerifyReport {
    /// The store's manifest, from an undamaged copy.
    pub attributes: StoreAttributes,
    /// The damaged parts: manifest and metadata first, then tables and weights, then arrays.
    pub damage: Vec<Damage>,
    /// Files that are not part of the store.
    pub unexpected: Vec<PathBuf>,
    /// Number of files that a store with this manifest has.
    pub files: u64,
}

impl VerifyReport {
    /// The report for a store whose repair was interrupted: nothing can be checked until the repair is resumed.
    ///
    /// # Errors
    /// Those of reading the manifest.
    pub fn of_unfinished(store: &Path) -> Result<Self> {
        let (attributes, _) = trusted_manifest(&Storage::at(store)?)?;
        Ok(VerifyReport { attributes, damage: vec![], unexpected: vec![], files: 0 })
    }
}

/// A damaged part of a store.
#[derive(Debug, Clone, PartialEq)]
pub struct Damage {
    /// Path of its file within the store.
    pub path: PathBuf,
    /// The content of that file.
    pub part: Part,
    /// What is wrong with it.
    pub reason: String,
}

/// What a file of a store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// One of the two copies of the manifest.
    Manifest,
    /// A group's or an array's `zarr.json`, or `variants.parquet`: all that follows only from the manifest.
    Metadata,
    /// A split's slice table.
    Slices(Split),
    /// The table of the chunks' checksums.
    Checksums {
        /// Whether the chunks themselves prove what it held: the table made of them has the hash that the manifest records. If not, no
        /// chunk can be trusted.
        proven: bool,
    },
    /// A split's table of scans.
    Scans(Split),
    /// The decoder's weights.
    Decoder,
    /// The rungs' projection.
    RungProjection,
    /// One slice of an array.
    Shard {
        /// Path of the array within the store.
        array: String,
        /// Split of the array.
        split: Split,
        /// Index along its slice axis.
        row: usize,
        /// Case of the slice.
        case: String,
        /// Slice within the case.
        slice_index: usize,
        /// Names of the variants that cannot be read; empty if the whole file cannot be read.
        variants: Vec<String>,
    },
    /// The reference segmentation of a case, or its `zarr.json`.
    Mask {
        /// Split of the case.
        split: Split,
        /// The case.
        case: String,
    },
}

impl Part {
    /// Whether repairing it needs the scans or the encoder's weights.
    pub fn needs_sources(&self) -> bool {
        !matches!(self, Part::Manifest | Part::Metadata | Part::Checksums { proven: true })
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.part {
            Part::Manifest => f.write_str("manifest")?,
            Part::Metadata => f.write_str("metadata")?,
            Part::Slices(split) => write!(f, "table of the {split} slices")?,
            Part::Checksums { .. } => f.write_str("table of checksums")?,
            Part::Scans(split) => write!(f, "table of the {split} scans")?,
            Part::Decoder => f.write_str("the decoder's weights")?,
            Part::RungProjection => f.write_str("the rungs' projection")?,
            Part::Mask { split, case } => write!(f, "mask of {split} case {case}")?,
            Part::Shard { array, row, case, slice_index, variants, .. } => {
                write!(f, "{array}: case {case}, slice {slice_index} of it (row {row}), ")?;
                match variants.as_slice() {
                    [] => f.write_str("all variants")?,
                    [one] => write!(f, "variant {one}")?,
                    several => write!(f, "variants {}", several.join(", "))?,
                }
            }
        }
        write!(f, ": {} ({})", self.reason, self.path.display())
    }
}

/// A file to check.
enum Check {
    /// A file that follows from the manifest, and its bytes.
    Metadata(PathBuf, Vec<u8>),
    Hashed(String),
    Shard(Split, ArrayKind, usize),
    Mask(Split, String),
}

/// Checks every file of the store at `path`, on all of rayon's threads. `progress` gets the number of files checked so far and that of all.
///
/// Each chunk is read, compared with its checksum and decompressed. Each shard must hold only its chunks. Tables and weights are compared
/// with the manifest's hashes and with the arrays, metadata with the bytes that follow from the manifest, voxel counts of the slices with the
/// masks.
///
/// # Errors
/// [`crate::Error::NotAStore`], [`crate::Error::FormatVersion`], [`crate::Error::Incomplete`] for a store that is still being made,
/// [`crate::Error::File`] for a bucket that does not answer, and [`crate::Error::Manifest`] if both copies of the manifest are damaged. All
/// other damage is in the report.
pub fn verify(path: &Path, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<VerifyReport> {
    let store = Storage::at(path)?;
    let report = check_all(&store, progress);
    // What a server refused looks like damage, but is not.
    store.refusal().map_or(report, Err)
}

fn check_all(store: &Storage, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<VerifyReport> {
    let (attributes, mut damage) = trusted_manifest(store)?;
    let layout = complete_layout(store, &attributes)?;
    // A damaged table is reported by its own check; its content is then not used.
    let rows = Split::ALL.map(|split| read_slices(store, &attributes, &layout, split).ok());
    let (checksums, of_table) = trusted_checksums(store, &attributes, &layout);
    damage.extend(of_table);
    let checks = checks(&layout)?;
    // The manifest's two copies and the table of checksums are checked already.
    let total = checks.len() as u64 + 3;
    let done = AtomicU64::new(3);
    let rows = Split::ALL.map(|split| rows[split as usize].as_deref());
    let context = Context { store, attributes: &attributes, layout: &layout, rows, checksums: checksums.as_ref() };
    let found = checks.par_iter().map(|check| {
        let found = match store.refusal() {
            Some(refusal) => Err(refusal),
            None => context.check(check),
        };
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
        found
    });
    let found: Vec<Vec<Damage>> = found.collect::<Result<_>>()?;
    damage.extend(found.into_iter().flatten());
    Ok(VerifyReport { damage, unexpected: unexpected(store, &layout)?, files: total + layout.num_cases() as u64, attributes })
}

/// The manifest from an undamaged copy, and what is wrong with the other.
fn trusted_manifest(store: &Storage) -> Result<(StoreAttributes, Vec<Damage>)> {
    let damage = |name: &str, reason: String| Damage { path: name.into(), part: Part::Manifest, reason };
    let copy = |path: &Path| store.twice(|| parse_manifest(store, path, &read_checked(store, path).unwrap_or_default()));
    match read_manifest(store) {
        Ok(attributes) => {
            let expected = manifest_bytes(&attributes);
            let wrong = [METADATA, MANIFEST_COPY]
                .into_iter()
                .filter_map(|name| check_bytes(store, &store.join(name), &expected).err().map(|reason| damage(name, reason)));
            Ok((attributes, wrong.collect()))
        }
        Err(error) => match copy(&store.join(MANIFEST_COPY)) {
            Ok(attributes) => {
                let expected = manifest_bytes(&attributes);
                let reason = check_bytes(store, &store.join(METADATA), &expected).err().unwrap_or_else(|| error.to_string());
                Ok((attributes, vec![damage(METADATA, reason)]))
            }
            Err(_) => Err(error),
        },
    }
}

/// The checksums of a store's chunks, and what is wrong with their table. Where it is damaged, it is made again of the chunks' own checksums,
/// which are right if the table then has the hash that the manifest records.
fn trusted_checksums(store: &Storage, attributes: &StoreAttributes, layout: &StoreLayout) -> (Option<Checksums>, Option<Damage>) {
    // The reason without the file's name, which is said anyway.
    let whole = check_hash(store, attributes, CHECKSUMS_TABLE);
    let read = whole.and_then(|()| read_checksums(store, attributes, layout).map_err(|error| error.to_string()));
    let reason = match read {
        Ok(checksums) => return (Some(checksums), None),
        Err(reason) => reason,
    };
    let proven = proven_checksums(store, attributes, layout);
    let part = Part::Checksums { proven: proven.is_some() };
    (proven.map(|(checksums, _)| checksums), Some(Damage { path: CHECKSUMS_TABLE.into(), part, reason }))
}

/// The table of checksums made of the chunks' own, and its bytes; `None` unless they have the hash that the manifest records.
pub(crate) fn proven_checksums(
    store: &Storage,
    attributes: &StoreAttributes,
    layout: &StoreLayout,
) -> Option<(Checksums, Vec<u8>)> {
    let mut all = Checksums::default();
    for (spec, shards) in checksums::arrays(layout) {
        let of_shard = |shard| {
            let file = store.open(&store.join(spec.shard_path(shard))).ok()?;
            shard::checksums(&file, spec.chunks_per_shard()).ok()
        };
        let of_array: Option<Vec<Vec<u32>>> = (0..shards).into_par_iter().map(of_shard).collect();
        all.insert(spec.path, of_array?.concat());
    }
    let bytes = encode_checksums(Path::new(CHECKSUMS_TABLE), layout, &all).ok()?;
    (recorded_hash(attributes, CHECKSUMS_TABLE)? == sha256_hex(&bytes)).then_some((all, bytes))
}

/// All files of a store except the manifest and the table of checksums; an array's `zarr.json` before its shards, a mask's with the mask.
fn checks(layout: &StoreLayout) -> Result<Vec<Check>> {
    let mut all: Vec<Check> = group_files().map(|(path, bytes)| Check::Metadata(path, bytes)).collect();
    let arrays: Vec<_> = {
        let kinds = ArrayKind::all(&layout.attributes().config);
        Split::ALL.into_iter().flat_map(|split| kinds.iter().map(move |&kind| (split, kind))).collect()
    };
    for &(split, kind) in &arrays {
        let (path, bytes) = array_file(&layout.array(split, kind))?;
        all.push(Check::Metadata(path, bytes));
    }
    all.extend(hashed_files(&layout.attributes().config).into_iter().filter(|name| name != CHECKSUMS_TABLE).map(Check::Hashed));
    for (split, kind) in arrays {
        all.extend((0..layout.num_slices(split)).map(|row| Check::Shard(split, kind, row)));
    }
    for split in Split::ALL {
        all.extend(layout.cases_of(split).map(|(case, _)| Check::Mask(split, case.case.clone())));
    }
    Ok(all)
}

struct Context<'a> {
    store: &'a Storage,
    attributes: &'a StoreAttributes,
    layout: &'a StoreLayout,
    /// The rows of each split's slice table, if they can be trusted.
    rows: [Option<&'a [SliceRow]>; 2],
    /// The checksums of the chunks, if they can be trusted.
    checksums: Option<&'a Checksums>,
}

impl Context<'_> {
    fn check(&self, check: &Check) -> Result<Vec<Damage>> {
        match check {
            Check::Metadata(path, bytes) => Ok(check_bytes(self.store, &self.store.join(path), bytes)
                .err()
                .map(|reason| Damage { path: path.clone(), part: Part::Metadata, reason })
                .into_iter()
                .collect()),
            Check::Hashed(name) => Ok(self.hashed(name).into_iter().collect()),
            Check::Shard(split, kind, row) => Ok(self.shard(*split, *kind, *row)),
            Check::Mask(split, case) => self.mask(*split, case),
        }
    }

    fn hashed(&self, name: &str) -> Option<Damage> {
        let part = match name {
            VARIANTS_TABLE => Part::Metadata,
            DECODER_WEIGHTS => Part::Decoder,
            RUNG_PROJECTION => Part::RungProjection,
            _ if name == slices_table(Split::Train) => Part::Slices(Split::Train),
            _ if name == slices_table(Split::Test) => Part::Slices(Split::Test),
            _ if name == scans_table(Split::Train) => Part::Scans(Split::Train),
            _ => Part::Scans(Split::Test),
        };
        let content = || match &part {
            Part::Metadata => check_variants(self.store, self.attributes, self.layout),
            Part::Slices(split) => read_slices(self.store, self.attributes, self.layout, *split).map(drop),
            Part::Scans(split) => read_scans(self.store, self.attributes, self.layout, *split, None).map(drop),
            _ => Ok(()),
        };
        let checked = check_hash(self.store, self.attributes, name).and_then(|()| content().map_err(|e| e.to_string()));
        checked.err().map(|reason| Damage { path: name.into(), part, reason })
    }

    fn shard(&self, split: Split, kind: ArrayKind, row: usize) -> Vec<Damage> {
        let spec = self.layout.array(split, kind);
        let path = spec.shard_path(row);
        let variants = self.layout.variants(split);
        let (case, slice_index) = match self.layout.slice_of(split, row) {
            Some((case, slice)) => (case.case.clone(), slice),
            None => return vec![],
        };
        let damage = |variants: Vec<String>, reason: String| {
            let part = Part::Shard { array: spec.path.clone(), split, row, case: case.clone(), slice_index, variants };
            Damage { path: path.clone(), part, reason }
        };
        let expected = self.expected(&spec, row);
        match check_shard(self.store, &path, &spec, expected, |_, _| Ok(())) {
            Err(reason) => vec![damage(vec![], reason)],
            Ok(bad) => bad.into_iter().map(|(chunk, reason)| damage(vec![variants[chunk].name()], reason)).collect(),
        }
    }

    fn expected(&self, spec: &ArraySpec, shard: usize) -> Option<&[u32]> {
        self.checksums?.of_shard(&spec.path, shard, spec.chunks_per_shard())
    }

    /// Checks a mask's shard and `zarr.json`. Its shape comes from the slice table, or from the `zarr.json` if the table is damaged.
    fn mask(&self, split: Split, case: &str) -> Result<Vec<Damage>> {
        let part = Part::Mask { split, case: case.into() };
        let rows = match self.rows[split as usize] {
            Some(rows) => Some(&rows[self.layout.case_rows(split, case)?]),
            None => None,
        };
        let metadata = |reason: String| {
            let path = Path::new(&ArraySpec::of_mask(split, case, [1; 3]).path).join(METADATA);
            vec![Damage { path, part: part.clone(), reason }]
        };
        let shape = match rows {
            Some(rows) => mask_shape(rows),
            None => match read_mask_shape(self.store, split, case) {
                Ok(shape) => shape,
                Err(error) => return Ok(metadata(error.to_string())),
            },
        };
        let spec = ArraySpec::of_mask(split, case, shape);
        let (path, bytes) = array_file(&spec)?;
        let mut all = check_bytes(self.store, &self.store.join(path), &bytes).err().map_or(vec![], metadata);
        let path = spec.shard_path(0);
        let damage = |reason| Damage { path: path.clone(), part: part.clone(), reason };
        let counted = |slice: usize, classes: &[u8]| match rows {
            Some(rows) => same_voxels(&rows[slice], classes),
            None => Ok(()),
        };
        match check_shard(self.store, &path, &spec, self.expected(&spec, 0), counted) {
            Err(reason) => all.push(damage(reason)),
            Ok(bad) => all.extend(bad.into_iter().map(|(slice, reason)| damage(format!("slice {slice}: {reason}")))),
        }
        Ok(all)
    }
}

fn same_voxels(row: &SliceRow, classes: &[u8]) -> Result<(), String> {
    let mut counts = [0u64; 256];
    classes.iter().for_each(|&class| counts[usize::from(class)] += 1);
    for (organ, &expected) in row.voxels.iter().enumerate() {
        let found = counts[organ + 1];
        if found != expected {
            return Err(format!("it has {found} voxels of class {}, the slice table says {expected}", organ + 1));
        }
    }
    Ok(())
}

/// The damaged chunks of a shard at a path within the store, each with the reason; an error concerns the whole file. `expected` are the
/// checksums that belong there, if they are known.
fn check_shard(
    store: &Storage,
    path: &Path,
    spec: &ArraySpec,
    expected: Option<&[u32]>,
    also: impl Fn(usize, &[u8]) -> Result<(), String>,
) -> Result<Vec<(usize, String)>, String> {
    // In a bucket, one that arrives damaged is read once more.
    let read = store.twice(|| match check_shard_once(store, path, spec, expected, &also) {
        Ok(bad) if bad.is_empty() => Ok(bad),
        harmed => Err(harmed),
    });
    read.or_else(|harmed| harmed)
}

fn check_shard_once(
    store: &Storage,
    path: &Path,
    spec: &ArraySpec,
    expected: Option<&[u32]>,
    also: impl Fn(usize, &[u8]) -> Result<(), String>,
) -> Result<Vec<(usize, String)>, String> {
    let file = store.open(&store.join(path)).map_err(|e| shard::unreadable(&e))?;
    let index = shard::read_index(&file, spec.chunks_per_shard())?;
    shard::check_filled(&index, file.len().map_err(|e| format!("cannot read its size: {e}"))?)?;
    let mut scratch = Scratch::new().map_err(|e| e.to_string())?;
    let mut values = vec![0; spec.chunk_bytes()];
    let mut bad = Vec::new();
    for (chunk, &range) in index.iter().enumerate() {
        let expected = expected.and_then(|all| all.get(chunk).copied());
        let read = if spec.is_compressed() {
            shard::read_compressed_chunk(&file, range, expected, &mut scratch, &mut values)
        } else {
            shard::read_plain_chunk(&file, range, expected, &mut values)
        };
        let read = read.and_then(|()| also(chunk, &values));
        bad.extend(read.err().map(|reason| (chunk, reason)));
    }
    Ok(bad)
}

/// Files in the store that do not belong there according to its manifest.
fn unexpected(store: &Storage, layout: &StoreLayout) -> Result<Vec<PathBuf>> {
    let mut expected: BTreeSet<PathBuf> = [METADATA, MANIFEST_COPY, CHECKSUMS_TABLE].map(PathBuf::from).into();
    for check in checks(layout)? {
        match check {
            Check::Metadata(path, _) => {
                expected.insert(path);
            }
            Check::Hashed(name) => {
                expected.insert(name.into());
            }
            Check::Shard(split, kind, row) => {
                let spec = layout.array(split, kind);
                expected.insert(spec.shard_path(row));
            }
            Check::Mask(split, case) => {
                let spec = ArraySpec::of_mask(split, &case, [1; 3]);
                expected.extend([METADATA.to_string(), spec.shard_name(0)].map(|name| Path::new(&spec.path).join(name)));
            }
        }
    }
    Ok(store.files()?.into_iter().filter(|path| !expected.contains(path)).collect())
}
