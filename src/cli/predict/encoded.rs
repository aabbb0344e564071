//! The encoded slices of a new scan, batch by batch: each is encoded once, and kept as long as it is a neighbour of one to come.

use sam_ladder_cache::Batch;
use sam_ladder_precompute::pipeline::EncodedSlices as Encoded;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use std::collections::VecDeque;
use std::ops::Range;

/// The slices of one variant of a scan that are kept.
#[derive(Default)]
pub struct EncodedSlices {
    /// Number of the first of them.
    first: usize,
    /// Embedding, image and rungs of each.
    slices: VecDeque<[Vec<f32>; 3]>,
}

impl EncodedSlices {
    /// The batch of `slices`, which follow those of the call before; of a model with `neighbours`, with the embeddings of the slices before and
    /// after each, of which those at the ends of the scan's `depth` slices repeat. The rungs are each slice's own. `encode` encodes slices.
    ///
    /// # Errors
    /// Those of `encode`; values that the number format cannot hold.
    pub fn batch(
        &mut self,
        slices: Range<usize>,
        (depth, neighbours): (usize, bool),
        config: &PrecomputeConfig,
        encode: impl FnOnce(Range<usize>) -> anyhow::Result<Encoded>,
    ) -> anyhow::Result<Batch> {
        if !neighbours {
            let Encoded { embeddings, images, rungs } = encode(slices)?;
            return as_stored(config, [&embeddings, &images, &rungs]);
        }
        while self.first + 1 < slices.start && self.slices.pop_front().is_some() {
            self.first += 1;
        }
        let wanted = self.first + self.slices.len()..depth.min(slices.end + 1);
        if !wanted.is_empty() {
            let (count, Encoded { embeddings, images, rungs }) = (wanted.len(), encode(wanted)?);
            let item = |values: &[f32], at: usize| {
                let len = values.len() / count;
                values[at * len..(at + 1) * len].to_vec()
            };
            self.slices.extend((0..count).map(|at| [&embeddings, &images, &rungs].map(|values| item(values, at))));
        }
        let part = |numbers: &mut dyn Iterator<Item = usize>, part: usize| -> Vec<f32> {
            numbers
                .flat_map(|number| self.slices.get(number - self.first))
                .flat_map(|slice| slice[part].iter().copied())
                .collect()
        };
        let around = |slice: usize| [slice.saturating_sub(1), (slice + 1).min(depth - 1)];
        let [embeddings, images, rungs] = [0, 1, 2].map(|of| part(&mut slices.clone(), of));
        let batch = as_stored(config, [&embeddings, &images, &rungs])?;
        Ok(batch.with_around(config, &part(&mut slices.flat_map(around), 0))?)
    }
}

/// What a store would return of embeddings, images and, if the config has any, rungs.
fn as_stored(config: &PrecomputeConfig, [embeddings, images, rungs]: [&[f32]; 3]) -> anyhow::Result<Batch> {
    let batch = Batch::as_stored(config, embeddings, images)?;
    if config.rungs.is_empty() { Ok(batch) } else { Ok(batch.and_rungs(config, rungs)?) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::encoder::EncoderArch;
    use sam_ladder_schemas::precompute::{EncoderWeights, StoreDtype};

    /// The embedding of slice k is k everywhere, its image k/10, its rungs 2k.
    #[test]
    fn each_slice_is_encoded_once_and_has_those_around_it() {
        let mut config = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 });
        (config.image_size, config.dtype, config.rungs) = (16, StoreDtype::F32, vec![2, 5]);
        for (depth, batch_size) in [(5, 1), (5, 2), (5, 3), (5, 9), (1, 4), (2, 1)] {
            let (mut encoded, mut kept, mut around) = (Vec::new(), EncodedSlices::default(), Vec::new());
            for first in (0..depth).step_by(batch_size) {
                let slices = first..depth.min(first + batch_size);
                let count = slices.len();
                let encode = |slices: Range<usize>| {
                    encoded.extend(slices.clone());
                    let of = |len: usize, scale: f32| slices.clone().flat_map(|k| vec![k as f32 * scale; len]).collect();
                    Ok(Encoded { embeddings: of(256, 1.0), images: of(256, 0.1), rungs: of(128, 2.0) })
                };
                let batch = kept.batch(slices.clone(), (depth, true), &config, encode).unwrap();
                let own: Vec<f32> = batch.embeddings.to_vec().chunks(256).map(|embedding| embedding[255]).collect();
                assert_eq!(own, slices.clone().map(|k| k as f32).collect::<Vec<_>>());
                let rungs: Vec<f32> = batch.rungs.unwrap().to_vec().chunks(128).map(|rungs| rungs[127]).collect();
                assert_eq!(rungs, slices.clone().map(|k| 2.0 * k as f32).collect::<Vec<_>>());
                assert_eq!((batch.images.len(), batch.around.len()), (count * 256, 2 * count * 256));
                around.extend(batch.around.to_vec().chunks(256).map(|embedding| embedding[0]));
            }
            assert_eq!(encoded, (0..depth).collect::<Vec<_>>(), "{depth} slices in batches of {batch_size}");
            let expected: &[f32] = match depth {
                5 => &[0.0, 1.0, 0.0, 2.0, 1.0, 3.0, 2.0, 4.0, 3.0, 4.0],
                2 => &[0.0, 1.0, 0.0, 1.0],
                _ => &[0.0, 0.0],
            };
            assert_eq!(around, expected, "{depth} slices in batches of {batch_size}");
        }
    }
}
