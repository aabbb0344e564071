//! The side network's initial weights: from torchvision's or timm's checkpoint, or by torchvision's or timm's initialisation.

use super::{CNN_PREFIX, UNUSED_PARTS, read, refuse_unknown, seeded, uniform_by_fan_in};
use crate::error::{Result, internal};
use crate::model::{ModelConfig, ModelWeights};
use candle_core::{DType, Device, Tensor};
use rand::distr::Distribution;
use rand_distr::StandardNormal;
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_ops::image::bicubic::resize_bicubic_antialiased;
use sam_ladder_schemas::train::SideNetworkKind;
use std::path::Path;

/// What a checkpoint of a side network should hold.
const SIDE_NETWORK: &str = "--cnn-checkpoint takes the names of the side network's publisher: torchvision's ResNet-18 unless --side-network says otherwise";
/// Prefixes of our additions: see `model::projection` and `model::ladder`.
const ADDITIONS: [&str; 2] = ["projection.", "ladder."];
/// timm's position embeddings, whose size depends on the image size.
const POS_EMBED: &str = "pos_embed";
/// Standard deviation of timm's initial linear layers and positions.
const VIT_DEVIATION: f64 = 0.02;
/// Standard deviation of timm's initial class token.
const CLS_DEVIATION: f64 = 1e-6;

/// Opens a checkpoint of torchvision or timm; layers that the side network lacks (`layer4`, classifiers) are ignored.
pub(super) fn open(config: &ModelConfig, path: &Path) -> Result<StateDict> {
    let file = StateDict::open(path)?;
    let expected = ModelWeights::expected(config);
    refuse_unknown(path, &file, SIDE_NETWORK, |name| {
        let name = format!("{CNN_PREFIX}{name}");
        UNUSED_PARTS.iter().any(|part| name.starts_with(part)) || expected.iter().any(|(known, _)| *known == name)
    })?;
    Ok(file)
}

/// One tensor of the side network, `name` without `CNN_encoder.`: from the checkpoint if there is one that can have it, otherwise random.
pub(super) fn weight(
    config: &ModelConfig,
    checkpoint: Option<&StateDict>,
    name: &str,
    shape: &[usize],
    seed: u64,
) -> Result<Tensor> {
    let whole_name = format!("{CNN_PREFIX}{name}");
    let is_addition = ADDITIONS.iter().any(|prefix| name.starts_with(prefix));
    match checkpoint {
        // A checkpoint of this program may have the additions.
        Some(file) if !is_addition || file.shape(name).is_some() => match name {
            POS_EMBED => positions(file, shape),
            _ => read(file, name, &whole_name, shape),
        },
        _ if is_addition => {
            let weight = format!("{}.weight", whole_name.rsplit_once('.').map_or(&*whole_name, |(layer, _)| layer));
            let fan_in = ModelWeights::expected(config).into_iter().find(|(name, _)| *name == weight).map(|(_, shape)| shape[1]);
            uniform_by_fan_in(&whole_name, shape, fan_in.unwrap_or(1), seed)
        }
        _ if config.side_network == SideNetworkKind::VitTiny => vit_default(&whole_name, shape, seed),
        _ => resnet_default(&whole_name, shape, seed),
    }
}

/// The position embeddings `[1, 1 + g·g, c]`, resampled to the wanted grid as in timm (`resample_abs_pos_embed`): bicubic with
/// antialiasing; the class token's embedding is unchanged.
fn positions(file: &StateDict, shape: &[usize]) -> Result<Tensor> {
    let &[_, wanted, channels] = shape else {
        return Err(internal(format!("{POS_EMBED}: expected three axes, the model has {shape:?}")));
    };
    let found = file.shape(POS_EMBED).unwrap_or_default();
    let side = |tokens: usize| (tokens > 1).then(|| (tokens - 1).isqrt()).filter(|side| side * side + 1 == tokens);
    let (Some(from), Some(to)) = (found.get(1).copied().and_then(side), side(wanted)) else {
        return Ok(file.expect(POS_EMBED, shape, &Device::Cpu)?);
    };
    let table = file.expect(POS_EMBED, &[1, from * from + 1, channels], &Device::Cpu)?.to_dtype(DType::F32)?;
    if from == to {
        return Ok(table);
    }
    let grid = table.narrow(1, 1, from * from)?.reshape((from, from, channels))?.permute((2, 0, 1))?.contiguous()?;
    let resized = resize_bicubic_antialiased(&grid.flatten_all()?.to_vec1::<f32>()?, [from, from], [to, to]);
    let resized = Tensor::from_vec(resized, (channels, to * to), &Device::Cpu)?.t()?.unsqueeze(0)?;
    Ok(Tensor::cat(&[&table.narrow(1, 0, 1)?, &resized.contiguous()?], 1)?)
}

/// torchvision's initialisation of a ResNet: convolutions Kaiming-normal by fan-out, batch norm the identity.
pub(crate) fn resnet_default(name: &str, shape: &[usize], seed: u64) -> Result<Tensor> {
    let constant = |value: f64| Tensor::full(value as f32, shape, &Device::Cpu);
    Ok(match shape {
        [] => Tensor::zeros(shape, DType::I64, &Device::Cpu)?,
        [_] if name.ends_with("weight") || name.ends_with("running_var") => constant(1.0)?,
        [_] => constant(0.0)?,
        [outputs, _, kernel @ ..] => {
            let fan_out = outputs * kernel.iter().product::<usize>();
            let deviation = (2.0 / fan_out as f64).sqrt();
            seeded(name, shape, seed, |rng| {
                let value: f64 = StandardNormal.sample(rng);
                (value * deviation) as f32
            })?
        }
    })
}

/// timm's initialisation of a vision transformer: linear layers and positions from N(0, 0.02²), the class token from N(0, 1e-6²), the
/// patch convolution by PyTorch's default, layer norms the identity, biases 0.
fn vit_default(name: &str, shape: &[usize], seed: u64) -> Result<Tensor> {
    let normal = |deviation: f64| {
        seeded(name, shape, seed, |rng| {
            let value: f64 = StandardNormal.sample(rng);
            (value * deviation) as f32
        })
    };
    if name.contains("patch_embed") {
        return uniform_by_fan_in(name, shape, 3 * 16 * 16, seed);
    }
    match shape {
        [1, 1, _] => normal(CLS_DEVIATION),
        [_] if name.ends_with("weight") => Ok(Tensor::ones(shape, DType::F32, &Device::Cpu)?),
        [_] => Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?),
        // timm truncates at ±2, a hundred standard deviations away.
        _ => normal(VIT_DEVIATION),
    }
}
