//! Batch normalisation on a GPU.

use candle_core::{DType, Result, Tensor, bail};

use super::{BatchNormGradients, BatchStatistics, GradientSums, Tail};
use crate::device::{Arg, Gpu, Grid, Input, Output, args_of, parameters, splits, suffix};

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

/// `x` is contiguous.
fn apply(x: &Tensor, statistics: &BatchStatistics, weight: &Tensor, bias: &Tensor, tail: Tail<'_>) -> Result<Output> {
    let shortcut = match tail {
        Tail::AddRelu(shortcut) => Some(shortcut.to_dtype(x.dtype())?.contiguous()?),
        Tail::AddNormalizedRelu(shortcut) => Some(shortcut.x.to_dtype(x.dtype())?.contiguous()?),
        Tail::None | Tail::Relu => None,
    };
    let of_shortcut = match tail {
        Tail::AddNormalizedRelu(other) => Some(channel_parameters(other.statistics, other.weight, other.bias)?),
        Tail::None | Tail::Relu | Tail::AddRelu(_) => None,
    };
    let (gpu, input, shortcut) = (Gpu::of(x), Input::new(x)?, shortcut.as_ref().map(Input::new).transpose()?);
    let mut inputs = vec![&input];
    inputs.extend(&shortcut);
    let planes = Planes::of(x, &inputs)?;
    let tensors = channel_parameters(statistics, weight, bias)?;
    let y = gpu.output(x.dtype(), x.shape())?;
    let mut args = [&[input.arg()][..], &args_of(&tensors.each_ref())?].concat();
    args.push(Arg::Pointer(shortcut.as_ref().map_or(0, Input::pointer)));
    args.extend(of_shortcut.as_ref().map_or(Ok(vec![Arg::Pointer(0); 4]), |tensors| args_of(&tensors.each_ref()))?);
    args.extend([
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
    let (input, given) = (Input::new(&x)?, Input::new(&grad)?);
    let planes = Planes::of(&x, &[&input, &given])?;
    let tensors = channel_parameters(statistics, weight, bias)?;
    let pointers = [&[input.arg(), given.arg()][..], &args_of(&tensors.each_ref())?].concat();
    let sums = GradientSums::empty(&Gpu::of(&x), &planes)?;
    let args = [&pointers[..], &[sums.arg()?], &planes.bchw(), &[Arg::Int(i32::from(relu)), planes.fours()]].concat();
    let kernel = format!("batch_norm_gradient_sums_{}", suffix(x.dtype())?);
    // SAFETY: `x` and its gradient have the sizes of `planes`, the parameters a number for each channel; two float64 numbers for each channel and split.
    unsafe { Gpu::of(&x).launch(MODULE, &kernel, planes.grid(), &args)? };
    finish(&x, (&tensors, relu), &grad, &sums)
}

/// As [`super::normalize_backward_summed`].
pub(super) fn normalize_backward_summed(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    grad: &Tensor,
    sums: &GradientSums,
) -> Result<BatchNormGradients> {
    let (x, grad) = (x.contiguous()?, grad.to_dtype(x.dtype())?.contiguous()?);
    finish(&x, (&channel_parameters(statistics, weight, bias)?, false), &grad, sums)
}

/// The gradients, given the sums of `grad`; both tensors contiguous and of one format.
fn finish(x: &Tensor, (tensors, relu): (&[Tensor; 4], bool), grad: &Tensor, sums: &GradientSums) -> Result<BatchNormGradients> {
    let (gpu, input, given) = (Gpu::of(x), Input::new(x)?, Input::new(grad)?);
    let planes = Planes::of(x, &[&input, &given])?;
    let found = gradient_numbers(x, &tensors[1], sums)?;
    let out = gpu.output(x.dtype(), x.shape())?;
    let sizes = [
        Arg::Int(planes.c as i32),
        Arg::Int(planes.hw as i32),
        Arg::Unsigned(planes.runs() as u32),
        Arg::Int(i32::from(relu)),
        planes.fours(),
    ];
    let pointers = [&[input.arg(), given.arg()][..], &args_of(&tensors.each_ref())?].concat();
    let args = [&pointers[..], &[Input::new(&found)?.arg(), out.arg()], &sizes].concat();
    // SAFETY: `x` and its gradient have the sizes of `planes`, the parameters a number for each channel, `found` four; the result is as `x`.
    unsafe { gpu.launch(MODULE, &format!("batch_norm_gradient_{}", suffix(x.dtype())?), Grid::over(planes.runs()), &args)? };
    Ok(BatchNormGradients { x: out.tensor(), weight: found.get(0)?, bias: found.get(1)? })
}

/// `[4, c]`, float32: the gradients of weight and bias, and what that of `x` needs (`batch_norm_gradients` in the source).
pub(crate) fn gradient_numbers(x: &Tensor, inv_std: &Tensor, sums: &GradientSums) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if sums.0.dim(0)? != c {
        bail!("batch_norm: sums of {} channels are not those of {c}", sums.0.dim(0)?);
    }
    let (gpu, splits) = (Gpu::of(x), sums.0.dim(1)?);
    let found = gpu.output(DType::F32, (4, c))?;
    let args = [
        sums.arg()?,
        Input::new(inv_std)?.arg(),
        found.arg(),
        Arg::Int(splits as i32),
        Arg::Int(c as i32),
        Arg::Double((b * h * w) as f64),
    ];
    // SAFETY: two float64 numbers for each channel and split, a number for each channel, and four of the result for each.
    unsafe { gpu.launch(MODULE, "batch_norm_gradients", Grid::over(c), &args)? };
    Ok(found.tensor())
}

impl GradientSums {
    fn empty(gpu: &Gpu, planes: &Planes) -> Result<Self> {
        Ok(GradientSums::of(gpu.output(DType::F64, (planes.c, planes.splits(), 2))?))
    }

    /// `[c, splits, 2]`, float64.
    pub(crate) fn of(sums: Output) -> Self {
        GradientSums(sums.tensor())
    }

    fn arg(&self) -> Result<Arg<'static>> {
        Ok(Input::new(&self.0)?.arg())
    }
}

/// As [`super::relu_backward_summed`].
pub(super) fn relu_backward_summed(
    res: &Tensor,
    (first, second): (&Tensor, Option<&Tensor>),
    (x, statistics): (&Tensor, &BatchStatistics),
    other: Option<(&Tensor, &BatchStatistics)>,
) -> Result<(Tensor, Vec<GradientSums>)> {
    let gpu = Gpu::of(res);
    let tensors = [Some(res), Some(first), second, Some(x), other.map(|(other, _)| other)];
    let tensors = tensors.map(|tensor| tensor.map(|tensor| tensor.to_dtype(res.dtype())?.contiguous()).transpose());
    let tensors: Vec<Option<Tensor>> = tensors.into_iter().collect::<Result<_>>()?;
    let inputs: Vec<Option<Input<'_>>> = tensors.iter().map(|t| t.as_ref().map(Input::new).transpose()).collect::<Result<_>>()?;
    let planes = Planes::of(res, &inputs.iter().flatten().collect::<Vec<_>>())?;
    let means = [Some(&statistics.mean), other.map(|(_, statistics)| &statistics.mean)];
    let [mean, other_mean] = means.map(|mean| mean.map(parameters).transpose());
    let (mean, other_mean) = (mean?, other_mean?);
    let (sums, grad) = (GradientSums::empty(&gpu, &planes)?, gpu.output(res.dtype(), res.shape())?);
    let other_sums = other.map(|_| GradientSums::empty(&gpu, &planes)).transpose()?;
    let pointer = |input: &Option<Input<'_>>| Arg::Pointer(input.as_ref().map_or(0, Input::pointer));
    let number = |tensor: &Option<Tensor>| -> Result<Arg<'static>> {
        tensor.as_ref().map_or(Ok(Arg::Pointer(0)), |tensor| Ok(Input::new(tensor)?.arg()))
    };
    let args = [
        &[pointer(&inputs[0]), pointer(&inputs[1]), pointer(&inputs[2]), grad.arg(), pointer(&inputs[3])][..],
        &[number(&mean)?, sums.arg()?, pointer(&inputs[4]), number(&other_mean)?],
        &[other_sums.as_ref().map_or(Ok(Arg::Pointer(0)), GradientSums::arg)?],
        &planes.bchw(),
        &[planes.fours()],
    ]
    .concat();
    let kernel = format!("batch_norm_relu_gradient_sums_{}", suffix(res.dtype())?);
    // SAFETY: all tensors have the sizes of `planes` and one format, the means a number for each channel, the sums two float64 numbers for each channel
    // and split; what is absent is null.
    unsafe { gpu.launch(MODULE, &kernel, planes.grid(), &args)? };
    Ok((grad.tensor(), std::iter::once(sums).chain(other_sums).collect()))
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{Device, Result, Tensor, Var};

    use super::super::{
        BatchNormGradients, BatchStatistics, NormalizedShortcut, Tail, batch_statistics, batch_statistics_followed, normalize,
        normalize_backward, normalize_backward_summed, relu_backward_summed,
    };
    use crate::testing::kernels::{FORMATS, assert_close, compare_results, on_device};
    use crate::testing::uniform;

    #[test]
    fn batch_norm_plain_with_relu_and_with_a_shortcut() -> Result<()> {
        for dtype in FORMATS {
            // Planes of odd size move element by element, others four at a time.
            for (b, c, h, w) in [(2, 5, 8, 6), (3, 4, 5, 5), (2, 3, 40, 40)] {
                let x = ((uniform(&[b, c, h, w], 1)? * 2.0)? + 3.0)?;
                let inputs = [x, uniform(&[c], 2)?, uniform(&[c], 3)?, uniform(&[b, c, h, w], 4)?];
                for relu in [false, true] {
                    compare_results("batch norm", &inputs, &[0, 3], dtype, |t| {
                        let statistics = batch_statistics(&t[0], 1e-5)?;
                        let tail = if relu { Tail::Relu } else { Tail::None };
                        let y = normalize(&t[0], &statistics, &t[1], &t[2], tail)?;
                        let g = normalize_backward(&t[0], &statistics, &t[1], &t[2], relu, &t[3])?;
                        Ok(vec![y, g.x, g.weight, g.bias])
                    })?;
                }
                compare_results("batch norm and shortcut", &inputs, &[0, 3], dtype, |t| {
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

    /// The end of a residual block whose shortcut is normalised: forward, and the gradients in the passes that take the sums along.
    #[test]
    fn the_end_of_a_block() -> Result<()> {
        for dtype in FORMATS {
            for (b, c, h, w) in [(2, 5, 8, 6), (3, 4, 5, 5), (2, 3, 40, 40)] {
                let map = |seed| uniform(&[b, c, h, w], seed);
                let x = ((map(1)? * 2.0)? + 3.0)?;
                let parameters = [uniform(&[c], 2)?, uniform(&[c], 3)?, uniform(&[c], 4)?, uniform(&[c], 5)?];
                let inputs = [&[x, map(6)?, map(7)?, map(8)?][..], &parameters].concat();
                compare_results("the end of a block", &inputs, &[0, 1, 2, 3], dtype, |t| {
                    let [x, other, first, second, weight, bias, other_weight, other_bias] = &t[..] else { unreachable!() };
                    let (statistics, of_other) = (batch_statistics(x, 1e-5)?, batch_statistics(other, 1e-5)?);
                    let shortcut = NormalizedShortcut { x: other, statistics: &of_other, weight: other_weight, bias: other_bias };
                    let y = normalize(x, &statistics, weight, bias, Tail::AddNormalizedRelu(shortcut))?;
                    let norms = ((x, &statistics), Some((other, &of_other)));
                    let (g, sums) = relu_backward_summed(&y, (first, Some(second)), norms.0, norms.1)?;
                    let of_x = normalize_backward_summed(x, &statistics, weight, bias, &g, sums.first())?;
                    let of_shortcut = normalize_backward_summed(other, &of_other, other_weight, other_bias, &g, sums.get(1))?;
                    let (one, sums) = relu_backward_summed(&y, (first, None), norms.0, None)?;
                    let alone = normalize_backward_summed(x, &statistics, weight, bias, &one, sums.first())?;
                    let parts = |found: BatchNormGradients| [found.x, found.weight, found.bias];
                    Ok([&[y, g, one][..], &parts(of_x), &parts(of_shortcut), &parts(alone)].concat())
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
