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

/// Number of a layout's images (slices times variants) that the store at `path` already holds. Writes nothing.
///
/// # Errors
/// Those with which [`super::StoreWriter::open_or_create`] would refuse what is there.
pub fn images_stored(path: &Path, layout: &StoreLayout) -> Result<usize> {
    let store = Storage::at(path)?;
    if is_new(&store)? {
        return Ok(0);
    }
    let (found, requested) = (read_manifest(&store)?, layout.attributes());
    let layout = layout.arranged_as(&found)?;
    if found.complete && previous::grows(&found, &layout) {
        return Ok(StoreLayout::of(&found)?.num_items());
    }
    if found.complete || found.config != requested.config {
        return Err(Error::OtherConfig { path: path.into(), differences: differences_between(&found, requested) });
    }
    recorded_images(&store, &layout)
}

/// Images of an unfinished store whose shards are there and recorded.
fn recorded_images(store: &Storage, layout: &StoreLayout) -> Result<usize> {
    let (records, previous) = (Progress::new(store).shards()?, Previous::open(store, layout)?);
    let mut images = 0;
    for split in Split::ALL {
        let kinds = ArrayKind::all(&layout.attributes().config);
        let there = kinds.iter().map(|&kind| shards_in(store, &layout.array(split, kind))).collect::<Result<Vec<_>>>()?;
        for (case, rows) in layout.cases(split) {
            let of_case = records.get(&case_key(layout.attributes(), case)).map_or(&[][..], Vec::as_slice);
            let recorded = |slice: usize, kind: ArrayKind| {
                of_case.iter().any(|record| record.get(&slice).is_some_and(|shards| shards.contains_key(kind.name())))
            };
            let known = |row: usize, kind: ArrayKind| {
                let was_there = || previous.as_ref().is_some_and(|previous| previous.checksums(split, kind, row).is_some());
                there[kind.index(&layout.attributes().config)].contains(&row) && (recorded(row - rows.start, kind) || was_there())
            };
            let whole = |&row: &usize| kinds.iter().all(|&kind| known(row, kind));
            images += rows.clone().filter(whole).count() * layout.num_variants(split);
        }
    }
    Ok(images)
}
