//! Helpers for the operations' unit tests: seeded inputs, and the comparison of an operation with its composed reference.

#[cfg(feature = "cuda")]
pub(crate) mod kernels;

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::tape::{Tape, Value};

/// Values in [-1, 1) from a seed.
pub(crate) fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// [`values`] as a tensor.
pub(crate) fn uniform(shape: &[usize], seed: u64) -> Result<Tensor> {
    Tensor::from_vec(values(shape.iter().product(), seed), shape, &Device::Cpu)
}

/// Largest absolute difference over the largest absolute value of `want`.
pub(crate) fn relative_difference(got: &Tensor, want: &Tensor) -> Result<f32> {
    assert_eq!(got.dims(), want.dims());
    let got = got.flatten_all()?.to_vec1::<f32>()?;
    let want = want.flatten_all()?.to_vec1::<f32>()?;
    let difference = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(got.iter().all(|v| v.is_finite()));
    Ok(difference / want.iter().fold(1e-30, |m: f32, v| m.max(v.abs())))
}

/// Asserts that an operation and its reference in candle's operations agree in value and in the gradient of every input, with a different
/// output gradient per element, and that some elements of the gradients equal central differences of the reference in float64.
pub(crate) fn assert_gradients_match(
    inputs: &[Tensor],
    operation: impl Fn(&[Value]) -> Result<Value>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let tape = Tape::default();
    let (got, want) = (operation(&tensors.iter().map(|t| tape.leaf(t)).collect::<Vec<_>>())?, reference(&tensors)?);
    let error = relative_difference(got.tensor(), &want)?;
    assert!(error < 3e-6, "values differ by {error}");
    let weights = uniform(want.dims(), 77)?;
    let got = tape.backward(&got, weights.clone())?;
    let want = (want * &weights)?.sum_all()?.backward()?;
    for (i, tensor) in tensors.iter().enumerate() {
        let (Some(got), Some(want)) = (got.get(tensor), want.get(tensor)) else { panic!("input {i} has no gradient") };
        let error = relative_difference(got, want)?;
        assert!(error < 1e-5, "gradients of input {i} differ by {error}");
        assert_finite_differences(inputs, i, got, &reference)?;
    }
    Ok(())
}

/// Compares a few elements of the gradient `got` of input `which` with central differences in float64.
fn assert_finite_differences(
    inputs: &[Tensor],
    which: usize,
    got: &Tensor,
    reference: &impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    const STEP: f64 = 1e-5;
    let got = got.flatten_all()?.to_vec1::<f32>()?;
    let largest = got.iter().fold(1e-30, |m: f64, v| m.max(f64::from(v.abs())));
    for element in (0..got.len()).step_by(got.len().div_ceil(4).max(1)) {
        let loss = |step: f64| -> Result<f64> {
            let mut inputs = inputs.iter().map(|t| t.to_dtype(DType::F64)).collect::<Result<Vec<_>>>()?;
            let mut values = inputs[which].flatten_all()?.to_vec1::<f64>()?;
            values[element] += step;
            inputs[which] = Tensor::from_vec(values, inputs[which].dims(), &Device::Cpu)?;
            let y = reference(&inputs)?;
            let weights = uniform(y.dims(), 77)?.to_dtype(DType::F64)?;
            (y * weights)?.sum_all()?.to_scalar()
        };
        let want = (loss(STEP)? - loss(-STEP)?) / (2.0 * STEP);
        let error = (f64::from(got[element]) - want).abs() / largest;
        assert!(error < 2e-5, "element {element} of the gradient of input {which} is off by {error}");
    }
    Ok(())
}
