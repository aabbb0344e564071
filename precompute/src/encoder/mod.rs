//! SAM's frozen image encoder: ViT-B, -L or -H at any image size that is a multiple of 16 (`modeling/image_encoder.py`).

mod cpu;
mod decoder;
mod device;
mod load;
mod random;
mod rel_pos;
mod vit;
mod weights;

use candle_core::{DType, Device, Tensor};
use sam_ladder_formats::Error as FileError;
use sam_ladder_ops::gpu::has_kernels;
use sam_ladder_ops::precision::allow_tf32;
pub use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::encoder::PATCH_SIZE;
use sam_ladder_schemas::gpu_precision::GpuPrecision;

use cpu::CpuVit;
use device::DeviceVit;
pub use load::{decoder_weights, detect_arch, published_encoder, sized_encoder_tensors};
pub use random::{random_decoder_weights, random_tensor};
pub use weights::VitConfig;
use weights::VitWeights;

/// Added to the variance in every norm of the encoder.
const NORM_EPS: f64 = 1e-6;

/// Why the encoder could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// A tensor of the checkpoint is missing, damaged or of another shape.
    #[error(transparent)]
    Weights(#[from] FileError),
    /// The checkpoint is of another architecture.
    #[error("{path}: is a {found} checkpoint, expected {expected}; pass --encoder {found} or a checkpoint of {expected}")]
    OtherArchitecture {
        /// The file.
        path: String,
        /// SAM's name of the checkpoint's architecture.
        found: &'static str,
        /// SAM's name of the architecture asked for.
        expected: &'static str,
    },
    /// The checkpoint is not SAM's.
    #[error("{path}: {reason}")]
    NotSam {
        /// The file.
        path: String,
        /// What it lacks, or holds besides.
        reason: String,
    },
    /// The image size is not a positive multiple of 16.
    #[error("image size {0} is not a positive multiple of 16")]
    ImageSize(usize),
    /// A batch of images has another shape than the encoder takes.
    #[error("images of shape {found:?}, expected [b, 1 to 3, {size}, {size}]")]
    ImageShape {
        /// The batch's shape.
        found: Vec<usize>,
        /// The encoder's image size.
        size: usize,
    },
    /// There is no path for the precision.
    #[error("--precision {asked} needs a GPU and heads of 64 or 80 features, the device is {device}: pass --precision f32")]
    Precision {
        /// What was asked for.
        asked: &'static str,
        /// Where the encoder lives.
        device: String,
    },
    /// A tensor operation failed.
    #[error("the encoder failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// What the functions of this module return.
pub type Result<T> = std::result::Result<T, EncoderError>;

/// The frozen encoder on its device.
pub struct ImageEncoder {
    config: VitConfig,
    device: Device,
    path: Path,
}

enum Path {
    /// Hand-written, on the CPU.
    Cpu(Box<CpuVit>),
    /// Fused kernels, on a GPU; with the weights as they came, for another precision.
    Device(Box<DeviceVit>, VitWeights<Tensor>),
    /// Candle's operations, on any device.
    Composed(VitWeights<Tensor>),
}

impl ImageEncoder {
    /// Makes an encoder of tensors by their names without `image_encoder.`, of the shapes of [`VitConfig::tensors`].
    fn from_tensors(config: VitConfig, device: &Device, get: impl FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        let weights = VitWeights::collect(&config, get)?;
        let path = if has_kernels(device) && DeviceVit::has_kernels(&config, DType::F32) {
            Path::Device(Box::new(DeviceVit::new(config.clone(), &weights, DType::F32)?), weights)
        } else if device.is_cpu() {
            Path::Cpu(Box::new(CpuVit::new(config.clone(), weights)?))
        } else {
            Path::Composed(weights)
        };
        Ok(Self { config, device: device.clone(), path })
    }

    /// The same encoder in another precision.
    ///
    /// # Errors
    /// [`EncoderError::Precision`] where the device or the encoder has none but float32.
    pub fn with_precision(self, precision: GpuPrecision) -> Result<Self> {
        let dtype = match precision {
            GpuPrecision::F32 | GpuPrecision::Tf32 => DType::F32,
            GpuPrecision::Bf16 => DType::BF16,
            GpuPrecision::F16 => DType::F16,
        };
        let Self { config, device, path } = self;
        let path = match path {
            path if precision == GpuPrecision::F32 => path,
            Path::Device(_, weights) if DeviceVit::has_kernels(&config, dtype) => {
                Path::Device(Box::new(DeviceVit::new(config.clone(), &weights, dtype)?), weights)
            }
            _ => return Err(EncoderError::Precision { asked: precision.name(), device: format!("{:?}", device.location()) }),
        };
        allow_tf32(precision == GpuPrecision::Tf32);
        Ok(Self { config, device, path })
    }

    /// The encoder's numbers.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Embeds a batch of images, given in [0, 1] as they are (the published code's pixel mean is 0 and its deviation 1).
    ///
    /// # Shapes
    /// images `[b, c, s, s]`, float32 → `[b, 256, s/16, s/16]`; c is 1 (grey, as if repeated to three channels), 2 (as if the third
    /// were zero) or 3
    ///
    /// # Errors
    /// If the images have another shape, or the device fails.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let size = self.config.image_size;
        let &[batch, mut channels @ 1..=3, height, width] = images.dims() else {
            return Err(EncoderError::ImageShape { found: images.dims().to_vec(), size });
        };
        if (height, width) != (size, size) {
            return Err(EncoderError::ImageShape { found: images.dims().to_vec(), size });
        }
        let mut images = images.to_device(&self.device)?.contiguous()?;
        if channels == 2 {
            images = images.pad_with_zeros(1, 0, 1)?;
            channels = 3;
        }
        match &self.path {
            Path::Device(vit, _) => Ok(vit.forward(&images.expand((batch, 3, size, size))?.contiguous()?)?),
            Path::Composed(weights) => {
                Ok(vit::forward(&self.config, weights, &images.expand((batch, 3, size, size))?.contiguous()?)?)
            }
            Path::Cpu(vit) => {
                let (storage, layout) = images.storage_and_layout();
                let candle_core::Storage::Cpu(storage) = &*storage else {
                    return Err(candle_core::Error::msg("expected images on the CPU").into());
                };
                let data = &storage.as_slice::<f32>()?[layout.start_offset()..][..images.elem_count()];
                Ok(vit.forward(data, (batch, channels))?)
            }
        }
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

    /// The CPU path and the composed path, from the same random weights.
    fn both(config: &VitConfig) -> Result<(CpuVit, VitWeights<Tensor>)> {
        let shapes: std::collections::HashMap<String, Vec<usize>> = config.tensors().into_iter().collect();
        let weights = VitWeights::collect(config, |name| -> Result<Tensor> {
            // larger than real ones, so that attention is far from uniform; biases and norms that are not the identity
            let noise = random_tensor(8, "noise_embed.weight", &shapes[name])?;
            Ok((random_tensor(7, name, &shapes[name])? + (noise * 0.2)?)?)
        })?;
        Ok((CpuVit::new(config.clone(), weights.clone())?, weights))
    }

    #[test]
    fn the_cpu_path_equals_the_composed_one() -> Result<()> {
        // one window that is not full; exactly one; padded windows on both sides; two full ones
        for (image_size, batch, channels) in [(48, 2, 3), (224, 1, 1), (320, 2, 1), (448, 1, 3)] {
            let config = VitConfig { embed_dim: 24, depth: 3, num_heads: 3, global_attn_indexes: vec![1], image_size };
            let (cpu, weights) = both(&config)?;
            let images = random_tensor(1, "images", &[batch, channels, image_size, image_size])?;
            let got = cpu.forward(&images.flatten_all()?.to_vec1::<f32>()?, (batch, channels))?;
            let three = images.expand((batch, 3, image_size, image_size))?.contiguous()?;
            let want = vit::forward(&config, &weights, &three)?;
            assert_eq!(got.dims(), [batch, 256, config.grid(), config.grid()]);
            let difference = (&got - &want)?.abs()?.max_all()?.to_scalar::<f32>()?;
            let scale = want.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 1e-5 * scale, "{image_size}: {difference} of {scale}");
        }
        Ok(())
    }

    #[test]
    fn an_embedding_has_the_same_bits_whatever_it_is_batched_with() -> Result<()> {
        let config = VitConfig { embed_dim: 48, depth: 2, num_heads: 3, global_attn_indexes: vec![1], image_size: 240 };
        let (cpu, _) = both(&config)?;
        let images = random_tensor(1, "images", &[5, 1, 240, 240])?.flatten_all()?.to_vec1::<f32>()?;
        let flat = |tensor: Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let together = flat(cpu.forward(&images, (5, 1))?)?;
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (i, image) in images.chunks_exact(240 * 240).enumerate() {
                let alone = flat(pool.install(|| cpu.forward(image, (1, 1)))?)?;
                assert_eq!(alone, together[i * alone.len()..][..alone.len()], "image {i}, {threads} threads");
            }
        }
        Ok(())
    }

    #[test]
    fn two_channels_are_taken_and_wrong_images_are_refused() -> Result<()> {
        let config = VitConfig { embed_dim: 8, depth: 1, num_heads: 2, global_attn_indexes: vec![], image_size: 32 };
        let shapes: std::collections::HashMap<String, Vec<usize>> = config.tensors().into_iter().collect();
        let encoder = ImageEncoder::from_tensors(config, &Device::Cpu, |name| random_tensor(1, name, &shapes[name]))?;
        let images = random_tensor(1, "images", &[2, 3, 32, 32])?;
        let (two, third) = (images.narrow(1, 0, 2)?, images.narrow(1, 2, 1)?);
        let zero_third = encoder.forward(&Tensor::cat(&[&two, &third.zeros_like()?], 1)?)?;
        let flat = |tensor: Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        assert_eq!(flat(encoder.forward(&two)?)?, flat(zero_third.clone())?, "beside two channels the third is zero");
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
