//! Seeded random weights, for machines without a checkpoint: every tensor from its own stream, so that neither order nor the other
//! tensors matter.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sam_ladder_schemas::encoder::{EncoderArch, PATCH_SIZE};

use super::config::VitConfig;
use super::dino::DinoConfig;
use super::load::{PREFIX, sam_decoder_tensors};
use super::{ImageEncoder, Placement, Result, check_image_size};

/// Deviation of the blocks' linear layers and of the position tables, as in SAM's initialisation; small against a patch's embedding, so
/// that the embeddings tell more of the image than of the place.
const SMALL: f32 = 0.02;

/// A tensor of seeded random values, which depend only on seed, name and shape, with the spread that its kind is initialised with: norms
/// start as the identity, biases at 0, embeddings and the Gaussian matrix at deviation 1, the blocks' layers and position tables at
/// 0.02, other layers at 1/√fan-in.
///
/// # Errors
/// If the tensor cannot be made.
pub fn random_tensor(seed: u64, name: &str, shape: &[usize]) -> Result<Tensor> {
    let n = shape.iter().product();
    let values = match spread(name, shape) {
        Spread::Constant(value) => vec![value; n],
        Spread::Normal(deviation) => {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(
                name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)),
            );
            (0..n).map(|_| deviation * <StandardNormal as Distribution<f32>>::sample(&StandardNormal, &mut rng)).collect()
        }
    };
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

enum Spread {
    Constant(f32),
    Normal(f32),
}

fn spread(name: &str, shape: &[usize]) -> Spread {
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    if ends(&["pos_embed", "rel_pos_h", "rel_pos_w"]) || (name.starts_with("blocks.") && shape.len() == 2) {
        Spread::Normal(SMALL)
    } else if ends(&["gaussian_matrix", "_token.weight", "_tokens.weight", "_embed.weight"]) || name.contains("point_embeddings")
    {
        Spread::Normal(1.0)
    } else if shape.len() == 1 {
        Spread::Constant(if ends(&["weight", "gamma"]) { 1.0 } else { 0.0 })
    } else {
        // the first axis of a transposed convolution is its input
        let fan_in: usize = if name.contains("output_upscaling") { shape[0] } else { shape[1..].iter().product() };
        Spread::Normal(1.0 / (fan_in.max(1) as f32).sqrt())
    }
}

/// Random tensors of the prompt encoder and the mask decoder, under SAM's names and shapes, sorted.
///
/// # Errors
/// If a tensor cannot be made.
pub fn random_decoder_weights(seed: u64) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = sam_decoder_tensors();
    tensors.sort();
    tensors.into_iter().map(|(name, shape)| random_tensor(seed, &name, &shape).map(|tensor| (name, tensor))).collect()
}

/// The tensors of [`ImageEncoder::random`], under their names in a checkpoint (`image_encoder.…`).
///
/// # Errors
/// Those of the tensor library.
pub fn random_encoder_tensors(arch: EncoderArch, image_size: usize, seed: u64) -> Result<Vec<(String, Tensor)>> {
    let tensors = VitConfig::new(arch, image_size).tensors().into_iter();
    tensors.map(|(name, shape)| Ok((format!("{PREFIX}{name}"), random_tensor(seed, &name, &shape)?))).collect()
}

impl ImageEncoder {
    /// An encoder with random weights, for a network's input of `image_size`.
    ///
    /// # Errors
    /// If the image size is not a multiple of 16.
    pub fn random<'a>(arch: EncoderArch, image_size: usize, seed: u64, placement: impl Into<Placement<'a>>) -> Result<Self> {
        check_image_size(image_size)?;
        if !arch.is_sam() {
            let config = DinoConfig::new(arch, image_size / PATCH_SIZE);
            let shapes: HashMap<String, Vec<usize>> = config.tensors().into_iter().collect();
            return Self::dino_from_tensors(&config, placement.into(), |name| random_tensor(seed, name, &shapes[name]));
        }
        let config = VitConfig::new(arch, image_size);
        let shapes: HashMap<String, Vec<usize>> = config.tensors().into_iter().collect();
        Self::from_tensors(config, placement.into(), |name| random_tensor(seed, name, &shapes[name]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_alone() -> Result<()> {
        let values =
            |seed, name| -> Result<Vec<f32>> { Ok(random_tensor(seed, name, &[4, 64])?.flatten_all()?.to_vec1::<f32>()?) };
        let first = values(1, "blocks.0.mlp.lin1.weight")?;
        assert_eq!(first, values(1, "blocks.0.mlp.lin1.weight")?);
        assert_ne!(first, values(2, "blocks.0.mlp.lin1.weight")?);
        assert_ne!(first, values(1, "blocks.1.mlp.lin1.weight")?);
        let deviation = (first.iter().map(|v| v * v).sum::<f32>() / 256.0).sqrt();
        assert!((deviation - SMALL).abs() < 0.2 * SMALL);
        Ok(())
    }

    #[test]
    fn decoder_has_sams_tensors() -> Result<()> {
        let decoder = random_decoder_weights(3)?;
        assert_eq!(decoder.len(), 137);
        let tokens = decoder.iter().find(|(name, _)| name == "mask_decoder.mask_tokens.weight");
        assert_eq!(tokens.map(|(_, tensor)| tensor.dims().to_vec()), Some(vec![4, 256]));
        Ok(())
    }
}
