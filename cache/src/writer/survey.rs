//! Reports what a writer would find, without changing anything.

use super::{differences_between, is_new, previous};
use crate::arrays::ArrayKind;
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::manifest::read_manifest;
use crate::storage::Storage;
use crate::store::shards_in;
use sam_ladder_schemas::classes::Split;
use std::path::Path;

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
    if found.cache_id != requested.cache_id || found.cases != requested.cases {
        if previous::grows(&found, layout) {
            return Ok(StoreLayout::of(&found)?.num_items());
        }
        return Err(Error::OtherConfig { path: path.into(), differences: differences_between(&found, requested) });
    }
    let mut images = 0;
    for split in Split::ALL {
        let there = |kind| shards_in(&store, &layout.array(split, kind));
        let arrays = ArrayKind::all(&requested.config).iter().map(|&kind| there(kind)).collect::<Result<Vec<_>>>()?;
        let whole = |row: &usize| arrays.iter().all(|rows| rows.contains(row));
        images += (0..layout.num_slices(split)).filter(whole).count() * layout.num_variants(split);
    }
    Ok(images)
}
