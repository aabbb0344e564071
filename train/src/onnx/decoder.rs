//! SAM's mask decoder of a graph, without prompts.

use candle_core::Tensor;
use sam_ladder_formats::onnx::Value;
use sam_ladder_schemas::encoder::EMBED_CHANNELS;
use sam_ladder_schemas::sam_names::TRANSFORMER_DEPTH;

use super::layers::Layers;
use crate::error::Result;

const PREFIX: &str = "sam.mask_decoder";
const HEADS: i64 = 8;
const EPS: f32 = 1e-5;
const EPS_2D: f32 = 1e-6;
const CHANNELS: i64 = EMBED_CHANNELS as i64;

/// x `[b, 256, g, g]`, for skips layer1 `[b, c1, 4g, 4g]`, layer2 `[b, c2, 2g, 2g]` and the stem `[b, 64, 8g, 8g]`, and the positional encoding
/// `[1, 256, g, g]` → `[b, classes, 4g, 4g]`, with a third stage `[b, classes, 8g, 8g]`
pub(super) fn decode(
    net: &mut Layers,
    (x, stages): (&Value, Option<&[Value; 3]>),
    image_pe: &Tensor,
    classes: usize,
) -> Result<Value> {
    let (grid, classes) = (image_pe.dims()[2] as i64, classes as i64);
    let no_mask = net.tensor("sam.prompt_encoder.no_mask_embed.weight")?.reshape((1, EMBED_CHANNELS, 1, 1))?;
    let no_mask = net.constant("no_mask_embed", &no_mask)?;
    let image = net.add(x, &no_mask);
    let image = net.reshape(&image, &[0, CHANNELS, grid * grid]);
    let image = net.transpose(&image, &[0, 2, 1]); // [b, g·g, 256]
    let image_pe = net.constant("image_pe", &image_pe.flatten_from(2)?.transpose(1, 2)?.contiguous()?)?;
    let tokens = [net.tensor(&format!("{PREFIX}.iou_token.weight"))?, net.tensor(&format!("{PREFIX}.mask_tokens.weight"))?];
    let tokens = net.constant("tokens", &Tensor::cat(&tokens, 0)?.unsqueeze(0)?)?; // [1, 1 + classes, 256]

    let (mut queries, mut keys) = (tokens.clone(), image);
    for layer in 0..TRANSFORMER_DEPTH {
        (queries, keys) = two_way_block(net, layer, (&queries, &keys), (&tokens, &image_pe))?;
    }
    let (q, k) = (net.add(&queries, &tokens), net.add(&keys, &image_pe));
    let prefix = format!("{PREFIX}.transformer");
    let attended = attention(net, &format!("{prefix}.final_attn_token_to_image"), &q, &k, &keys)?;
    let queries = net.add(&queries, &attended);
    let queries = net.layer_norm(&queries, &format!("{prefix}.norm_final_attn"), EPS)?;

    let image = net.transpose(&keys, &[0, 2, 1]);
    let image = net.reshape(&image, &[0, CHANNELS, grid, grid]);
    let (upscaled, side) = upscale(net, &image, stages, 4 * grid)?; // [b, 32, side, side]
    let upscaled = net.reshape(&upscaled, &[0, 0, side * side]);
    let tokens = net.slice(&queries, 1, 1, 1 + classes);
    let hyper = hypernetworks(net, &tokens, classes as usize)?; // [b, classes, 32]
    let masks = net.matmul(&hyper, &upscaled);
    Ok(net.reshape(&masks, &[0, classes, side, side]))
}

/// Tokens among themselves, tokens to image, perceptron, image to tokens: (queries, keys) and both positional encodings → (queries, keys).
fn two_way_block(
    net: &mut Layers,
    layer: usize,
    (queries, keys): (&Value, &Value),
    (query_pe, key_pe): (&Value, &Value),
) -> Result<(Value, Value)> {
    let prefix = format!("{PREFIX}.transformer.layers.{layer}");
    let of = |name: &str| format!("{prefix}.{name}");
    let queries = if layer == 0 {
        attention(net, &of("self_attn"), queries, queries, queries)?
    } else {
        let q = net.add(queries, query_pe);
        let attended = attention(net, &of("self_attn"), &q, &q, queries)?;
        net.add(queries, &attended)
    };
    let queries = net.layer_norm(&queries, &of("norm1"), EPS)?;

    let (q, k) = (net.add(&queries, query_pe), net.add(keys, key_pe));
    let attended = attention(net, &of("cross_attn_token_to_image"), &q, &k, keys)?;
    let queries = net.add(&queries, &attended);
    let queries = net.layer_norm(&queries, &of("norm2"), EPS)?;

    let hidden = net.linear(&queries, &of("mlp.lin1"))?;
    let hidden = net.relu(&hidden);
    let out = net.linear(&hidden, &of("mlp.lin2"))?;
    let queries = net.add(&queries, &out);
    let queries = net.layer_norm(&queries, &of("norm3"), EPS)?;

    let q = net.add(&queries, query_pe);
    let attended = attention(net, &of("cross_attn_image_to_token"), &k, &q, &queries)?;
    let keys = net.add(keys, &attended);
    let keys = net.layer_norm(&keys, &of("norm4"), EPS)?;
    Ok((queries, keys))
}

/// Attention of eight heads: q `[b, n, 256]`, k and v `[b, m, 256]` → `[b, n, 256]`; any of them may have a first axis of one.
fn attention(net: &mut Layers, prefix: &str, q: &Value, k: &Value, v: &Value) -> Result<Value> {
    let inner = net.tensor(&format!("{prefix}.q_proj.weight"))?.dims()[0] as i64;
    let head = inner / HEADS;
    let heads = |net: &mut Layers, x: &Value, name: &str, axes: &[i64]| -> Result<Value> {
        let x = net.linear(x, &format!("{prefix}.{name}"))?;
        let x = net.reshape(&x, &[0, 0, HEADS, head]);
        Ok(net.transpose(&x, axes))
    };
    let q = heads(net, q, "q_proj", &[0, 2, 1, 3])?;
    let k = heads(net, k, "k_proj", &[0, 2, 3, 1])?;
    let v = heads(net, v, "v_proj", &[0, 2, 1, 3])?;
    let q = net.scale(&q, 1.0 / (head as f32).sqrt());
    let scores = net.matmul(&q, &k);
    let shares = net.softmax(&scores);
    let out = net.matmul(&shares, &v);
    let out = net.transpose(&out, &[0, 2, 1, 3]);
    let out = net.reshape(&out, &[0, 0, inner]);
    net.linear(&out, &format!("{prefix}.out_proj"))
}

/// `[b, 256, g, g]` → `[b, 32, 4g, 4g]`, with skips from layer1 and layer2, or with a third stage `[b, 32, 8g, 8g]`; and that side
fn upscale(net: &mut Layers, x: &Value, stages: Option<&[Value; 3]>, quarter: i64) -> Result<(Value, i64)> {
    let prefix = format!("{PREFIX}.output_upscaling");
    let skip = |net: &mut Layers, x: Value, stage: usize| -> Result<Value> {
        let Some(stages) = stages else { return Ok(x) };
        let projected = net.conv(&stages[stage], &format!("{PREFIX}.conv_s{stage}"), 1, 0)?;
        Ok(net.add(&x, &projected))
    };
    let x = net.conv_transpose(x, &format!("{prefix}.0"))?;
    let x = skip(net, x, 1)?;
    let x = net.layer_norm_2d(&x, &format!("{prefix}.1"), EPS_2D)?;
    let x = net.gelu(&x);
    let x = net.conv_transpose(&x, &format!("{prefix}.3"))?;
    let x = skip(net, x, 0)?;
    let x = net.gelu(&x);
    let third = format!("{PREFIX}.output_upscaling_half");
    match stages.filter(|_| net.has(&format!("{third}.weight"))) {
        None => Ok((x, quarter)),
        Some([_, _, stem]) => {
            let fine = net.conv_transpose(&x, &third)?;
            let projected = net.conv(stem, &format!("{PREFIX}.conv_stem"), 1, 0)?;
            let fine = net.add(&fine, &projected);
            let fine = net.gelu(&fine);
            let x = net.nearest_twice(&x, quarter);
            Ok((net.add(&x, &fine), 2 * quarter))
        }
    }
}

/// The perceptron of each class on its token, all of a layer as one product: `[b, classes, 256]` → `[b, classes, 32]`.
fn hypernetworks(net: &mut Layers, tokens: &Value, classes: usize) -> Result<Value> {
    let mut x = net.unsqueeze(tokens, 2); // [b, classes, 1, 256]
    for layer in 0..3 {
        let stacked = |part: &str| -> Result<Tensor> {
            let name = |class: usize| format!("{PREFIX}.output_hypernetworks_mlps.{class}.layers.{layer}.{part}");
            let tensors = (0..classes).map(|class| net.tensor(&name(class))).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::stack(&tensors, 0)?)
        };
        let (weight, bias) = (stacked("weight")?.transpose(1, 2)?.contiguous()?, stacked("bias")?.unsqueeze(1)?);
        let weight = net.constant(&format!("hypernetworks.{layer}.weight"), &weight)?; // [classes, in, out]
        let bias = net.constant(&format!("hypernetworks.{layer}.bias"), &bias)?;
        if layer > 0 {
            x = net.relu(&x);
        }
        x = net.matmul(&x, &weight);
        x = net.add(&x, &bias);
    }
    Ok(net.squeeze(&x, 2))
}
