//! Linear layer, attention, norms, GELU and the fused ends of residual blocks against numbers that PyTorch made (`data/make_ops.py`).

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, Var};
use sam_ladder_ops::{
    F32Math, Numerics, RelPosAttention, Tail, TokenGrid, add_relu, attention, batch_statistics, gelu, layer_norm, layer_norm_2d,
    linear, normalize, normalize_backward, normalize_relu_max_pool, normalize_relu_max_pool_backward, relu_backward,
};

/// Tolerance of results and gradients: norm of the difference over the norm.
const TOLERANCE: f32 = 3e-6;

struct Case {
    name: &'static str,
    golden: HashMap<String, Tensor>,
}

impl Case {
    fn open(name: &'static str) -> Result<Self> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ops_pytorch.safetensors");
        Ok(Case { name, golden: candle_core::safetensors::load(path, &Device::Cpu)? })
    }

    fn get(&self, tensor: &str) -> &Tensor {
        &self.golden[&format!("{}/{tensor}", self.name)]
    }

    fn assert_close(&self, tensor: &str, got: &Tensor) -> Result<()> {
        let want = self.get(tensor);
        assert_eq!(got.dims(), want.dims(), "{}: {tensor}", self.name);
        let norm = |t: Tensor| -> Result<f32> { t.sqr()?.sum_all()?.sqrt()?.to_scalar() };
        let error = norm((got - want)?)? / norm(want.clone())?;
        assert!(error < TOLERANCE, "{}: {tensor} differs by {error:e}", self.name);
        Ok(())
    }
}

/// Runs `op` on the case's inputs and compares the result and the gradient of each input.
fn check(name: &'static str, inputs: &[&str], op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    let case = Case::open(name)?;
    let vars = inputs.iter().map(|input| Var::from_tensor(case.get(input))).collect::<Result<Vec<_>>>()?;
    let result = op(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>())?;
    case.assert_close("result", &result)?;
    let grads = (result * case.get("grad_result"))?.sum_all()?.backward()?;
    for (input, var) in inputs.iter().zip(&vars) {
        case.assert_close(&format!("grad_{input}"), grads.get(var).expect("a gradient of every input"))?;
    }
    Ok(())
}

#[test]
fn the_linear_layer_is_pytorchs() -> Result<()> {
    check("linear", &["x", "weight", "bias"], |t| linear(&t[0], &t[1], Some(&t[2]), F32Math::Exact))
}

#[test]
fn attention_is_pytorchs() -> Result<()> {
    check("attention", &["q", "k", "v"], |t| attention(&t[0], &t[1], &t[2], 0.3))
}

#[test]
fn layer_norms_are_pytorchs() -> Result<()> {
    check("layer_norm", &["x", "weight", "bias"], |t| layer_norm(&t[0], &t[1], &t[2], 1e-5))?;
    check("layer_norm_2d", &["x", "weight", "bias"], |t| layer_norm_2d(&t[0], &t[1], &t[2], 1e-6))
}

#[test]
fn activations_are_pytorchs() -> Result<()> {
    check("gelu", &["x"], |t| gelu(&t[0]))?;
    check("add_relu", &["a", "b"], |t| add_relu(&t[0], &t[1]))
}

/// Batch norm, ReLU and pooling in one op, and its explicit backward.
#[test]
fn the_stems_end_is_pytorchs() -> Result<()> {
    let case = Case::open("norm_relu_pool")?;
    let (x, weight, bias) = (case.get("x"), case.get("weight"), case.get("bias"));
    let statistics = batch_statistics(x, 1e-5)?;
    case.assert_close("result", &normalize_relu_max_pool(x, &statistics, weight, bias)?)?;
    let grads = normalize_relu_max_pool_backward(x, &statistics, weight, bias, case.get("grad_result"))?;
    case.assert_close("grad_x", &grads.x)?;
    case.assert_close("grad_weight", &grads.weight)?;
    case.assert_close("grad_bias", &grads.bias)
}

/// Batch norm, the shortcut's sum and ReLU in one op, and its explicit backward.
#[test]
fn a_residual_blocks_end_is_pytorchs() -> Result<()> {
    let case = Case::open("norm_add_relu")?;
    let (x, weight, bias) = (case.get("x"), case.get("weight"), case.get("bias"));
    let statistics = batch_statistics(x, 1e-5)?;
    let y = normalize(x, &statistics, weight, bias, Tail::AddRelu(case.get("shortcut")))?;
    case.assert_close("result", &y)?;
    let grad = relu_backward(&y, case.get("grad_result"))?;
    case.assert_close("grad_shortcut", &grad)?;
    let grads = normalize_backward(x, &statistics, weight, bias, false, &grad)?;
    case.assert_close("grad_x", &grads.x)?;
    case.assert_close("grad_weight", &grads.weight)?;
    case.assert_close("grad_bias", &grads.bias)
}

/// The encoder's attention, forward only, over windows, some of which reach beyond the image.
#[test]
fn attention_with_relative_positions_is_pytorchs() -> Result<()> {
    let case = Case::open("rel_pos")?;
    let (_, grid, _, c) = case.get("result").dims4()?;
    let (_, heads, _) = case.get("bias").dims3()?;
    let side = case.get("rel_pos_h").dim(0)?.div_ceil(2);
    let attention = RelPosAttention::new(case.get("rel_pos_h"), case.get("rel_pos_w"), side, heads, Numerics::F32)?;
    let qkv = case.get("qkv").reshape((grid * grid, 3 * c))?;
    let out = attention.forward(&qkv, &case.get("bias").flatten_all()?, TokenGrid { batch: 1, grid })?;
    case.assert_close("result", &out.reshape((1, grid, grid, c))?)
}
