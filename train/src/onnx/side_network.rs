//! The side network of a graph.

use candle_core::Tensor;
use sam_ladder_formats::onnx::Value;
use sam_ladder_schemas::train::SideNetworkKind;

use super::layers::Layers;
use crate::error::Result;

const PREFIX: &str = "CNN_encoder";
/// timm's ε of layer norm, and the heads of `vit_tiny`.
const VIT_EPS: f32 = 1e-6;
const VIT_HEADS: i64 = 3;

/// What a side network makes of images.
pub(super) struct SideOutput {
    /// `[b, 256, grid, grid]`
    pub(super) x: Value,
    /// A ResNet's layer1, layer2 and first convolution, at a quarter, an eighth and half of the images' side.
    pub(super) stages: Option<[Value; 3]>,
}

/// Rungs `[b, c, grid, grid]`, each with the encoder's block after which it was taken, in their order.
type NamedRungs = Vec<(usize, Value)>;

/// Of `images` `[b, 3, s, s]` and rungs.
pub(super) fn embed(
    net: &mut Layers,
    kind: SideNetworkKind,
    images: &Value,
    (rungs, grid): (&NamedRungs, usize),
) -> Result<SideOutput> {
    let (mut x, stages) = match kind {
        SideNetworkKind::VitTiny => (vit(net, images, rungs, grid)?, None),
        SideNetworkKind::Resnet18 | SideNetworkKind::Resnet34 | SideNetworkKind::Resnet50 => {
            let [stem, layer1, layer2, layer3] = resnet(net, images, rungs)?;
            (layer3, Some([layer1, layer2, stem]))
        }
    };
    let projection = format!("{PREFIX}.projection");
    if net.has(&format!("{projection}.weight")) {
        x = net.conv(&x, &projection, 1, 0)?;
    }
    Ok(SideOutput { x, stages })
}

/// A ResNet's first convolution and its three layers; their blocks are those whose weights there are.
fn resnet(net: &mut Layers, images: &Value, rungs: &NamedRungs) -> Result<[Value; 4]> {
    let x = net.conv(images, &format!("{PREFIX}.conv1"), 2, 3)?;
    let x = net.batch_norm(&x, &format!("{PREFIX}.bn1"))?;
    let stem = net.relu(&x);
    let x = net.max_pool(&stem);
    let mut layers = [x.clone(), x.clone(), x.clone()];
    let mut x = x;
    for (layer, out) in (1..).zip(&mut layers) {
        let prefix = |number: usize| format!("{PREFIX}.layer{layer}.{number}");
        let depth = (0..).take_while(|&number| net.has(&format!("{}.conv1.weight", prefix(number)))).count();
        for number in 0..depth {
            let stride = if number == 0 && layer > 1 { 2 } else { 1 };
            x = residual_block(net, &x, &prefix(number), stride)?;
            for rung in after(rungs, (number, depth)).iter().filter(|_| layer == 3) {
                x = mixed(net, &x, rung, |_, rung| rung)?;
            }
        }
        *out = x.clone();
    }
    let [layer1, layer2, layer3] = layers;
    Ok([stem, layer1, layer2, layer3])
}

/// The rungs after a block of a stage of `depth` blocks, as `model::ladder` spreads them.
fn after(rungs: &NamedRungs, (block, depth): (usize, usize)) -> &[(usize, Value)] {
    let count = rungs.len();
    let first = |block: usize| (block * count).div_ceil(depth.max(1)).min(count);
    &rungs[first(block)..first(block + 1)]
}

/// μ·P(rung) + (1 - μ)·x with the gate of the rung; `shaped` gives what is projected the shape of x.
fn mixed(
    net: &mut Layers,
    x: &Value,
    (block, rung): &(usize, Value),
    shaped: impl Fn(&mut Layers, Value) -> Value,
) -> Result<Value> {
    let prefix = format!("{PREFIX}.ladder.{block}");
    let projection = format!("{prefix}.projection");
    let rung = if net.has(&format!("{projection}.weight")) { net.conv(rung, &projection, 1, 0)? } else { rung.clone() };
    let rung = shaped(net, rung);
    let alpha = net.weight(&format!("{prefix}.alpha"))?;
    let gate = net.graph.op("Sigmoid", &[&alpha], &[]);
    let difference = net.graph.op("Sub", &[&rung, x], &[]);
    let part = net.graph.op("Mul", &[&gate, &difference], &[]);
    Ok(net.add(x, &part))
}

/// Two 3×3 convolutions, or 1×1, 3×3 and 1×1 of a bottleneck. The first 3×3 has the stride.
fn residual_block(net: &mut Layers, input: &Value, prefix: &str, stride: i64) -> Result<Value> {
    let bottleneck = net.has(&format!("{prefix}.conv3.weight"));
    let convs: &[(i64, i64)] = if bottleneck { &[(1, 0), (stride, 1), (1, 0)] } else { &[(stride, 1), (1, 1)] };
    let mut x = input.clone();
    for (at, &(stride, padding)) in convs.iter().enumerate() {
        if at > 0 {
            x = net.relu(&x);
        }
        x = net.conv(&x, &format!("{prefix}.conv{}", at + 1), stride, padding)?;
        x = net.batch_norm(&x, &format!("{prefix}.bn{}", at + 1))?;
    }
    let downsample = format!("{prefix}.downsample");
    let shortcut = if net.has(&format!("{downsample}.0.weight")) {
        let shortcut = net.conv(input, &format!("{downsample}.0"), stride, 0)?;
        net.batch_norm(&shortcut, &format!("{downsample}.1"))?
    } else {
        input.clone()
    };
    let sum = net.add(&x, &shortcut);
    Ok(net.relu(&sum))
}

/// timm's vit_tiny without the class token at the end.
fn vit(net: &mut Layers, images: &Value, rungs: &NamedRungs, grid: usize) -> Result<Value> {
    let patches = net.conv(images, &format!("{PREFIX}.patch_embed.proj"), 16, 0)?;
    let positions = net.tensor(&format!("{PREFIX}.pos_embed"))?; // [1, 1 + grid², c]
    let (tokens, width) = (positions.dims()[1] as i64, positions.dims()[2] as i64);
    let patches = net.reshape(&patches, &[0, width, -1]);
    let patches = net.transpose(&patches, &[0, 2, 1]);
    // The class token goes into its own row of zeros, together with its position.
    let patches = net.pad(&patches, &[0, 1, 0, 0, 0, 0]);
    let cls = net.tensor(&format!("{PREFIX}.cls_token"))?; // [1, 1, c]
    let first = (positions.narrow(1, 0, 1)? + cls)?;
    let table = Tensor::cat(&[&first, &positions.narrow(1, 1, grid * grid)?], 1)?;
    let table = net.constant(&format!("{PREFIX}.tokens"), &table)?;
    let mut x = net.add(&patches, &table);
    let prefix = |number: usize| format!("{PREFIX}.blocks.{number}");
    let depth = (0..).take_while(|&number| net.has(&format!("{}.norm1.weight", prefix(number)))).count();
    for number in 0..depth {
        x = vit_block(net, &x, &prefix(number), width)?;
        for rung in after(rungs, (number, depth)) {
            let (class, patches) = (net.slice(&x, 1, 0, 1), net.slice(&x, 1, 1, tokens));
            let patches = mixed(net, &patches, rung, |net, rung| {
                let rows = net.reshape(&rung, &[0, width, -1]);
                net.transpose(&rows, &[0, 2, 1])
            })?;
            x = net.concat(&[&class, &patches], 1);
        }
    }
    let x = net.layer_norm(&x, &format!("{PREFIX}.norm"), VIT_EPS)?;
    let x = net.slice(&x, 1, 1, tokens);
    let x = net.transpose(&x, &[0, 2, 1]);
    Ok(net.reshape(&x, &[0, width, grid as i64, grid as i64]))
}

fn vit_block(net: &mut Layers, input: &Value, prefix: &str, width: i64) -> Result<Value> {
    let x = net.layer_norm(input, &format!("{prefix}.norm1"), VIT_EPS)?;
    let qkv = net.linear(&x, &format!("{prefix}.attn.qkv"))?;
    let head = width / VIT_HEADS;
    let qkv = net.reshape(&qkv, &[0, 0, 3, VIT_HEADS, head]);
    let part = |net: &mut Layers, index: i64, axes: &[i64]| {
        let part = net.slice(&qkv, 2, index, index + 1);
        let part = net.squeeze(&part, 2);
        net.transpose(&part, axes)
    };
    let (q, k, v) = (part(net, 0, &[0, 2, 1, 3]), part(net, 1, &[0, 2, 3, 1]), part(net, 2, &[0, 2, 1, 3]));
    let q = net.scale(&q, 1.0 / (head as f32).sqrt());
    let scores = net.matmul(&q, &k);
    let shares = net.softmax(&scores);
    let out = net.matmul(&shares, &v);
    let out = net.transpose(&out, &[0, 2, 1, 3]);
    let out = net.reshape(&out, &[0, 0, width]);
    let out = net.linear(&out, &format!("{prefix}.attn.proj"))?;
    let x = net.add(input, &out);
    let hidden = net.layer_norm(&x, &format!("{prefix}.norm2"), VIT_EPS)?;
    let hidden = net.linear(&hidden, &format!("{prefix}.mlp.fc1"))?;
    let hidden = net.gelu(&hidden);
    let out = net.linear(&hidden, &format!("{prefix}.mlp.fc2"))?;
    Ok(net.add(&x, &out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_formats::onnx::{Axis, Graph};

    /// A rung is where `rung * depth / count` says, as in `model::ladder`.
    #[test]
    fn rungs_are_where_the_model_has_them() {
        let mut graph = Graph::new("test");
        let value = graph.input("x", &[Axis::Size(1)], "anything");
        for (count, depth) in [(1, 2), (3, 2), (4, 2), (4, 6), (4, 12), (5, 12), (12, 12), (24, 2), (7, 3)] {
            let rungs: NamedRungs = (0..count).map(|rung| (rung, value.clone())).collect();
            for block in 0..depth {
                let found: Vec<usize> = after(&rungs, (block, depth)).iter().map(|(rung, _)| *rung).collect();
                let expected: Vec<usize> = (0..count).filter(|rung| rung * depth / count == block).collect();
                assert_eq!(found, expected, "{count} rungs, block {block} of {depth}");
            }
        }
    }
}
