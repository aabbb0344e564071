//! Elementwise kernels (see `map.cuh`).

use super::launch_args::{Arg, Grid};
use super::memory::{Input, Output};
use super::{Gpu, suffix};
use candle_core::{Result, Tensor, bail};

/// Launches a kernel with up to three inputs; inputs and result have the same shape and number format. Its parameters are the inputs, the
/// `scalar` (float32, one element) if there is one, the result, the number of elements, and whether four of them may be moved together.
///
/// # Safety
/// The module's kernel has these parameters.
pub(crate) unsafe fn map(module: &'static str, kernel: &str, inputs: &[&Tensor], scalar: Option<&Tensor>) -> Result<Output> {
    let [first, ..] = inputs else { bail!("{kernel}: expected an input") };
    if inputs.iter().any(|t| t.dims() != first.dims() || t.dtype() != first.dtype()) {
        bail!("{kernel}: expected inputs of one shape and format, found {inputs:?}");
    }
    let (gpu, dtype, n) = (Gpu::of(first), first.dtype(), first.elem_count());
    let out = gpu.output(dtype, first.shape())?;
    let held = inputs.iter().map(|t| Input::new(t)).collect::<Result<Vec<_>>>()?;
    let fours = held.iter().all(|input| input.is_aligned(dtype));
    let scalar = scalar.map(Input::new).transpose()?;
    let mut args: Vec<Arg<'_>> = held.iter().map(Input::arg).collect();
    args.extend(scalar.as_ref().map(Input::arg));
    args.extend([out.arg(), Arg::Size(n as u64), Arg::Int(i32::from(fours))]);
    // SAFETY: the caller's promise; all tensors have `n` elements, which are contiguous.
    unsafe { gpu.launch(module, &format!("{kernel}_{}", suffix(dtype)?), Grid::over(n.div_ceil(4)), &args)? };
    Ok(out)
}
