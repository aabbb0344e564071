//! Convolution, batch norm and transposed convolution against numbers that PyTorch made (`data/make_conv.py`).

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};
use sam_ladder_ops::{Conv2d, F32Math, Tail, Tape, batch_statistics, conv_transpose2d_2x2, normalize, normalize_backward};

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

#[test]
fn convolutions_are_pytorchs() -> Result<()> {
    let golden = golden()?;
    for (case, stride, padding) in [("conv_3x3", 1, 1), ("conv_3x3_s2", 2, 1), ("conv_7x7_s2", 2, 3), ("conv_1x1_s2", 2, 0)] {
        let get = |name: &str| &golden[&format!("{case}/{name}")];
        let (conv, x, weight, grad) = (Conv2d::new(stride, padding), get("x"), get("weight"), get("grad_result"));
        let ((_, _, h, w), kernel) = (x.dims4()?, weight.dim(2)?);
        assert_close(&format!("{case}: result"), &conv.forward(x, weight)?, get("result"))?;
        assert_close(&format!("{case}: gradient of x"), &conv.backward_input(grad, weight, (h, w))?, get("grad_x"))?;
        assert_close(&format!("{case}: gradient of weight"), &conv.backward_weight(x, grad, kernel)?, get("grad_weight"))?;
    }
    Ok(())
}

#[test]
fn batch_norm_is_pytorchs() -> Result<()> {
    let golden = golden()?;
    let get = |name: &str| &golden[&format!("batch_norm/{name}")];
    let (x, weight, bias) = (get("x"), get("weight"), get("bias"));
    let statistics = batch_statistics(x, 1e-5)?;
    assert_close("mean", &statistics.mean, get("mean"))?;
    assert_close("variance", &statistics.var_unbiased, get("var_unbiased"))?;
    assert_close("result", &normalize(x, &statistics, weight, bias, Tail::Relu)?, get("result"))?;
    let found = normalize_backward(x, &statistics, weight, bias, true, get("grad_result"))?;
    for (name, gradient) in [("x", found.x), ("weight", found.weight), ("bias", found.bias)] {
        assert_close(&format!("gradient of {name}"), &gradient, get(&format!("grad_{name}")))?;
    }
    Ok(())
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
