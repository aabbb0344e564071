//! Linear layer, attention, norms, GELU and the fused ends of residual blocks against numbers that PyTorch made (`data/make_ops.py`).

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};
use sam_ladder_ops::{
    F32Math, Numerics, RelPosAttention, Tail, Tape, TokenGrid, Value, add_relu, batch_statistics, gelu, layer_norm, linear,
    multi_head_attention, normalize, normalize_backward, normalize_relu_max_pool, normalize_relu_max_pool_backward,
    relu_backward,
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
fn check(name: &'static str, inputs: &[&str], op: impl Fn(&[Value]) -> Result<Value>) -> Result<()> {
    let (case, tape) = (Case::open(name)?, Tape::default());
    let leaves: Vec<Value> = inputs.iter().map(|input| tape.leaf(case.get(input))).collect();
    let result = op(&leaves)?;
    case.assert_close("result", result.tensor())?;
    let gradients = tape.backward(&result, case.get("grad_result").clone())?;
    for input in inputs {
        let gradient = gradients.get(case.get(input)).expect("a gradient of every input");
        case.assert_close(&format!("grad_{input}"), gradient)?;
    }
    Ok(())
}

#[test]
fn the_linear_layer_is_pytorchs() -> Result<()> {
    check("linear", &["x", "weight", "bias"], |v| linear(&v[0], &v[1], Some(&v[2]), F32Math::Exact))
}

#[test]
fn attention_is_pytorchs() -> Result<()> {
    let (b, heads, queries, d) = Case::open("attention")?.get("q").dims4()?;
    let tokens = |v: &Value| v.permute(&[0, 2, 1, 3])?.reshape((b, v.tensor().dim(2)?, heads * d));
    check("attention", &["q", "k", "v"], |v| {
        let attended = multi_head_attention(&tokens(&v[0])?, &tokens(&v[1])?, &tokens(&v[2])?, heads, 0.3)?;
        attended.reshape((b, queries, heads, d))?.permute(&[0, 2, 1, 3])
    })
}

#[test]
fn layer_norms_are_pytorchs() -> Result<()> {
    check("layer_norm", &["x", "weight", "bias"], |v| layer_norm(&v[0], &v[1], &v[2], 1e-5))?;
    check("layer_norm_2d", &["x", "weight", "bias"], |v| {
        let pixels = v[0].permute(&[0, 2, 3, 1])?;
        layer_norm(&pixels, &v[1], &v[2], 1e-6)?.permute(&[0, 3, 1, 2])
    })
}

#[test]
fn activations_are_pytorchs() -> Result<()> {
    check("gelu", &["x"], |v| gelu(&v[0]))?;
    let case = Case::open("add_relu")?;
    let y = add_relu(case.get("a"), case.get("b"))?;
    case.assert_close("result", &y)?;
    let gradient = relu_backward(&y, case.get("grad_result"))?;
    case.assert_close("grad_a", &gradient)?;
    case.assert_close("grad_b", &gradient)
}

/// Batch norm, ReLU and pooling in one op, and its explicit backward.
#[test]
fn the_stems_end_is_pytorchs() -> Result<()> {
    let case = Case::open("norm_relu_pool")?;
    let (x, weight, bias) = (case.get("x"), case.get("weight"), case.get("bias"));
    let statistics = batch_statistics(x, 1e-5)?;
    let (pooled, places) = normalize_relu_max_pool(x, &statistics, weight, bias)?;
    case.assert_close("result", &pooled)?;
    let grads = normalize_relu_max_pool_backward(x, &statistics, weight, bias, &places, (case.get("grad_result"), None))?;
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
    let (bias, tokens) = (case.get("bias").flatten_all()?, TokenGrid { batch: 1, grid });
    let out = attention.forward(&qkv, &bias, tokens)?;
    case.assert_close("result", &out.reshape((1, grid, grid, c))?)?;
    if Numerics::Bf16.supported_on(qkv.device()) {
        let attention = RelPosAttention::new(case.get("rel_pos_h"), case.get("rel_pos_w"), side, heads, Numerics::Bf16)?;
        let out = attention.forward(&qkv, &bias, tokens)?.reshape((1, grid, grid, c))?;
        let largest = |tensor: &Tensor| tensor.abs()?.max_all()?.to_scalar::<f32>();
        let error = largest(&(out - case.get("result"))?)? / largest(case.get("result"))?;
        assert!(error < 2e-2, "in bfloat16: {error}");
    }
    Ok(())
}
