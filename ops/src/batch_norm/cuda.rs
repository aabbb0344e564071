//! Launches `batch_norm.cu`.

use candle_core::{DType, Result, Tensor};

use crate::batch_norm::{BatchNormGradients, BatchStatistics, Tail};
use crate::device::{Arg, Gpu, Grid, Input, Node, Output, SPLITS, args_of, parameters, suffix};

const MODULE: &str = "batch_norm";

/// The sizes of `[b, c, h, w]`, and how many elements a thread moves as one.
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

    /// A few blocks for every channel.
    fn grid(&self) -> Grid {
        Grid::blocks([SPLITS as u32, self.c as u32, 1])
    }

    fn bchw(&self) -> [Arg<'static>; 3] {
        [self.b, self.c, self.hw].map(|n| Arg::Int(n as i32))
    }
}

/// As [`crate::batch_norm::batch_statistics`].
pub(crate) fn statistics(x: &Tensor, eps: f64) -> Result<BatchStatistics> {
    let x = x.contiguous()?;
    let (gpu, input) = (Gpu::of(&x), Input::new(&x)?);
    let planes = Planes::of(&x, &[&input])?;
    let (partial, shifts) = (gpu.output(DType::F64, (planes.c, SPLITS, 2))?, gpu.output(DType::F32, planes.c)?);
    let args = [&[input.arg(), partial.arg(), shifts.arg()][..], &planes.bchw(), &[planes.fours()]].concat();
    gpu.launch(MODULE, &format!("batch_norm_sums_{}", suffix(x.dtype())?), planes.grid(), &args)?;
    let out = gpu.output(DType::F32, (3, planes.c))?;
    let args = [
        partial.arg(),
        shifts.arg(),
        out.arg(),
        Arg::Int(SPLITS as i32),
        Arg::Int(planes.c as i32),
        Arg::Double(planes.count()),
        Arg::Double(eps),
    ];
    gpu.launch(MODULE, "batch_norm_statistics", Grid::over(planes.c), &args)?;
    let out = out.tensor();
    Ok(BatchStatistics { mean: out.get(0)?, var_unbiased: out.get(1)?, inv_std: out.get(2)? })
}

/// As [`crate::batch_norm::follow`].
pub(crate) fn follow(running: (&Tensor, &Tensor), statistics: &BatchStatistics, momentum: f64) -> Result<()> {
    let c = statistics.mean.elem_count();
    let tensors = [running.0, running.1, &statistics.mean, &statistics.var_unbiased];
    let mut args = args_of(&tensors)?;
    args.extend([Arg::Int(c as i32), Arg::Float(momentum as f32)]);
    Gpu::of(running.0).launch(MODULE, "batch_norm_follow", Grid::over(c), &args)
}

/// Mean, inverse deviation, weight and bias as the kernels take them.
pub(crate) fn channel_parameters(statistics: &BatchStatistics, weight: &Tensor, bias: &Tensor) -> Result<[Tensor; 4]> {
    Ok([parameters(&statistics.mean)?, parameters(&statistics.inv_std)?, parameters(weight)?, parameters(bias)?])
}

/// As [`crate::batch_norm::normalize`].
pub(crate) fn normalize(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    tail: Tail<'_>,
) -> Result<Tensor> {
    Ok(apply(&x.contiguous()?, statistics, weight, bias, tail)?.tensor())
}

/// As [`crate::batch_norm::batch_norm_train`], by the statistics of the batch.
pub(crate) fn train(x: &Tensor, statistics: &BatchStatistics, weight: &Tensor, bias: &Tensor, relu: bool) -> Result<Tensor> {
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
    gpu.launch(MODULE, &format!("batch_norm_apply_{}", suffix(x.dtype())?), Grid::over(planes.runs()), &args)?;
    Ok(y)
}

/// As [`crate::batch_norm::normalize_backward`].
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
    let partial = gpu.output(DType::F64, (planes.c, SPLITS, 2))?;
    let args = [&pointers[..], &[partial.arg()], &planes.bchw(), &[relu, planes.fours()]].concat();
    let suffix = suffix(x.dtype())?;
    gpu.launch(MODULE, &format!("batch_norm_gradient_sums_{suffix}"), planes.grid(), &args)?;
    let found = gpu.output(DType::F32, (4, planes.c))?;
    let args = [
        partial.arg(),
        Input::new(&tensors[1])?.arg(),
        found.arg(),
        Arg::Int(SPLITS as i32),
        Arg::Int(planes.c as i32),
        Arg::Double(planes.count()),
    ];
    gpu.launch(MODULE, "batch_norm_gradients", Grid::over(planes.c), &args)?;
    let out = gpu.output(x.dtype(), x.shape())?;
    let sizes =
        [Arg::Int(planes.c as i32), Arg::Int(planes.hw as i32), Arg::Unsigned(planes.runs() as u32), relu, planes.fours()];
    let args = [&pointers[..], &[found.arg(), out.arg()], &sizes].concat();
    gpu.launch(MODULE, &format!("batch_norm_gradient_{suffix}"), Grid::over(planes.runs()), &args)?;
    let found = found.tensor();
    Ok(BatchNormGradients { x: out.tensor(), weight: found.get(0)?, bias: found.get(1)? })
}
