//! The encoder on the CPU: the same numbers as the composed path, on plain buffers that all blocks share.
//!
//! Tokens stay `[tokens, c]` from the patches to the neck, and weights are packed once (see [`sam_ladder_ops::matmul::packed`]). What lies between one
//! attention and the next looks at each token by itself, so a thread takes a tile of some 70 tokens through all of it while they are in its
//! caches: projection, residual sum, norm, perceptron, the next block's norm and its queries, keys and values. Padding tokens of windows
//! are never made (see [`sam_ladder_ops::rel_pos_attention`]).

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use sam_ladder_ops::layer_norm::{add_layer_norm_rows, layer_norm_rows};
use sam_ladder_ops::matmul::packed::{Output, PackedWeight, tiles};
use sam_ladder_ops::rel_pos_attention::{RelPosAttention, RelPosTable};
use sam_ladder_schemas::encoder::{EMBED_CHANNELS, PATCH_SIZE};

use super::NORM_EPS;
use super::weights::{Affine, VitConfig, VitWeights};

/// Rows that one task of an element-wise pass works on: all of a tile, where products are computed in tiles.
const ROWS: usize = 128;
/// Pixels of a patch.
const PATCH_AREA: usize = PATCH_SIZE * PATCH_SIZE;

/// A norm's scale and shift.
type Norm = Affine<Vec<f32>>;

/// A linear layer.
struct Linear {
    weight: PackedWeight,
    bias: Vec<f32>,
}

struct Block {
    norm1: Norm,
    rel_pos: RelPosTable,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    lin1: Linear,
    lin2: Linear,
}

/// The encoder's weights in the layout of the CPU path.
pub(super) struct CpuVit {
    config: VitConfig,
    /// `[c, 3·16·16]`
    patch_weight: PackedWeight,
    /// `[c, 16·16]`: summed over the colours, for grey images.
    grey_patch_weight: PackedWeight,
    /// Absolute positions and the patch embedding's bias, `[g·g, c]`.
    positions: Vec<f32>,
    blocks: Vec<Block>,
    /// `[256, c]`
    neck_conv1: PackedWeight,
    neck_norm1: Norm,
    /// `[256, 3·3·256]`, input channels last.
    neck_conv2: PackedWeight,
    neck_norm2: Norm,
}

thread_local! {
    /// The perceptron's hidden layer of a tile, kept so that its pages are touched once.
    static HIDDEN: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Some tokens between two attentions.
struct Tile<'a> {
    /// The residual stream, `[n, c]`.
    x: &'a mut [f32],
    /// The attention's result, then norms, `[n, c]`.
    rows: &'a mut [f32],
    /// Queries, keys and values without their bias, `[n, 3·c]`.
    qkv: &'a mut [f32],
}

impl Block {
    /// From the attention's result to the end of the block, but for the last bias.
    fn after_attention(&self, tile: &mut Tile<'_>) {
        let Tile { x, rows, .. } = tile;
        self.proj.weight.product(rows, x, Output::Add);
        add_and_normalise(x, &self.proj.bias, &self.norm2, rows);
        let len = rows.len() / self.lin1.weight.inner() * self.lin1.weight.out();
        // Taken out while it is in use: a tile that rayon runs on this thread meanwhile gets another.
        let mut hidden = HIDDEN.take();
        hidden.resize(hidden.len().max(len), 0.0);
        self.lin1.weight.product(rows, &mut hidden[..len], Output::BiasGelu(&self.lin1.bias));
        self.lin2.weight.product(&hidden[..len], x, Output::Add);
        HIDDEN.set(hidden);
    }

    /// The norm and the products before the attention; `pending` is the bias of the layer before, not yet added to x.
    fn before_attention(&self, tile: &mut Tile<'_>, pending: &[f32]) {
        let Tile { x, rows, qkv } = tile;
        add_and_normalise(x, pending, &self.norm1, rows);
        self.qkv.weight.product(rows, qkv, Output::Replace);
    }
}

impl CpuVit {
    /// Takes the weights block by block, so that no more than one block is in memory twice.
    pub(super) fn new(config: VitConfig, weights: VitWeights<Tensor>) -> Result<Self> {
        let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let affine =
            |layer: &Affine<Tensor>| -> Result<Norm> { Ok(Norm { weight: flat(&layer.weight)?, bias: flat(&layer.bias)? }) };
        let packed = |weight: &Tensor| -> Result<PackedWeight> {
            let (out, inner) = (weight.dim(0)?, weight.elem_count() / weight.dim(0)?);
            Ok(PackedWeight::new(flat(weight)?, out, inner))
        };
        let linear = |layer: &Affine<Tensor>| -> Result<Linear> {
            Ok(Linear { weight: packed(&layer.weight)?, bias: flat(&layer.bias)? })
        };
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
                qkv: linear(&block.qkv)?,
                proj: linear(&block.proj)?,
                norm2: affine(&block.norm2)?,
                lin1: linear(&block.lin1)?,
                lin2: linear(&block.lin2)?,
            });
        }
        let neck = &weights.neck;
        Ok(Self {
            patch_weight: PackedWeight::new(patch.weight, config.embed_dim, 3 * PATCH_AREA),
            grey_patch_weight: PackedWeight::new(grey_patch_weight, config.embed_dim, PATCH_AREA),
            positions,
            blocks,
            neck_conv1: packed(&neck.conv1)?,
            neck_norm1: affine(&neck.norm1)?,
            neck_conv2: packed(&neck.conv2.permute((0, 2, 3, 1))?)?,
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
        let mut rows = vec![0f32; tokens * c];
        let mut qkv = vec![0f32; tokens * 3 * c];
        let zeros = vec![0f32; c];
        let each_tile = |x: &mut [f32], rows: &mut [f32], qkv: &mut [f32], f: &(dyn Fn(Tile<'_>) + Sync)| {
            let tiles = tiles(tokens);
            let parts = split(x, &tiles, c).into_iter().zip(split(rows, &tiles, c)).zip(split(qkv, &tiles, 3 * c));
            let parts: Vec<Tile<'_>> = parts.map(|((x, rows), qkv)| Tile { x, rows, qkv }).collect();
            parts.into_par_iter().with_max_len(1).for_each(f);
        };
        if let Some(first) = self.blocks.first() {
            let _span = tracing::trace_span!("norm, qkv").entered();
            each_tile(&mut x, &mut rows, &mut qkv, &|mut tile| first.before_attention(&mut tile, &zeros));
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let _span = tracing::trace_span!("block").entered();
            let heads = self.config.num_heads;
            let attention = RelPosAttention { qkv: &qkv, bias: &block.qkv.bias, rel_pos: &block.rel_pos, batch, grid, heads };
            tracing::trace_span!("attention", side = self.config.attention_side(i)).in_scope(|| attention.forward(&mut rows));
            let _span = tracing::trace_span!("proj, norm, mlp, norm, qkv").entered();
            each_tile(&mut x, &mut rows, &mut qkv, &|mut tile| {
                block.after_attention(&mut tile);
                match self.blocks.get(i + 1) {
                    Some(next) => next.before_attention(&mut tile, &block.lin2.bias),
                    None => tile.x.chunks_exact_mut(c).for_each(|row| add(row, &block.lin2.bias)),
                }
            });
        }
        self.neck(&x, batch)
    }

    /// Patches as rows, times the patch embedding, plus positions: → `[b·g·g, c]`.
    fn embed_patches(&self, images: &[f32], batch: usize, channels: usize) -> Vec<f32> {
        let (c, grid, size) = (self.config.embed_dim, self.config.grid(), self.config.image_size);
        let _span = tracing::trace_span!("patches").entered();
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
        let tiles = tiles(batch * grid * grid);
        tiles.par_iter().zip(split(&mut x, &tiles, c)).with_max_len(1).for_each(|(tile, x)| {
            weight.product(&patches[tile.start * patch..tile.end * patch], x, Output::Add);
        });
        x
    }

    /// 1×1 convolution, norm, 3×3 convolution, norm, channels last until the end: `[b·g·g, c]` → `[b, 256, g, g]`.
    fn neck(&self, x: &[f32], batch: usize) -> Result<Tensor> {
        let (c, grid, out) = (self.config.embed_dim, self.config.grid(), EMBED_CHANNELS);
        let tokens = batch * grid * grid;
        let _span = tracing::trace_span!("neck").entered();
        let tiles = tiles(tokens);
        let mut normed = vec![0f32; tokens * out];
        tiles.par_iter().zip(split(&mut normed, &tiles, out)).with_max_len(1).for_each_init(
            Vec::new,
            |reduced, (tile, normed)| {
                reduced.resize(tile.len() * out, 0.0);
                self.neck_conv1.product(&x[tile.start * c..tile.end * c], reduced, Output::Replace);
                normalise(reduced, &self.neck_norm1, normed);
            },
        );
        let mut embeddings = vec![0f32; tokens * out];
        let scratch = || (Vec::new(), Vec::new());
        tiles.par_iter().zip(split(&mut embeddings, &tiles, out)).with_max_len(1).for_each_init(
            scratch,
            |(columns, reduced), (tile, embeddings)| {
                columns.resize(tile.len() * 9 * out, 0.0);
                reduced.resize(tile.len() * out, 0.0);
                let each = columns.par_chunks_mut(9 * out).with_min_len(ROWS).zip(tile.start..tile.end);
                each.for_each(|(column, token)| neighbours(&normed, token, grid, column));
                self.neck_conv2.product(columns, reduced, Output::Replace);
                normalise(reduced, &self.neck_norm2, embeddings);
            },
        );
        Tensor::from_vec(embeddings, (batch, grid, grid, out), &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()
    }
}

/// A token's 3×3 neighbourhood, zeros over the edge: x `[b·g·g, 256]` → `[3, 3, 256]`.
fn neighbours(x: &[f32], token: usize, grid: usize, column: &mut [f32]) {
    let out = EMBED_CHANNELS;
    let (image, row, col) = (token / (grid * grid), token / grid % grid, token % grid);
    for (i, values) in column.chunks_exact_mut(out).enumerate() {
        let (y, x_) = (row + i / 3, col + i % 3); // one more than the neighbour's place
        if (1..=grid).contains(&y) && (1..=grid).contains(&x_) {
            let neighbour = (image * grid + y - 1) * grid + x_ - 1;
            values.copy_from_slice(&x[neighbour * out..(neighbour + 1) * out]);
        } else {
            values.fill(0.0);
        }
    }
}

/// The tiles of a matrix whose rows are `width` wide.
fn split<'a>(mut matrix: &'a mut [f32], tiles: &[Range<usize>], width: usize) -> Vec<&'a mut [f32]> {
    let part = |tile: &Range<usize>| {
        let (part, rest) = std::mem::take(&mut matrix).split_at_mut(tile.len() * width);
        matrix = rest;
        part
    };
    tiles.iter().map(part).collect()
}

fn add(row: &mut [f32], bias: &[f32]) {
    row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
}

/// Writes the rows' norm.
fn normalise(x: &[f32], norm: &Norm, normed: &mut [f32]) {
    let rows = ROWS * norm.bias.len();
    x.par_chunks(rows).zip(normed.par_chunks_mut(rows)).for_each(|(x, normed)| {
        layer_norm_rows(x, &norm.weight, &norm.bias, NORM_EPS as f32, normed);
    });
}

/// Adds a bias to every token, then writes the tokens' norm.
fn add_and_normalise(x: &mut [f32], added: &[f32], norm: &Norm, normed: &mut [f32]) {
    let rows = ROWS * added.len();
    x.par_chunks_mut(rows).zip(normed.par_chunks_mut(rows)).for_each(|(x, normed)| {
        add_layer_norm_rows(x, added, (&norm.weight, &norm.bias), NORM_EPS as f32, normed);
    });
}
