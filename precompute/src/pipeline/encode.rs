//! What the pipeline needs of an encoder.

use crate::encoder::ImageEncoder;
use crate::error::Result;
use candle_core::{Device, Tensor};
use sam_ladder_schemas::encoder::PATCH_SIZE;

/// A frozen image encoder, seen as a function of plain numbers.
pub trait Encode {
    /// Embeddings `[batch, 256, size/16, size/16]` of `images` `[batch, c, size, size]`, one to three channels in [0, 1];
    /// c follows from the length.
    ///
    /// # Errors
    /// Whatever the encoder cannot do.
    fn encode(&self, images: &[f32], batch: usize, size: usize) -> Result<Vec<f32>>;
}

/// SAM's encoder on a device.
pub struct SamEncoder {
    encoder: ImageEncoder,
    device: Device,
}

impl SamEncoder {
    /// An encoder whose weights are on `device`.
    pub fn new(encoder: ImageEncoder, device: Device) -> Self {
        SamEncoder { encoder, device }
    }
}

impl Encode for SamEncoder {
    fn encode(&self, images: &[f32], batch: usize, size: usize) -> Result<Vec<f32>> {
        let channels = images.len() / (batch * size * size).max(1);
        // Where weights are not packed (`ops::packed`), an image of one token takes another path through the matrix products than several
        // do, with other last bits. Encoded one by one, it has the same embedding whatever else is in the batch; larger images have it in any
        // batch (a test checks both).
        if size == PATCH_SIZE && batch > 1 {
            return images
                .chunks(channels * size * size)
                .map(|image| self.encode(image, 1, size))
                .collect::<Result<Vec<_>>>()
                .map(|e| e.concat());
        }
        let images = Tensor::from_slice(images, (batch, channels, size, size), &self.device)?;
        Ok(self.encoder.forward(&images)?.flatten_all()?.to_vec1()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::EncoderArch;

    /// Stores grow and are repaired image by image: what an image is batched with must not reach its embedding's bits.
    #[test]
    fn embeddings_do_not_depend_on_the_batch() {
        for size in [16, 32, 80] {
            let encoder = ImageEncoder::random(EncoderArch::VitB, size, 3, &Device::Cpu).unwrap();
            let encoder = SamEncoder::new(encoder, Device::Cpu);
            let images: Vec<f32> = (0..5 * size * size).map(|i| (i * 37 % 101) as f32 / 101.0).collect();
            let alone: Vec<f32> = images.chunks(size * size).flat_map(|image| encoder.encode(image, 1, size).unwrap()).collect();
            for batch in [2, 3, 5] {
                let batches = images.chunks(batch * size * size);
                let together: Vec<f32> =
                    batches.flat_map(|images| encoder.encode(images, images.len() / (size * size), size).unwrap()).collect();
                assert!(together == alone, "image size {size}, batches of {batch}");
            }
        }
    }
}
