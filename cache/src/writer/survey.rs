//! Reports what a writer would find, without changing anything.

use super::open::is_new;
use super::progress::{Progress, case_key};
use super::{Previous, differences_between, previous};
use crate::arrays::ArrayKind;
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::manifest::read_manifest;
use crate::storage::Storage;
use crate::store::shards_in;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::CaseLayout;
use std::path::Path;

/// What a writer of some layout would find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Survey {
    /// Nothing.
    New,
    /// An unfinished store, or something that will be refused.
    Begun,
    /// A finished store that has all that is requested.
    Complete,
    /// A finished store that would grow, by these scans and perhaps by variants.
    Grows(Vec<CaseLayout>),
}

/// Looks at what is at `path`. Writes nothing.
///
/// # Errors
/// [`Error::File`] for a bucket or folder that cannot be read.
pub fn survey(path: &Path, layout: &StoreLayout) -> Result<Survey> {
    let store = Storage::at(path)?;
    if is_new(&store)? {
        return Ok(Survey::New);
    }
    let Ok(found) = read_manifest(&store) else { return Ok(Survey::Begun) };
    let requested = layout.attributes();
    if !found.complete || !previous::grows(&found, layout) {
        return Ok(Survey::Begun);
    }
    if found.cache_id == requested.cache_id {
        return Ok(Survey::Complete);
    }
    Ok(Survey::Grows(requested.cases.iter().filter(|case| !found.cases.contains(case)).cloned().collect()))
}

/// How much of a layout a store already holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Images (slices times variants) with all that the layout has of them; of a finished store all of its images.
    pub images: usize,
    /// Bytes of the tensors that it holds, uncompressed.
    pub bytes: u64,
}

/// As [`stored`], only the number of images.
///
/// # Errors
/// As [`stored`].
pub fn images_stored(path: &Path, layout: &StoreLayout) -> Result<usize> {
    Ok(stored(path, layout)?.images)
}

/// How much of a layout the store at `path` already holds. Writes nothing.
///
/// # Errors
/// Those with which [`super::StoreWriter::open_or_create`] would refuse what is there.
pub fn stored(path: &Path, layout: &StoreLayout) -> Result<Stored> {
    let store = Storage::at(path)?;
    if is_new(&store)? {
        return Ok(Stored::default());
    }
    let (found, requested) = (read_manifest(&store)?, layout.attributes());
    let layout = layout.arranged_as(&found)?;
    if found.complete && previous::grows(&found, &layout) {
        let held = StoreLayout::of(&found)?;
        return Ok(Stored { images: held.num_items(), bytes: held.num_bytes() });
    }
    if found.complete || found.config != requested.config {
        return Err(Error::OtherConfig { path: path.into(), differences: differences_between(&found, requested) });
    }
    recorded(&store, &layout)
}

/// What of an unfinished store is there and recorded.
fn recorded(store: &Storage, layout: &StoreLayout) -> Result<Stored> {
    let (records, previous) = (Progress::new(store).shards()?, Previous::open(store, layout)?);
    let mut stored = Stored::default();
    for split in Split::ALL {
        let kinds = ArrayKind::all(&layout.attributes().config);
        let there = kinds.iter().map(|&kind| shards_in(store, &layout.array(split, kind))).collect::<Result<Vec<_>>>()?;
        for (case, rows) in layout.cases(split) {
            let of_case = records.get(&case_key(layout.attributes(), case)).map_or(&[][..], Vec::as_slice);
            let is_recorded = |slice: usize, kind: ArrayKind| {
                of_case.iter().any(|record| record.get(&slice).is_some_and(|shards| shards.contains_key(kind.name())))
            };
            let known = |row: usize, kind: ArrayKind| {
                let was_there = || previous.as_ref().is_some_and(|previous| previous.checksums(split, kind, row).is_some());
                there[kind.index(&layout.attributes().config)].contains(&row)
                    && (is_recorded(row - rows.start, kind) || was_there())
            };
            for row in rows.clone() {
                let held: Vec<ArrayKind> = kinds.iter().copied().filter(|&kind| known(row, kind)).collect();
                let bytes: usize = held.iter().map(|&kind| layout.array(split, kind).chunk_bytes()).sum();
                stored.bytes += (bytes * layout.num_variants(split)) as u64;
                stored.images += if held.len() == kinds.len() { layout.num_variants(split) } else { 0 };
            }
        }
    }
    Ok(stored)
}
