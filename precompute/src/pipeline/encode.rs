//! What the pipeline needs of an encoder.

use crate::encoder::{ImageEncoder, Taps};
use crate::error::{Error, Result};
use crate::rungs::{RungMap, RungMaps};
use candle_core::{Device, Result as TensorResult, Tensor};
use rayon::prelude::*;
use sam_ladder_ops::device::{Download, Downloads, Staging, prepare};
use sam_ladder_ops::image::bicubic::resize_bicubic_antialiased;
use sam_ladder_ops::{FrozenLinear, Numerics, contiguous, token_linear};
use sam_ladder_schemas::encoder::PATCH_SIZE;
use sam_ladder_schemas::precompute::PixelNormalisation;
use std::sync::{Mutex, PoisonError};

/// A frozen image encoder, seen as a function of plain numbers.
pub trait Encode {
    /// Embeddings `[batch, channels, size/16, size/16]`, of SAM's encoders 256 channels, of `images` `[batch, c, size, size]`, one to three channels
    /// in [0, 1];
    /// c follows from the length.
    ///
    /// # Errors
    /// Whatever the encoder cannot do.
    fn encode(&self, images: &[f32], batch: usize, size: usize) -> Result<Vec<f32>>;

    /// The tokens after some blocks, counted from 0: for each block `[batch · (size/16)², C]`.
    ///
    /// # Errors
    /// Whatever the encoder cannot do; [`Error::NoRungs`] for one that does not show its tokens.
    fn tokens(&self, _images: &[f32], _batch: usize, _size: usize, _blocks: &[usize]) -> Result<Vec<Vec<f32>>> {
        Err(Error::NoRungs)
    }

    /// From now on, the embeddings of a batch are followed by its rungs, `[batch, rung, c, size/16, size/16]`.
    ///
    /// # Errors
    /// As [`Self::tokens`].
    fn set_rungs(&mut self, _rungs: &RungMaps) -> Result<()> {
        Err(Error::NoRungs)
    }

    /// Begins [`Self::encode`]: where a device queues work, the next images can be given to it before these are waited for.
    ///
    /// # Errors
    /// As [`Self::encode`]; some come only when the result is waited for.
    fn begin(&self, images: &[f32], batch: usize, size: usize) -> Result<Download> {
        self.encode(images, batch, size).map(Download::here)
    }
}

/// Embeddings of any number of images, of `image_len` values each, and their rungs; an image has `embedding_len` and `rungs_len` values of them.
/// `batch_size` images at a time: the next batch is begun before one is waited for.
///
/// # Errors
/// The encoder's; [`Error::EncoderShape`] for rungs that are missing or superfluous.
pub(super) fn encode_batches<E: Encode>(
    encoder: &E,
    images: &[f32],
    (batch_size, image_len, size): (usize, usize, usize),
    [embedding_len, rungs_len]: [usize; 2],
) -> Result<[Vec<f32>; 2]> {
    let (mut embeddings, mut rungs) = (Vec::new(), Vec::new());
    let mut add = |batch: usize, download: Download| -> Result<()> {
        let made = download.wait()?;
        let expected = batch * (embedding_len + rungs_len);
        if made.len() != expected {
            return Err(Error::EncoderShape { batch, expected, found: made.len() });
        }
        let (of_embeddings, of_rungs) = made.split_at(batch * embedding_len);
        embeddings.extend_from_slice(of_embeddings);
        rungs.extend_from_slice(of_rungs);
        Ok(())
    };
    let mut begun: Option<(usize, Download)> = None;
    for images in images.chunks((batch_size * image_len).max(1)) {
        let batch = images.len() / image_len;
        let next = (batch, encoder.begin(images, batch, size)?);
        if let Some((batch, before)) = begun.replace(next) {
            add(batch, before)?;
        }
    }
    if let Some((batch, last)) = begun {
        add(batch, last)?;
    }
    Ok([embeddings, rungs])
}

/// The frozen encoder on a device. An encoder whose patches have another side than 16 pixels sees images of another size: they are resized as
/// PyTorch does (`F.interpolate`, bicubic with antialiasing), so that it has as many tokens. On a GPU, images are copied from pinned memory on a
/// stream of its own, and embeddings into pinned memory on another.
pub struct SamEncoder {
    encoder: ImageEncoder,
    device: Device,
    uploads: Mutex<Staging>,
    downloads: Downloads,
    /// Mean and deviation of the three channels, `[1, 3, 1, 1]` each.
    normalisation: Option<[Tensor; 2]>,
    rungs: Option<Rungs>,
}

/// The rungs that are made with the embeddings.
struct Rungs {
    blocks: Vec<usize>,
    /// The map of each; `None` keeps the tokens as they are.
    layers: Option<Vec<FrozenLinear>>,
}

impl Rungs {
    fn new(maps: &RungMaps, device: &Device) -> Result<Self> {
        let layer = |RungMap { mean, components }: &RungMap| -> Result<FrozenLinear> {
            // components · (token - mean) = components · token + bias
            let product = |row: &[f32]| row.iter().zip(mean).map(|(c, m)| f64::from(*c) * f64::from(*m)).sum::<f64>();
            let bias: Vec<f32> = components.chunks(maps.width).map(|row| -product(row) as f32).collect();
            let weight = Tensor::from_slice(components, (maps.channels, maps.width), device)?;
            Ok(FrozenLinear::new(&weight, &Tensor::from_vec(bias, maps.channels, device)?, Numerics::F32)?)
        };
        let layers = maps.maps.as_ref().map(|maps| maps.iter().map(layer).collect::<Result<_>>()).transpose()?;
        Ok(Rungs { blocks: maps.blocks.clone(), layers })
    }

    /// Tokens `[b·g·g, C]` as planes `[b, c, g, g]`.
    fn planes(&self, place: usize, tokens: &Tensor, (batch, grid): (usize, usize)) -> TensorResult<Tensor> {
        let mapped = match &self.layers {
            Some(layers) => token_linear(tokens, &layers[place])?,
            None => tokens.clone(),
        };
        let channels = mapped.dim(1)?;
        contiguous(&mapped.reshape((batch, grid * grid, channels))?.transpose(1, 2)?)?.reshape((batch, channels, grid, grid))
    }
}

impl SamEncoder {
    /// An encoder whose weights are on `device`.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(encoder: ImageEncoder, device: &Device) -> Result<Self> {
        let (uploads, downloads) = (Mutex::new(Staging::new(device)?), Downloads::new(device)?);
        Ok(SamEncoder { encoder, device: device.clone(), uploads, downloads, normalisation: None, rungs: None })
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

    /// Images `[b, c, s, s]` on the device, float32, of the size that the encoder takes.
    fn upload(&self, images: &[f32], batch: usize, size: usize) -> TensorResult<Tensor> {
        let (channels, own) = (images.len() / (batch * size * size).max(1), self.encoder.image_size());
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        // An image of a size that no grid has is refused by the encoder.
        if own == size || size / PATCH_SIZE != self.encoder.grid() {
            return uploads.upload_f32(images, (batch, channels, size, size));
        }
        let resize = |plane: &[f32]| resize_bicubic_antialiased(plane, [size, size], [own, own]);
        let resized: Vec<Vec<f32>> = images.par_chunks(size * size).map(resize).collect();
        uploads.upload_f32(&resized.concat(), (batch, channels, own, own))
    }

    /// `[b, c, s, s]` → `[b, channels, g, g]`, on the device; followed by the rungs, if there are any, as one row of numbers.
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let images = &self.normalised(images)?;
        let batch = images.dim(0)?;
        // Where weights are not packed (`ops::packed`), an image of one token takes another path through the matrix products than several
        // do, with other last bits. Encoded one by one, it has the same embedding whatever else is in the batch; larger images have it in any
        // batch (a test checks both).
        if self.encoder.grid() == 1 && batch > 1 {
            let one_by_one: Vec<Vec<Tensor>> =
                (0..batch).map(|i| self.forward_parts(&images.narrow(0, i, 1)?)).collect::<Result<_>>()?;
            let parts = one_by_one[0].len();
            let of_part = |part: usize| Tensor::cat(&one_by_one.iter().map(|parts| &parts[part]).collect::<Vec<_>>(), 0);
            return joined((0..parts).map(of_part).collect::<TensorResult<_>>()?);
        }
        joined(self.forward_parts(images)?)
    }

    /// The embeddings `[b, channels, g, g]`, and the rungs `[b, rung, c, g, g]`, if there are any.
    fn forward_parts(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let Some(rungs) = &self.rungs else { return Ok(vec![self.encoder.forward(images)?]) };
        let (batch, grid) = (images.dim(0)?, self.encoder.grid());
        let mut planes = Vec::with_capacity(rungs.blocks.len());
        let mut visit = |place: usize, tokens: &Tensor| {
            planes.push(rungs.planes(place, tokens, (batch, grid))?);
            Ok(())
        };
        let embeddings = self.encoder.forward_tapped(images, Some(Taps { blocks: &rungs.blocks, visit: &mut visit }))?;
        Ok(vec![embeddings, Tensor::stack(&planes, 1)?])
    }
}

/// One part as it is; several as one row of numbers, part after part.
fn joined(parts: Vec<Tensor>) -> Result<Tensor> {
    match &parts[..] {
        [only] => Ok(only.clone()),
        parts => Ok(Tensor::cat(&parts.iter().map(Tensor::flatten_all).collect::<TensorResult<Vec<_>>>()?, 0)?),
    }
}

impl Encode for SamEncoder {
    fn encode(&self, images: &[f32], batch: usize, size: usize) -> Result<Vec<f32>> {
        Ok(self.begin(images, batch, size)?.wait()?)
    }

    fn begin(&self, images: &[f32], batch: usize, size: usize) -> Result<Download> {
        let images = self.upload(images, batch, size)?;
        let embeddings = prepare(&self.device, || self.forward(&images))?;
        Ok(self.downloads.begin(&embeddings)?)
    }

    fn tokens(&self, images: &[f32], batch: usize, size: usize, blocks: &[usize]) -> Result<Vec<Vec<f32>>> {
        let images = self.normalised(&self.upload(images, batch, size)?)?;
        let mut tokens = Vec::with_capacity(blocks.len());
        let mut visit = |_: usize, x: &Tensor| {
            tokens.push(x.flatten_all()?.to_vec1()?);
            Ok(())
        };
        prepare(&self.device, || {
            Ok::<_, Error>(self.encoder.forward_tapped(&images, Some(Taps { blocks, visit: &mut visit }))?)
        })?;
        Ok(tokens)
    }

    fn set_rungs(&mut self, rungs: &RungMaps) -> Result<()> {
        self.rungs = Some(Rungs::new(rungs, &self.device)?);
        Ok(())
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

    /// The rungs of a batch come after its embeddings, which keep their bits: `components · (token - mean)` of the tokens, channel by channel.
    #[test]
    fn rungs_are_the_mapped_tokens_whatever_they_are_batched_with() {
        for size in [16, 32] {
            let (batch, per_image) = (3, (size / 16) * (size / 16));
            let encoder = ImageEncoder::random(EncoderArch::VitB, size, 3, &Device::Cpu).unwrap();
            let mut encoder = SamEncoder::new(encoder, &Device::Cpu).unwrap();
            let images: Vec<f32> = (0..batch * size * size).map(|i| (i * 37 % 101) as f32 / 101.0).collect();
            let plain = encoder.encode(&images, batch, size).unwrap();
            let tokens = encoder.tokens(&images, batch, size, &[0, 11]).unwrap();
            let number = |i: usize, salt: usize| ((i * 7 + salt * 13) % 31) as f32 / 31.0 - 0.5;
            let map = |salt: usize| RungMap {
                mean: (0..768).map(|i| number(i, salt)).collect(),
                components: (0..2 * 768).map(|i| number(i, salt + 1)).collect(),
            };
            let maps = RungMaps { blocks: vec![0, 11], width: 768, channels: 2, maps: Some(vec![map(1), map(5)]) };
            encoder.set_rungs(&maps).unwrap();
            let with = encoder.encode(&images, batch, size).unwrap();
            let (embeddings, rungs) = with.split_at(plain.len());
            assert_eq!(embeddings, plain);
            assert_eq!(rungs.len(), batch * maps.item_len(size / 16));
            for (at, &found) in rungs.iter().enumerate() {
                let (token, channel, rung, image) =
                    (at % per_image, at / per_image % 2, at / per_image / 2 % 2, at / per_image / 4);
                let map = &maps.maps.as_ref().unwrap()[rung];
                let row = &map.components[channel * 768..][..768];
                let token = &tokens[rung][(image * per_image + token) * 768..][..768];
                let terms =
                    token.iter().zip(&map.mean).zip(row).map(|((t, m), c)| f64::from(*c) * (f64::from(*t) - f64::from(*m)));
                let expected = terms.sum::<f64>();
                assert!((f64::from(found) - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{at}: {found} {expected}");
            }
            let single = encoder.encode(&images[size * size..2 * size * size], 1, size).unwrap();
            let (embedding, of_one) = single.split_at(plain.len() / batch);
            assert_eq!(embedding, &plain[plain.len() / batch..][..embedding.len()]);
            assert_eq!(of_one, &rungs[of_one.len()..][..of_one.len()]);
            // Without a map, all channels of the tokens.
            encoder.set_rungs(&RungMaps { blocks: vec![11], width: 768, channels: 768, maps: None }).unwrap();
            let with = encoder.encode(&images, batch, size).unwrap();
            let rungs = &with[plain.len()..];
            assert_eq!(rungs.len(), batch * 768 * per_image);
            let token_of = |at: usize| (at / (768 * per_image) * per_image + at % per_image) * 768 + at / per_image % 768;
            assert!(rungs.iter().enumerate().all(|(at, value)| *value == tokens[1][token_of(at)]));
        }
    }

    /// Stores grow and are repaired image by image: what an image is batched with must not reach its embedding's bits.
    #[test]
    fn embeddings_do_not_depend_on_the_batch() {
        let (sam, dino) = (EncoderArch::VitB, [EncoderArch::Dinov2Vits14Reg, EncoderArch::Dinov3Vits16]);
        for (arch, size) in [(sam, 16), (sam, 32), (sam, 80), (dino[0], 16), (dino[0], 80), (dino[1], 48)] {
            let encoder = ImageEncoder::random(arch, size, 3, &Device::Cpu).unwrap();
            let encoder = SamEncoder::new(encoder, &Device::Cpu).unwrap();
            let images: Vec<f32> = (0..5 * size * size).map(|i| (i * 37 % 101) as f32 / 101.0).collect();
            let alone: Vec<f32> = images.chunks(size * size).flat_map(|image| encoder.encode(image, 1, size).unwrap()).collect();
            for batch in [2, 3, 5] {
                let [together, _] = encode_batches(&encoder, &images, (batch, size * size, size), [alone.len() / 5, 0]).unwrap();
                assert!(together == alone, "{arch:?}, image size {size}, batches of {batch}");
            }
        }
    }
}
