//! The store's manifest, its second copy, and the metadata that is derived from it.

use crate::arrays::{ArraySpec, METADATA, group_metadata, groups, root_metadata, to_json};
use crate::checksums::{Checksums, decode_checksums};
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::shard::unreadable;
use crate::storage::{Storage, is_remote};
use bytes::Bytes;
use sam_ladder_formats::hash::sha256_hex;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::differences::differences;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::store::{
    CHECKSUMS_TABLE, DECODER_WEIGHTS, FORMAT_VERSION, MANIFEST_COPY, MASKS, RUNG_PROJECTION, StoreAttributes, VARIANTS_TABLE,
    cache_id, scans_table, slices_table,
};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The bytes of both copies of the manifest.
pub(crate) fn manifest_bytes(attributes: &StoreAttributes) -> Vec<u8> {
    to_json(&root_metadata(attributes))
}

/// Writes both copies, the root group's last, since that one is authoritative.
pub(crate) fn write_manifest(store: &Storage, attributes: &StoreAttributes) -> Result<()> {
    let bytes = manifest_bytes(attributes);
    store.write(&store.join(MANIFEST_COPY), bytes.clone())?;
    store.write(&store.join(METADATA), bytes)
}

/// Reads and checks the attributes of the store's root group.
pub(crate) fn read_manifest(store: &Storage) -> Result<StoreAttributes> {
    let path = store.join(METADATA);
    let not_a_store = |reason: String| not_a_store(store, reason);
    match store.read(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound && store.is_file(&store.join(MANIFEST_COPY))? => {
            Err(Error::Manifest { path, reason: "it is missing".into() })
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Err(not_a_store(match (store.list(store.root())?, store.bucket()) {
            (Some(_), _) => format!("it has no {METADATA}"),
            (None, None) => "there is no such folder".into(),
            (None, Some(_)) => "there is nothing below that key".into(),
        })),
        Err(e) if e.kind() == ErrorKind::NotADirectory => Err(not_a_store("it is not a folder".into())),
        Ok(bytes) => parse_manifest(store, &path, &bytes).or_else(|damaged| match store.bucket() {
            Some(_) => parse_manifest(store, &path, &store.read(&path).map_err(Error::io("read", &path))?),
            None => Err(damaged),
        }),
        Err(error) => Err(Error::io("read", &path)(error)),
    }
}

/// Reads a file of a store, in a folder or a bucket, where it must have the hash that the manifest records, if there is one.
///
/// # Errors
/// [`Error::File`] that names the file; [`Error::Manifest`] if it is damaged.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    let Some((folder, name)) = path.parent().zip(path.file_name()).filter(|_| is_remote(path)) else {
        return std::fs::read(path).map_err(Error::io("read", path));
    };
    let store = Storage::at(folder)?;
    let name = name.to_string_lossy();
    match read_manifest(&store) {
        Ok(attributes) if recorded_hash(&attributes, &name).is_some() => {
            let read = read_hashed(&store, &attributes, &name);
            read.map_err(|reason| store.refusal().unwrap_or_else(|| Error::Manifest { path: path.into(), reason }))
        }
        _ => store.read(path).map_err(Error::io("read", path)),
    }
}

fn not_a_store(store: &Storage, reason: String) -> Error {
    Error::NotAStore { path: store.root().into(), reason, advice: "give the folder that `sam-ladder precompute --store` wrote" }
}

/// The attributes in one copy of the manifest.
pub(crate) fn parse_manifest(store: &Storage, path: &Path, bytes: &[u8]) -> Result<StoreAttributes> {
    let damaged = |reason: String| Error::Manifest { path: path.into(), reason };
    let metadata: Value = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    let attributes = &metadata["attributes"];
    let version = &attributes["format_version"];
    if version.is_null() || attributes["cache_id"].is_null() {
        return Err(not_a_store(store, format!("its {METADATA} has no format_version and cache_id")));
    }
    if version.as_u64() != Some(FORMAT_VERSION.into()) {
        return Err(Error::FormatVersion { path: store.root().into(), found: version.to_string(), expected: FORMAT_VERSION });
    }
    let attributes: StoreAttributes = serde_json::from_value(attributes.clone()).map_err(|e| damaged(e.to_string()))?;
    attributes.config.validate().map_err(|error| damaged(error.to_string()))?;
    let expected = cache_id(&attributes.config, &attributes.sources);
    if attributes.cache_id != expected {
        return Err(damaged(format!("its config and sources hash to {expected}, but its cache_id is {}", attributes.cache_id)));
    }
    let expected = attributes.expected_checksum();
    if attributes.checksum != expected {
        return Err(damaged(format!("its attributes hash to {expected}, but its checksum is {}", attributes.checksum)));
    }
    StoreLayout::of(&attributes).map_err(|error| damaged(error.to_string()))?;
    Ok(attributes)
}

/// Checks that `path` holds exactly `expected`; the error is in words.
pub(crate) fn check_bytes(store: &Storage, path: &Path, expected: &[u8]) -> Result<(), String> {
    store.twice(|| same_bytes(&read_checked(store, path)?, expected))
}

fn same_bytes(found: &[u8], expected: &[u8]) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes);
    match (parse(expected), parse(found)) {
        (Ok(expected), Ok(found)) if expected != found => Err(differences(&expected, "expected", &found, "found")),
        (Ok(_), Err(e)) => Err(format!("it is not JSON: {e}")),
        _ => Err("its bytes are not the ones that sam-ladder writes".into()),
    }
}

/// The bytes of a file; the error is in words.
pub(crate) fn read_checked(store: &Storage, path: &Path) -> Result<Vec<u8>, String> {
    store.read(path).map_err(|e| unreadable(&e))
}

/// `zarr.json` of every group except the root: path within the store and bytes.
pub(crate) fn group_files() -> impl Iterator<Item = (PathBuf, Vec<u8>)> {
    groups().into_iter().map(|group| (Path::new(&group).join(METADATA), to_json(&group_metadata(json!({})))))
}

/// An array's `zarr.json`: path within the store and bytes.
pub(crate) fn array_file(spec: &ArraySpec) -> Result<(PathBuf, Vec<u8>)> {
    Ok((Path::new(&spec.path).join(METADATA), to_json(&spec.metadata()?)))
}

/// Checks that the array's `zarr.json` is the one that a writer of the same config makes.
pub(crate) fn check_array_metadata(store: &Storage, spec: &ArraySpec) -> Result<()> {
    let (path, expected) = array_file(spec)?;
    let path = store.join(path);
    check_bytes(store, &path, &expected).map_err(|reason| Error::Manifest { path, reason })
}

/// Paths within the store of the files whose hashes the manifest records.
pub(crate) fn hashed_files(config: &PrecomputeConfig) -> Vec<String> {
    let [train, test] = Split::ALL;
    let mut files = vec![
        VARIANTS_TABLE.into(),
        CHECKSUMS_TABLE.into(),
        slices_table(train),
        slices_table(test),
        scans_table(train),
        scans_table(test),
        DECODER_WEIGHTS.into(),
    ];
    files.extend(config.has_rung_projection().then(|| RUNG_PROJECTION.into()));
    files
}

/// The hash that the manifest records of a file.
pub(crate) fn recorded_hash<'a>(attributes: &'a StoreAttributes, name: &str) -> Option<&'a str> {
    attributes.files.iter().find(|file| file.path == name).map(|file| file.sha256.as_str())
}

/// The bytes of a table, which must have the hash that the manifest records.
///
/// # Errors
/// [`Error::Manifest`].
pub(crate) fn read_table(store: &Storage, attributes: &StoreAttributes, name: &str) -> Result<Bytes> {
    let read = read_hashed(store, attributes, name);
    read.map(Bytes::from).map_err(|reason| Error::Manifest { path: store.join(name), reason })
}

/// The checksums of a store's chunks, from its table.
pub(crate) fn read_checksums(store: &Storage, attributes: &StoreAttributes, layout: &StoreLayout) -> Result<Checksums> {
    let path = store.join(CHECKSUMS_TABLE);
    decode_checksums(&path, read_table(store, attributes, CHECKSUMS_TABLE)?, layout)
}

/// Checks that a file of the store has the hash that the manifest records; the error is in words.
pub(crate) fn check_hash(store: &Storage, attributes: &StoreAttributes, name: &str) -> Result<(), String> {
    read_hashed(store, attributes, name).map(drop)
}

/// A file of the store, which must have the hash that the manifest records; the error is in words.
fn read_hashed(store: &Storage, attributes: &StoreAttributes, name: &str) -> Result<Vec<u8>, String> {
    store.twice(|| {
        let bytes = read_checked(store, &store.join(name))?;
        let found = sha256_hex(&bytes);
        match recorded_hash(attributes, name) {
            Some(recorded) if recorded == found => Ok(bytes),
            Some(recorded) => Err(format!("its SHA-256 is {found}, the manifest records {recorded}")),
            None => Err("the manifest records no SHA-256 of it".into()),
        }
    })
}

/// The layout of a store whose manifest says that it is complete.
pub(crate) fn complete_layout(store: &Storage, attributes: &StoreAttributes) -> Result<StoreLayout> {
    if !attributes.complete {
        return Err(Error::Incomplete { path: store.root().into(), detail: "its manifest says so".into() });
    }
    StoreLayout::of(attributes).map_err(|e| Error::Manifest { path: store.join(METADATA), reason: e.to_string() })
}

/// A mask's shape, from its `zarr.json`.
pub(crate) fn read_mask_shape(store: &Storage, split: Split, case: &str) -> Result<[usize; 3]> {
    let path = store.join(format!("{split}/{MASKS}/{case}/{METADATA}"));
    store.twice(|| {
        let bytes = store.read(&path).map_err(Error::io("read", &path))?;
        let shape = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|metadata| serde_json::from_value::<[usize; 3]>(metadata["shape"].clone()).ok())
            .filter(|shape| shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n)).is_some_and(|all| all > 0));
        let reason = "it has no shape of three positive numbers".to_string();
        shape.ok_or_else(|| Error::Manifest { path: path.clone(), reason })
    })
}
