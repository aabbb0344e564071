//! Batches for training, from disk each time or kept in memory once they were read.

use crate::error::Result;
use crate::layout::ArrayKind;
use crate::number;
use crate::store::{Batch, Store};
use sam_ladder_schemas::classes::Split;
use std::sync::{Arc, OnceLock};

/// Where batches come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadMode {
    /// From disk each time: memory holds a batch and the shards' indexes (48 bytes a slice and variant), however large the store.
    Stream,
    /// From disk once, then from memory, in the stored number format.
    Resident,
    /// `Resident` where the split takes at most half of the memory that is available, else `Stream`.
    #[default]
    Auto,
}

/// Reads batches of one split.
#[derive(Debug)]
pub struct Reader {
    store: Arc<Store>,
    split: Split,
    kept: Option<Vec<OnceLock<Kept>>>,
}

/// One variant of one slice, as stored.
#[derive(Debug)]
struct Kept {
    embeddings: Box<[u16]>,
    images: Box<[u16]>,
    labels: Box<[u8]>,
}

impl Reader {
    /// A reader of a split; nothing is read yet, `Resident` keeps each slice and variant when it is first drawn.
    pub fn new(store: Arc<Store>, split: Split, mode: ReadMode) -> Reader {
        let items = store.slices(split).len() * store.variants(split).len();
        let keep = match mode {
            ReadMode::Stream => false,
            ReadMode::Resident => true,
            ReadMode::Auto => (items as u64) * (item_bytes(&store) as u64) <= available_memory() / 2,
        };
        let kept = keep.then(|| (0..items).map(|_| OnceLock::new()).collect());
        Reader { store, split, kept }
    }

    /// The store that it reads.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether what was read is kept in memory.
    pub fn is_resident(&self) -> bool {
        self.kept.is_some()
    }

    /// As [`Store::read_batch`], of the reader's split.
    ///
    /// # Errors
    /// As [`Store::read_batch`].
    pub fn read_batch(&self, picks: &[(u32, u32)], batch: &mut Batch) -> Result<()> {
        let Some(kept) = &self.kept else { return self.store.read_batch(self.split, picks, batch) };
        let dtype = self.store.config().dtype;
        let num_variants = self.store.variants(self.split).len();
        self.store.fill_batch(picks, batch, |(row, variant), item| {
            self.store.check_pick(self.split, row, variant)?;
            let slot = &kept[row as usize * num_variants + variant as usize];
            let stored = match slot.get() {
                Some(stored) => stored,
                None => {
                    let stored = self.read((row, variant))?;
                    slot.get_or_init(|| stored)
                }
            };
            number::decode(&stored.embeddings, dtype, item.embeddings);
            number::decode(&stored.images, dtype, item.images);
            item.labels.copy_from_slice(&stored.labels);
            Ok(())
        })
    }

    fn read(&self, pick: (u32, u32)) -> Result<Kept> {
        let config = self.store.config();
        let words = |kind: ArrayKind| {
            let mut words = vec![0u16; kind.item_len(config) * config.dtype.bytes() / 2].into_boxed_slice();
            self.store.read_bytes(self.split, kind, pick, bytemuck::cast_slice_mut(&mut words))?;
            Ok(words)
        };
        let mut labels = vec![0; ArrayKind::Labels.item_len(config)].into_boxed_slice();
        self.store.read_bytes(self.split, ArrayKind::Labels, pick, &mut labels)?;
        Ok(Kept { embeddings: words(ArrayKind::Embeddings)?, images: words(ArrayKind::Images)?, labels })
    }
}

/// Bytes that one variant of one slice takes in memory.
fn item_bytes(store: &Store) -> usize {
    let config = store.config();
    let floats = ArrayKind::Embeddings.item_len(config) + ArrayKind::Images.item_len(config);
    floats * config.dtype.bytes() + ArrayKind::Labels.item_len(config)
}

/// Bytes of memory that can be had without swapping (`MemAvailable` of Linux); 0, and so never resident, where that is unknown.
fn available_memory() -> u64 {
    let kilobytes = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kilobytes.unwrap_or(0) * 1024
}
