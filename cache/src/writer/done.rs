//! What is done of a store that is being written: the shards that are there and agree with the records of their writers.

use super::progress::ShardRecords;
use super::{StoreWriter, lock};
use crate::arrays::{ArrayKind, ArraySpec};
use crate::error::{Error, Result};
use crate::shard;
use crate::storage::Storage;
use crate::store::shards_in;
use rayon::prelude::*;
use sam_ladder_schemas::classes::Split;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// Longest time for which shards in a bucket stay unrecorded: a process that is killed writes them again. In a folder each slice is recorded at
/// once; in a bucket that would be a third more requests.
const RECORD_EVERY: Duration = Duration::from_secs(10);

/// For each split and array, the checksums of the shards that are there and agree with their records, by row.
pub(super) type Done = [Vec<HashMap<usize, Vec<u32>>>; 2];

pub(super) struct State {
    pub(super) done: Done,
    /// Shards, by split, array and row, that were read and found harmed, and are not written again yet. A look at their ends does not tell.
    harmed: HashSet<(Split, usize, usize)>,
    /// What this writer has written of each case, by split.
    written: [BTreeMap<String, ShardRecords>; 2],
    /// The cases of which something is not recorded yet.
    unsaved: Vec<(Split, String)>,
    saved: Instant,
}

impl State {
    /// Nothing is done of `arrays` arrays in each split.
    pub(super) fn new(arrays: usize) -> Self {
        let none = || vec![HashMap::new(); arrays];
        State {
            done: [none(), none()],
            harmed: HashSet::new(),
            written: Default::default(),
            unsaved: vec![],
            saved: Instant::now(),
        }
    }
}

impl StoreWriter {
    /// Looks again at the written shards and their records: other processes may have written more.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn refresh(&self) -> Result<()> {
        let known = lock(&self.state).done.clone();
        self.look_again(&known)
    }

    /// As [`Self::refresh`], and compares every shard with its record, also those that were found right before.
    pub(super) fn check_again(&self) -> Result<()> {
        self.look_again(&Split::ALL.map(|split| vec![HashMap::new(); self.arrays[split as usize].len()]))
    }

    fn look_again(&self, known: &Done) -> Result<()> {
        let records = self.progress.shards()?;
        for split in Split::ALL {
            for (i, encoder) in self.arrays[split as usize].iter().enumerate() {
                let there: Vec<usize> = shards_in(&self.storage, encoder.spec())?.into_iter().collect();
                let look = |row: usize| {
                    if lock(&self.state).harmed.contains(&(split, i, row)) {
                        return Ok(None);
                    }
                    if let Some(checksums) = known[split as usize][i].get(&row) {
                        return Ok(Some((row, checksums.clone())));
                    }
                    let candidates = self.recorded_checksums(&records, split, i, row);
                    Ok(matching(&self.storage, encoder.spec(), row, candidates)?.map(|checksums| (row, checksums)))
                };
                let found: Vec<Option<_>> = there.into_par_iter().map(look).collect::<Result<_>>()?;
                lock(&self.state).done[split as usize][i] = found.into_iter().flatten().collect();
            }
        }
        Ok(())
    }

    /// The checksums that a shard may have, by the records of all writers.
    fn recorded_checksums(
        &self,
        records: &HashMap<String, Vec<ShardRecords>>,
        split: Split,
        array: usize,
        row: usize,
    ) -> Vec<Vec<u32>> {
        let kind = ArrayKind::all(&self.layout.attributes().config)[array];
        let Some((case, slice)) = self.layout.slice_of(split, row) else { return vec![] };
        let of_others = self.keys[split as usize].get(&case.case).and_then(|key| records.get(key));
        let of_slice = |record: &ShardRecords| record.get(&slice).and_then(|shards| shards.get(kind.name()).cloned());
        let mut all: Vec<Vec<u32>> = of_others.into_iter().flatten().filter_map(of_slice).collect();
        all.extend(lock(&self.state).written[split as usize].get(&case.case).and_then(of_slice));
        all.extend(self.previous.as_ref().and_then(|previous| previous.checksums(split, kind, row)));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether all shards of a slice are written.
    pub fn is_slice_done(&self, split: Split, row: usize) -> bool {
        lock(&self.state).done[split as usize].iter().all(|rows| rows.contains_key(&row))
    }

    /// Reads the shards of a slice that were there before, and compares every chunk with its record. What is wrong will be written again. Does
    /// nothing in a bucket, where no object is ever half-written.
    pub fn check_slice(&self, split: Split, row: usize) {
        if self.storage.bucket().is_some() {
            return;
        }
        for (i, encoder) in self.arrays[split as usize].iter().enumerate() {
            let recorded = lock(&self.state).done[split as usize][i].get(&row).cloned();
            let Some(checksums) = recorded else { continue };
            let file = self.storage.open(&self.storage.join(encoder.spec().shard_path(row)));
            if !file.is_ok_and(|file| shard::check_whole(&file, &checksums).is_ok()) {
                let state = &mut *lock(&self.state);
                state.done[split as usize][i].remove(&row);
                state.harmed.insert((split, i, row));
            }
        }
    }

    /// The checksums of an array, shard after shard; `None` unless all shards are done.
    pub(super) fn checksums_of(&self, split: Split, kind: ArrayKind) -> Option<Vec<u32>> {
        let state = lock(&self.state);
        let rows = &state.done[split as usize][kind.index(&self.layout.attributes().config)];
        (0..self.layout.num_slices(split)).map(|row| rows.get(&row).cloned()).collect::<Option<Vec<_>>>().map(|all| all.concat())
    }

    /// Notes what was written of a slice, by array, and records it if it is time.
    pub(super) fn note(&self, split: Split, row: usize, shards: Vec<(usize, Vec<u32>)>) -> Result<()> {
        let kinds = ArrayKind::all(&self.layout.attributes().config);
        if let Some((case, slice)) = self.layout.slice_of(split, row) {
            let state = &mut *lock(&self.state);
            let of_case = state.written[split as usize].entry(case.case.clone()).or_default();
            for (array, checksums) in shards {
                of_case.entry(slice).or_default().insert(kinds[array].name().into(), checksums.clone());
                state.harmed.remove(&(split, array, row));
                state.done[split as usize][array].insert(row, checksums);
            }
            let name = (split, case.case.clone());
            if !state.unsaved.contains(&name) {
                state.unsaved.push(name);
            }
        }
        self.save(self.storage.bucket().is_none())
    }

    /// Writes the records of what this writer has written, at once or if the last time is long ago.
    pub(super) fn save(&self, at_once: bool) -> Result<()> {
        let _saving = lock(&self.saving);
        let unsaved = {
            let state = &mut *lock(&self.state);
            if !at_once && state.saved.elapsed() < RECORD_EVERY {
                return Ok(());
            }
            state.saved = Instant::now();
            std::mem::take(&mut state.unsaved)
        };
        for (split, case) in unsaved {
            let record = lock(&self.state).written[split as usize].get(&case).cloned().unwrap_or_default();
            let saved = self.progress.write_shards(split, &case, self.key(split, &case)?, &record);
            if saved.is_err() {
                // Another worker had all of it, finished the store and removed the records.
                if self.is_finished() {
                    return Ok(());
                }
                lock(&self.state).unsaved.push((split, case));
                return saved;
            }
        }
        Ok(())
    }
}

/// The checksums of the shard of a row, if it agrees with one of the candidates: by its length, its index and its last chunk, which cost one
/// small read. If these do not decide, by every chunk's checksum.
fn matching(storage: &Storage, spec: &ArraySpec, row: usize, mut candidates: Vec<Vec<u32>>) -> Result<Option<Vec<u32>>> {
    let chunks = spec.chunks_per_shard();
    candidates.retain(|candidate| candidate.len() == chunks);
    if candidates.is_empty() {
        return Ok(None);
    }
    let path = storage.join(spec.shard_path(row));
    let (end, len) = match storage.read_end(&path, shard::end_len(chunks)) {
        // Of an empty object no part can be requested.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => return Ok(None),
        other => other.map_err(Error::io("read", &path))?,
    };
    let Ok(last) = shard::last_checksum(&end, len, chunks) else { return Ok(None) };
    candidates.retain(|candidate| candidate.last() == Some(&last));
    if candidates.len() > 1 {
        let found = storage.open(&path).ok().and_then(|file| shard::checksums(&file, chunks).ok());
        candidates.retain(|candidate| Some(candidate) == found.as_ref());
    }
    Ok(candidates.pop())
}
