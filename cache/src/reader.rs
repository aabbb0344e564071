//! Batches for training, read from disk each time or kept in memory after the first read.

use crate::arrays::ArrayKind;
use crate::batch::{Batch, BatchParts, Item, Values};
use crate::error::Result;
use crate::number;
use crate::store::{BatchItem, Store};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::StoreDtype;
use std::sync::{Arc, OnceLock};

/// Most batches that are fetched ahead from a bucket.
const BATCHES_AHEAD: usize = 8;

pub use sam_ladder_schemas::read_mode::ReadMode;

/// Reads batches of one split.
#[derive(Debug)]
pub struct Reader {
    store: Arc<Store>,
    split: Split,
    /// What its batches have.
    parts: BatchParts,
    kept: Option<Vec<OnceLock<Kept>>>,
}

/// One variant of one slice, as stored.
#[derive(Debug)]
struct Kept {
    embeddings: Vec<u16>,
    images: Vec<u16>,
    /// Empty if they are not asked for.
    rungs: Vec<u16>,
    /// For 8-bit numbers: scales and offsets of the embeddings' channels, of the image's and of the rungs'.
    quantization: [Vec<f32>; 3],
    labels: Vec<u8>,
    /// Empty if they are not asked for.
    half_labels: Vec<u8>,
}

impl Reader {
    /// A reader of a split, with labels at a quarter of the image's side and without rungs. Nothing is read yet; `Resident` keeps each slice and variant after the first read.
    pub fn new(store: Arc<Store>, split: Split, mode: ReadMode) -> Reader {
        Self::of(store, split, mode, BatchParts::default())
    }

    /// As [`Self::new`], and its batches have these parts.
    ///
    /// # Errors
    /// [`crate::Error::Absent`] for a store without them.
    pub fn with(store: Arc<Store>, split: Split, mode: ReadMode, parts: BatchParts) -> Result<Reader> {
        store.check_parts(parts)?;
        Ok(Self::of(store, split, mode, parts))
    }

    fn of(store: Arc<Store>, split: Split, mode: ReadMode, parts: BatchParts) -> Reader {
        let items = store.slices(split).len() * store.variants(split).len();
        let keep = match mode {
            ReadMode::Stream => false,
            ReadMode::Resident => true,
            ReadMode::Auto => (items as u64) * store.item_bytes(parts) <= available_memory() / 2,
        };
        let kept = keep.then(|| (0..items).map(|_| OnceLock::new()).collect());
        Reader { store, split, parts, kept }
    }

    /// Whether items are kept in memory.
    pub fn is_resident(&self) -> bool {
        self.kept.is_some()
    }

    /// As [`Store::read_batch`], for the reader's split, with the parts that the reader is made with.
    ///
    /// # Errors
    /// As [`Store::read_batch`].
    pub fn read_batch(&self, picks: &[(u32, u32)], batch: &mut Batch) -> Result<()> {
        if self.parts.rungs != batch.rungs.is_some() {
            batch.rungs = self.parts.rungs.then(Values::default);
        }
        if self.parts.half_labels != batch.half_labels.is_some() {
            batch.half_labels = self.parts.half_labels.then(Vec::new);
        }
        let Some(kept) = &self.kept else { return self.store.read_batch(self.split, picks, batch) };
        if self.store.fits_cache(picks.len(), self.parts) {
            self.fetch_ahead(picks)?;
        }
        self.store.fill_batch(picks, batch, |pick, item| {
            let stored = self.kept(kept, pick)?;
            item.embeddings.words.copy_from_slice(&stored.embeddings);
            item.images.words.copy_from_slice(&stored.images);
            let [of_embeddings, of_image, of_rungs] = &stored.quantization;
            item.embeddings.quantization.copy_from_slice(of_embeddings);
            item.images.quantization.copy_from_slice(of_image);
            if let Some(rungs) = item.rungs {
                rungs.words.copy_from_slice(&stored.rungs);
                rungs.quantization.copy_from_slice(of_rungs);
            }
            item.labels.copy_from_slice(&stored.labels);
            if let Some(half_labels) = item.half_labels {
                half_labels.copy_from_slice(&stored.half_labels);
            }
            Ok(())
        })
    }

    /// As [`Store::around`], for the reader's split.
    pub fn around(&self, row: u32) -> [u32; 2] {
        self.store.around(self.split, row)
    }

    /// As [`Store::read_embeddings`], for the reader's split. Where items are kept, they are kept whole.
    ///
    /// # Errors
    /// As [`Store::read_batch`].
    pub fn read_embeddings(&self, picks: &[(u32, u32)], values: &mut Values) -> Result<()> {
        let Some(kept) = &self.kept else { return self.store.read_embeddings(self.split, picks, values) };
        if self.store.fits_cache(picks.len(), self.parts) {
            self.fetch_ahead(picks)?;
        }
        self.store.fill_embeddings(picks, values, |pick, item| {
            let stored = self.kept(kept, pick)?;
            item.words.copy_from_slice(&stored.embeddings);
            item.quantization.copy_from_slice(&stored.quantization[0]);
            Ok(())
        })
    }

    /// An item that is kept, which is read if it is not there yet.
    fn kept<'a>(&self, kept: &'a [OnceLock<Kept>], pick: (u32, u32)) -> Result<&'a Kept> {
        self.store.check_pick(self.split, pick.0, pick.1)?;
        let slot = &kept[pick.0 as usize * self.store.variants(self.split).len() + pick.1 as usize];
        match slot.get() {
            Some(stored) => Ok(stored),
            None => {
                let stored = self.read(pick)?;
                Ok(slot.get_or_init(|| stored))
            }
        }
    }

    /// Number of batches of `batch_size` by which [`Self::fetch_ahead`] may run ahead of [`Self::read_batch`]: as many as fit half of the
    /// cache on the local disk, with an upper limit; 0 for a store in a folder.
    pub fn batches_ahead(&self, batch_size: usize) -> usize {
        (1..=BATCHES_AHEAD).rev().find(|&batches| self.store.fits_cache(batches * batch_size, self.parts)).unwrap_or(0)
    }

    /// As [`Store::fetch_ahead`], for what is not in memory.
    ///
    /// # Errors
    /// As [`Store::fetch_ahead`].
    pub fn fetch_ahead(&self, picks: &[(u32, u32)]) -> Result<()> {
        let Some(kept) = &self.kept else { return self.store.fetch_ahead(self.split, picks, self.parts) };
        let num_variants = self.store.variants(self.split).len();
        let slot = |pick: &(u32, u32)| kept.get(pick.0 as usize * num_variants + pick.1 as usize);
        let missing: Vec<_> = picks.iter().copied().filter(|pick| slot(pick).is_none_or(|slot| slot.get().is_none())).collect();
        self.store.fetch_ahead(self.split, &missing, self.parts)
    }

    /// As [`Self::fetch_ahead`], for [`Self::read_embeddings`].
    ///
    /// # Errors
    /// As [`Store::fetch_ahead`].
    pub fn fetch_embeddings_ahead(&self, picks: &[(u32, u32)]) -> Result<()> {
        match &self.kept {
            None => self.store.fetch_embeddings_ahead(self.split, picks),
            Some(_) => self.fetch_ahead(picks),
        }
    }

    fn read(&self, pick: (u32, u32)) -> Result<Kept> {
        let config = self.store.config();
        let words = |kind: ArrayKind| vec![0; number::words(kind.item_len(config), config.dtype)];
        let pairs = |kind: ArrayKind| vec![0.0; if config.dtype == StoreDtype::Q8 { 2 * kind.channels(config) } else { 0 }];
        let (rungs, of_rungs) =
            if self.parts.rungs { (words(ArrayKind::Rungs), pairs(ArrayKind::Rungs)) } else { (Vec::new(), Vec::new()) };
        let mut kept = Kept {
            embeddings: words(ArrayKind::Embeddings),
            images: words(ArrayKind::Images),
            rungs,
            quantization: [pairs(ArrayKind::Embeddings), pairs(ArrayKind::Images), of_rungs],
            labels: vec![0; ArrayKind::Labels.item_len(config)],
            half_labels: vec![0; if self.parts.half_labels { ArrayKind::HalfLabels.item_len(config) } else { 0 }],
        };
        let [of_embeddings, of_image, of_rungs] = &mut kept.quantization;
        let item = BatchItem {
            embeddings: Item { words: &mut kept.embeddings, quantization: of_embeddings },
            images: Item { words: &mut kept.images, quantization: of_image },
            labels: &mut kept.labels,
            half_labels: self.parts.half_labels.then_some(&mut kept.half_labels),
            rungs: self.parts.rungs.then_some(Item { words: &mut kept.rungs, quantization: of_rungs }),
        };
        self.store.read_item(self.split, pick, item)?;
        Ok(kept)
    }
}

/// Bytes of memory available without swapping (`MemAvailable` of Linux); 0, and so never resident, if unknown.
fn available_memory() -> u64 {
    let kilobytes = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kilobytes.unwrap_or(0) * 1024
}
