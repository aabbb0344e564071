//! Writes the shards of a slice from new tensors and from stored chunks.

use super::{StoreWriter, lock};
use crate::arrays::{ArrayKind, ChunkEncoder};
use crate::error::{Error, Result};
use crate::{number, shard};
use rayon::prelude::*;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::StoreDtype;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The tensors of one slice, with all its variants or only the wanted ones.
#[derive(Debug, Clone, Copy)]
pub struct SliceTensors<'a> {
    /// `[variant, 256, g, g]`.
    pub embeddings: &'a [f32],
    /// `[variant, s, s]`.
    pub images: &'a [f32],
    /// `[variant, s/4, s/4]`.
    pub labels: &'a [u8],
    /// `[variant, s/2, s/2]`; empty for a store without them.
    pub half_labels: &'a [u8],
    /// `[variant, rung, c, g, g]`; empty for a store without rungs.
    pub rungs: &'a [f32],
}

/// What must be computed of a slice; the rest is already stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Indices of the variants whose images and labels are wanted, ascending.
    pub variants: Vec<usize>,
    /// Those among them whose embeddings, and rungs if the store has any, are wanted.
    pub embeddings: Vec<usize>,
}

impl Wanted {
    /// All of `num_variants`.
    pub fn all(num_variants: usize) -> Self {
        Wanted { variants: (0..num_variants).collect(), embeddings: (0..num_variants).collect() }
    }

    fn of(&self, kind: ArrayKind) -> &[usize] {
        match kind {
            // Scales and offsets belong to all tensors, so a slice that lacks them needs all.
            ArrayKind::Embeddings | ArrayKind::Quantization | ArrayKind::Rungs => &self.embeddings,
            ArrayKind::Images | ArrayKind::Labels | ArrayKind::HalfLabels => &self.variants,
        }
    }
}

impl StoreWriter {
    /// What must be computed of a slice: every variant, minus what an earlier store or a damaged shard still holds. Without either this is
    /// everything, even of a slice that is done, because it is encoded together with its neighbours, as in an uninterrupted run.
    pub fn wanted(&self, split: Split, row: usize) -> Wanted {
        let num_variants = self.layout.num_variants(split);
        if self.previous.is_none() {
            return Wanted::all(num_variants);
        }
        let mut variants = BTreeSet::new();
        let mut embeddings = BTreeSet::new();
        for (i, kind) in ArrayKind::all(&self.layout.attributes().config).into_iter().enumerate() {
            if self.is_shard_done(split, i, row) {
                continue;
            }
            let stored = self.stored_chunks(split, kind, row);
            let lacking: Vec<usize> =
                (0..num_variants).filter(|&variant| stored.get(variant).is_none_or(Option::is_none)).collect();
            variants.extend(&lacking);
            if matches!(kind, ArrayKind::Embeddings | ArrayKind::Quantization | ArrayKind::Rungs) {
                embeddings.extend(lacking);
            }
        }
        Wanted { variants: variants.into_iter().collect(), embeddings: embeddings.into_iter().collect() }
    }

    /// Stored chunks of a slice by variant, which need not be computed; empty if there are none.
    fn stored_chunks(&self, split: Split, kind: ArrayKind, row: usize) -> Vec<Option<Vec<u8>>> {
        self.previous.as_ref().map_or(vec![], |previous| previous.chunks(split, kind, row))
    }

    /// Writes the shards of a slice from all its variants; existing shards are kept.
    ///
    /// # Errors
    /// As [`Self::write_wanted`].
    pub fn write_slice(&self, split: Split, row: usize, tensors: &SliceTensors<'_>) -> Result<()> {
        self.write_wanted(split, row, &Wanted::all(self.layout.num_variants(split)), tensors)
    }

    /// Writes the shards of a slice from the tensors that [`Self::wanted`] lists; existing shards are kept.
    ///
    /// # Errors
    /// [`Error::Values`] for tensors of the wrong size and for values that are not finite in the store's number format;
    /// [`Error::File`] that names the file, after which the slice can be written again.
    pub fn write_wanted(&self, split: Split, row: usize, wanted: &Wanted, tensors: &SliceTensors<'_>) -> Result<()> {
        self.check(split, row, wanted, tensors)?;
        let named = |kind: ArrayKind| name_of(split, kind, row);
        let embeddings = self.to_stored(ArrayKind::Embeddings, &wanted.embeddings, tensors.embeddings, named)?;
        let images = self.to_stored(ArrayKind::Images, &wanted.variants, tensors.images, named)?;
        let rungs = match tensors.rungs {
            // Of no channels there are no items.
            [] => Vec::new(),
            rungs => self.to_stored(ArrayKind::Rungs, &wanted.embeddings, rungs, named)?,
        };
        let mut shards = Vec::new();
        for (i, kind) in ArrayKind::all(&self.layout.attributes().config).into_iter().enumerate() {
            if self.is_shard_done(split, i, row) {
                continue;
            }
            let encoder = &self.arrays[split as usize][i];
            let made = self.encode(encoder, kind, wanted, tensors, (&embeddings, &images, &rungs))?;
            let mut chunks = self.stored_chunks(split, kind, row);
            chunks.resize(self.layout.num_variants(split), None);
            for (&variant, chunk) in wanted.of(kind).iter().zip(made) {
                chunks[variant] = Some(chunk);
            }
            let chunks: Vec<Vec<u8>> = chunks.into_iter().flatten().collect();
            if chunks.len() != self.layout.num_variants(split) {
                let reason =
                    format!("{} variants of it are neither given nor stored", self.layout.num_variants(split) - chunks.len());
                return Err(Error::Values { what: named(kind), reason });
            }
            let checksums = chunks.iter().map(|chunk| shard::checksum_of(chunk)).collect::<Vec<u32>>();
            shards.push((i, checksums, encoder.spec().shard_path(row), shard::assemble(&chunks)));
        }
        // In parallel: a disk syncs them together, a server accepts them at the same time.
        let write = |(i, checksums, path, bytes): (usize, Vec<u32>, PathBuf, Vec<u8>)| {
            self.storage.write(&self.storage.join(path), bytes)?;
            Ok((i, checksums))
        };
        let written: Vec<(usize, Vec<u32>)> = shards.into_par_iter().map(write).collect::<Result<_>>()?;
        self.note(split, row, written)
    }

    fn is_shard_done(&self, split: Split, array: usize, row: usize) -> bool {
        lock(&self.state).done[split as usize][array].contains_key(&row)
    }

    /// Checks a slice's tensors: that there is such a slice, their sizes, and the labels' classes.
    fn check(&self, split: Split, row: usize, wanted: &Wanted, tensors: &SliceTensors<'_>) -> Result<()> {
        let config = &self.layout.attributes().config;
        if row >= self.layout.num_slices(split) {
            let reason = format!("the split has {} slices", self.layout.num_slices(split));
            return Err(Error::Values { what: format!("{split} slice {row}"), reason });
        }
        let SliceTensors { embeddings, images, labels, half_labels, rungs } = *tensors;
        let half_len = config.half_labels_len();
        let lens = [
            (ArrayKind::Embeddings, embeddings.len(), config.embeddings_len()),
            (ArrayKind::Images, images.len(), config.image_len()),
            (ArrayKind::Labels, labels.len(), config.low_res_size().pow(2)),
            (ArrayKind::HalfLabels, half_labels.len(), half_len),
            (ArrayKind::Rungs, rungs.len(), config.rungs_len()),
        ];
        for (kind, len, item_len) in lens {
            let expected = wanted.of(kind).len() * item_len;
            if len != expected {
                let reason = format!("expected {expected} values, got {len}");
                return Err(Error::Values { what: name_of(split, kind, row), reason });
            }
        }
        let (classes, ignored) = (config.num_classes(), config.ignored_class());
        for (kind, labels) in [(ArrayKind::Labels, labels), (ArrayKind::HalfLabels, half_labels)] {
            if let Some(class) = labels.iter().find(|&&class| usize::from(class) >= classes && Some(class) != ignored) {
                let reason = format!("label {class} is not below the number of classes {classes}");
                return Err(Error::Values { what: name_of(split, kind, row), reason });
            }
        }
        Ok(())
    }

    /// The chunks of an array's wanted variants, encoded.
    fn encode(
        &self,
        encoder: &ChunkEncoder,
        kind: ArrayKind,
        wanted: &Wanted,
        tensors: &SliceTensors<'_>,
        (embeddings, images, rungs): (&[Stored], &[Stored], &[Stored]),
    ) -> Result<Vec<Vec<u8>>> {
        match kind {
            ArrayKind::Labels | ArrayKind::HalfLabels => {
                let labels = if kind == ArrayKind::Labels { tensors.labels } else { tensors.half_labels };
                let items = labels.par_chunks(kind.item_len(&self.layout.attributes().config));
                items.map(|item| encoder.encode(item)).collect()
            }
            ArrayKind::Images => images.par_iter().map(|item| encoder.encode(&item.bytes)).collect(),
            ArrayKind::Embeddings => embeddings.par_iter().map(|item| encoder.encode(&item.bytes)).collect(),
            ArrayKind::Rungs => rungs.par_iter().map(|item| encoder.encode(&item.bytes)).collect(),
            ArrayKind::Quantization => {
                let image_of = |variant| wanted.variants.iter().zip(images).find(|(v, _)| *v == variant).map(|(_, item)| item);
                let pairs = wanted.of(kind).iter().zip(embeddings).enumerate().map(|(at, (variant, item))| {
                    let of_image = image_of(variant).map_or(&[][..], |item| &item.quantization);
                    let of_rungs = rungs.get(at).map_or(&[][..], |item| &item.quantization);
                    encoder.encode(bytemuck::cast_slice(&[&item.quantization, of_image, of_rungs].concat()))
                });
                pairs.collect()
            }
        }
    }

    /// The given variants' values in the store's number format, one variant a task.
    fn to_stored(
        &self,
        kind: ArrayKind,
        variants: &[usize],
        values: &[f32],
        named: impl Fn(ArrayKind) -> String + Sync,
    ) -> Result<Vec<Stored>> {
        let config = &self.layout.attributes().config;
        let encode = |item: &[f32]| match config.dtype {
            StoreDtype::Q8 => number::quantize(item, kind.channels(config)),
            dtype => number::encode(item, dtype).map(|bytes| (bytes, Vec::new())),
        };
        let items = values.par_chunks(kind.item_len(config)).zip(variants);
        items
            .map(|(item, variant)| match encode(item) {
                Ok((bytes, quantization)) => Ok(Stored { bytes, quantization }),
                Err(at) => {
                    // Only a finite value may be one in a format with a wider range.
                    let advice = if item[at].is_finite() { ", or give --dtype bf16 or f32" } else { "" };
                    let reason =
                        format!("value {} is not finite as {:?}; check the scan and the weights{advice}", item[at], config.dtype);
                    Err(Error::Values { what: format!("{}, variant {variant}", named(kind)), reason })
                }
            })
            .collect()
    }
}

/// An array's part of a slice, for messages.
fn name_of(split: Split, kind: ArrayKind, row: usize) -> String {
    format!("{split}/{} of slice {row}", kind.name())
}

/// One variant of a tensor in the store's number format.
struct Stored {
    bytes: Vec<u8>,
    /// For 8-bit numbers, the scale and offset of each channel.
    quantization: Vec<f32>,
}
