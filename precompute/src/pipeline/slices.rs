//! Slices of one scan through the encoder, without a store.

use super::DEFAULT_BATCH_SIZE;
use super::encode::{Encode, encode_batches};
use crate::error::Result;
use crate::preprocess::DataSlice;
use crate::scans::Scan;
use rayon::prelude::*;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::variants::VariantKind;
use std::ops::Range;

/// What a store would hold of some slices, before it is rounded to the store's number format.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedSlices {
    /// `[slices, c, s, s]`.
    pub images: Vec<f32>,
    /// `[slices, channels, s/16, s/16]`, 256 channels of SAM's encoders.
    pub embeddings: Vec<f32>,
    /// `[slices, rung, c, s/16, s/16]`; empty without rungs.
    pub rungs: Vec<f32>,
}

/// Prepares some slices of a scan as test slices are prepared, and encodes them, [`DEFAULT_BATCH_SIZE`] at a time. For a config with rungs the
/// encoder must have been [given their maps](Encode::set_rungs).
///
/// # Errors
/// The encoder's.
///
/// # Panics
/// When the slices are not the scan's.
pub fn encode_slices<E: Encode>(
    scan: &Scan,
    slices: Range<usize>,
    config: &PrecomputeConfig,
    encoder: &E,
) -> Result<EncodedSlices> {
    encode_variant(scan, slices, VariantKind::Identity, (config, encoder))
}

/// As [`encode_slices`], of one variant of them.
///
/// # Errors
/// The encoder's.
///
/// # Panics
/// When the slices are not the scan's.
pub fn encode_variant<E: Encode>(
    scan: &Scan,
    slices: Range<usize>,
    kind: VariantKind,
    (config, encoder): (&PrecomputeConfig, &E),
) -> Result<EncodedSlices> {
    let [_, height, width] = scan.shape;
    let images: Vec<Vec<f32>> = slices
        .into_par_iter()
        .map(|slice| {
            let planes = scan.planes(slice, config.preprocessing.channels_from);
            let slice = DataSlice::new(&planes, scan.labels(slice), [height, width], config.data_size);
            slice.variant(kind, config.image_size).image
        })
        .collect();
    let images = images.concat();
    let sizes = (DEFAULT_BATCH_SIZE, config.image_len(), config.image_size);
    let [embeddings, rungs] = encode_batches(encoder, &images, sizes, [config.embeddings_len(), config.rungs_len()])?;
    Ok(EncodedSlices { images, embeddings, rungs })
}
