//! Reading variants of slices, many at a time.

use super::{SplitArrays, Store};
use crate::arrays::ArrayKind;
use crate::batch::{Batch, BatchParts, Item, Values};
use crate::error::{Error, Result};
use crate::remote::Unread;
use crate::storage::{CONCURRENCY, wait};
use futures_util::{StreamExt, TryStreamExt, stream};
use rayon::prelude::*;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::StoreDtype;

/// Memory of one item of a batch.
pub(crate) struct BatchItem<'a> {
    pub(crate) embeddings: Item<'a>,
    pub(crate) images: Item<'a>,
    pub(crate) labels: &'a mut [u8],
    /// `None` if they are not asked for.
    pub(crate) half_labels: Option<&'a mut [u8]>,
    /// `None` if they are not asked for.
    pub(crate) rungs: Option<Item<'a>>,
}

impl Store {
    /// Reads the given (row, variant) pairs of a split, in their order, on all of rayon's threads, with the parts that `batch`
    /// asks for.
    ///
    /// `batch` is resized and overwritten; its memory is reused. After an error its content is unspecified.
    ///
    /// # Errors
    /// [`Error::Absent`] for a pair outside the arrays, and for parts that the store lacks; [`Error::Damaged`] with array, slice, case and
    /// variant; [`Error::Changed`] for a store that has changed since it was opened, so that the pair can no longer be read;
    /// [`Error::File`] for a bucket that does not answer.
    pub fn read_batch(&self, split: Split, picks: &[(u32, u32)], batch: &mut Batch) -> Result<()> {
        let parts = batch.parts();
        self.check_parts(parts)?;
        if self.fits_cache(picks.len(), parts) {
            self.fetch_ahead(split, picks, parts)?;
        }
        self.fill_batch(picks, batch, |pick, item| {
            self.check_pick(split, pick.0, pick.1)?;
            self.read_item(split, pick, item)
        })
    }

    /// As [`Self::read_batch`], with the embeddings of the slices around each, in the same variant.
    ///
    /// # Errors
    /// As [`Self::read_batch`].
    pub fn read_batch_around(&self, split: Split, picks: &[(u32, u32)], batch: &mut Batch) -> Result<()> {
        self.read_batch(split, picks, batch)?;
        let around = |&(row, variant): &(u32, u32)| self.around(split, row).map(|row| (row, variant));
        self.read_embeddings(split, &picks.iter().flat_map(around).collect::<Vec<_>>(), &mut batch.around)
    }

    /// The rows of the slices before and after a slice in its case; at an end of the case, the slice itself.
    pub fn around(&self, split: Split, row: u32) -> [u32; 2] {
        let case = |row: u32| self.slices(split).get(row as usize).map(|slice| &slice.case);
        let of_case =
            |other: Option<u32>| other.filter(|&other| case(other).is_some() && case(other) == case(row)).unwrap_or(row);
        [of_case(row.checked_sub(1)), of_case(row.checked_add(1))]
    }

    /// Reads only the embeddings of the given (row, variant) pairs.
    ///
    /// # Errors
    /// As [`Self::read_batch`].
    pub fn read_embeddings(&self, split: Split, picks: &[(u32, u32)], values: &mut Values) -> Result<()> {
        if self.fits_cache(picks.len(), BatchParts::default()) {
            self.fetch_embeddings_ahead(split, picks)?;
        }
        self.fill_embeddings(picks, values, |pick, item| {
            self.check_pick(split, pick.0, pick.1)?;
            self.read_bytes(split, ArrayKind::Embeddings, pick, bytemuck::cast_slice_mut(item.words))?;
            if self.config().dtype == StoreDtype::Q8 {
                let pairs = self.read_pairs(split, pick)?;
                item.quantization.copy_from_slice(&pairs[..item.quantization.len()]);
            }
            Ok(())
        })
    }

    /// Resizes `values` to the embeddings of `picks` and fills them in parallel.
    pub(crate) fn fill_embeddings(
        &self,
        picks: &[(u32, u32)],
        values: &mut Values,
        fill: impl Fn((u32, u32), Item<'_>) -> Result<()> + Sync,
    ) -> Result<()> {
        self.make_room(values, ArrayKind::Embeddings, picks.len());
        picks.into_par_iter().zip(values.items_mut()).try_for_each(|(&pick, item)| fill(pick, item))
    }

    /// Fetches the chunks of the given pairs from a bucket to the local disk, many at a time, only those of `parts`; does nothing for a store
    /// in a folder.
    ///
    /// # Errors
    /// As [`Self::read_batch`].
    pub fn fetch_ahead(&self, split: Split, picks: &[(u32, u32)], parts: BatchParts) -> Result<()> {
        self.fetch_kinds_ahead(split, picks, &self.kinds(parts).collect::<Vec<_>>())
    }

    /// As [`Self::fetch_ahead`], for [`Self::read_embeddings`].
    ///
    /// # Errors
    /// As [`Self::read_batch`].
    pub fn fetch_embeddings_ahead(&self, split: Split, picks: &[(u32, u32)]) -> Result<()> {
        let kinds = [ArrayKind::Embeddings, ArrayKind::Quantization];
        self.fetch_kinds_ahead(split, picks, &kinds[..if self.config().dtype == StoreDtype::Q8 { 2 } else { 1 }])
    }

    fn fetch_kinds_ahead(&self, split: Split, picks: &[(u32, u32)], kinds: &[ArrayKind]) -> Result<()> {
        let Some(remote) = self.remote.as_ref().filter(|remote| remote.max_bytes() > 0) else { return Ok(()) };
        picks.iter().try_for_each(|pick| self.check_pick(split, pick.0, pick.1))?;
        let chunks = picks.iter().flat_map(|&pick| kinds.iter().map(move |&kind| (pick, kind)));
        let fetched = chunks.map(|(pick, kind)| async move {
            let array = self.array(split, kind);
            let fetched = array.fetch_ahead(remote, pick.0 as usize, pick.1 as usize).await;
            fetched.map_err(|reason| self.unread(split, kind, pick, reason))
        });
        wait(stream::iter(fetched).buffer_unordered(CONCURRENCY).try_collect::<()>())
    }

    /// The arrays that are read for batches with these parts.
    fn kinds(&self, parts: BatchParts) -> impl Iterator<Item = ArrayKind> {
        ArrayKind::all(self.config()).into_iter().filter(move |kind| parts.has(*kind))
    }

    /// An error if parts are asked for that the store lacks.
    pub(crate) fn check_parts(&self, parts: BatchParts) -> Result<()> {
        let absent = |what: &str, known: &str| {
            let known = format!("embeddings, images and labels only; {known}");
            Err(Error::Absent { path: self.path().into(), what: what.into(), known })
        };
        if parts.rungs && self.config().rungs.is_empty() {
            return absent("rungs", "`sam-ladder precompute --rungs` makes a store with rungs");
        }
        if parts.half_labels && !self.config().half_labels {
            return absent("labels at half the image's side", "`sam-ladder precompute --half-labels` adds them");
        }
        Ok(())
    }

    /// Whether `items` variants of slices fit the cache on the local disk, with room to spare; meaningless for a store in a folder.
    pub(crate) fn fits_cache(&self, items: usize, parts: BatchParts) -> bool {
        self.remote.as_ref().is_some_and(|remote| 2 * items as u64 * self.item_bytes(parts) <= remote.max_bytes())
    }

    /// Bytes of one variant of one slice, uncompressed, with these parts.
    pub(crate) fn item_bytes(&self, parts: BatchParts) -> u64 {
        self.kinds(parts).map(|kind| self.array(Split::Train, kind).spec.chunk_bytes() as u64).sum()
    }

    /// Reads one variant of one slice; `pick` must have been checked.
    pub(crate) fn read_item(&self, split: Split, pick: (u32, u32), item: BatchItem<'_>) -> Result<()> {
        let BatchItem { embeddings, images, labels, half_labels, mut rungs } = item;
        self.read_bytes(split, ArrayKind::Labels, pick, labels)?;
        if let Some(half_labels) = half_labels {
            self.read_bytes(split, ArrayKind::HalfLabels, pick, half_labels)?;
        }
        self.read_bytes(split, ArrayKind::Images, pick, bytemuck::cast_slice_mut(images.words))?;
        self.read_bytes(split, ArrayKind::Embeddings, pick, bytemuck::cast_slice_mut(embeddings.words))?;
        if let Some(rungs) = &mut rungs {
            self.read_bytes(split, ArrayKind::Rungs, pick, bytemuck::cast_slice_mut(rungs.words))?;
        }
        if self.config().dtype == StoreDtype::Q8 {
            let pairs = self.read_pairs(split, pick)?;
            let (of_embeddings, others) = pairs.split_at(embeddings.quantization.len());
            let (of_images, of_rungs) = others.split_at(images.quantization.len());
            embeddings.quantization.copy_from_slice(of_embeddings);
            images.quantization.copy_from_slice(of_images);
            if let Some(rungs) = rungs {
                rungs.quantization.copy_from_slice(of_rungs);
            }
        }
        Ok(())
    }

    /// Scales and offsets of a pair's channels, those of the embeddings first.
    fn read_pairs(&self, split: Split, pick: (u32, u32)) -> Result<Vec<f32>> {
        let mut pairs = vec![0.0f32; ArrayKind::Quantization.item_len(self.config())];
        self.read_bytes(split, ArrayKind::Quantization, pick, bytemuck::cast_slice_mut(&mut pairs))?;
        Ok(pairs)
    }

    /// Resizes `batch` to `picks` and fills its items in parallel.
    pub(crate) fn fill_batch(
        &self,
        picks: &[(u32, u32)],
        batch: &mut Batch,
        fill: impl Fn((u32, u32), BatchItem<'_>) -> Result<()> + Sync,
    ) -> Result<()> {
        let config = self.config();
        self.make_room(&mut batch.embeddings, ArrayKind::Embeddings, picks.len());
        self.make_room(&mut batch.images, ArrayKind::Images, picks.len());
        let rungs = match &mut batch.rungs {
            Some(values) => {
                self.make_room(values, ArrayKind::Rungs, picks.len());
                values.items_mut().map(Some).collect()
            }
            None => picks.iter().map(|_| None).collect::<Vec<_>>(),
        };
        let label_len = ArrayKind::Labels.item_len(config);
        batch.labels.resize(picks.len() * label_len, 0);
        let half_labels = match &mut batch.half_labels {
            Some(half_labels) => {
                let half_len = ArrayKind::HalfLabels.item_len(config);
                half_labels.resize(picks.len() * half_len, 0);
                half_labels.chunks_mut(half_len).map(Some).collect()
            }
            None => picks.iter().map(|_| None).collect::<Vec<_>>(),
        };
        batch.around.clear();
        (picks, batch.embeddings.items_mut(), batch.images.items_mut())
            .into_par_iter()
            .zip(batch.labels.par_chunks_mut(label_len).zip(half_labels).zip(rungs))
            .try_for_each(|((&pick, embeddings, images), ((labels, half_labels), rungs))| {
                fill(pick, BatchItem { embeddings, images, labels, half_labels, rungs })
            })
    }

    /// Resizes `values` to `items` items of an array.
    fn make_room(&self, values: &mut Values, kind: ArrayKind, items: usize) {
        let config = self.config();
        values.resize(config.dtype, items, kind.item_len(config), kind.channels(config));
    }

    pub(crate) fn check_pick(&self, split: Split, row: u32, variant: u32) -> Result<()> {
        let SplitArrays { variants, slices, .. } = self.split(split);
        if row as usize >= slices.len() || variant as usize >= variants.len() {
            return Err(Error::Absent {
                path: self.path().into(),
                what: format!("{split} slice {row}, variant {variant}"),
                known: format!("{} slices of {} variants", slices.len(), variants.len()),
            });
        }
        Ok(())
    }

    /// Reads one chunk as it is stored; `pick` must have been checked.
    pub(crate) fn read_bytes(&self, split: Split, kind: ArrayKind, pick: (u32, u32), out: &mut [u8]) -> Result<()> {
        let (row, variant) = (pick.0 as usize, pick.1 as usize);
        let array = self.array(split, kind);
        let read = match &self.remote {
            None => array.read_chunk(&self.storage, row, variant, out).map_err(Unread::Damaged),
            Some(remote) => array.fetch_chunk(remote, row, variant, out),
        };
        read.map_err(|reason| self.unread(split, kind, pick, reason))
    }

    /// The error of a chunk that cannot be read.
    fn unread(&self, split: Split, kind: ArrayKind, (row, variant): (u32, u32), reason: Unread) -> Error {
        let (row, variant) = (row as usize, variant as usize);
        let SplitArrays { variants, slices, .. } = self.split(split);
        let array = self.array(split, kind);
        match reason {
            Unread::Io(path, source) => Error::io("read", path)(source),
            Unread::Damaged(reason) => self.changed().unwrap_or_else(|| Error::Damaged {
                array: array.spec.path.clone(),
                row,
                place: format!(
                    "case {}, slice {} of it, variant {variant} {}",
                    slices[row].case,
                    slices[row].slice_index,
                    variants[variant].name()
                ),
                reason,
                path: array.shard_path(row),
            }),
        }
    }
}
