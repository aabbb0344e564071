//! The ladder's rungs: the linear maps that bring the tokens after some of the encoder's blocks to the channels that a store keeps.
//!
//! A map is `components · (token - mean)`. It is made once, before the first slice is encoded, and kept in the store: of the principal
//! components of a sample of training tokens, or of seeded random numbers.

mod pca;

pub(crate) use pca::TokenMoments;

use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::rungs::RungProjection;

/// One rung's map.
#[derive(Debug, Clone, PartialEq)]
pub struct RungMap {
    /// Subtracted from a token, `[C]`.
    pub mean: Vec<f32>,
    /// `[c, C]`
    pub components: Vec<f32>,
}

/// The rungs of a store.
#[derive(Debug, Clone, PartialEq)]
pub struct RungMaps {
    /// Blocks after which tokens are taken, ascending.
    pub blocks: Vec<usize>,
    /// Channels of a token.
    pub width: usize,
    /// Channels that are kept of it.
    pub channels: usize,
    /// A map for each block; `None` keeps the tokens as they are.
    pub maps: Option<Vec<RungMap>>,
}

impl RungMaps {
    /// Those of a config, which have no map yet.
    fn of(config: &PrecomputeConfig) -> Self {
        let (blocks, width) = (config.rungs.clone(), config.encoder.embed_dim());
        RungMaps { blocks, width, channels: config.stored_rung_channels(), maps: None }
    }

    /// The maps of a config that need no tokens: none, or random ones.
    pub fn without_tokens(config: &PrecomputeConfig) -> Option<Self> {
        match config.rung_projection {
            RungProjection::None => Some(Self::of(config)),
            RungProjection::Random => Some(Self::random(config)),
            RungProjection::Pca => None,
        }
    }

    /// Onto the principal components of each block's tokens.
    ///
    /// # Errors
    /// [`Error::SampledTokens`] for tokens that are not finite.
    pub(crate) fn of_moments(config: &PrecomputeConfig, moments: Vec<TokenMoments>) -> Result<Self> {
        let rungs = Self::of(config);
        let of_block = |(block, moments): (&usize, TokenMoments)| {
            moments.components(rungs.channels).ok_or(Error::SampledTokens { block: *block })
        };
        let maps = rungs.blocks.par_iter().zip(moments).map(of_block).collect::<Result<_>>()?;
        Ok(RungMaps { maps: Some(maps), ..rungs })
    }

    /// Matrices of independent normal numbers of deviation 1/√c, so that a token's length is about what it was.
    fn random(config: &PrecomputeConfig) -> Self {
        let rungs = Self::of(config);
        let deviation = 1.0 / (rungs.channels as f32).sqrt();
        let random = |block: &usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(config.rung_seed);
            rng.set_stream(*block as u64);
            let mut number = || deviation * <StandardNormal as Distribution<f32>>::sample(&StandardNormal, &mut rng);
            let components = (0..rungs.channels * rungs.width).map(|_| number()).collect();
            RungMap { mean: vec![0.0; rungs.width], components }
        };
        let maps = rungs.blocks.iter().map(random).collect();
        RungMaps { maps: Some(maps), ..rungs }
    }

    /// The bytes of the store's file: for each block `mean` `[C]` and `components` `[c, C]`, as safetensors.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let mut tensors = Vec::new();
        for (block, RungMap { mean, components }) in self.blocks.iter().zip(self.maps.iter().flatten()) {
            tensors.push((mean_name(*block), Tensor::from_slice(mean, self.width, &Device::Cpu)?));
            let components = Tensor::from_slice(components, (self.channels, self.width), &Device::Cpu)?;
            tensors.push((components_name(*block), components));
        }
        Ok(safetensors::serialize(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), None)?)
    }

    /// The maps that a store of this config keeps.
    ///
    /// # Errors
    /// For other bytes, names or shapes.
    pub fn from_safetensors(config: &PrecomputeConfig, bytes: Vec<u8>) -> Result<Self> {
        let rungs = Self::of(config);
        let file = StateDict::from_safetensors(RUNG_FILE, bytes)?;
        let read = |name: String, shape: &[usize]| -> Result<Vec<f32>> {
            Ok(file.expect(&name, shape, &Device::Cpu)?.flatten_all()?.to_vec1()?)
        };
        let map = |&block: &usize| {
            let mean = read(mean_name(block), &[rungs.width])?;
            Ok(RungMap { mean, components: read(components_name(block), &[rungs.channels, rungs.width])? })
        };
        let maps = rungs.blocks.iter().map(map).collect::<Result<_>>()?;
        Ok(RungMaps { maps: Some(maps), ..rungs })
    }

    /// Values of the rungs of one image.
    pub fn item_len(&self, grid: usize) -> usize {
        self.blocks.len() * self.channels * grid * grid
    }
}

/// Name of the store's file, for messages.
const RUNG_FILE: &str = sam_ladder_schemas::store::RUNG_PROJECTION;

fn mean_name(block: usize) -> String {
    format!("blocks.{block}.mean")
}

fn components_name(block: usize) -> String {
    format!("blocks.{block}.components")
}
