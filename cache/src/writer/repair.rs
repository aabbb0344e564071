//! Begins a repair: files that follow from the manifest or from undamaged shards are written again; other damaged files are moved out of the
//! way.

use super::finish::write_variants;
use super::previous;
use crate::arrays::ArrayKind;
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::manifest::{array_file, group_files, write_manifest};
use crate::storage::Storage;
use crate::store::mask_shard;
use crate::verify::{Part, VerifyReport, proven_checksums};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::{CHECKSUMS_TABLE, VARIANTS_TABLE};
use std::path::Path;

/// Repairs what needs no sources, and prepares the rest: damaged shards are kept for their good chunks, other damaged files are deleted,
/// and the manifest is marked as not complete. Returns whether it is; then [`super::StoreWriter`] computes only what is missing.
///
/// It can be interrupted at any time and started again.
///
/// # Errors
/// [`Error::File`].
pub fn begin_repair(store: &Path, report: &VerifyReport) -> Result<bool> {
    let store = &Storage::at(store)?;
    let _lock = store.lock();
    let attributes = &report.attributes;
    let layout = StoreLayout::of(attributes)?;
    if report.damage.iter().any(|damage| damage.part == Part::Manifest) {
        write_manifest(store, attributes)?;
    }
    let mut metadata: Vec<_> = group_files().collect();
    for split in Split::ALL {
        for kind in ArrayKind::all(&attributes.config) {
            metadata.push(array_file(&layout.array(split, kind))?);
        }
    }
    for damage in report.damage.iter().filter(|damage| damage.part == Part::Metadata) {
        if damage.path == Path::new(VARIANTS_TABLE) {
            write_variants(store, &layout)?;
        }
        for (path, bytes) in metadata.iter().filter(|(path, _)| *path == damage.path) {
            let path = store.join(path);
            store.create_folder(path.parent().unwrap_or(store.root()))?;
            store.write(&path, bytes.clone())?;
        }
    }
    if report.damage.iter().any(|damage| damage.part == Part::Checksums { proven: true })
        && let Some((_, bytes)) = proven_checksums(store, attributes, &layout)
    {
        store.write(&store.join(CHECKSUMS_TABLE), bytes)?;
    }
    store.sync_folder(store.root())?;
    if !report.damage.iter().any(|damage| damage.part.needs_sources()) {
        return Ok(false);
    }
    previous::keep(store, attributes)?;
    for damage in &report.damage {
        let path = store.join(&damage.path);
        match &damage.part {
            Part::Manifest | Part::Metadata | Part::Checksums { proven: true } => {}
            Part::Slices(_) | Part::Scans(_) | Part::Decoder | Part::RungProjection | Part::Checksums { proven: false } => {
                store.remove(&path)?;
            }
            Part::Mask { split, case } => {
                let shard = mask_shard(store, *split, case);
                store.remove(&shard.with_file_name(crate::arrays::METADATA))?;
                store.remove(&shard)?;
            }
            Part::Shard { .. } => {
                let kept = previous::kept(store, &damage.path);
                store.create_folder(kept.parent().unwrap_or(store.root()))?;
                // Files there from an earlier repair are no longer of use.
                match store.rename(&path, &kept) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    other => other.map_err(Error::io("move", &path))?,
                }
            }
        }
    }
    write_manifest(store, &attributes.unfinished())?;
    store.sync_folder(store.root())?;
    Ok(true)
}
