//! The gate on a GPU.

use candle_core::{DType, Result, Tensor};

use super::{Gates, Map, Sizes};
use crate::device::{Arg, Gpu, Grid, Input, map, parameters, suffix};
use crate::partial_sums::sum_partials;

const MODULE: &str = "gate";
/// Blocks that share a sum over all elements.
const SUM_BLOCKS: usize = 256;

impl Sizes {
    /// The kernels' `Sizes`.
    fn words(self) -> [u32; 3] {
        [self.images as u32, self.channels as u32, self.pixels as u32]
    }

    /// A thread per number, in the kernels' grid of pixels, channels and images.
    fn grid(self) -> Grid {
        let [images, channels, _] = self.words();
        Grid { blocks: [Grid::over(self.pixels).blocks[0], channels, images], ..Grid::over(self.pixels) }
    }

    fn of_channels(self) -> Arg<'static> {
        Arg::Int(i32::from(self.gates == Gates::Channels))
    }
}

/// As [`super::mix`], of contiguous tensors.
pub(super) fn mix(sam: &Tensor, cnn: &Tensor, logits: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let logits = parameters(logits)?;
    if sizes.gates == Gates::One {
        // SAFETY: `mix` maps two inputs with a scalar.
        return Ok(unsafe { map(MODULE, "mix", &[sam, cnn], Some(&logits))? }.tensor());
    }
    let gpu = Gpu::of(sam);
    let out = gpu.output(sam.dtype(), sam.shape())?;
    let inputs = [Input::new(sam)?, Input::new(cnn)?, Input::new(&logits)?];
    let words = sizes.words();
    let args = [&inputs.each_ref().map(Input::arg)[..], &[out.arg(), Arg::Words(&words), sizes.of_channels()]].concat();
    // SAFETY: two maps and the result of these sizes in one format, and float32 logits for each channel or pixel, as `Sizes::of` checks.
    unsafe { gpu.launch(MODULE, &format!("mix_gates_{}", suffix(sam.dtype())?), sizes.grid(), &args)? };
    Ok(out.tensor())
}

/// The gradient of one of the maps.
pub(super) fn mix_backward(gradient: &Tensor, logits: &Tensor, sizes: Sizes, of: Map) -> Result<Tensor> {
    let logits = parameters(logits)?;
    if sizes.gates == Gates::One {
        let kernel = if of == Map::Sam { "mix_backward_sam" } else { "mix_backward_cnn" };
        // SAFETY: both map the gradient with a scalar.
        return Ok(unsafe { map(MODULE, kernel, &[gradient], Some(&logits))? }.tensor());
    }
    let gpu = Gpu::of(gradient);
    let out = gpu.output(gradient.dtype(), gradient.shape())?;
    let (inputs, words) = ([Input::new(gradient)?, Input::new(&logits)?], sizes.words());
    let of_cnn = Arg::Int(i32::from(of == Map::Cnn));
    let args = [&inputs.each_ref().map(Input::arg)[..], &[out.arg(), Arg::Words(&words), sizes.of_channels(), of_cnn]].concat();
    // SAFETY: as in `mix`.
    unsafe { gpu.launch(MODULE, &format!("mix_gates_backward_{}", suffix(gradient.dtype())?), sizes.grid(), &args)? };
    Ok(out.tensor())
}

/// The gradient of the logits, float32.
pub(super) fn mix_backward_logits(
    gradient: &Tensor,
    sam: &Tensor,
    cnn: &Tensor,
    logits: &Tensor,
    sizes: Sizes,
) -> Result<Tensor> {
    let (gpu, of_gate, suffix) = (Gpu::of(gradient), parameters(logits)?, suffix(gradient.dtype())?);
    let inputs = [Input::new(gradient)?, Input::new(sam)?, Input::new(cnn)?, Input::new(&of_gate)?];
    let inputs = inputs.each_ref().map(Input::arg);
    if sizes.gates == Gates::One {
        let partial = gpu.output(DType::F64, SUM_BLOCKS)?;
        let args = [&inputs[..], &[partial.arg(), Arg::Size(gradient.elem_count() as u64)]].concat();
        let grid = Grid::blocks([SUM_BLOCKS as u32, 1, 1]);
        // SAFETY: three tensors of as many elements of one format, a number, and a float64 number for each block.
        unsafe { gpu.launch(MODULE, &format!("mix_backward_alpha_{suffix}"), grid, &args)? };
        return sum_partials(&gpu, &partial, logits.shape());
    }
    let (out, words) = (gpu.output(DType::F32, logits.shape())?, sizes.words());
    let args = [&inputs[..], &[out.arg(), Arg::Words(&words)]].concat();
    let [images, channels, _] = words;
    let (kernel, blocks) = match sizes.gates {
        Gates::Channels => ("channels", [channels, 1, 1]),
        _ => ("pixels", [Grid::over(sizes.pixels).blocks[0], images, 1]),
    };
    // SAFETY: as in `mix`; the result is as the logits are.
    unsafe { gpu.launch(MODULE, &format!("mix_backward_{kernel}_{suffix}"), Grid::blocks(blocks), &args)? };
    Ok(out.tensor())
}

/// As [`super::add_number`], of a contiguous tensor.
pub(super) fn add_number(x: &Tensor, number: &Tensor) -> Result<Tensor> {
    let (gpu, number, n) = (Gpu::of(x), parameters(number)?, x.elem_count());
    let out = gpu.output(DType::F32, x.shape())?;
    let args = [Input::new(x)?.arg(), Input::new(&number)?.arg(), out.arg(), Arg::Size(n as u64)];
    // SAFETY: `n` numbers, one float32 number, and `n` float32 numbers for the result.
    unsafe { gpu.launch(MODULE, &format!("add_number_{}", suffix(x.dtype())?), Grid::over(n), &args)? };
    Ok(out.tensor())
}

/// As [`super::write_gate_means`], of contiguous logits.
pub(super) fn write_means(logits: &Tensor, to: &Tensor) -> Result<()> {
    let args = [Input::new(logits)?.arg(), Input::new(to)?.arg(), Arg::Size(logits.elem_count() as u64)];
    // SAFETY: as many float32 numbers, and two for the means.
    unsafe { Gpu::of(logits).launch(MODULE, "gate_means", Grid::over(1), &args) }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Result, Tensor};

    use crate::testing::kernels::{FORMATS, compare, on_device, to_cpu};
    use crate::testing::uniform;

    #[test]
    fn gates() -> Result<()> {
        for dtype in FORMATS {
            for (b, c, h, w) in [(1, 1, 1, 1), (2, 3, 5, 4), (3, 256, 14, 14), (1, 2, 33, 33)] {
                let maps = [uniform(&[b, c, h, w], 1)?, uniform(&[b, c, h, w], 2)?];
                for shape in [&[1][..], &[c, 1, 1], &[b, 1, h, w]] {
                    let inputs = [&maps[..], &[(uniform(shape, 3)? * 4.0)?]].concat();
                    compare(&format!("gate {shape:?}"), &inputs, &[0, 1], dtype, |v| crate::mix(&v[0], &v[1], &v[2]))?;
                }
                let inputs = [uniform(&[b, 1, h, w], 1)?, uniform(&[1], 2)?];
                compare("add number", &inputs, &[0], dtype, |v| crate::add_number(&v[0], &v[1]))?;
            }
        }
        Ok(())
    }

    #[test]
    fn means_of_gates() -> Result<()> {
        for n in [1, 256, 3001] {
            let logits = (uniform(&[n], 1)? * 4.0)?;
            let want = Tensor::zeros(2, DType::F32, logits.device())?;
            crate::write_gate_means(&logits, &want)?;
            on_device(|device| {
                let found = Tensor::zeros(2, DType::F32, device)?;
                crate::write_gate_means(&logits.to_device(device)?, &found)?;
                let (found, want) = (to_cpu(&found)?.to_vec1::<f32>()?, want.to_vec1::<f32>()?);
                assert!(found.iter().zip(&want).all(|(found, want)| (found - want).abs() < 1e-6), "{n}: {found:?}, {want:?}");
                Ok(())
            })?;
        }
        Ok(())
    }
}
