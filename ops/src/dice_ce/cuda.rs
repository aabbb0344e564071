//! The loss of equation (4) and its gradient on a GPU, without waiting on the host.

use candle_core::{DType, Result, Tensor};

use super::LossParts;
use crate::device::{Arg, Gpu, Grid, Input, args_of, suffix};

const MODULE: &str = "dice_ce";
/// Maximal number of classes of the kernels.
pub(super) const CLASSES: usize = 32;
/// Blocks that share the sums.
const BLOCKS: usize = 264;

/// As [`super::dice_ce`].
pub(super) fn dice_ce(logits: &Tensor, labels: &Tensor, lambda: f64, smooth: f64) -> Result<LossParts> {
    let logits = logits.contiguous()?;
    let labels = labels.to_dtype(DType::U8)?.contiguous()?;
    let (b, classes, h, w) = logits.dims4()?;
    let gpu = Gpu::of(&logits);
    let sizes = [b, classes, h * w].map(|n| Arg::Int(n as i32));
    let values = 1 + 3 * classes;
    let partial = gpu.output(DType::F64, (BLOCKS, values))?;
    let args = [&[Input::new(&logits)?.arg(), Input::new(&labels)?.arg(), partial.arg()][..], &sizes].concat();
    let grid = Grid::blocks([BLOCKS as u32, 1, 1]);
    let kernel = format!("dice_ce_sums_{}", suffix(logits.dtype())?);
    // SAFETY: logits [b, classes, h·w], a byte for each pixel, and `values` float64 numbers for each block.
    unsafe { gpu.launch(MODULE, &kernel, grid, &args)? };
    let losses = gpu.output(DType::F32, 4 + 2 * classes)?;
    let args = [
        partial.arg(),
        losses.arg(),
        Arg::Int(BLOCKS as i32),
        Arg::Int(classes as i32),
        Arg::Double((b * h * w) as f64),
        Arg::Double(lambda),
        Arg::Double(smooth),
    ];
    let grid = Grid { blocks: [1, 1, 1], threads: 128, shared_bytes: (values * 8) as u32 };
    // SAFETY: what the kernel before filled; four losses and two numbers for each class; `values` float64 numbers are shared.
    unsafe { gpu.launch(MODULE, "dice_ce_losses", grid, &args)? };
    let (losses, gradient) = (losses.tensor(), gpu.output(logits.dtype(), logits.shape())?);
    let args = [&args_of(&[&logits, &labels, &losses])?[..], &[gradient.arg()], &sizes].concat();
    let kernel = format!("dice_ce_gradient_{}", suffix(logits.dtype())?);
    // SAFETY: as above, with a result as the logits.
    unsafe { gpu.launch(MODULE, &kernel, Grid::over(b * h * w), &args)? };
    Ok(LossParts { numbers: losses.narrow(0, 0, 3)?, gradient: gradient.tensor() })
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Device, Result, Tensor, Var};

    use super::super::dice_ce;
    use crate::testing::kernels::{FORMATS, assert_close, on_device, tolerance};
    use crate::testing::uniform;

    /// The loss written out from the published code's definition, in float64.
    fn dice_ce_reference(logits: &Tensor, labels: &[u8], lambda: f64) -> Result<Tensor> {
        let (b, c, h, w) = logits.dims4()?;
        let one_hot: Vec<f64> = (0..b * c * h * w)
            .map(|i| f64::from(u8::from(usize::from(labels[i / (c * h * w) * h * w + i % (h * w)]) == i / (h * w) % c)))
            .collect();
        let t = Tensor::from_vec(one_hot, (b, c, h, w), &Device::Cpu)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
        let log_p = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
        let p = log_p.exp()?;
        let ce = ((&log_p * &t)?.sum_all()? * (-1.0 / (b * h * w) as f64))?;
        let per_class = |x: Tensor| x.transpose(0, 1)?.reshape((c, ()))?.sum(1);
        let numerator = ((per_class((&p * &t)?)? * 2.0)? + 1e-5)?;
        let denominator = ((per_class(p.sqr()?)? + per_class(t)?)? + 1e-5)?;
        let dice = (1.0 - (numerator / denominator)?.mean_all()?)?;
        let total = ((&ce * (1.0 - lambda))? + (&dice * lambda)?)?;
        Tensor::stack(&[total, ce, dice], 0)
    }

    #[test]
    fn the_loss_and_its_gradient() -> Result<()> {
        for dtype in FORMATS {
            for (b, c, h, w) in [(2, 9, 14, 14), (1, 2, 3, 5), (3, 32, 8, 9)] {
                let logits = (uniform(&[b, c, h, w], 1)? * 4.0)?.to_dtype(dtype)?;
                // The last class never occurs.
                let labels: Vec<u8> = uniform(&[b * h * w], 2)?
                    .to_vec1::<f32>()?
                    .iter()
                    .map(|x| ((x + 1.0) / 2.0 * (c as f32 - 1.0)) as u8)
                    .collect();
                for lambda in [0.0, 0.8, 1.0] {
                    let wide = Var::from_tensor(&logits.to_dtype(DType::F64)?)?;
                    let want = dice_ce_reference(wide.as_tensor(), &labels, lambda)?;
                    let Some(want_gradient) = want.get(0)?.backward()?.remove(&wide) else { panic!("no gradient") };
                    on_device(|device| {
                        let labels = Tensor::from_slice(&labels, (b, h, w), device)?;
                        let found = dice_ce(&logits.to_device(device)?, &labels, lambda, 1e-5)?;
                        assert_close("losses", &found.numbers, &want.detach(), 2e-6)?;
                        assert_close("the loss's gradient", &found.gradient, &want_gradient, tolerance(dtype))
                    })?;
                }
            }
        }
        on_device(|device| {
            let logits = uniform(&[1, 3, 2, 2], 1)?.to_device(device)?;
            let labels = Tensor::new(&[[[0u8, 1], [2, 3]]], device)?;
            let found = dice_ce(&logits, &labels, 0.8, 1e-5)?;
            let losses = found.read()?;
            assert!(losses[0].is_nan() && losses[1].is_nan(), "a label that is no class: {losses:?}");
            Ok(())
        })
    }
}
