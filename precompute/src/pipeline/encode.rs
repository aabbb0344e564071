//! What the pipeline asks of an encoder.

use crate::encoder::ImageEncoder;
use crate::error::Result;
use candle_core::{Device, Tensor};

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
        let images = Tensor::from_slice(images, (batch, channels, size, size), &self.device)?;
        Ok(self.encoder.forward(&images)?.flatten_all()?.to_vec1()?)
    }
}
