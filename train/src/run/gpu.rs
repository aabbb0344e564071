//! What a GPU changes in a run: the precision, the source of batches, when the host reads a step's losses, and whether steps can be
//! recorded.

use crate::error::{Result, TrainError};
use candle_core::Device;
use sam_ladder_ops::Numerics;
use sam_ladder_ops::device::{DeviceMemory, can_capture};
pub use sam_ladder_schemas::cuda_graph::CudaGraph;
pub use sam_ladder_schemas::device_store::DeviceStore;
use sam_ladder_schemas::precision::Precision as Asked;
use sam_ladder_schemas::train::{SideNetworkKind, TrainConfig};
use sam_ladder_schemas::train_choices::{DecoderKind, LadderKind};

/// Memory for the libraries (cuDNN's scratch memory is at most 1 GiB), the parameters, and copies of their state.
const FIXED_BYTES: u64 = 2 << 30;

/// Memory to leave free for training: [`FIXED_BYTES`], a step's activations, and as much again if steps are recorded, since a graph has memory
/// of its own in addition to that of plain steps (an epoch's last batch, validation).
pub(crate) fn reserve(config: &TrainConfig, image_size: usize, recorded: bool) -> u64 {
    let format = if config.precision == Asked::Bf16 { 2 } else { 4 };
    let pixels = (config.batch_size * image_size * image_size) as u64;
    let mut numbers = numbers_per_pixel(config.side_network, image_size as u64);
    if config.decoder.has_skips() {
        numbers += skip_numbers(config.side_network);
    }
    if config.decoder == DecoderKind::SkipsHalf {
        numbers += HALF_NUMBERS;
    }
    if config.neighbours > 0 {
        // A number of x_sam per pixel: three slices in two batches, their products, and those of the gradient.
        numbers += 12;
    }
    if config.ladder == LadderKind::Gated {
        // A number of a stage per pixel is 1 of 256 channels, 4 of resnet50's: rungs in two batches, four of them projected, their mixtures, and the
        // gradients.
        numbers += if config.side_network == SideNetworkKind::Resnet50 { 56 } else { 20 };
    }
    let step = pixels * numbers * format;
    FIXED_BYTES + if recorded { 2 * step } else { step }
}

/// What a step holds at most at once, in numbers per pixel of its batch: at least a quarter more than was counted with a batch of 24 on the host driver
/// (docs/reference/gpu.md). Of attention over the tokens of an image, the number per pixel grows with the image.
fn numbers_per_pixel(network: SideNetworkKind, image_size: u64) -> u64 {
    match network {
        SideNetworkKind::Resnet18 => 130,
        SideNetworkKind::Resnet34 => 200,
        SideNetworkKind::Resnet50 => 500,
        SideNetworkKind::VitTiny => 240 + image_size * image_size / 1200,
    }
}

/// What skips add to it, not counted yet: for each stage its gradient, kept until the side network's is there, and in the decoder the projection, the
/// same in another order, their sum, and the gradients of these three.
fn skip_numbers(network: SideNetworkKind) -> u64 {
    let per_pixel = |layer1: u64, layer2: u64| layer1.div_ceil(16) + layer2.div_ceil(64);
    let stages = if network == SideNetworkKind::Resnet50 { per_pixel(256, 512) } else { per_pixel(64, 128) };
    stages + 6 * per_pixel(32, 64)
}

/// What a third stage adds, not counted yet, each at a quarter of the pixels: the stem's output and its gradient, 64 channels, once more for the gradient
/// that leaves batch norm; in the decoder nine maps of 32 channels, as with the skips; logits, their gradient and the loss's, of some ten classes.
const HALF_NUMBERS: u64 = (3 * 64 + 9 * 32 + 6 * 10) / 4;

/// Bytes for stored items: the wanted number, limited by the free memory. `Auto` leaves `reserve` bytes free.
pub(super) fn budget(memory: DeviceMemory, wanted: DeviceStore, reserve: u64) -> u64 {
    match wanted {
        DeviceStore::Off => 0,
        DeviceStore::Auto => memory.free.saturating_sub(reserve),
        DeviceStore::Bytes(bytes) => bytes.min(memory.free),
    }
}

/// The numerics of what a run's model takes.
///
/// # Errors
/// float16, which is for the encoder; TF32 on the CPU, or bfloat16 on one that lacks AVX512-BF16; bfloat16 with a side network that is not a ResNet.
pub(super) fn set_up(device: &Device, config: &TrainConfig) -> Result<Numerics> {
    let asked = config.precision;
    let precision = match asked {
        Asked::F32 => Numerics::F32,
        Asked::Tf32 => Numerics::Tf32,
        Asked::Bf16 => Numerics::Bf16,
        Asked::F16 => {
            return Err(TrainError::EncoderPrecision);
        }
    };
    if !precision.supported_on(device) {
        return Err(match asked {
            Asked::Bf16 => TrainError::NeedsBf16,
            _ => TrainError::NeedsGpu { option: format!("--precision {}", asked.name()), instead: "pass --precision f32" },
        });
    }
    if precision == Numerics::Bf16 && config.side_network == SideNetworkKind::VitTiny {
        return Err(TrainError::NetworkPrecision);
    }
    Ok(precision)
}

/// Whether steps are recorded: where the device can repeat recorded steps, unless that is off.
///
/// # Errors
/// [`CudaGraph::On`] for a device that cannot.
pub(crate) fn records_steps(device: &Device, wanted: CudaGraph) -> Result<bool> {
    match (wanted, can_capture(device)) {
        (CudaGraph::On, false) => Err(TrainError::NeedsGpu { option: "--cuda-graph".into(), instead: "leave it out" }),
        (CudaGraph::Off, _) => Ok(false),
        (CudaGraph::Auto | CudaGraph::On, can) => Ok(can),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_leaves_what_the_reserve_says() {
        let memory = DeviceMemory { free: 32 << 30, total: 40 << 30 };
        assert_eq!(budget(memory, DeviceStore::Auto, 10 << 30), 22 << 30);
        assert_eq!(budget(DeviceMemory { free: 1 << 30, ..memory }, DeviceStore::Auto, 2 << 30), 0);
        assert_eq!(budget(memory, DeviceStore::Bytes(40 << 30), 10 << 30), 32 << 30);
    }

    /// The graph's memory is that of a second step, a number of bfloat16 takes half of float32's, and the activations follow the pixels.
    #[test]
    fn the_reserve_follows_the_step() {
        let step = |config: &TrainConfig, size: usize, recorded: bool| reserve(config, size, recorded) - FIXED_BYTES;
        let wide = TrainConfig::default();
        let half = TrainConfig { precision: Asked::Bf16, ..wide.clone() };
        let one = step(&wide, 512, false);
        assert_eq!([step(&wide, 512, true), step(&wide, 1024, false), step(&half, 512, true)], [2 * one, 4 * one, one]);
        let skips = TrainConfig { decoder: DecoderKind::Skips, ..wide.clone() };
        assert!(step(&skips, 512, false) > one);
        let half = TrainConfig { decoder: DecoderKind::SkipsHalf, ..skips.clone() };
        assert!(step(&half, 512, false) > step(&skips, 512, false));
        let ladder = TrainConfig { ladder: LadderKind::Gated, ..wide.clone() };
        assert!(step(&ladder, 512, false) > one);
        assert_eq!(step(&TrainConfig { batch_size: 2 * wide.batch_size, ..wide }, 512, false), 2 * one);
    }

    #[test]
    fn the_cpu_records_nothing_and_refuses_to_if_asked() {
        for wanted in [CudaGraph::Auto, CudaGraph::Off] {
            assert!(!records_steps(&Device::Cpu, wanted).unwrap());
        }
        assert!(records_steps(&Device::Cpu, CudaGraph::On).unwrap_err().to_string().contains("--cuda-graph needs a GPU"));
    }

    #[test]
    fn a_precision_that_the_cpu_lacks_is_refused_by_name() {
        let in_bf16 = TrainConfig { precision: Asked::Bf16, ..TrainConfig::default() };
        match Numerics::Bf16.supported_on(&Device::Cpu) {
            true => assert_eq!(set_up(&Device::Cpu, &in_bf16).unwrap(), Numerics::Bf16),
            false => assert!(set_up(&Device::Cpu, &in_bf16).unwrap_err().to_string().contains("a processor with AVX512-BF16")),
        }
        for (asked, needle) in [(Asked::F16, "is for the frozen encoder"), (Asked::Tf32, "--precision tf32 needs a GPU")] {
            let error =
                set_up(&Device::Cpu, &TrainConfig { precision: asked, ..TrainConfig::default() }).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
        assert_eq!(set_up(&Device::Cpu, &TrainConfig::default()).unwrap(), Numerics::F32);
    }
}
