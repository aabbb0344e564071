//! The encoder made of candle's own operations, step by step as in SAM's code: the reference that the encoder is tested against.

use std::collections::HashMap;

use candle_core::{D, Result, Tensor};
use sam_ladder_ops::composed::{layer_norm_2d_composed, layer_norm_composed, linear_composed};
use sam_ladder_schemas::encoder::{PATCH_SIZE, WINDOW_SIZE};

use super::config::VitConfig;

const NORM_EPS: f64 = 1e-6;

/// Every parameter by its name without `image_encoder.`.
pub(super) type Weights = HashMap<String, Tensor>;

/// Image embeddings of a batch (`ImageEncoderViT.forward`), and the tokens after each block.
///
/// # Shapes
/// images `[b, 3, s, s]` → `[b, 256, s/16, s/16]` and `[b, g, g, c]`
pub(super) fn forward(config: &VitConfig, weights: &Weights, images: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
    let x = images.conv2d(&weights["patch_embed.proj.weight"], 0, PATCH_SIZE, 1, 1)?; // [b, c, g, g]
    let x = x.permute((0, 2, 3, 1))?.broadcast_add(&weights["patch_embed.proj.bias"])?; // [b, g, g, c]
    let mut x = x.broadcast_add(&weights["pos_embed"])?;
    let mut after_blocks = Vec::new();
    for i in 0..config.depth {
        let window = if config.global_attn_indexes.contains(&i) { None } else { Some(WINDOW_SIZE) };
        x = block_forward(config, weights, i, &x, window)?;
        after_blocks.push(x.clone());
    }
    let x = x.permute((0, 3, 1, 2))?.contiguous()?; // [b, c, g, g]
    let x = x.conv2d(&weights["neck.0.weight"], 0, 1, 1, 1)?;
    let x = layer_norm_2d_composed(&x, &weights["neck.1.weight"], &weights["neck.1.bias"], NORM_EPS)?;
    let x = x.conv2d(&weights["neck.2.weight"], 1, 1, 1, 1)?;
    let x = layer_norm_2d_composed(&x, &weights["neck.3.weight"], &weights["neck.3.bias"], NORM_EPS)?;
    Ok((x, after_blocks))
}

fn linear(x: &Tensor, weights: &Weights, layer: &str) -> Result<Tensor> {
    linear_composed(x, &weights[&format!("{layer}.weight")], Some(&weights[&format!("{layer}.bias")]))
}

fn norm(x: &Tensor, weights: &Weights, layer: &str) -> Result<Tensor> {
    layer_norm_composed(x, &weights[&format!("{layer}.weight")], &weights[&format!("{layer}.bias")], NORM_EPS)
}

/// `[b, g, g, c]` → `[b, g, g, c]`
fn block_forward(config: &VitConfig, weights: &Weights, i: usize, x: &Tensor, window: Option<usize>) -> Result<Tensor> {
    let block = format!("blocks.{i}");
    let normed = norm(x, weights, &format!("{block}.norm1"))?;
    let attended = match window {
        None => attention(config, weights, &block, &normed)?,
        Some(window) => {
            let (b, grid, _, c) = normed.dims4()?;
            let windows = window_partition(&normed, window)?;
            window_unpartition(&attention(config, weights, &block, &windows)?, (b, grid, c), window)?
        }
    };
    let x = (x + attended)?;
    let normed = norm(&x, weights, &format!("{block}.norm2"))?;
    let hidden = linear(&normed, weights, &format!("{block}.mlp.lin1"))?.gelu_erf()?;
    x + linear(&hidden, weights, &format!("{block}.mlp.lin2"))?
}

/// Self-attention over squares of tokens, `[n, side, side, c]` → the same.
fn attention(config: &VitConfig, weights: &Weights, block: &str, x: &Tensor) -> Result<Tensor> {
    let (n, side, _, c) = x.dims4()?;
    let (heads, d, tokens) = (config.num_heads, config.head_dim(), side * side);
    let qkv = linear(x, weights, &format!("{block}.attn.qkv"))?; // [n, side, side, 3·c]
    let qkv = qkv.reshape((n, tokens, 3, heads, d))?.permute((2, 0, 3, 1, 4))?; // [3, n, heads, tokens, d]
    let qkv = qkv.reshape((3, n * heads, tokens, d))?;
    let (q, k, v) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
    let scores = (&q * (d as f64).powf(-0.5))?.matmul(&k.t()?)?; // [n·heads, tokens, tokens]
    let tables = [format!("{block}.attn.rel_pos_h"), format!("{block}.attn.rel_pos_w")];
    let scores = add_decomposed_rel_pos(&scores, &q, (&weights[&tables[0]], &weights[&tables[1]]), side)?;
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let shares = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    let out = shares.matmul(&v)?.reshape((n, heads, tokens, d))?.transpose(1, 2)?.reshape((n, side, side, c))?;
    linear(&out, weights, &format!("{block}.attn.proj"))
}

/// Adds `q·R_h` and `q·R_w` to the scores of each query and key (MViTv2, and SAM's function of this name).
///
/// # Shapes
/// scores `[m, side², side²]`, q `[m, side², d]`, tables `[2·side - 1, d]` → as scores
fn add_decomposed_rel_pos(scores: &Tensor, q: &Tensor, tables: (&Tensor, &Tensor), side: usize) -> Result<Tensor> {
    let (m, _, d) = q.dims3()?;
    // row of the table for each query and key: query - key + side - 1
    let offsets: Vec<u32> = (0..side).flat_map(|q| (0..side).map(move |k| (q + side - 1 - k) as u32)).collect();
    let offsets = Tensor::from_vec(offsets, side * side, q.device())?;
    let table = |table: &Tensor| table.index_select(&offsets, 0)?.reshape((side, side, d))?.transpose(1, 2)?.contiguous(); // [q, d, k]
    let q = q.reshape((m, side, side, d))?; // [m, y, x, d]
    let by_row = q.transpose(0, 1)?.reshape((side, m * side, d))?.matmul(&table(tables.0)?)?; // [y, m·x, k]
    let by_row = by_row.reshape((side, m, side, side))?.transpose(0, 1)?; // [m, y, x, k]
    let by_column = q.permute((2, 0, 1, 3))?.reshape((side, m * side, d))?.matmul(&table(tables.1)?)?; // [x, m·y, k]
    let by_column = by_column.reshape((side, m, side, side))?.permute((1, 2, 0, 3))?; // [m, y, x, k]
    let scores = scores.reshape((m, side * side, side, side))?;
    let scores = scores.broadcast_add(&by_row.reshape((m, side * side, side, 1))?)?;
    let scores = scores.broadcast_add(&by_column.reshape((m, side * side, 1, side))?)?;
    scores.reshape((m, side * side, side * side))
}

/// `[b, g, g, c]` → `[b·windows, window, window, c]`, zeros where the last windows reach over the edge.
fn window_partition(x: &Tensor, window: usize) -> Result<Tensor> {
    let (b, grid, _, c) = x.dims4()?;
    let count = grid.div_ceil(window);
    let padding = count * window - grid;
    let x = x.pad_with_zeros(1, 0, padding)?.pad_with_zeros(2, 0, padding)?;
    let x = x.reshape(&[b, count, window, count, window, c])?.permute(vec![0, 1, 3, 2, 4, 5])?;
    x.reshape((b * count * count, window, window, c))
}

/// The inverse of [`window_partition`]: `[b·windows, window, window, c]` → `[b, g, g, c]`.
fn window_unpartition(x: &Tensor, (b, grid, c): (usize, usize, usize), window: usize) -> Result<Tensor> {
    let count = grid.div_ceil(window);
    let x = x.reshape(&[b, count, count, window, window, c])?.permute(vec![0, 1, 3, 2, 4, 5])?;
    x.reshape((b, count * window, count * window, c))?.narrow(1, 0, grid)?.narrow(2, 0, grid)?.contiguous()
}
