//! A batch from a store, in the stored number format; it becomes float32 where it is used.

use crate::arrays::ArrayKind;
use crate::error::{Error, Result};
use crate::number;
use rayon::prelude::*;
use sam_ladder_schemas::precompute::{PrecomputeConfig, StoreDtype};

/// Values that one task converts to float32.
const CHUNK: usize = 1 << 16;

/// What batches have of a store, in addition to embeddings and images.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BatchParts {
    /// The rungs.
    pub rungs: bool,
    /// Labels at half the image's side.
    pub half_labels: bool,
}

impl BatchParts {
    /// The parts that either has.
    pub fn union(self, other: BatchParts) -> BatchParts {
        BatchParts { rungs: self.rungs || other.rungs, half_labels: self.half_labels || other.half_labels }
    }

    /// Whether arrays of this kind are read.
    pub(crate) fn has(self, kind: ArrayKind) -> bool {
        match kind {
            ArrayKind::Embeddings | ArrayKind::Images | ArrayKind::Labels | ArrayKind::Quantization => true,
            ArrayKind::Rungs => self.rungs,
            ArrayKind::HalfLabels => self.half_labels,
        }
    }
}

/// A batch of slices for stage two; its memory is reused.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Batch {
    /// `[b, channels, g, g]`, 256 channels of SAM's encoders, g = image_size / 16.
    pub embeddings: Values,
    /// `[b, s, s]`, s = image_size; `[b, c, s, s]` where images have more than one channel.
    pub images: Values,
    /// Classes, `[b, s/4, s/4]`.
    pub labels: Vec<u8>,
    /// Classes, `[b, s/2, s/2]`, only if they are asked for, as with the rungs.
    pub half_labels: Option<Vec<u8>>,
    /// `[b, rung, c, g, g]`: tokens after some of the encoder's blocks. They are read only if they are asked for, which this being `Some` says.
    pub rungs: Option<Values>,
    /// Embeddings of the slices before and after each in its case, `[b, 2, 256, g, g]`; empty unless they were asked for.
    pub around: Values,
}

impl Batch {
    /// A batch that is to be read with these parts.
    pub fn with(parts: BatchParts) -> Batch {
        Batch { rungs: parts.rungs.then(Values::default), half_labels: parts.half_labels.then(Vec::new), ..Batch::default() }
    }

    /// A batch that is to be read with the store's rungs.
    pub fn with_rungs() -> Batch {
        Batch::with(BatchParts { rungs: true, ..BatchParts::default() })
    }

    /// What is read of a store.
    pub(crate) fn parts(&self) -> BatchParts {
        BatchParts { rungs: self.rungs.is_some(), half_labels: self.half_labels.is_some() }
    }

    /// The batch that a store of this config would return if these tensors were written to it; needs no store. Labels and rungs are left out.
    ///
    /// `embeddings` `[b, 256, g, g]`, `images` `[b, c, s, s]`.
    ///
    /// # Errors
    /// [`Error::Values`] for tensors that are not whole items or differ in their number of items, and for values that are not finite in the
    /// store's number format.
    pub fn as_stored(config: &PrecomputeConfig, embeddings: &[f32], images: &[f32]) -> Result<Batch> {
        let of = |kind: ArrayKind, values: &[f32]| {
            Values::as_stored(config.dtype, kind.item_len(config), kind.channels(config), values)
                .map_err(|reason| Error::Values { what: kind.name().into(), reason })
        };
        let batch = Batch {
            embeddings: of(ArrayKind::Embeddings, embeddings)?,
            images: of(ArrayKind::Images, images)?,
            labels: Vec::new(),
            half_labels: None,
            rungs: None,
            around: Values::default(),
        };
        let items = [&batch.embeddings, &batch.images].map(|values| values.len() / values.item_len);
        if items[0] != items[1] {
            let reason = format!("{} items, and {} images", items[0], items[1]);
            return Err(Error::Values { what: ArrayKind::Embeddings.name().into(), reason });
        }
        Ok(batch)
    }

    /// The same with the rungs `[b, rung, c, g, g]`, as a store would return them.
    ///
    /// # Errors
    /// As [`Self::as_stored`].
    pub fn and_rungs(self, config: &PrecomputeConfig, rungs: &[f32]) -> Result<Batch> {
        let kind = ArrayKind::Rungs;
        let rungs = Values::as_stored(config.dtype, kind.item_len(config), kind.channels(config), rungs);
        Ok(Batch { rungs: Some(rungs.map_err(|reason| Error::Values { what: kind.name().into(), reason })?), ..self })
    }

    /// The same with the embeddings of the slices before and after each, `[b, 2, 256, g, g]`, as a store would return them.
    ///
    /// # Errors
    /// As [`Self::as_stored`].
    pub fn with_around(self, config: &PrecomputeConfig, embeddings: &[f32]) -> Result<Batch> {
        let kind = ArrayKind::Embeddings;
        let around = Values::as_stored(config.dtype, kind.item_len(config), kind.channels(config), embeddings);
        Ok(Batch { around: around.map_err(|reason| Error::Values { what: kind.name().into(), reason })?, ..self })
    }
}

/// Numbers in a store's format, item after item.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    dtype: StoreDtype,
    /// Values of one item.
    item_len: usize,
    /// Pairs of bytes, so that every number format is aligned.
    words: Vec<u16>,
    /// For 8-bit numbers the scale and offset of each channel, `[b, channels, 2]`; otherwise empty.
    quantization: Vec<f32>,
}

impl Default for Values {
    fn default() -> Self {
        Values { dtype: StoreDtype::F32, item_len: 1, words: Vec::new(), quantization: Vec::new() }
    }
}

/// Memory of one item.
pub(crate) struct Item<'a> {
    pub(crate) words: &'a mut [u16],
    /// Scale and offset of each channel; empty except for 8-bit numbers.
    pub(crate) quantization: &'a mut [f32],
}

impl Values {
    /// Items of `item_len` values in `channels` channels, rounded as in a store; the error is in words.
    fn as_stored(dtype: StoreDtype, item_len: usize, channels: usize, values: &[f32]) -> Result<Values, String> {
        if !values.len().is_multiple_of(item_len) {
            return Err(format!("{} values are no whole number of items of {item_len}", values.len()));
        }
        let mut stored = Values::default();
        stored.resize(dtype, values.len() / item_len, item_len, channels);
        let not_finite = |at: usize| format!("value {at} is not finite as {dtype:?}");
        let round = |(item, values): (Item, &[f32])| -> Result<(), String> {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(item.words);
            if dtype == StoreDtype::Q8 {
                let (codes, pairs) = number::quantize(values, channels).map_err(not_finite)?;
                bytes[..codes.len()].copy_from_slice(&codes);
                item.quantization.copy_from_slice(&pairs);
            } else {
                bytes.copy_from_slice(&number::encode(values, dtype).map_err(not_finite)?);
            }
            Ok(())
        };
        stored.items_mut().zip(values.par_chunks(item_len)).try_for_each(round)?;
        Ok(stored)
    }

    /// Makes room for `items` items of `item_len` values in `channels` channels, whose content is unspecified.
    pub(crate) fn resize(&mut self, dtype: StoreDtype, items: usize, item_len: usize, channels: usize) {
        (self.dtype, self.item_len) = (dtype, item_len);
        self.words.resize(items * number::words(item_len, dtype), 0);
        self.quantization.resize(if dtype == StoreDtype::Q8 { items * channels * 2 } else { 0 }, 0.0);
    }

    /// Leaves nothing but the memory.
    pub(crate) fn clear(&mut self) {
        (self.dtype, self.item_len) = (StoreDtype::F32, 1);
        self.words.clear();
        self.quantization.clear();
    }

    /// The items, for writing in parallel.
    pub(crate) fn items_mut(&mut self) -> impl IndexedParallelIterator<Item = Item<'_>> {
        let words = number::words(self.item_len, self.dtype);
        let items = self.words.len() / words;
        let pairs = self.quantization.len() / items.max(1);
        let mut rest = self.quantization.as_mut_slice();
        let quantization: Vec<&mut [f32]> = (0..items)
            .map(|_| {
                let (first, others) = std::mem::take(&mut rest).split_at_mut(pairs);
                rest = others;
                first
            })
            .collect();
        self.words.par_chunks_mut(words).zip(quantization).map(|(words, quantization)| Item { words, quantization })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.words.len() / number::words(self.item_len, self.dtype) * self.item_len
    }

    /// The number format.
    pub fn dtype(&self) -> StoreDtype {
        self.dtype
    }

    /// The stored bytes, item after item; an item with an odd number of bytes is padded by one.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }

    /// For 8-bit numbers the scale and offset of each channel, `[b, channels, 2]`; otherwise empty.
    pub fn quantization(&self) -> &[f32] {
        &self.quantization
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// All values as float32, in order.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        if self.dtype == StoreDtype::Q8 {
            let words = number::words(self.item_len, self.dtype);
            let pairs = self.quantization.len() / (self.words.len() / words).max(1);
            values
                .par_chunks_mut(self.item_len)
                .zip(self.words.par_chunks(words))
                .zip(self.quantization.par_chunks(pairs.max(1)))
                .for_each(|((values, words), quantization)| number::dequantize(words, quantization, values));
        } else {
            values
                .par_chunks_mut(CHUNK)
                .zip(self.words.par_chunks(number::words(CHUNK, self.dtype)))
                .for_each(|(values, words)| number::decode(words, self.dtype, values));
        }
        values
    }
}
