//! What the pipeline needs of an encoder.

use crate::encoder::ImageEncoder;
use crate::error::{Error, Result};
use candle_core::{Device, Result as TensorResult, Tensor};
use sam_ladder_ops::device::{Download, Downloads, Staging, prepare};
use sam_ladder_schemas::encoder::PATCH_SIZE;
use sam_ladder_schemas::precompute::PixelNormalisation;
use std::sync::{Mutex, PoisonError};

/// A frozen image encoder, seen as a function of plain numbers.
pub trait Encode {
    /// Embeddings `[batch, 256, size/16, size/16]` of `images` `[batch, c, size, size]`, one to three channels in [0, 1];
    /// c follows from the length.
    ///
    /// # Errors
    /// Whatever the encoder cannot do.
    fn encode(&self, images: &[f32], batch: usize, size: usize) -> Result<Vec<f32>>;

    /// Begins [`Self::encode`]: where a device queues work, the next images can be given to it before these are waited for.
    ///
    /// # Errors
    /// As [`Self::encode`]; some come only when the result is waited for.
    fn begin(&self, images: &[f32], batch: usize, size: usize) -> Result<Download> {
        self.encode(images, batch, size).map(Download::here)
    }
}

/// Embeddings of any number of images, of `image_len` values each, `batch_size` at a time: the next batch is begun before one is waited for.
///
/// # Errors
/// The encoder's.
pub(super) fn encode_batches<E: Encode>(
    encoder: &E,
    images: &[f32],
    (batch_size, image_len, size): (usize, usize, usize),
) -> Result<Vec<f32>> {
    let mut embeddings = Vec::new();
    let mut begun: Option<Download> = None;
    for images in images.chunks((batch_size * image_len).max(1)) {
        let next = encoder.begin(images, images.len() / image_len, size)?;
        if let Some(before) = begun.replace(next) {
            embeddings.extend(before.wait()?);
        }
    }
    if let Some(last) = begun {
        embeddings.extend(last.wait()?);
    }
    Ok(embeddings)
}

/// SAM's encoder on a device. On a GPU, images are copied from pinned memory on a stream of its own, and embeddings into pinned memory on another.
pub struct SamEncoder {
    encoder: ImageEncoder,
    device: Device,
    uploads: Mutex<Staging>,
    downloads: Downloads,
    /// Mean and deviation of the three channels, `[1, 3, 1, 1]` each.
    normalisation: Option<[Tensor; 2]>,
}

impl SamEncoder {
    /// An encoder whose weights are on `device`.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(encoder: ImageEncoder, device: &Device) -> Result<Self> {
        let (uploads, downloads) = (Mutex::new(Staging::new(device)?), Downloads::new(device)?);
        Ok(SamEncoder { encoder, device: device.clone(), uploads, downloads, normalisation: None })
    }

    /// The same encoder, which sees images so normalised.
    ///
    /// # Errors
    /// The driver's.
    pub fn normalising(self, normalisation: PixelNormalisation) -> Result<Self> {
        let tensor = |numbers: [f32; 3]| Tensor::from_slice(&numbers, (1, 3, 1, 1), &self.device);
        let numbers = normalisation.mean_and_deviation();
        let normalisation = numbers.map(|[mean, deviation]| Ok::<_, Error>([tensor(mean)?, tensor(deviation)?])).transpose()?;
        Ok(SamEncoder { normalisation, ..self })
    }

    /// Images as the encoder sees them: of one channel three equal ones, of two a third of zeros, each minus its mean, over its deviation.
    fn normalised(&self, images: &Tensor) -> Result<Tensor> {
        let Some([mean, deviation]) = &self.normalisation else { return Ok(images.clone()) };
        let (batch, channels, height, width) = images.dims4()?;
        let three = match channels {
            1 => images.expand((batch, 3, height, width))?,
            2 => Tensor::cat(&[images, &images.narrow(1, 0, 1)?.zeros_like()?], 1)?,
            _ => images.clone(),
        };
        Ok(three.broadcast_sub(mean)?.broadcast_div(deviation)?)
    }

    /// `[b, c, s, s]` → `[b, 256, s/16, s/16]`, on the device.
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let images = &self.normalised(images)?;
        let (batch, _, size, _) = images.dims4()?;
        // Where weights are not packed (`ops::packed`), an image of one token takes another path through the matrix products than several
        // do, with other last bits. Encoded one by one, it has the same embedding whatever else is in the batch; larger images have it in any
        // batch (a test checks both).
        if size == PATCH_SIZE && batch > 1 {
            let one_by_one: Vec<Tensor> =
                (0..batch).map(|i| Ok(self.encoder.forward(&images.narrow(0, i, 1)?)?)).collect::<Result<_>>()?;
            return Ok(Tensor::cat(&one_by_one, 0)?);
        }
        Ok(self.encoder.forward(images)?)
    }
}

impl Encode for SamEncoder {
    fn encode(&self, images: &[f32], batch: usize, size: usize) -> Result<Vec<f32>> {
        Ok(self.begin(images, batch, size)?.wait()?)
    }

    fn begin(&self, images: &[f32], batch: usize, size: usize) -> Result<Download> {
        let channels = images.len() / (batch * size * size).max(1);
        let upload = || -> TensorResult<Tensor> {
            let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
            uploads.upload_f32(images, (batch, channels, size, size))
        };
        let images = upload()?;
        let embeddings = prepare(&self.device, || self.forward(&images))?;
        Ok(self.downloads.begin(&embeddings)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::EncoderArch;

    /// What the encoder sees is PyTorch's `(images.expand(-1, 3, -1, -1) - mean) / std`, channel by channel.
    #[test]
    fn an_encoder_sees_normalised_images() {
        let size = 32;
        let encoder = |normalisation| {
            let encoder = ImageEncoder::random(EncoderArch::VitB, size, 3, &Device::Cpu).unwrap();
            SamEncoder::new(encoder, &Device::Cpu).unwrap().normalising(normalisation).unwrap()
        };
        let (plain, normalising) = (encoder(PixelNormalisation::None), encoder(PixelNormalisation::Sam));
        let grey: Vec<f32> = (0..size * size).map(|i| (i * 37 % 101) as f32 / 101.0).collect();
        let [mean, deviation] = PixelNormalisation::Sam.mean_and_deviation().unwrap();
        let by_hand = |channel: usize, x: f32| (x - mean[channel]) / deviation[channel];
        let three: Vec<f32> = (0..3).flat_map(|channel| grey.iter().map(move |&x| by_hand(channel, x))).collect();
        let expected = plain.encode(&three, 1, size).unwrap();
        assert_eq!(normalising.encode(&grey, 1, size).unwrap(), expected);
        assert_ne!(plain.encode(&grey, 1, size).unwrap(), expected);
        let two = [&grey[..], &grey[..]].concat();
        let zeros = vec![0.0; size * size];
        assert_eq!(normalising.encode(&two, 1, size).unwrap(), normalising.encode(&[two, zeros].concat(), 1, size).unwrap());
    }

    /// Stores grow and are repaired image by image: what an image is batched with must not reach its embedding's bits.
    #[test]
    fn embeddings_do_not_depend_on_the_batch() {
        for size in [16, 32, 80] {
            let encoder = ImageEncoder::random(EncoderArch::VitB, size, 3, &Device::Cpu).unwrap();
            let encoder = SamEncoder::new(encoder, &Device::Cpu).unwrap();
            let images: Vec<f32> = (0..5 * size * size).map(|i| (i * 37 % 101) as f32 / 101.0).collect();
            let alone: Vec<f32> = images.chunks(size * size).flat_map(|image| encoder.encode(image, 1, size).unwrap()).collect();
            for batch in [2, 3, 5] {
                let together = encode_batches(&encoder, &images, (batch, size * size, size)).unwrap();
                assert!(together == alone, "image size {size}, batches of {batch}");
            }
        }
    }
}
