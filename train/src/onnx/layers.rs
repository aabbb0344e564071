//! The layers of the model's parts as ONNX operators, with the weights that their names have in the state dict.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use sam_ladder_formats::onnx::{Attribute, Graph, Value};

use crate::error::Result;
use crate::model::ModelError;

/// Batch norm's ε in PyTorch.
const BATCH_NORM_EPS: f32 = 1e-5;

/// A graph and the weights that it takes.
pub(super) struct Layers {
    pub(super) graph: Graph,
    weights: BTreeMap<String, Tensor>,
}

impl Layers {
    pub(super) fn new(graph: Graph, weights: BTreeMap<String, Tensor>) -> Self {
        Layers { graph, weights }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        self.weights.get(name).cloned().ok_or_else(|| ModelError::Missing(name.to_owned()).into())
    }

    /// A weight as it is.
    pub(super) fn weight(&mut self, name: &str) -> Result<Value> {
        let tensor = self.tensor(name)?;
        self.constant(name, &tensor)
    }

    /// A constant tensor of this name.
    pub(super) fn constant(&mut self, name: &str, tensor: &Tensor) -> Result<Value> {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(self.graph.floats(name, tensor.dims(), &values))
    }

    fn number(&mut self, value: f32) -> Value {
        self.graph.floats(&format!("number_{value}"), &[], &[value])
    }

    pub(super) fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.graph.op("Add", &[a, b], &[])
    }

    pub(super) fn matmul(&mut self, a: &Value, b: &Value) -> Value {
        self.graph.op("MatMul", &[a, b], &[])
    }

    pub(super) fn scale(&mut self, x: &Value, factor: f32) -> Value {
        let factor = self.number(factor);
        self.graph.op("Mul", &[x, &factor], &[])
    }

    pub(super) fn relu(&mut self, x: &Value) -> Value {
        self.graph.op("Relu", &[x], &[])
    }

    /// The exact GELU, x·½·(1 + erf(x/√2)).
    pub(super) fn gelu(&mut self, x: &Value) -> Value {
        let scaled = self.scale(x, std::f32::consts::FRAC_1_SQRT_2);
        let erf = self.graph.op("Erf", &[&scaled], &[]);
        let one = self.number(1.0);
        let shifted = self.add(&erf, &one);
        let half = self.scale(x, 0.5);
        self.graph.op("Mul", &[&half, &shifted], &[])
    }

    /// Each pixel twice along both sides: `[b, c, side, side]` → `[b, c, 2·side, 2·side]`.
    pub(super) fn nearest_twice(&mut self, x: &Value, side: i64) -> Value {
        let apart = self.reshape(x, &[0, 0, side, 1, side, 1]);
        let shape = self.graph.integers(&[1, 1, 1, 2, 1, 2]);
        let repeated = self.graph.op("Expand", &[&apart, &shape], &[]);
        self.reshape(&repeated, &[0, 0, 2 * side, 2 * side])
    }

    /// As PyTorch's reshape, where 0 keeps an axis and -1 is what remains.
    pub(super) fn reshape(&mut self, x: &Value, shape: &[i64]) -> Value {
        let shape = self.graph.integers(shape);
        self.graph.op("Reshape", &[x, &shape], &[])
    }

    pub(super) fn transpose(&mut self, x: &Value, axes: &[i64]) -> Value {
        self.graph.op("Transpose", &[x], &[("perm", Attribute::Ints(axes.to_vec()))])
    }

    pub(super) fn concat(&mut self, parts: &[&Value], axis: i64) -> Value {
        self.graph.op("Concat", parts, &[("axis", Attribute::Int(axis))])
    }

    pub(super) fn unsqueeze(&mut self, x: &Value, axis: i64) -> Value {
        let axis = self.graph.integers(&[axis]);
        self.graph.op("Unsqueeze", &[x, &axis], &[])
    }

    /// Without an axis of size one.
    pub(super) fn squeeze(&mut self, x: &Value, axis: i64) -> Value {
        let axis = self.graph.integers(&[axis]);
        self.graph.op("Squeeze", &[x, &axis], &[])
    }

    /// Elements `from..to` of an axis.
    pub(super) fn slice(&mut self, x: &Value, axis: i64, from: i64, to: i64) -> Value {
        let (from, to, axis) = (self.graph.integers(&[from]), self.graph.integers(&[to]), self.graph.integers(&[axis]));
        self.graph.op("Slice", &[x, &from, &to, &axis], &[])
    }

    /// Zeros around a tensor: first their number at the start of each axis, then at the end of each.
    pub(super) fn pad(&mut self, x: &Value, counts: &[i64]) -> Value {
        let counts = self.graph.integers(counts);
        self.graph.op("Pad", &[x, &counts], &[])
    }

    pub(super) fn softmax(&mut self, x: &Value) -> Value {
        self.graph.op("Softmax", &[x], &[("axis", Attribute::Int(-1))])
    }

    /// A linear layer on the last axis; its bias may be missing.
    pub(super) fn linear(&mut self, x: &Value, prefix: &str) -> Result<Value> {
        let weight = self.tensor(&format!("{prefix}.weight"))?.t()?;
        let weight = self.constant(&format!("{prefix}.weight.transposed"), &weight)?;
        let product = self.matmul(x, &weight);
        let bias = self.weight(&format!("{prefix}.bias"))?;
        Ok(self.add(&product, &bias))
    }

    /// Layer norm over the last axis.
    pub(super) fn layer_norm(&mut self, x: &Value, prefix: &str, eps: f32) -> Result<Value> {
        let (weight, bias) = (self.weight(&format!("{prefix}.weight"))?, self.weight(&format!("{prefix}.bias"))?);
        Ok(self.graph.op(
            "LayerNormalization",
            &[x, &weight, &bias],
            &[("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(eps))],
        ))
    }

    /// Layer norm over the channels of `[b, c, h, w]`.
    pub(super) fn layer_norm_2d(&mut self, x: &Value, prefix: &str, eps: f32) -> Result<Value> {
        let rows = self.transpose(x, &[0, 2, 3, 1]);
        let normalised = self.layer_norm(&rows, prefix, eps)?;
        Ok(self.transpose(&normalised, &[0, 3, 1, 2]))
    }

    /// A square convolution, with a bias if there is one.
    pub(super) fn conv(&mut self, x: &Value, prefix: &str, stride: i64, padding: i64) -> Result<Value> {
        let weight = self.weight(&format!("{prefix}.weight"))?;
        let bias = format!("{prefix}.bias");
        let bias = if self.has(&bias) { Some(self.weight(&bias)?) } else { None };
        let inputs: Vec<&Value> = [x, &weight].into_iter().chain(&bias).collect();
        let attributes = [("strides", Attribute::Ints(vec![stride; 2])), ("pads", Attribute::Ints(vec![padding; 4]))];
        Ok(self.graph.op("Conv", &inputs, &attributes))
    }

    /// A transposed convolution of 2×2 with stride 2.
    pub(super) fn conv_transpose(&mut self, x: &Value, prefix: &str) -> Result<Value> {
        let (weight, bias) = (self.weight(&format!("{prefix}.weight"))?, self.weight(&format!("{prefix}.bias"))?);
        Ok(self.graph.op("ConvTranspose", &[x, &weight, &bias], &[("strides", Attribute::Ints(vec![2; 2]))]))
    }

    /// Batch norm with the running statistics.
    pub(super) fn batch_norm(&mut self, x: &Value, prefix: &str) -> Result<Value> {
        let mut inputs = vec![x.clone()];
        for part in ["weight", "bias", "running_mean", "running_var"] {
            inputs.push(self.weight(&format!("{prefix}.{part}"))?);
        }
        let inputs: Vec<&Value> = inputs.iter().collect();
        Ok(self.graph.op("BatchNormalization", &inputs, &[("epsilon", Attribute::Float(BATCH_NORM_EPS))]))
    }

    /// Max-pooling of 3×3 with stride 2 and padding 1.
    pub(super) fn max_pool(&mut self, x: &Value) -> Value {
        let attributes = [
            ("kernel_shape", Attribute::Ints(vec![3; 2])),
            ("strides", Attribute::Ints(vec![2; 2])),
            ("pads", Attribute::Ints(vec![1; 4])),
        ];
        self.graph.op("MaxPool", &[x], &attributes)
    }
}
