//! Every kernel is held against the CPU's path, in value and gradient, in each number format, on the device that `SAM_LADDER_TEST_DEVICE`
//! names: a GPU (`make gpu-check`), or the host's driver (`make test-cuda-host`). The tests lie in the operations' `cuda.rs`.

use candle_core::{DType, Device, Result, Tensor};

use super::uniform;
use crate::tape::{Tape, Value};

/// The kernels' number formats.
pub(crate) const FORMATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Largest difference over the largest value that a result may have from float32's: the rounding of inputs, intermediate results and output.
pub(crate) fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 1.6e-2,
        DType::F16 => 2e-3,
        _ => 5e-6,
    }
}

/// The device under test.
fn device() -> Device {
    if let Ok(name) = std::env::var("SAM_LADDER_TEST_DEVICE")
        && let Some(index) = name.strip_prefix("cuda:").and_then(|index| index.parse().ok())
    {
        thread_local! {
            static OPENED: std::cell::OnceCell<Device> = const { std::cell::OnceCell::new() };
        }
        return OPENED.with(|opened| opened.get_or_init(|| crate::device::open(index).expect("the GPU opens")).clone());
    }
    Device::Cpu
}

/// Calls `f` where kernels run; nothing is tested in a CUDA build if no device is named.
pub(crate) fn on_device(f: impl FnOnce(&Device) -> Result<()>) -> Result<()> {
    let device = device();
    if device.is_cuda() {
        return f(&device);
    }
    eprintln!("skipped: SAM_LADDER_TEST_DEVICE names no GPU");
    Ok(())
}

/// As float32 on the CPU.
pub(crate) fn to_cpu(t: &Tensor) -> Result<Tensor> {
    t.to_device(&Device::Cpu)?.to_dtype(DType::F32)
}

/// Asserts that values differ by no more than `tolerance` times the largest.
pub(crate) fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f32) -> Result<()> {
    let (got, want) = (to_cpu(got)?, to_cpu(want)?);
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (got.flatten_all()?.to_vec1::<f32>()?, want.flatten_all()?.to_vec1::<f32>()?);
    let largest = want.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let same = (g.is_nan() && w.is_nan()) || g == w || (g - w).abs() <= tolerance * largest;
        assert!(same, "{what}, element {i}: {g}, expected {w} of at most {largest}");
    }
    Ok(())
}

/// What an operation gives on the device, where the inputs of `activations` have the number format `dtype`, against what it gives on the CPU for
/// the same values in float32: the result, and the gradients of every input.
pub(crate) fn compare(
    what: &str,
    inputs: &[Tensor],
    activations: &[usize],
    dtype: DType,
    op: impl Fn(&[Value]) -> Result<Value>,
) -> Result<()> {
    compare_runs(what, inputs, activations, dtype, |inputs| {
        let tape = Tape::default();
        let result = op(&inputs.iter().map(|t| tape.leaf(t)).collect::<Vec<_>>())?;
        let gradients = tape.backward(&result, weights_like(result.tensor())?)?;
        let of_inputs = inputs.iter().map(|t| gradients.get(t).cloned()).collect();
        Ok((vec![result.into_tensor()], of_inputs))
    })
}

/// As [`compare`], for operations on tensors, with several results, gradients among them.
pub(crate) fn compare_results(
    what: &str,
    inputs: &[Tensor],
    activations: &[usize],
    dtype: DType,
    op: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<()> {
    compare_runs(what, inputs, activations, dtype, |inputs| Ok((op(&inputs)?, Vec::new())))
}

/// A gradient for a result, different for each element.
fn weights_like(result: &Tensor) -> Result<Tensor> {
    uniform(&[result.elem_count()], 77)?.reshape(result.dims())?.to_device(result.device())?.to_dtype(result.dtype())
}

/// Results, and the gradients of the inputs.
type Found = (Vec<Tensor>, Vec<Option<Tensor>>);

fn compare_runs(
    what: &str,
    inputs: &[Tensor],
    activations: &[usize],
    dtype: DType,
    run: impl Fn(Vec<Tensor>) -> Result<Found>,
) -> Result<()> {
    let rounded = |i: usize, t: &Tensor| if activations.contains(&i) { t.to_dtype(dtype) } else { Ok(t.clone()) };
    let inputs = inputs.iter().enumerate().map(|(i, t)| rounded(i, t)).collect::<Result<Vec<_>>>()?;
    let wide = inputs.iter().map(|t| t.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
    let want = run(wide)?;
    on_device(|device| {
        let got = run(inputs.iter().map(|t| t.to_device(device)).collect::<Result<Vec<_>>>()?)?;
        for (i, (got, want)) in got.0.iter().zip(&want.0).enumerate() {
            assert_close(&format!("{what} as {dtype:?}, result {i}"), got, want, tolerance(dtype))?;
        }
        assert_eq!(got.1.len(), want.1.len(), "{what} as {dtype:?}: one has a graph and the other none");
        for (i, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
            match (got, want) {
                (Some(got), Some(want)) => {
                    let name = format!("{what} as {dtype:?}, gradient of input {i}");
                    assert_close(&name, got, want, 2.0 * tolerance(dtype))?;
                }
                (got, want) => assert_eq!(got.is_some(), want.is_some(), "{what} as {dtype:?}: gradient of input {i}"),
            }
        }
        Ok(())
    })
}
