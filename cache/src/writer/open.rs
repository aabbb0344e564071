//! What there is at a store's place, and how it becomes a store that can be filled: a new one, an unfinished one of the same config, or a
//! finished one that grows.
//!
//! Any number of processes may come here at once. In a folder they take turns by a lock; where there is none, each looks again whether what it
//! found has changed meanwhile, and every write is atomic. Whatever a race leaves, no tensor is trusted without its record.

use super::{differences_between, previous, progress};
use crate::arrays::{ArrayKind, METADATA};
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::manifest::{check_hash, manifest_bytes, parse_manifest, read_checked, read_manifest, write_manifest};
use crate::storage::Storage;
use crate::store::{Store, mask_shard, shards_in};
use sam_ladder_formats::atomic::is_temporary_of;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::{CHECKSUMS_TABLE, CaseLayout, MANIFEST_COPY, StoreAttributes};
use std::fs::File;
use std::io::ErrorKind;
use std::time::Duration;

/// Looks at a store that other processes keep changing.
const ATTEMPTS: usize = 50;
/// Time between them.
const PAUSE: Duration = Duration::from_millis(20);

/// What [`prepare`] made of what it found.
pub(super) enum Ready {
    /// A store to fill, with this layout.
    Unfinished(Box<StoreLayout>),
    /// A finished store of the same config.
    Complete(Box<Store>),
}

/// Makes the place ready for a writer of the `requested` layout, and returns the lock that is held, if there are locks. Nothing is changed if
/// that is refused.
pub(super) fn prepare(storage: &Storage, requested: &StoreLayout) -> Result<(Ready, Option<File>)> {
    if is_new(storage)? {
        storage.create_folder(storage.root())?;
    }
    let lock = storage.lock();
    let mut refused = None;
    for _ in 0..ATTEMPTS {
        if is_new(storage)? && begin(storage, requested.attributes())? {
            return Ok((Ready::Unfinished(Box::new(requested.clone())), lock));
        }
        let found = found_manifest(storage)?;
        match proceed(storage, &found, requested) {
            Ok(Some(ready)) => return Ok((ready, lock)),
            // Another process was faster.
            Ok(None) => {}
            Err(error) if is_still(storage, &found) => return Err(error),
            Err(error) => refused = Some(error),
        }
        std::thread::sleep(PAUSE);
    }
    Err(refused.unwrap_or_else(|| Error::Changed { path: storage.root().into() }))
}

/// Whether there is nothing, or only what a start that was interrupted at once can leave.
pub(super) fn is_new(store: &Storage) -> Result<bool> {
    let Some(entries) = store.list(store.root())? else { return Ok(!store.root().exists()) };
    let of_a_start = |name: &str| name == MANIFEST_COPY || [METADATA, MANIFEST_COPY].iter().any(|of| is_temporary_of(name, of));
    if !entries.iter().all(|entry| of_a_start(&entry.name)) {
        return Ok(false);
    }
    // Others have files of that name, too.
    let copy = store.join(MANIFEST_COPY);
    let is_ours = || parse_manifest(store, &copy, &read_checked(store, &copy).unwrap_or_default()).is_ok();
    Ok(entries.iter().all(|entry| entry.name != MANIFEST_COPY) || is_ours())
}

/// Writes the first manifest, unless another process did; whether it was written.
fn begin(storage: &Storage, requested: &StoreAttributes) -> Result<bool> {
    if let Some(bucket) = storage.bucket() {
        let path = storage.join(METADATA);
        if !bucket.write_new(&path, manifest_bytes(requested)).map_err(Error::io("write", path))? {
            return Ok(false);
        }
    }
    write_manifest(storage, requested)?;
    Ok(true)
}

/// The manifest, or its copy if it is damaged; then the copy takes its place.
pub(super) fn found_manifest(storage: &Storage) -> Result<StoreAttributes> {
    let error = match read_manifest(storage) {
        Ok(found) => return Ok(found),
        Err(error @ (Error::Manifest { .. } | Error::NotAStore { .. } | Error::FormatVersion { .. })) => error,
        Err(error) => return Err(error),
    };
    let path = storage.join(MANIFEST_COPY);
    let bytes = read_checked(storage, &path).unwrap_or_default();
    match (parse_manifest(storage, &path, &bytes), error) {
        (Ok(found), _) => {
            storage.write(&storage.join(METADATA), bytes)?;
            Ok(found)
        }
        (Err(_), Error::Manifest { path, reason }) => Err(Error::ManifestLost { path, reason }),
        (Err(_), Error::NotAStore { path, reason, .. }) => {
            Err(Error::NotAStore { path, reason, advice: "pass --store a folder that does not exist yet" })
        }
        (Err(_), error) => Err(error),
    }
}

/// Whether the manifest is the one that was found.
fn is_still(storage: &Storage, found: &StoreAttributes) -> bool {
    read_manifest(storage).is_ok_and(|now| now.checksum == found.checksum)
}

/// Goes on from what was found; `None` if it changed meanwhile.
fn proceed(storage: &Storage, found: &StoreAttributes, requested: &StoreLayout) -> Result<Option<Ready>> {
    let wanted = requested.attributes();
    let layout = requested.arranged_as(found)?;
    if found.cache_id == wanted.cache_id && layout.attributes().cases == found.cases {
        return if found.complete { opened(storage, found, layout) } else { Ok(Some(Ready::Unfinished(Box::new(layout)))) };
    }
    if found.complete && previous::grows(found, requested) {
        Store::open_at(storage.clone(), None)?;
        return leave_finished(storage, found, layout);
    }
    if !found.complete && rearrange(storage, found, &layout)? {
        return Ok(Some(Ready::Unfinished(Box::new(layout))));
    }
    Err(Error::OtherConfig { path: storage.root().into(), differences: differences_between(found, wanted) })
}

/// A finished store of the requested config: opened, or, if files of it were lost, to be filled again.
fn opened(storage: &Storage, found: &StoreAttributes, layout: StoreLayout) -> Result<Option<Ready>> {
    match Store::open_at(storage.clone(), None) {
        Err(Error::Damaged { .. } | Error::Missing { .. }) if check_hash(storage, found, CHECKSUMS_TABLE).is_ok() => {
            leave_finished(storage, found, layout)
        }
        store => {
            let store = store?;
            // A worker may have been killed while it finished the store.
            tidy(storage)?;
            Ok(Some(Ready::Complete(Box::new(store))))
        }
    }
}

/// Removes what only an unfinished store has.
pub(super) fn tidy(storage: &Storage) -> Result<()> {
    previous::remove(storage)?;
    progress::remove(storage)?;
    storage.tidy_and_sync()
}

/// Keeps what a finished store knows in `previous/` and says that it is not complete any more.
fn leave_finished(storage: &Storage, found: &StoreAttributes, layout: StoreLayout) -> Result<Option<Ready>> {
    previous::keep(storage, found)?;
    if !is_still(storage, found) {
        return Ok(None);
    }
    write_manifest(storage, layout.attributes())?;
    storage.sync_folder(storage.root())?;
    Ok(Some(Ready::Unfinished(Box::new(layout))))
}

/// Changes an unfinished store's layout if only its scans differ: some are left out, added, or replaced by other files. What is stored of the
/// others is kept. Returns whether it is; not if nothing would be left of what is stored.
fn rearrange(storage: &Storage, found: &StoreAttributes, layout: &StoreLayout) -> Result<bool> {
    let wanted = layout.attributes();
    let key = progress::case_key;
    let same = |case: &&CaseLayout| wanted.cases.contains(case) && key(found, case) == key(wanted, case);
    if found.config != wanted.config {
        return Ok(false);
    }
    let nothing_is_lost = match previous::manifest(storage)? {
        Some(before) => previous::grows(&before, layout),
        None => true,
    };
    let before = StoreLayout::of(found)?;
    // What is stored was made with the projection of the scans that were sampled.
    let keeps = found.cases.iter().any(|case| same(&case)) && found.rung_sample == wanted.rung_sample;
    if !nothing_is_lost || (!keeps && holds_shards(storage, &before)?) {
        return Ok(false);
    }
    if !is_still(storage, found) {
        return Err(Error::Changed { path: storage.root().into() });
    }
    for split in Split::ALL {
        // In the order of the rows, each of which moves to a lower one, if at all.
        let kept = before.cases_of(split).filter(|(case, _)| same(&case)).filter_map(|(case, rows)| {
            let now = layout.case_rows(split, &case.case).ok()?;
            Some(rows.clone().zip(now))
        });
        let moves: Vec<(usize, usize)> = kept.flatten().collect();
        for kind in ArrayKind::all(&wanted.config) {
            move_shards(storage, [&before, layout], split, kind, &moves)?;
        }
        for (case, _) in before.cases_of(split).filter(|(case, _)| !same(&case)) {
            if let Some(folder) = mask_shard(storage, split, &case.case).parent() {
                storage.remove_folder(folder)?;
            }
        }
    }
    write_manifest(storage, wanted)?;
    storage.sync_folder(storage.root())?;
    Ok(true)
}

fn holds_shards(storage: &Storage, layout: &StoreLayout) -> Result<bool> {
    for split in Split::ALL {
        for kind in ArrayKind::all(&layout.attributes().config) {
            if !shards_in(storage, &layout.array(split, kind))?.is_empty() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Renames an array's shards, each a pair of its row before and now, and removes the others. If it is interrupted, what lies in a wrong place
/// is found by its checksums.
fn move_shards(
    storage: &Storage,
    [before, now]: [&StoreLayout; 2],
    split: Split,
    kind: ArrayKind,
    moves: &[(usize, usize)],
) -> Result<()> {
    let [from, to] = [before, now].map(|layout| layout.array(split, kind));
    let there = shards_in(storage, &from)?;
    for &row in there.iter().filter(|row| !moves.iter().any(|(kept, _)| kept == *row)) {
        storage.remove(&storage.join(from.shard_path(row)))?;
    }
    for &(row, moved) in moves.iter().filter(|(row, moved)| row != moved && there.contains(row)) {
        let [from, to] = [from.shard_path(row), to.shard_path(moved)].map(|below| storage.join(below));
        match storage.rename(&from, &to) {
            // Another process did.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => other.map_err(Error::io("move", &from))?,
        }
    }
    Ok(())
}
