//! SAM's image encoder of a graph.

use candle_core::{Device, Tensor};
use sam_ladder_formats::onnx::Value;
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_schemas::encoder::{EMBED_CHANNELS, PATCH_SIZE};

use super::layers::Layers;
use crate::error::Result;

const PREFIX: &str = "image_encoder";
const EPS: f32 = 1e-6;

/// `images` `[b, 3, s, s]` → `[b, 256, grid, grid]`, and the rungs after some blocks, `[b, c, grid, grid]` each. The numbers of the encoder
/// are those of its weights' shapes.
pub(super) fn encode(
    net: &mut Layers,
    images: &Value,
    grid: usize,
    (blocks, projection): (&[usize], Option<&StateDict>),
) -> Result<(Value, Vec<Value>)> {
    let mut rungs = Vec::with_capacity(blocks.len());
    let x = net.conv(images, &format!("{PREFIX}.patch_embed.proj"), PATCH_SIZE as i64, 0)?;
    let x = net.transpose(&x, &[0, 2, 3, 1]); // [b, g, g, c]
    let positions = net.weight(&format!("{PREFIX}.pos_embed"))?;
    let mut x = net.add(&x, &positions);
    for number in 0.. {
        let block = format!("{PREFIX}.blocks.{number}");
        if !net.has(&format!("{block}.norm1.weight")) {
            break;
        }
        let normalised = net.layer_norm(&x, &format!("{block}.norm1"), EPS)?;
        let attended = windows(net, &normalised, &block, grid)?;
        x = net.add(&x, &attended);
        let hidden = net.layer_norm(&x, &format!("{block}.norm2"), EPS)?;
        let hidden = net.linear(&hidden, &format!("{block}.mlp.lin1"))?;
        let hidden = net.gelu(&hidden);
        let out = net.linear(&hidden, &format!("{block}.mlp.lin2"))?;
        x = net.add(&x, &out);
        if blocks.contains(&number) {
            rungs.push(rung(net, &x, number, projection)?);
        }
    }
    let mut x = net.transpose(&x, &[0, 3, 1, 2]);
    for (conv, norm, padding) in [("neck.0", "neck.1", 0), ("neck.2", "neck.3", 1)] {
        x = net.conv(&x, &format!("{PREFIX}.{conv}"), 1, padding)?;
        x = net.layer_norm_2d(&x, &format!("{PREFIX}.{norm}"), EPS)?;
    }
    Ok((net.reshape(&x, &[0, EMBED_CHANNELS as i64, grid as i64, grid as i64]), rungs))
}

/// Tokens `[b, g, g, C]` after a block, mapped as the run's projection says: `[b, c, g, g]`.
fn rung(net: &mut Layers, tokens: &Value, block: usize, projection: Option<&StateDict>) -> Result<Value> {
    let mut x = tokens.clone();
    if let Some(projection) = projection {
        let mean = projection.tensor(&format!("blocks.{block}.mean"), &Device::Cpu)?;
        let components = projection.tensor(&format!("blocks.{block}.components"), &Device::Cpu)?;
        let mean = net.constant(&format!("rungs.{block}.mean"), &mean)?;
        let components = net.constant(&format!("rungs.{block}.components"), &components.t()?.contiguous()?)?;
        let centred = net.graph.op("Sub", &[&x, &mean], &[]);
        x = net.matmul(&centred, &components);
    }
    Ok(net.transpose(&x, &[0, 3, 1, 2]))
}

/// Attention within windows, or within the whole grid if the table of positions is as large: `[b, g, g, c]` → the same.
fn windows(net: &mut Layers, x: &Value, block: &str, grid: usize) -> Result<Value> {
    let side = net.tensor(&format!("{block}.attn.rel_pos_h"))?.dims()[0].div_ceil(2);
    let width = net.tensor(&format!("{block}.norm1.weight"))?.dims()[0] as i64;
    let (g, s) = (grid as i64, side as i64);
    let count = grid.div_ceil(side) as i64;
    let padding = count * s - g;
    let mut x = x.clone();
    if padding > 0 {
        x = net.pad(&x, &[0, 0, 0, 0, 0, padding, padding, 0]);
    }
    let x = net.reshape(&x, &[0, count, s, count, s, width]);
    let x = net.transpose(&x, &[0, 1, 3, 2, 4, 5]);
    let x = net.reshape(&x, &[-1, s * s, width]); // [b·windows, side², c]
    let x = attention(net, &x, block, side)?;
    let x = net.reshape(&x, &[-1, count, count, s, s, width]);
    let x = net.transpose(&x, &[0, 1, 3, 2, 4, 5]);
    let mut x = net.reshape(&x, &[0, count * s, count * s, width]);
    if padding > 0 {
        x = net.slice(&x, 1, 0, g);
        x = net.slice(&x, 2, 0, g);
    }
    Ok(x)
}

/// Attention with decomposed relative positions: `[m, side², c]` → the same.
fn attention(net: &mut Layers, x: &Value, block: &str, side: usize) -> Result<Value> {
    let dims = net.tensor(&format!("{block}.attn.qkv.weight"))?.dims().to_vec();
    let head = net.tensor(&format!("{block}.attn.rel_pos_h"))?.dims()[1] as i64;
    let (width, s) = (dims[1] as i64, side as i64);
    let heads = width / head;
    let qkv = net.linear(x, &format!("{block}.attn.qkv"))?;
    let qkv = net.reshape(&qkv, &[0, 0, 3, heads, head]);
    let part = |net: &mut Layers, index: i64, axes: &[i64]| {
        let part = net.slice(&qkv, 2, index, index + 1);
        let part = net.squeeze(&part, 2);
        net.transpose(&part, axes)
    };
    let (q, k, v) = (part(net, 0, &[0, 2, 1, 3]), part(net, 1, &[0, 2, 3, 1]), part(net, 2, &[0, 2, 1, 3])); // [m, heads, side², d]
    let scaled = net.scale(&q, 1.0 / (head as f32).sqrt());
    let scores = net.matmul(&scaled, &k);
    let scores = net.reshape(&scores, &[0, 0, s * s, s, s]); // of each query, by the key's row and column
    let q = net.reshape(&q, &[0, 0, s, s, head]);
    let table = position_table(net, &format!("{block}.attn.rel_pos_h"), side)?;
    let by_row = net.matmul(&q, &table); // [m, heads, y, x, key's y]
    let by_row = net.reshape(&by_row, &[0, 0, s * s, s, 1]);
    let table = position_table(net, &format!("{block}.attn.rel_pos_w"), side)?;
    let columns = net.transpose(&q, &[0, 1, 3, 2, 4]);
    let by_column = net.matmul(&columns, &table); // [m, heads, x, y, key's x]
    let by_column = net.transpose(&by_column, &[0, 1, 3, 2, 4]);
    let by_column = net.reshape(&by_column, &[0, 0, s * s, 1, s]);
    let scores = net.add(&scores, &by_row);
    let scores = net.add(&scores, &by_column);
    let scores = net.reshape(&scores, &[0, 0, s * s, s * s]);
    let shares = net.softmax(&scores);
    let out = net.matmul(&shares, &v);
    let out = net.transpose(&out, &[0, 2, 1, 3]);
    let out = net.reshape(&out, &[0, 0, width]);
    net.linear(&out, &format!("{block}.attn.proj"))
}

/// For each query position the embeddings of its offsets to all keys: `[2·side - 1, d]` → `[side, d, side]`.
fn position_table(net: &mut Layers, name: &str, side: usize) -> Result<Value> {
    let table = net.tensor(name)?;
    let d = table.dims()[1];
    let offsets: Vec<u32> = (0..side).flat_map(|q| (0..side).map(move |k| (q + side - 1 - k) as u32)).collect();
    let offsets = Tensor::from_vec(offsets, side * side, &Device::Cpu)?;
    let rows = table.to_device(&Device::Cpu)?.index_select(&offsets, 0)?.reshape((side, side, d))?; // [query, key, d]
    net.constant(&format!("{name}.by_query"), &rows.transpose(1, 2)?.contiguous()?)
}
