//! The encoder on the CPU: the same numbers as the composed path, on plain buffers that all blocks share.
//!
//! Tokens stay `[tokens, c]` from the patches to the neck; biases, residual sums and norms are joined into the passes between the
//! matrix products; padding tokens of windows are never made (see [`sam_ladder_ops::attention::rel_pos`]).

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use sam_ladder_ops::activation::bias_gelu_in_place;
use sam_ladder_ops::attention::rel_pos::{RelPosAttention, RelPosTable};
use sam_ladder_ops::matmul::{Accumulate, MatMut, MatRef, matmul};
use sam_ladder_ops::norm::{add_layer_norm_rows, layer_norm_rows};
use sam_ladder_schemas::encoder::{EMBED_CHANNELS, PATCH_SIZE};

use super::NORM_EPS;
use super::weights::{Affine, VitConfig, VitWeights};

/// Rows that one task of an element-wise pass works on.
const ROWS: usize = 32;
/// Pixels of a patch.
const PATCH_AREA: usize = PATCH_SIZE * PATCH_SIZE;

/// A linear layer: `[out, in]` and `[out]`.
type Linear = Affine<Vec<f32>>;

struct Block {
    norm1: Linear,
    rel_pos: RelPosTable,
    qkv: Linear,
    proj: Linear,
    norm2: Linear,
    lin1: Linear,
    lin2: Linear,
}

/// The encoder's weights in the layout of the CPU path.
pub(super) struct CpuVit {
    config: VitConfig,
    /// `[c, 3, 16, 16]`
    patch_weight: Vec<f32>,
    /// `[c, 16, 16]`: summed over the colours, for grey images.
    grey_patch_weight: Vec<f32>,
    /// Absolute positions and the patch embedding's bias, `[g·g, c]`.
    positions: Vec<f32>,
    blocks: Vec<Block>,
    /// `[256, c]`
    neck_conv1: Vec<f32>,
    neck_norm1: Linear,
    /// `[256, 3, 3, 256]`, input channels last.
    neck_conv2: Vec<f32>,
    neck_norm2: Linear,
}

impl CpuVit {
    /// Takes the weights block by block, so that no more than one block is in memory twice.
    pub(super) fn new(config: VitConfig, weights: VitWeights<Tensor>) -> Result<Self> {
        let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let affine =
            |layer: &Affine<Tensor>| -> Result<Linear> { Ok(Linear { weight: flat(&layer.weight)?, bias: flat(&layer.bias)? }) };
        let patch = affine(&weights.patch_embed)?;
        let grey_patch_weight = patch
            .weight
            .chunks_exact(3 * PATCH_AREA)
            .flat_map(|kernel| {
                (0..PATCH_AREA).map(|i| (0..3).map(|colour| f64::from(kernel[colour * PATCH_AREA + i])).sum::<f64>() as f32)
            })
            .collect();
        let mut positions = flat(&weights.pos_embed)?;
        for row in positions.chunks_exact_mut(config.embed_dim) {
            row.iter_mut().zip(&patch.bias).for_each(|(position, bias)| *position += bias);
        }
        let mut blocks = Vec::with_capacity(config.depth);
        for (i, block) in weights.blocks.into_iter().enumerate() {
            let (heights, widths) = (flat(&block.rel_pos_h)?, flat(&block.rel_pos_w)?);
            blocks.push(Block {
                norm1: affine(&block.norm1)?,
                rel_pos: RelPosTable::new(&heights, &widths, config.attention_side(i), config.head_dim()),
                qkv: affine(&block.qkv)?,
                proj: affine(&block.proj)?,
                norm2: affine(&block.norm2)?,
                lin1: affine(&block.lin1)?,
                lin2: affine(&block.lin2)?,
            });
        }
        let neck = &weights.neck;
        Ok(Self {
            patch_weight: patch.weight,
            grey_patch_weight,
            positions,
            blocks,
            neck_conv1: flat(&neck.conv1)?,
            neck_norm1: affine(&neck.norm1)?,
            neck_conv2: flat(&neck.conv2.permute((0, 2, 3, 1))?)?,
            neck_norm2: affine(&neck.norm2)?,
            config,
        })
    }

    /// Image embeddings of `batch` images with `channels` (1 or 3) planes each.
    ///
    /// # Shapes
    /// images `[b, channels, s, s]` → `[b, 256, g, g]`
    pub(super) fn forward(&self, images: &[f32], (batch, channels): (usize, usize)) -> Result<Tensor> {
        let (c, grid) = (self.config.embed_dim, self.config.grid());
        let tokens = batch * grid * grid;
        let mut x = self.embed_patches(images, batch, channels); // [tokens, c]
        let mut normed = vec![0f32; tokens * c];
        let mut wide = vec![0f32; tokens * (4 * c).max(3 * c)]; // qkv, then the MLP's hidden layer
        let hidden = self.blocks.first().map_or(4 * c, |block| block.lin1.bias.len());
        let zeros = vec![0f32; c];
        let mut pending: &[f32] = &zeros; // bias of the layer before, not yet added to x
        for block in &self.blocks {
            let _span = tracing::trace_span!("block").entered();
            add_and_normalise(&mut x, pending, &block.norm1, &mut normed);
            let qkv = &mut wide[..tokens * 3 * c];
            product(&normed, &block.qkv.weight, qkv, (tokens, c), Accumulate::No);
            let attention = RelPosAttention {
                qkv,
                bias: &block.qkv.bias,
                rel_pos: &block.rel_pos,
                batch,
                grid,
                heads: self.config.num_heads,
            };
            tracing::trace_span!("attention").in_scope(|| attention.forward(&mut normed));
            product(&normed, &block.proj.weight, &mut x, (tokens, c), Accumulate::Yes);
            add_and_normalise(&mut x, &block.proj.bias, &block.norm2, &mut normed);
            let hidden_rows = &mut wide[..tokens * hidden];
            product(&normed, &block.lin1.weight, hidden_rows, (tokens, c), Accumulate::No);
            tracing::trace_span!("gelu").in_scope(|| {
                hidden_rows.par_chunks_mut(ROWS * hidden).for_each(|rows| bias_gelu_in_place(rows, &block.lin1.bias));
            });
            product(hidden_rows, &block.lin2.weight, &mut x, (tokens, hidden), Accumulate::Yes);
            pending = &block.lin2.bias;
        }
        x.par_chunks_mut(c).for_each(|row| row.iter_mut().zip(pending).for_each(|(x, bias)| *x += bias));
        self.neck(&x, batch)
    }

    /// Patches as rows, times the patch embedding, plus positions: → `[b·g·g, c]`.
    fn embed_patches(&self, images: &[f32], batch: usize, channels: usize) -> Vec<f32> {
        let (c, grid, size) = (self.config.embed_dim, self.config.grid(), self.config.image_size);
        let patch = channels * PATCH_AREA;
        let mut patches = vec![0f32; batch * grid * grid * patch];
        patches.par_chunks_mut(patch).enumerate().for_each(|(token, patch)| {
            let (image, y, x) = (token / (grid * grid), token / grid % grid, token % grid);
            for (i, row) in patch.chunks_exact_mut(PATCH_SIZE).enumerate() {
                let (channel, line) = (i / PATCH_SIZE, y * PATCH_SIZE + i % PATCH_SIZE);
                let start = ((image * channels + channel) * size + line) * size + x * PATCH_SIZE;
                row.copy_from_slice(&images[start..start + PATCH_SIZE]);
            }
        });
        let weight = if channels == 1 { &self.grey_patch_weight } else { &self.patch_weight };
        let mut x = self.positions.repeat(batch);
        product(&patches, weight, &mut x, (batch * grid * grid, patch), Accumulate::Yes);
        debug_assert_eq!(x.len(), batch * grid * grid * c);
        x
    }

    /// 1×1 convolution, norm, 3×3 convolution, norm, channels last until the end: `[b·g·g, c]` → `[b, 256, g, g]`.
    fn neck(&self, x: &[f32], batch: usize) -> Result<Tensor> {
        let (c, grid, out) = (self.config.embed_dim, self.config.grid(), EMBED_CHANNELS);
        let (tokens, eps) = (batch * grid * grid, NORM_EPS as f32);
        let _span = tracing::trace_span!("neck").entered();
        let mut reduced = vec![0f32; tokens * out];
        product(x, &self.neck_conv1, &mut reduced, (tokens, c), Accumulate::No);
        let mut normed = vec![0f32; tokens * out];
        let norm = |x: &[f32], layer: &Linear, y: &mut [f32]| {
            let rows = ROWS * out;
            y.par_chunks_mut(rows)
                .zip(x.par_chunks(rows))
                .for_each(|(y, x)| layer_norm_rows(x, &layer.weight, &layer.bias, eps, y));
        };
        norm(&reduced, &self.neck_norm1, &mut normed);
        let mut columns = vec![0f32; tokens * 9 * out]; // each token's 3×3 neighbourhood, zeros over the edge
        columns.par_chunks_mut(9 * out).enumerate().for_each(|(token, column)| {
            let (image, y, x) = (token / (grid * grid), token / grid % grid, token % grid);
            for (i, values) in column.chunks_exact_mut(out).enumerate() {
                let (y, x) = (y + i / 3, x + i % 3); // one more than the neighbour's place
                if (1..=grid).contains(&y) && (1..=grid).contains(&x) {
                    let neighbour = (image * grid + y - 1) * grid + x - 1;
                    values.copy_from_slice(&normed[neighbour * out..(neighbour + 1) * out]);
                }
            }
        });
        product(&columns, &self.neck_conv2, &mut reduced, (tokens, 9 * out), Accumulate::No);
        norm(&reduced, &self.neck_norm2, &mut normed);
        Tensor::from_vec(normed, (batch, grid, grid, out), &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()
    }
}

/// `y = x·weightᵀ`, or added to y: x `[rows, inner]`, weight `[out, inner]`, y `[rows, out]`.
fn product(x: &[f32], weight: &[f32], y: &mut [f32], (rows, inner): (usize, usize), accumulate: Accumulate) {
    let out = weight.len() / inner;
    let _span = tracing::trace_span!("matrix product", rows, inner, out).entered();
    matmul(MatMut::new(y, rows, out), MatRef::new(x, rows, inner), MatRef::new(weight, out, inner).t(), 1.0, accumulate);
}

/// Adds a bias to every token, then writes the tokens' norm.
fn add_and_normalise(x: &mut [f32], added: &[f32], norm: &Linear, normed: &mut [f32]) {
    let rows = ROWS * added.len();
    x.par_chunks_mut(rows).zip(normed.par_chunks_mut(rows)).for_each(|(x, normed)| {
        add_layer_norm_rows(x, added, (&norm.weight, &norm.bias), NORM_EPS as f32, normed);
    });
}
