//! Batch normalisation on a GPU.

use candle_core::{DType, Result, Tensor};

use super::{BatchNormGradients, BatchStatistics, Tail};
use crate::device::{Arg, Gpu, Grid, Input, Node, Output, args_of, parameters, splits, suffix};

const MODULE: &str = "batch_norm";

/// The sizes of `[b, c, h, w]`, and the number of elements that a thread moves together.
struct Planes {
    b: usize,
    c: usize,
    hw: usize,
    run: usize,
}

impl Planes {
    fn of(x: &Tensor, inputs: &[&Input<'_>]) -> Result<Self> {
        let (b, c, h, w) = x.dims4()?;
        let fours = (h * w).is_multiple_of(4) && inputs.iter().all(|input| input.is_aligned(x.dtype()));
        Ok(Self { b, c, hw: h * w, run: if fours { 4 } else { 1 } })
    }

    fn runs(&self) -> usize {
        self.b * self.c * self.hw / self.run
    }

    fn count(&self) -> f64 {
        (self.b * self.hw) as f64
    }

    fn fours(&self) -> Arg<'static> {
        Arg::Int(i32::from(self.run == 4))
    }

    /// Blocks per channel in the sums.
    fn splits(&self) -> usize {
        splits(self.b * self.hw / self.run)
    }

    fn grid(&self) -> Grid {
        Grid::blocks([self.splits() as u32, self.c as u32, 1])
    }

    fn bchw(&self) -> [Arg<'static>; 3] {
        [self.b, self.c, self.hw].map(|n| Arg::Int(n as i32))
    }
}

/// As [`super::batch_statistics`]; running mean and variance follow with a momentum.
pub(super) fn statistics(x: &Tensor, eps: f64, running: Option<(&Tensor, &Tensor, f64)>) -> Result<BatchStatistics> {
    let x = x.contiguous()?;
    let (gpu, input) = (Gpu::of(&x), Input::new(&x)?);
    let planes = Planes::of(&x, &[&input])?;
    let (partial, shifts) = (gpu.output(DType::F64, (planes.c, planes.splits(), 2))?, gpu.output(DType::F32, planes.c)?);
    let args = [&[input.arg(), partial.arg(), shifts.arg()][..], &planes.bchw(), &[planes.fours()]].concat();
    let kernel = format!("batch_norm_sums_{}", suffix(x.dtype())?);
    // SAFETY: `x` has the sizes of `planes`; two float64 numbers for each channel and split, and a float32 number for each channel.
    unsafe { gpu.launch(MODULE, &kernel, planes.grid(), &args)? };
    let out = gpu.output(DType::F32, (3, planes.c))?;
    let (mean, var, momentum) = match running {
        Some((mean, var, momentum)) => (Input::new(mean)?.arg(), Input::new(var)?.arg(), momentum),
        None => (Arg::Pointer(0), Arg::Pointer(0), 0.0),
    };
    let args = [
        partial.arg(),
        shifts.arg(),
        out.arg(),
        mean,
        var,
        Arg::Float(momentum as f32),
        Arg::Int(planes.splits() as i32),
        Arg::Int(planes.c as i32),
        Arg::Double(planes.count()),
        Arg::Double(eps),
    ];
    // SAFETY: what the kernel before filled, and three float32 numbers for each channel; running statistics of one each, or none.
    unsafe { gpu.launch(MODULE, "batch_norm_statistics", Grid::over(planes.c), &args)? };
    let out = out.tensor();
    Ok(BatchStatistics { mean: out.get(0)?, var_unbiased: out.get(1)?, inv_std: out.get(2)? })
}

/// Mean, inverse standard deviation, weight and bias as kernel parameters.
pub(crate) fn channel_parameters(statistics: &BatchStatistics, weight: &Tensor, bias: &Tensor) -> Result<[Tensor; 4]> {
    Ok([parameters(&statistics.mean)?, parameters(&statistics.inv_std)?, parameters(weight)?, parameters(bias)?])
}

/// As [`super::normalize`].
pub(super) fn normalize(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    tail: Tail<'_>,
) -> Result<Tensor> {
    Ok(apply(&x.contiguous()?, statistics, weight, bias, tail)?.tensor())
}

/// As [`super::batch_norm_train`], by the statistics of the batch.
pub(super) fn train(x: &Tensor, statistics: &BatchStatistics, weight: &Tensor, bias: &Tensor, relu: bool) -> Result<Tensor> {
    let (x, statistics) = (x.contiguous()?, statistics.clone());
    let y = apply(&x, &statistics, weight, bias, if relu { Tail::Relu } else { Tail::None })?;
    Node::tensor("batch-norm", y, &[&x, weight, bias], move |inputs, _, grad| {
        let &[x, weight, bias] = inputs else { candle_core::bail!("batch-norm: expected three inputs") };
        let found = normalize_backward(x, &statistics, weight, bias, relu, grad)?;
        let gradient = |of: &Tensor, gradient: Tensor| of.track_op().then(|| gradient.to_dtype(of.dtype())).transpose();
        Ok([gradient(x, found.x)?, gradient(weight, found.weight)?, gradient(bias, found.bias)?])
    })
}

/// `x` is contiguous.
fn apply(x: &Tensor, statistics: &BatchStatistics, weight: &Tensor, bias: &Tensor, tail: Tail<'_>) -> Result<Output> {
    let shortcut = match tail {
        Tail::AddRelu(shortcut) => Some(shortcut.to_dtype(x.dtype())?.contiguous()?),
        Tail::None | Tail::Relu => None,
    };
    let (gpu, input, shortcut) = (Gpu::of(x), Input::new(x)?, shortcut.as_ref().map(Input::new).transpose()?);
    let mut inputs = vec![&input];
    inputs.extend(&shortcut);
    let planes = Planes::of(x, &inputs)?;
    let tensors = channel_parameters(statistics, weight, bias)?;
    let y = gpu.output(x.dtype(), x.shape())?;
    let mut args = [&[input.arg()][..], &args_of(&tensors.each_ref())?].concat();
    args.extend([
        Arg::Pointer(shortcut.as_ref().map_or(0, Input::pointer)),
        y.arg(),
        Arg::Int(planes.c as i32),
        Arg::Int(planes.hw as i32),
        Arg::Unsigned(planes.runs() as u32),
        Arg::Int(i32::from(!matches!(tail, Tail::None))),
        planes.fours(),
    ]);
    let kernel = format!("batch_norm_apply_{}", suffix(x.dtype())?);
    // SAFETY: `x`, the shortcut if there is one and the result have the sizes of `planes` and one format, the parameters a number for each channel.
    unsafe { gpu.launch(MODULE, &kernel, Grid::over(planes.runs()), &args)? };
    Ok(y)
}

/// As [`super::normalize_backward`].
pub(crate) fn normalize_backward(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    relu: bool,
    grad: &Tensor,
) -> Result<BatchNormGradients> {
    let (x, grad) = (x.contiguous()?, grad.to_dtype(x.dtype())?.contiguous()?);
    let gpu = Gpu::of(&x);
    let (input, given) = (Input::new(&x)?, Input::new(&grad)?);
    let planes = Planes::of(&x, &[&input, &given])?;
    let tensors = channel_parameters(statistics, weight, bias)?;
    let pointers = [&[input.arg(), given.arg()][..], &args_of(&tensors.each_ref())?].concat();
    let relu = Arg::Int(i32::from(relu));
    let partial = gpu.output(DType::F64, (planes.c, planes.splits(), 2))?;
    let args = [&pointers[..], &[partial.arg()], &planes.bchw(), &[relu, planes.fours()]].concat();
    let suffix = suffix(x.dtype())?;
    // SAFETY: `x` and its gradient have the sizes of `planes`, the parameters a number for each channel; two float64 numbers for each channel and split.
    unsafe { gpu.launch(MODULE, &format!("batch_norm_gradient_sums_{suffix}"), planes.grid(), &args)? };
    let found = gpu.output(DType::F32, (4, planes.c))?;
    let args = [
        partial.arg(),
        Input::new(&tensors[1])?.arg(),
        found.arg(),
        Arg::Int(planes.splits() as i32),
        Arg::Int(planes.c as i32),
        Arg::Double(planes.count()),
    ];
    // SAFETY: what the kernel before filled, a number for each channel, and four of the result for each.
    unsafe { gpu.launch(MODULE, "batch_norm_gradients", Grid::over(planes.c), &args)? };
    let out = gpu.output(x.dtype(), x.shape())?;
    let sizes =
        [Arg::Int(planes.c as i32), Arg::Int(planes.hw as i32), Arg::Unsigned(planes.runs() as u32), relu, planes.fours()];
    let args = [&pointers[..], &[found.arg(), out.arg()], &sizes].concat();
    // SAFETY: as in the sums, with the four numbers for each channel and a result as `x`.
    unsafe { gpu.launch(MODULE, &format!("batch_norm_gradient_{suffix}"), Grid::over(planes.runs()), &args)? };
    let found = found.tensor();
    Ok(BatchNormGradients { x: out.tensor(), weight: found.get(0)?, bias: found.get(1)? })
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{Device, Result, Tensor, Var};

    use super::super::{
        BatchStatistics, Tail, batch_norm_train, batch_statistics, batch_statistics_followed, normalize, normalize_backward,
    };
    use crate::testing::kernels::{FORMATS, assert_close, compare_on_graph, on_device};
    use crate::testing::uniform;

    #[test]
    fn batch_norm_plain_with_relu_and_with_a_shortcut() -> Result<()> {
        for dtype in FORMATS {
            // Planes of odd size move element by element, others four at a time.
            for (b, c, h, w) in [(2, 5, 8, 6), (3, 4, 5, 5), (2, 3, 40, 40)] {
                let x = ((uniform(&[b, c, h, w], 1)? * 2.0)? + 3.0)?;
                let inputs = [x, uniform(&[c], 2)?, uniform(&[c], 3)?, uniform(&[b, c, h, w], 4)?];
                for relu in [false, true] {
                    compare_on_graph("batch norm", &inputs[..3], &[0], dtype, |t| {
                        Ok(vec![batch_norm_train(&t[0], &t[1], &t[2], 1e-5, relu)?.0])
                    })?;
                }
                compare_on_graph("batch norm and shortcut", &inputs, &[0, 3], dtype, |t| {
                    let t: Vec<Tensor> = t.iter().map(Tensor::detach).collect();
                    let statistics = batch_statistics(&t[0], 1e-5)?;
                    let y = normalize(&t[0], &statistics, &t[1], &t[2], Tail::AddRelu(&t[3]))?;
                    let g = normalize_backward(&t[0], &statistics, &t[1], &t[2], true, &t[3])?;
                    let BatchStatistics { mean, var_unbiased, inv_std } = statistics;
                    Ok(vec![y, mean, var_unbiased, inv_std, g.x, g.weight, g.bias])
                })?;
            }
        }
        Ok(())
    }

    #[test]
    fn statistics_far_from_zero_lose_nothing() -> Result<()> {
        let x = ((uniform(&[4, 2, 30, 30], 1)? * 0.01)? + 1000.0)?;
        let want = batch_statistics(&x, 1e-5)?;
        on_device(|device| {
            let got = batch_statistics(&x.to_device(device)?, 1e-5)?;
            assert_close("mean", &got.mean, &want.mean, 1e-7)?;
            assert_close("variance", &got.var_unbiased, &want.var_unbiased, 1e-4)
        })
    }

    #[test]
    fn running_statistics_follow() -> Result<()> {
        let x = uniform(&[2, 7, 5, 3], 1)?;
        let run = |device: &Device| -> Result<(Tensor, Tensor)> {
            let running = |seed| Var::from_tensor(&uniform(&[7], seed)?.to_device(device)?);
            let (mean, var) = (running(4)?, running(5)?);
            batch_statistics_followed(&x.to_device(device)?, 1e-5, (&mean, &var), 0.1)?;
            Ok((mean.as_detached_tensor(), var.as_detached_tensor()))
        };
        let want = run(&Device::Cpu)?;
        on_device(|device| {
            let got = run(device)?;
            assert_close("mean", &got.0, &want.0, 1e-6)?;
            assert_close("variance", &got.1, &want.1, 1e-6)
        })
    }
}
