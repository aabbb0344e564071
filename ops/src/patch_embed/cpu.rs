//! The patch embedding on the CPU.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::{pages, with_f32};
use crate::frozen::FrozenWeight;
use crate::matmul::Output;
use crate::matmul::packed::{split_tiles, tiles};
use crate::numerics::Numerics;
use crate::rel_pos_attention::TokenGrid;

#[derive(Debug)]
pub(super) struct Embedding {
    /// `[c, 3·p·p]`
    weight: FrozenWeight,
    /// `[c, p·p]`: summed over the colours, for grey images.
    grey_weight: FrozenWeight,
    /// Absolute positions and the bias, `[g·g, c]`.
    positions: Vec<f32>,
    numerics: Numerics,
}

impl Embedding {
    pub(super) fn new(weight: &Tensor, bias: &Tensor, positions: &Tensor, numerics: Numerics) -> Result<Self> {
        let (c, _, patch, _) = weight.dims4()?;
        let area = patch * patch;
        let weight = weight.reshape((c, 3 * area))?;
        let grey: Vec<f32> = weight
            .flatten_all()?
            .to_vec1::<f32>()?
            .chunks_exact(3 * area)
            .flat_map(|kernel| {
                (0..area)
                    .map(|i| (0..3).map(|colour| f64::from(kernel[colour * area + i])).sum::<f64>() as f32)
                    .collect::<Vec<_>>()
            })
            .collect();
        let (bias, mut positions) = (bias.to_vec1::<f32>()?, positions.flatten_all()?.to_vec1::<f32>()?);
        for row in positions.chunks_exact_mut(c) {
            row.iter_mut().zip(&bias).for_each(|(position, bias)| *position += bias);
        }
        Ok(Self {
            weight: FrozenWeight::new(&weight, numerics)?,
            grey_weight: FrozenWeight::new(&Tensor::from_vec(grey, (c, area), weight.device())?, numerics)?,
            positions,
            numerics,
        })
    }

    /// How its products are computed, as those of the layers behind it.
    pub(super) fn numerics(&self) -> Numerics {
        self.numerics
    }

    /// Patches as rows, times the weight, plus positions: → `[b·g·g, c]`.
    pub(super) fn forward(&self, images: &Tensor, grid: TokenGrid, side: usize) -> Result<Vec<f32>> {
        let _span = tracing::trace_span!("patches").entered();
        let channels = images.dim(1)?;
        let weight = if channels == 1 { &self.grey_weight } else { &self.weight }.cpu()?;
        let patches = with_f32(images, "patch embedding", |images| Ok(patches(images, channels, grid, side)))?;
        let row = channels * side * side;
        let mut x = pages::filled(0f32, grid.batch * self.positions.len());
        x.chunks_exact_mut(self.positions.len().max(1)).for_each(|image| image.copy_from_slice(&self.positions));
        let tiles = tiles(grid.tokens(), weight.numerics());
        tiles.par_iter().zip(split_tiles(&mut x, &tiles, weight.out())).with_max_len(1).for_each(|(tile, x)| {
            weight.product(&patches[tile.start * row..tile.end * row], x, Output::Add);
        });
        Ok(x)
    }
}

/// `[b, channels, g·p, g·p]` → `[b·g·g, channels·p·p]`
fn patches(images: &[f32], channels: usize, TokenGrid { batch, grid }: TokenGrid, side: usize) -> Vec<f32> {
    let (size, row) = (grid * side, channels * side * side);
    let mut patches = vec![0f32; batch * grid * grid * row];
    patches.par_chunks_mut(row).enumerate().for_each(|(token, patch)| {
        let (image, y, x) = (token / (grid * grid), token / grid % grid, token % grid);
        for (i, row) in patch.chunks_exact_mut(side).enumerate() {
            let (channel, line) = (i / side, y * side + i % side);
            let start = ((image * channels + channel) * size + line) * size + x * side;
            row.copy_from_slice(&images[start..start + side]);
        }
    });
    patches
}
