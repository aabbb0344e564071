//! The losses and their gradients on a GPU, without waiting on the host.

use candle_core::{DType, Result, Tensor};

use super::{Region, SegmentationLoss};
use crate::device::{Arg, Gpu, Grid, Input, args_of, suffix};
use crate::dice_ce::LossParts;

const MODULE: &str = "segmentation_loss";
/// Maximal number of classes of the kernels.
pub(super) const CLASSES: usize = 32;
/// Blocks that share the sums.
const BLOCKS: usize = 264;
/// Label that no pixel has, where every one counts: labels are bytes.
const NO_LABEL: i32 = -1;

/// As [`super::segmentation_loss`].
pub(super) fn segmentation_loss(logits: &Tensor, labels: &Tensor, loss: &SegmentationLoss) -> Result<LossParts> {
    let logits = logits.contiguous()?;
    let labels = labels.to_dtype(DType::U8)?.contiguous()?;
    let (b, classes, h, w) = logits.dims4()?;
    let gpu = Gpu::of(&logits);
    let sizes = [b, classes, h * w].map(|n| Arg::Int(n as i32));
    let ignore = Arg::Int(loss.ignore.map_or(NO_LABEL, i32::from));
    let gamma = Arg::Double(loss.gamma);
    // Of classes by themselves, and of unions of them.
    let parts = loss.unions.as_ref().map_or(Ok(classes), |unions| unions.dim(0))?;
    let values = 2 + 4 * parts;
    let partial = gpu.output(DType::F64, (BLOCKS, values))?;
    let inputs = args_of(&[&logits, &labels, &loss.weights])?;
    let unions = loss.unions.as_ref().map(|unions| unions.contiguous()).transpose()?;
    // What the kernels for unions take in addition: which class belongs to which, and how many there are.
    let united = match &unions {
        Some(unions) => vec![Input::new(unions)?.arg(), Arg::Int(parts as i32)],
        None => Vec::new(),
    };
    let form = if unions.is_some() { "unions_" } else { "" };
    let args = [&inputs[..], &[partial.arg()], &sizes, &[ignore, gamma], &united].concat();
    let kernel = format!("segmentation_loss_{form}sums_{}", suffix(logits.dtype())?);
    // SAFETY: logits [b, classes, h·w], a byte for each pixel, a weight for each class, and `values` float64 numbers for each block; of unions a
    // number for each class of each.
    unsafe { gpu.launch(MODULE, &kernel, Grid::blocks([BLOCKS as u32, 1, 1]), &args)? };
    let losses = gpu.output(DType::F32, 4 + 3 * parts)?;
    let (region, alpha, beta) = match loss.region {
        Region::Dice => (0, 0.0, 0.0),
        Region::Tversky { alpha, beta } => (1, alpha, beta),
        Region::GeneralisedDice => (2, 0.0, 0.0),
    };
    let args = [
        partial.arg(),
        losses.arg(),
        Arg::Int(BLOCKS as i32),
        Arg::Int(parts as i32),
        Arg::Int(region),
        Arg::Double(loss.lambda),
        Arg::Double(alpha),
        Arg::Double(beta),
        Arg::Double(loss.smooth),
    ];
    let grid = Grid { blocks: [1, 1, 1], threads: 128, shared_bytes: (values * 8) as u32 };
    // SAFETY: what the kernel before filled; four losses and three numbers for each class or union; `values` float64 numbers are shared.
    unsafe { gpu.launch(MODULE, "segmentation_loss_losses", grid, &args)? };
    let (losses, gradient) = (losses.tensor(), gpu.output(logits.dtype(), logits.shape())?);
    let args = [&inputs[..], &[Input::new(&losses)?.arg(), gradient.arg()], &sizes, &[ignore, gamma], &united].concat();
    let kernel = format!("segmentation_loss_{form}gradient_{}", suffix(logits.dtype())?);
    // SAFETY: as above, with a result as the logits.
    unsafe { gpu.launch(MODULE, &kernel, Grid::over(b * h * w), &args)? };
    Ok(LossParts { numbers: losses.narrow(0, 0, 3)?, gradient: gradient.tensor() })
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Result, Tensor};

    use super::super::tests::{labels, losses};
    use super::super::{SegmentationLoss, composed, segmentation_loss};
    use crate::testing::kernels::{FORMATS, assert_close, on_device, tolerance};
    use crate::testing::uniform;

    #[test]
    fn the_losses_and_their_gradients() -> Result<()> {
        for dtype in FORMATS {
            for (b, c, h, w) in [(2, 9, 14, 14), (1, 2, 3, 5), (3, 32, 8, 9)] {
                let logits = (uniform(&[b, c, h, w], 1)? * 4.0)?.to_dtype(dtype)?;
                for (name, loss) in losses(c) {
                    let labels = labels(b * h * w, c, loss.ignore.is_some());
                    let on_host = Tensor::from_slice(&labels, (b, h, w), &candle_core::Device::Cpu)?;
                    let want = composed(&logits.to_dtype(DType::F64)?, &on_host, &loss)?;
                    on_device(|device| {
                        let labels = on_host.to_device(device)?;
                        let unions = loss.unions.as_ref().map(|unions| unions.to_device(device)).transpose()?;
                        let loss = SegmentationLoss { weights: loss.weights.to_device(device)?, unions, ..loss.clone() };
                        let found = segmentation_loss(&logits.to_device(device)?, &labels, &loss)?;
                        assert_close(&format!("{name}: losses"), &found.numbers, &want.numbers, 3e-6)?;
                        assert_close(&format!("{name}: the gradient"), &found.gradient, &want.gradient, tolerance(dtype))
                    })?;
                }
            }
        }
        on_device(|device| {
            let logits = uniform(&[1, 3, 2, 2], 1)?.to_device(device)?;
            let labels = Tensor::new(&[[[0u8, 1], [2, 3]]], device)?;
            let loss = SegmentationLoss { weights: losses(3)[0].1.weights.to_device(device)?, ..losses(3)[0].1.clone() };
            let found = segmentation_loss(&logits, &labels, &loss)?.read()?;
            assert!(found[0].is_nan() && found[1].is_nan(), "a label that is no class: {found:?}");
            Ok(())
        })
    }
}
