//! The frozen image encoder, at any image size that is a multiple of 16: SAM's ViT-B, -L or -H (`modeling/image_encoder.py`), or one of DINOv2's and
//! DINOv3's (`dino`).
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use sam_ladder_precompute::encoder::{EncoderArch, ImageEncoder};
//!
//! // Random weights; `ImageEncoder::load` takes those of a checkpoint.
//! let encoder = ImageEncoder::random(EncoderArch::VitB, 64, 0, &Device::Cpu)?;
//! let images = Tensor::rand(0f32, 1f32, (1, 1, 64, 64), &Device::Cpu)?;
//! assert_eq!(encoder.forward(&images)?.dims(), [1, 256, 4, 4]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(test)]
mod composed;
mod config;
mod dino;
mod error;
mod load;
mod other_model;
mod position_tables;
mod random;
mod vit;

use candle_core::{Device, Tensor};
use sam_ladder_ops::Numerics;
pub use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::encoder::PATCH_SIZE;
use sam_ladder_schemas::precision::Precision;

pub use config::VitConfig;
use dino::{DinoConfig, DinoVit};
pub use error::{EncoderError, Result};
pub use load::{decoder_weights, detect_arch, detect_encoder, published_encoder, sized_encoder_tensors};
pub use other_model::OtherModel;
pub use random::{random_decoder_weights, random_encoder_tensors, random_tensor};
use vit::ImageEncoderVit;
pub use vit::Taps;

/// Where an encoder computes, and how exactly.
#[derive(Debug, Clone, Copy)]
pub struct Placement<'a> {
    /// Where its weights live.
    pub device: &'a Device,
    /// How exactly it computes. The CPU does so in float32, and in bfloat16 if its processor can.
    pub precision: Precision,
}

impl<'a> From<&'a Device> for Placement<'a> {
    /// In float32.
    fn from(device: &'a Device) -> Self {
        Placement { device, precision: Precision::F32 }
    }
}

impl Placement<'_> {
    fn numerics(&self) -> Result<Numerics> {
        let numerics = match self.precision {
            Precision::F32 => Numerics::F32,
            Precision::Tf32 => Numerics::Tf32,
            Precision::Bf16 => Numerics::Bf16,
            Precision::F16 => Numerics::F16,
        };
        if !numerics.supported_on(self.device) {
            let device = format!("{:?}", self.device.location());
            return Err(EncoderError::Precision { asked: self.precision, device });
        }
        Ok(numerics)
    }
}

/// The frozen encoder on its device.
pub struct ImageEncoder {
    /// Pixels along the side of the images that it takes.
    image_size: usize,
    /// Tokens along the side of its embeddings.
    grid: usize,
    device: Device,
    network: Network,
}

enum Network {
    Sam(ImageEncoderVit),
    Dino(DinoVit),
}

impl ImageEncoder {
    /// Makes an encoder of tensors by their names without `image_encoder.`, of the shapes of [`VitConfig::tensors`].
    fn from_tensors(config: VitConfig, placement: Placement<'_>, mut get: impl FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        let numerics = placement.numerics()?;
        let vit = ImageEncoderVit::new(&config, numerics, |name| Ok(get(name)?.to_device(placement.device)?))?;
        let (image_size, grid) = (config.image_size, config.grid());
        Ok(Self { image_size, grid, device: placement.device.clone(), network: Network::Sam(vit) })
    }

    /// As [`Self::from_tensors`], of one of DINO's, by the names of [`DinoConfig::tensors`].
    fn dino_from_tensors(
        config: &DinoConfig,
        placement: Placement<'_>,
        mut get: impl FnMut(&str) -> Result<Tensor>,
    ) -> Result<Self> {
        let numerics = placement.numerics()?;
        let vit = DinoVit::new(config, numerics, placement, |name| Ok(get(name)?.to_device(placement.device)?))?;
        let (image_size, grid) = (config.image_size(), config.grid);
        Ok(Self { image_size, grid, device: placement.device.clone(), network: Network::Dino(vit) })
    }

    /// Pixels along the side of the images that it takes: those of the network's input, or of DINOv2 14/16 of them
    /// ([`EncoderArch::encoder_size`]).
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// Tokens along the side of its embeddings.
    pub fn grid(&self) -> usize {
        self.grid
    }

    /// Embeds a batch of images, given in [0, 1] as they are (the published code's pixel mean is 0 and its deviation 1).
    ///
    /// # Shapes
    /// images `[b, c, s, s]`, float32, s = [`Self::image_size`] → `[b, channels, g, g]`, g = [`Self::grid`]; of SAM 256 channels, of others the width
    /// of a token. c is 1 (grey, as if repeated to three channels), 2 (as if the third were zero) or 3
    ///
    /// # Errors
    /// If the images have another shape, or the device fails.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.forward_tapped(images, None)
    }

    /// As [`Self::forward`], and shows the tokens after some blocks. The embeddings have the same bits.
    ///
    /// # Errors
    /// As [`Self::forward`], and those of the taps.
    pub fn forward_tapped(&self, images: &Tensor, taps: Option<Taps<'_>>) -> Result<Tensor> {
        let size = self.image_size;
        if !matches!(images.dims(), &[_, 1..=3, height, width] if (height, width) == (size, size)) {
            return Err(EncoderError::ImageShape { found: images.dims().to_vec(), size });
        }
        let mut images = images.to_device(&self.device)?.contiguous()?;
        if images.dim(1)? == 2 {
            images = images.pad_with_zeros(1, 0, 1)?;
        }
        Ok(match &self.network {
            Network::Sam(vit) => vit.forward(&images, taps)?,
            Network::Dino(vit) => vit.forward(&images, taps)?,
        })
    }
}

/// Refuses image sizes that patches do not tile.
fn check_image_size(image_size: usize) -> Result<()> {
    if image_size == 0 || !image_size.is_multiple_of(PATCH_SIZE) {
        return Err(EncoderError::ImageSize(image_size));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In bfloat16 on the CPU, where the processor has instructions for it.
    fn bf16() -> Option<Placement<'static>> {
        let placement = Placement { device: &Device::Cpu, precision: Precision::Bf16 };
        placement.numerics().is_ok().then_some(placement)
    }

    /// The encoder and the composed reference, which is float32, from the same random weights.
    fn both(config: &VitConfig, placement: Placement<'_>) -> Result<(ImageEncoder, composed::Weights)> {
        let weight = |(name, shape): (String, Vec<usize>)| -> Result<(String, Tensor)> {
            // larger than real ones, so that attention is far from uniform; biases and norms that are not the identity
            let noise = random_tensor(8, "noise_embed.weight", &shape)?;
            let weight = (random_tensor(7, &name, &shape)? + (noise * 0.2)?)?;
            Ok((name, weight))
        };
        let weights = config.tensors().into_iter().map(weight).collect::<Result<composed::Weights>>()?;
        let encoder = ImageEncoder::from_tensors(config.clone(), placement, |name| Ok(weights[name].clone()))?;
        Ok((encoder, weights))
    }

    #[test]
    fn the_encoder_equals_the_composed_one() -> Result<()> {
        // one window that is not full; exactly one; padded windows on both sides; two full ones
        for (image_size, batch, channels) in [(48, 2, 3), (224, 1, 1), (320, 2, 1), (448, 1, 3)] {
            let config = VitConfig { embed_dim: 24, depth: 3, num_heads: 3, global_attn_indexes: vec![1], image_size };
            let (encoder, weights) = both(&config, (&Device::Cpu).into())?;
            let images = random_tensor(1, "images", &[batch, channels, image_size, image_size])?;
            let got = encoder.forward(&images)?;
            let three = images.expand((batch, 3, image_size, image_size))?.contiguous()?;
            let (want, after_blocks) = composed::forward(&config, &weights, &three)?;
            assert_eq!(got.dims(), [batch, 256, config.grid(), config.grid()]);
            assert!(differs_by(&got, &want)? < 1e-5, "{image_size}");

            // The tokens after each block; looking at them changes no bit of the embeddings.
            let mut tokens = Vec::new();
            let mut visit = |place: usize, x: &Tensor| {
                tokens.push((place, x.copy()?));
                Ok(())
            };
            let tapped = encoder.forward_tapped(&images, Some(Taps { blocks: &[0, 1, 2], visit: &mut visit }))?;
            let bits = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
            assert_eq!(bits(&tapped)?, bits(&got)?);
            assert_eq!(tokens.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [0, 1, 2]);
            for ((block, found), want) in tokens.iter().zip(&after_blocks) {
                let want = want.reshape((batch * config.grid().pow(2), config.embed_dim))?;
                assert!(differs_by(found, &want)? < 1e-5, "{image_size}, block {block}");
            }
            let mut only = Vec::new();
            let mut visit = |place: usize, x: &Tensor| {
                only.push((place, x.copy()?));
                Ok(())
            };
            encoder.forward_tapped(&images, Some(Taps { blocks: &[1], visit: &mut visit }))?;
            assert_eq!((only.len(), only[0].0, bits(&only[0].1)?), (1, 0, bits(&tokens[1].1)?));
        }
        Ok(())
    }

    #[test]
    fn bfloat16_is_near_float32_and_not_the_same() -> Result<()> {
        let Some(placement) = bf16() else { return Ok(()) };
        for (image_size, batch, channels) in [(48, 2, 3), (320, 2, 1)] {
            let config = VitConfig { embed_dim: 96, depth: 3, num_heads: 3, global_attn_indexes: vec![1], image_size };
            let (encoder, weights) = both(&config, placement)?;
            let images = random_tensor(1, "images", &[batch, channels, image_size, image_size])?;
            let three = images.expand((batch, 3, image_size, image_size))?.contiguous()?;
            let (want, _) = composed::forward(&config, &weights, &three)?;
            let error = differs_by(&encoder.forward(&images)?, &want)?;
            // A factor is off by up to 2^-9; the roundings of nine products behind one another are independent.
            assert!(error > 1e-4 && error < 3e-2, "{image_size}: {error}");
        }
        Ok(())
    }

    /// Largest difference, over the largest value.
    fn differs_by(found: &Tensor, want: &Tensor) -> Result<f32> {
        let difference = (found - want)?.abs()?.max_all()?.to_scalar::<f32>()?;
        Ok(difference / want.abs()?.max_all()?.to_scalar::<f32>()?)
    }

    #[test]
    fn an_embedding_has_the_same_bits_whatever_it_is_batched_with() -> Result<()> {
        let config = VitConfig { embed_dim: 48, depth: 2, num_heads: 3, global_attn_indexes: vec![1], image_size: 240 };
        let images = random_tensor(1, "images", &[5, 1, 240, 240])?;
        let flat = |tensor: Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        for placement in [Some(Placement::from(&Device::Cpu)), bf16()].into_iter().flatten() {
            let (encoder, _) = both(&config, placement)?;
            let together = flat(encoder.forward(&images)?)?;
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                for i in 0..5 {
                    let by_itself = flat(pool.install(|| encoder.forward(&images.narrow(0, i, 1)?))?)?;
                    let same = by_itself == together[i * by_itself.len()..][..by_itself.len()];
                    assert!(same, "image {i}, {threads} threads, {}", placement.precision.name());
                }
            }
        }
        Ok(())
    }

    #[test]
    fn two_channels_are_taken_and_wrong_images_are_refused() -> Result<()> {
        let config = VitConfig { embed_dim: 8, depth: 1, num_heads: 2, global_attn_indexes: vec![], image_size: 32 };
        let shapes: std::collections::HashMap<String, Vec<usize>> = config.tensors().into_iter().collect();
        let encoder = ImageEncoder::from_tensors(config, (&Device::Cpu).into(), |name| random_tensor(1, name, &shapes[name]))?;
        let images = random_tensor(1, "images", &[2, 3, 32, 32])?;
        let (two, third) = (images.narrow(1, 0, 2)?, images.narrow(1, 2, 1)?);
        let zero_third = encoder.forward(&Tensor::cat(&[&two, &third.zeros_like()?], 1)?)?;
        let flat = |tensor: Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        assert_eq!(flat(encoder.forward(&two)?)?, flat(zero_third.clone())?, "of two channels the third is zero");
        assert_ne!(flat(encoder.forward(&images)?)?, flat(zero_third)?);
        for shape in [&[1, 4, 32, 32][..], &[1, 0, 32, 32], &[1, 1, 16, 32], &[1, 32, 32]] {
            let images = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu)?;
            assert!(matches!(encoder.forward(&images), Err(EncoderError::ImageShape { .. })));
        }
        assert!(matches!(check_image_size(100), Err(EncoderError::ImageSize(100))));
        assert!(matches!(check_image_size(0), Err(EncoderError::ImageSize(0))));
        Ok(())
    }
}
