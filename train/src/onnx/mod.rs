//! The model as an ONNX graph, for runtimes other than this program: side network, gate and mask decoder, and the image encoder if its
//! weights are given. Batch norm uses its running statistics.

mod decoder;
mod image_encoder;
mod layers;
mod side_network;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use sam_ladder_formats::onnx::{Axis, Graph, Value};
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_schemas::precompute::PixelNormalisation;
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::train::{Arm, GateKind};

use crate::error::Result;
use crate::model::{LadderSam, ModelConfig, ModelWeights};
use layers::Layers;

const BATCH: Axis = Axis::Free("batch");

/// The image encoder of a graph.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OnnxEncoder<'a> {
    /// Its weights, by SAM's names (`image_encoder.…`).
    pub weights: &'a [(String, Tensor)],
    /// What is done to images before it sees them.
    pub normalisation: PixelNormalisation,
    /// The maps from its tokens to the model's rungs (`blocks.<i>.mean`, `blocks.<i>.components`); without, rungs are the tokens as they are.
    pub projection: Option<&'a StateDict>,
}

/// The graph of a model for images of `channels` channels. Its inputs are those that the arm needs:
///
/// - `images` `[batch, channels, s, s]` in [0, 1],
/// - `embeddings` `[batch, 256, s/16, s/16]` of the image encoder (of another than SAM's its channels), unless there is an `encoder`; with neighbours those of the slices before, at and
///   after, `[batch, 3, 256, s/16, s/16]`;
/// - with a ladder, `rungs` `[batch, rung, c, s/16, s/16]` of the image encoder, unless there is an `encoder`;
///
/// its output is `low_res_logits` `[batch, classes, s/4, s/4]`, with a third stage `[batch, classes, s/2, s/2]`.
///
/// # Errors
/// Weights that do not fit the configuration. Of a model with neighbours and an `encoder`, which sees one slice, the neighbours are left out: the
/// caller refuses it.
pub(crate) fn onnx_graph(
    config: &ModelConfig,
    weights: &ModelWeights,
    encoder: Option<OnnxEncoder<'_>>,
    channels: usize,
) -> Result<Graph> {
    let image_pe = LadderSam::new(config, weights, &Device::Cpu)?.image_pe().clone();
    let mut tensors: BTreeMap<String, Tensor> = weights.0.clone();
    tensors.extend(encoder.iter().flat_map(|encoder| encoder.weights.iter().cloned()));
    let mut net = Layers::new(Graph::new("sam-ladder"), tensors);
    let (size, grid) = (config.image_size, image_pe.dims()[2]);

    let needs_cnn = config.arm != Arm::SamOnly;
    let needs_sam = config.arm != Arm::CnnOnly;
    let image_axes = [BATCH, Axis::Size(channels), Axis::Size(size), Axis::Size(size)];
    let images = if needs_cnn || encoder.is_some() {
        let images = net.graph.input("images", &image_axes, "what stage one stores as images, in [0, 1]");
        Some(three_channels(&mut net, &images, channels))
    } else {
        None
    };
    let mut rungs = Vec::new();
    let x_sam = match (&images, encoder) {
        _ if !needs_sam => None,
        (Some(images), Some(encoder)) => {
            let images = normalised(&mut net, images, encoder.normalisation);
            let blocks: Vec<usize> = config.ladder.into_iter().flat_map(Rungs::blocks).collect();
            let x_sam;
            (x_sam, rungs) = image_encoder::encode(&mut net, &images, grid, (&blocks, encoder.projection))?;
            Some(x_sam)
        }
        _ => {
            let axes = [BATCH, Axis::Size(config.embed_channels), Axis::Size(grid), Axis::Size(grid)];
            let what = match config.projects_embeddings() {
                false => "the output of SAM's image encoder, neck included",
                true => "what stage one stores as embeddings",
            };
            let mixed = match config.neighbours {
                false => net.graph.input("embeddings", &axes, what),
                true => around_mixed(&mut net, (&axes, config.embed_channels), what)?,
            };
            Some(match config.projects_embeddings() {
                false => mixed,
                true => net.conv(&mixed, "sam.embedding_projection", 1, 0)?,
            })
        }
    };
    if let Some(wanted) = config.ladder.filter(|_| rungs.is_empty()) {
        rungs = rung_inputs(&mut net, wanted, grid);
    }
    let of_cnn = match &images {
        Some(images) if needs_cnn => {
            let rungs = config.ladder.map(|wanted| wanted.blocks().zip(rungs).collect()).unwrap_or_default();
            Some(side_network::embed(&mut net, config.side_network, images, (&rungs, grid))?)
        }
        _ => None,
    };
    let x = match (x_sam, of_cnn.as_ref().map(|of_cnn| &of_cnn.x)) {
        (Some(sam), Some(cnn)) => mix(&mut net, config.gate, &sam, cnn)?,
        (Some(x), None) => x,
        (None, Some(x)) => x.clone(),
        (None, None) => return Err(crate::error::internal("the model has no input".into())),
    };
    let stages = of_cnn.and_then(|of_cnn| of_cnn.stages).filter(|_| config.decoder.has_skips());
    let logits = decoder::decode(&mut net, (&x, stages.as_ref()), &image_pe, config.num_classes)?;
    let stride = config.decoder.logits_stride();
    let share = if stride == 2 { "half" } else { "a quarter of" };
    let axes = [BATCH, Axis::Size(config.num_classes), Axis::Size(size / stride), Axis::Size(size / stride)];
    net.graph.output(
        &logits,
        "low_res_logits",
        &axes,
        &format!("logits of the classes, background first, at {share} the images' side"),
    );
    Ok(net.graph)
}

/// One channel is repeated to three, and of two the missing third is zero.
fn three_channels(net: &mut Layers, images: &Value, channels: usize) -> Value {
    match channels {
        1 => net.concat(&[images, images, images], 1),
        2 => net.pad(images, &[0, 0, 0, 0, 0, 1, 0, 0]),
        _ => images.clone(),
    }
}

/// Minus the mean, over the deviation of each channel.
fn normalised(net: &mut Layers, images: &Value, normalisation: PixelNormalisation) -> Value {
    let Some([mean, deviation]) = normalisation.mean_and_deviation() else { return images.clone() };
    let mean = net.graph.floats("pixel_mean", &[1, 3, 1, 1], &mean);
    let deviation = net.graph.floats("pixel_deviation", &[1, 3, 1, 1], &deviation);
    let centred = net.graph.op("Sub", &[images, &mean], &[]);
    net.graph.op("Div", &[&centred, &deviation], &[])
}

/// The embeddings of three slices as input, and their sum over depth by each channel's weights.
fn around_mixed(net: &mut Layers, (axes, channels): (&[Axis; 4], usize), what: &str) -> Result<Value> {
    let [batch, rest @ ..] = axes;
    let axes = [&[*batch, Axis::Size(3)], &rest[..]].concat();
    let slices = net.graph.input("embeddings", &axes, &format!("{what}, of the slices before, at and after"));
    let weight = net.tensor("sam.neighbours.weight")?.t()?.contiguous()?.reshape((1, 3, channels, 1, 1))?;
    let weight = net.constant("neighbours", &weight)?;
    let weighted = net.graph.op("Mul", &[&slices, &weight], &[]);
    let part = |net: &mut Layers, slice: i64| {
        let part = net.slice(&weighted, 1, slice, slice + 1);
        net.squeeze(&part, 1)
    };
    let [before, own, after] = [part(net, 0), part(net, 1), part(net, 2)];
    let sum = net.add(&before, &own);
    Ok(net.add(&sum, &after))
}

/// The rungs as an input, one after another, `[b, c, g, g]`.
fn rung_inputs(net: &mut Layers, rungs: Rungs, grid: usize) -> Vec<Value> {
    let axes = [BATCH, Axis::Size(rungs.count()), Axis::Size(rungs.channels()), Axis::Size(grid), Axis::Size(grid)];
    let blocks: Vec<String> = rungs.blocks().map(|block| block.to_string()).collect();
    let what = format!("what stage one stores as rungs: tokens after the encoder's blocks {}", blocks.join(", "));
    let all = net.graph.input("rungs", &axes, &what);
    let one = |at: usize| {
        let one = net.slice(&all, 1, at as i64, at as i64 + 1);
        net.squeeze(&one, 1)
    };
    (0..rungs.count()).map(one).collect()
}

/// Equation (3): x_cnn + g·(x_sam - x_cnn).
fn mix(net: &mut Layers, gate: GateKind, sam: &Value, cnn: &Value) -> Result<Value> {
    let logits = match gate {
        GateKind::Scalar | GateKind::Channel => net.weight("sam.alpha")?,
        GateKind::Pixel => {
            let both = net.concat(&[sam, cnn], 1);
            net.conv(&both, "sam.alpha", 1, 0)?
        }
    };
    let gate = net.graph.op("Sigmoid", &[&logits], &[]);
    let difference = net.graph.op("Sub", &[sam, cnn], &[]);
    let part = net.graph.op("Mul", &[&gate, &difference], &[]);
    Ok(net.add(cnn, &part))
}
