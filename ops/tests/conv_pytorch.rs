//! Convolution, batch norm, pooling and transposed convolution against numbers that PyTorch made (`data/make_conv.py`).

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, Var};
use sam_ladder_ops::{Conv2d, F32Math, Tape, batch_norm_train, conv_transpose2d_2x2, max_pool2d_3x3_s2_p1};

/// Tolerance of results and gradients: norm of the difference over the norm.
const TOLERANCE: f32 = 3e-6;

fn golden() -> Result<HashMap<String, Tensor>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/conv_pytorch.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu)
}

fn assert_close(what: &str, got: &Tensor, want: &Tensor) -> Result<()> {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let norm = |t: Tensor| -> Result<f32> { t.sqr()?.sum_all()?.sqrt()?.to_scalar() };
    let error = norm((got - want)?)? / norm(want.clone())?;
    assert!(error < TOLERANCE, "{what} differs by {error:e}");
    Ok(())
}

/// Runs `op` on the case's inputs and compares the result and the gradient of each input.
fn check(case: &str, inputs: &[&str], op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    let golden = golden()?;
    let get = |name: &str| &golden[&format!("{case}/{name}")];
    let vars = inputs.iter().map(|name| Var::from_tensor(get(name))).collect::<Result<Vec<_>>>()?;
    let result = op(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>())?;
    assert_close(&format!("{case}: result"), &result, get("result"))?;
    let grads = (result * get("grad_result"))?.sum_all()?.backward()?;
    for (name, var) in inputs.iter().zip(&vars) {
        let grad = grads.get(var).expect("a gradient of every input");
        assert_close(&format!("{case}: gradient of {name}"), grad, get(&format!("grad_{name}")))?;
    }
    Ok(())
}

#[test]
fn convolutions_are_pytorchs() -> Result<()> {
    for (case, stride, padding) in [("conv_3x3", 1, 1), ("conv_3x3_s2", 2, 1), ("conv_7x7_s2", 2, 3), ("conv_1x1_s2", 2, 0)] {
        check(case, &["x", "weight"], |t| Conv2d::new(stride, padding).forward(&t[0], &t[1]))?;
    }
    Ok(())
}

#[test]
fn batch_norm_is_pytorchs() -> Result<()> {
    check("batch_norm", &["x", "weight", "bias"], |t| Ok(batch_norm_train(&t[0], &t[1], &t[2], 1e-5, true)?.0))?;
    let golden = golden()?;
    let get = |name: &str| &golden[&format!("batch_norm/{name}")];
    let statistics = batch_norm_train(get("x"), get("weight"), get("bias"), 1e-5, false)?.1;
    assert_close("mean", &statistics.mean, get("mean"))?;
    assert_close("variance", &statistics.var_unbiased, get("var_unbiased"))
}

#[test]
fn pooling_is_pytorchs_also_where_maxima_tie() -> Result<()> {
    check("max_pool", &["x"], |t| max_pool2d_3x3_s2_p1(&t[0]))
}

#[test]
fn transposed_convolution_is_pytorchs() -> Result<()> {
    let golden = golden()?;
    let get = |name: &str| &golden[&format!("conv_transpose/{name}")];
    let ((b, ci, h, w), (_, co, _, _)) = (get("x").dims4()?, get("weight").dims4()?);
    let tape = Tape::default();
    let [x, weight, bias] = ["x", "weight", "bias"].map(|name| tape.leaf(get(name)));
    let pixels = x.reshape((b, ci, h * w))?.permute(&[0, 2, 1])?;
    let patches = conv_transpose2d_2x2(&pixels, &weight, &bias, F32Math::Exact)?; // [b, h·w·4, co]
    let image = patches.reshape(vec![b, h, w, 2, 2, co])?.permute(&[0, 5, 1, 3, 2, 4])?.reshape((b, co, 2 * h, 2 * w))?;
    assert_close("conv_transpose: result", image.tensor(), get("result"))?;
    let gradients = tape.backward(&image, get("grad_result").clone())?;
    for name in ["x", "weight", "bias"] {
        let gradient = gradients.get(get(name)).expect("a gradient of every input");
        assert_close(&format!("conv_transpose: gradient of {name}"), gradient, get(&format!("grad_{name}")))?;
    }
    Ok(())
}
