//! Stage one on tiny scans, with a formula as the encoder, for the tests of damage, growth, workers and faults.
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use crate::cli::{nifti, write_pair};
use sam_ladder_precompute::encoder::EncoderError;
use sam_ladder_precompute::error::Result;
use sam_ladder_precompute::pipeline::{Encode, FillOptions, Loaded, Plan, Share, Summary, fill_part};
use sam_ladder_precompute::rungs::{RungMap, RungMaps};
use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::variants::AugmentPolicy;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Settings of the tiny store.
pub fn config(augment: AugmentPolicy, rotation_step: u32) -> PrecomputeConfig {
    PrecomputeConfig {
        image_size: 32,
        data_size: 16,
        augment,
        rotation_step,
        dtype: StoreDtype::F16,
        ..PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 })
    }
}

/// Writes a made-up scan of `depth` slices with its labels: case 1 is a test case, 5 to 7 are training cases.
pub fn write_scan(folder: &Path, case: u32, depth: usize) {
    let size = [8, 9, depth as i16];
    let voxels = 72 * depth;
    let image: Vec<f32> = (0..voxels).map(|i| ((i * 37 + case as usize * 101) % 400) as f32 - 125.0).collect();
    let label: Vec<f32> = (0..voxels).map(|i| ((i / 5 + case as usize) % 12) as f32).collect();
    write_pair(folder, case, &nifti(size, &image), &nifti(size, &label));
}

/// Two training cases of two and three slices, one test case of two.
pub fn write_scans(folder: &Path) {
    for (case, depth) in [(5, 2), (7, 3), (1, 2)] {
        write_scan(folder, case, depth);
    }
}

/// Embedding `[c, y, x]` = the mean over patch (y, x) of the image, plus c/256; of several channels the sum, each times its number from 1.
#[derive(Default)]
pub struct Formula<'a> {
    /// Fails once this many images were encoded.
    pub fails_after: Option<usize>,
    /// Counts images.
    pub images: Option<&'a AtomicUsize>,
    /// Time per batch.
    pub pause: Duration,
    /// What is made in addition.
    pub rungs: Option<RungMaps>,
}

/// Channels of ViT-B's tokens.
pub const WIDTH: usize = 768;

/// Tokens after blocks, by a formula: `[token, 768]` of each block, from the mean of the token's patch in the image's first channel.
pub fn tokens_of(image: &[f32], size: usize, blocks: &[usize]) -> Vec<Vec<f32>> {
    let grid = size / 16;
    let mean = |at: usize| {
        let (y, x) = (at / grid, at % grid);
        (0..256).map(|i| image[(y * 16 + i / 16) * size + x * 16 + i % 16]).sum::<f32>() / 256.0
    };
    let value = |mean: f32, block: usize, channel: usize| {
        let [a, b, c] = [7, 11, 13].map(|prime| ((channel * prime + block * 5) % (prime + 6)) as f32 / 8.0);
        a + b * mean + c * mean * mean
    };
    let of_block = |block: &usize| {
        (0..grid * grid)
            .flat_map(|at| (0..WIDTH).map(move |channel| value(mean(at), *block, channel)).collect::<Vec<_>>())
            .collect()
    };
    blocks.iter().map(of_block).collect()
}

/// The rungs of an image, `[rung, c, g·g]`: its tokens, mapped in float64.
pub fn rungs_of(image: &[f32], size: usize, maps: &RungMaps) -> Vec<f32> {
    let mapped = |rung: usize, tokens: Vec<f32>| {
        let tokens: Vec<Vec<f32>> = tokens.chunks(WIDTH).map(<[f32]>::to_vec).collect();
        let value = |channel: usize, token: &[f32]| match &maps.maps {
            None => token[channel],
            Some(maps) => {
                let RungMap { mean, components } = &maps[rung];
                let row = &components[channel * WIDTH..][..WIDTH];
                let terms = token.iter().zip(mean).zip(row).map(|((t, m), c)| (f64::from(*t) - f64::from(*m)) * f64::from(*c));
                terms.sum::<f64>() as f32
            }
        };
        (0..maps.channels).flat_map(|c| tokens.iter().map(|token| value(c, token)).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    tokens_of(image, size, &maps.blocks).into_iter().enumerate().flat_map(|(rung, tokens)| mapped(rung, tokens)).collect()
}

impl Encode for Formula<'_> {
    fn encode(&self, images: &[f32], batch: usize, size: usize) -> Result<Vec<f32>> {
        std::thread::sleep(self.pause);
        let before = self.images.map_or(0, |images| images.fetch_add(batch, Ordering::SeqCst));
        if self.fails_after.is_some_and(|most| before + batch > most) {
            return Err(EncoderError::Tensor(candle_core::Error::Msg("the power went".into())).into());
        }
        let grid = size / 16;
        let patch = |image: &[f32], y: usize, x: usize| {
            let mean = |plane: &[f32]| (0..256).map(|i| plane[(y * 16 + i / 16) * size + x * 16 + i % 16]).sum::<f32>() / 256.0;
            image.chunks(size * size).enumerate().map(|(channel, plane)| mean(plane) * (channel + 1) as f32).sum::<f32>()
        };
        let embed = |image: &[f32]| {
            let means: Vec<f32> = (0..grid * grid).map(|i| patch(image, i / grid, i % grid)).collect();
            (0..256).flat_map(|c| means.iter().map(move |mean| mean + c as f32 / 256.0).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        let mut made: Vec<f32> = images.chunks(images.len() / batch).flat_map(embed).collect();
        if let Some(maps) = &self.rungs {
            made.extend(images.chunks(images.len() / batch).flat_map(|image| rungs_of(image, size, maps)));
        }
        Ok(made)
    }

    fn tokens(&self, images: &[f32], batch: usize, size: usize, blocks: &[usize]) -> Result<Vec<Vec<f32>>> {
        let mut all = vec![Vec::new(); blocks.len()];
        for image in images.chunks(images.len() / batch) {
            all.iter_mut().zip(tokens_of(image, size, blocks)).for_each(|(all, tokens)| all.extend(tokens));
        }
        Ok(all)
    }

    fn set_rungs(&mut self, rungs: &RungMaps) -> Result<()> {
        self.rungs = Some(rungs.clone());
        Ok(())
    }
}

/// The formula, with a file in place of the decoder.
pub fn loaded(encoder: Formula<'_>) -> Result<Loaded<Formula<'_>>> {
    Ok(Loaded { encoder, decoder: b"the decoder's weights".to_vec() })
}

/// One worker's part of a store.
pub fn fill(scans: &Path, store: &Path, config: &PrecomputeConfig, share: &str, encoder: Formula<'_>) -> Result<Summary> {
    let stop = AtomicBool::new(false);
    let share: Share = share.parse().unwrap();
    let options = FillOptions { batch_size: 4, share, stop: &stop, observer: &Silent };
    fill_part(&Plan::new(scans, config, &Silent)?, store, &options, || loaded(encoder))
}

/// A whole store.
pub fn fill_whole(scans: &Path, store: &Path, config: &PrecomputeConfig) {
    assert!(fill(scans, store, config, "1/1", Formula::default()).unwrap().complete);
}

/// As [`fill_whole`], but the encoder fails after some images, of which the store needs more.
pub fn fill_failing(scans: &Path, store: &Path, config: &PrecomputeConfig, fails_after: usize) {
    let images = AtomicUsize::new(0);
    let encoder = Formula { fails_after: Some(fails_after), images: Some(&images), ..Formula::default() };
    fill(scans, store, config, "1/1", encoder).unwrap_err();
}
