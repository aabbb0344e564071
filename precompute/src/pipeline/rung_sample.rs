//! The rungs' maps onto principal components, from the tokens of the training slices that the store's manifest names.

use super::encode::Encode;
use super::prepare::read;
use crate::error::{Error, Result};
use crate::preprocess::DataSlice;
use crate::rungs::{RungMaps, TokenMoments};
use crate::scans::{Scan, ScanSource};
use rayon::prelude::*;
use sam_ladder_cache::StoreLayout;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::{Observer, Phase, Unit};
use sam_ladder_schemas::variants::VariantKind;
use std::sync::atomic::{AtomicBool, Ordering};

/// Images that go through the encoder together. Fixed, since on a GPU the last bits may depend on it.
const BATCH: usize = 4;
/// Tokens that are taken of each slice, at most: where there are more, every second, third, …
const TOKENS_PER_SLICE: usize = 256;

/// What a sample is taken from.
pub(super) struct Sampled<'a> {
    pub(super) source: &'a ScanSource,
    /// Its manifest names the slices.
    pub(super) layout: &'a StoreLayout,
    /// Once it is set, sampling ends.
    pub(super) stop: &'a AtomicBool,
    pub(super) observer: &'a dyn Observer,
}

impl Sampled<'_> {
    /// Encodes the sampled slices and finds the components of their tokens; `None` if it was stopped.
    ///
    /// # Errors
    /// [`Error::NoSample`] without training slices, [`Error::SampledScan`] for a scan that cannot be read, [`Error::SampledTokens`] for tokens
    /// that are not finite, and the encoder's.
    pub(super) fn maps<E: Encode>(&self, encoder: &E) -> Result<Option<RungMaps>> {
        let attributes = self.layout.attributes();
        let (config, sample) = (&attributes.config, &attributes.rung_sample);
        if sample.is_empty() {
            return Err(Error::NoSample);
        }
        let mut moments: Vec<TokenMoments> = config.rungs.iter().map(|_| TokenMoments::new(config.encoder.embed_dim())).collect();
        let progress = self.observer.begin(Phase::new("sampling tokens", Unit::Slices, sample.len() as u64));
        for entry in self.source.cases().iter().filter(|entry| entry.split == Split::Train) {
            let of_case = sample.iter().filter(|sampled| sampled.case == entry.case);
            let slices: Vec<usize> = of_case.map(|sampled| sampled.slice).collect();
            if slices.is_empty() {
                continue;
            }
            let scan = read(self.source, entry, self.layout);
            let scan = scan.map_err(|source| Error::SampledScan { case: entry.case.clone(), source: Box::new(source) })?;
            for slices in slices.chunks(BATCH) {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                self.add(encoder, &scan, slices, &mut moments)?;
                progress.advance(slices.len() as u64);
            }
        }
        RungMaps::of_moments(config, moments).map(Some)
    }

    /// Adds the tokens of some slices to the moments of each rung.
    fn add<E: Encode>(&self, encoder: &E, scan: &Scan, slices: &[usize], moments: &mut [TokenMoments]) -> Result<()> {
        let config = &self.layout.attributes().config;
        let [_, height, width] = scan.shape;
        let image = |&slice: &usize| {
            let planes = scan.planes(slice, config.preprocessing.channels_from);
            let data = DataSlice::new(&planes, scan.labels(slice), [height, width], config.data_size);
            data.variant(VariantKind::Identity, config.image_size).image
        };
        let images: Vec<Vec<f32>> = slices.par_iter().map(image).collect();
        let tokens = encoder.tokens(&images.concat(), slices.len(), config.image_size, &config.rungs)?;
        let (per_slice, token_len) = (config.grid_size().pow(2), config.encoder.embed_dim());
        let step = per_slice.div_ceil(TOKENS_PER_SLICE);
        let expected = slices.len() * per_slice * token_len;
        moments.par_iter_mut().zip(tokens).try_for_each(|(moments, tokens)| {
            if tokens.len() != expected {
                return Err(Error::EncoderShape { batch: slices.len(), expected, found: tokens.len() });
            }
            let taken: Vec<f32> = tokens.chunks(token_len).step_by(step).flatten().copied().collect();
            moments.add(&taken);
            Ok(())
        })
    }
}
