//! Layers with constant weights, stored in the layout that their device needs.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use crate::device::{F32Math, has_kernels};
use crate::matmul::packed::PackedWeight;
use crate::numerics::Numerics;

/// A linear layer.
#[derive(Debug)]
pub struct FrozenLinear {
    weight: FrozenWeight,
    bias: FrozenVector,
}

/// A layer norm's scale and shift.
#[derive(Debug)]
pub struct FrozenNorm {
    weight: FrozenVector,
    bias: FrozenVector,
    eps: f64,
}

/// A weight matrix, `[out, in]`.
#[derive(Debug)]
pub(crate) enum FrozenWeight {
    /// Packed once, instead of for every product.
    Cpu(PackedWeight),
    /// In the number format of the activations.
    Cuda(Tensor, F32Math),
}

/// One float32 number per feature.
#[derive(Debug, Clone)]
pub(crate) enum FrozenVector {
    Cpu(Arc<[f32]>),
    Cuda(Tensor),
}

impl FrozenLinear {
    /// From a weight `[out, in]` and a bias `[out]`.
    ///
    /// # Errors
    /// Numerics that the device does not support.
    pub fn new(weight: &Tensor, bias: &Tensor, numerics: Numerics) -> Result<Self> {
        Ok(Self { weight: FrozenWeight::new(weight, numerics)?, bias: FrozenVector::new(bias)? })
    }

    pub(crate) fn weight(&self) -> &FrozenWeight {
        &self.weight
    }

    pub(crate) fn bias(&self) -> &FrozenVector {
        &self.bias
    }
}

impl FrozenNorm {
    /// From a scale and a shift, both `[c]`; `eps` is added to the variance.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn new(weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Self> {
        Ok(Self { weight: FrozenVector::new(weight)?, bias: FrozenVector::new(bias)?, eps })
    }

    pub(crate) fn weight(&self) -> &FrozenVector {
        &self.weight
    }

    pub(crate) fn bias(&self) -> &FrozenVector {
        &self.bias
    }

    pub(crate) fn eps(&self) -> f64 {
        self.eps
    }
}

impl FrozenWeight {
    pub(crate) fn new(weight: &Tensor, numerics: Numerics) -> Result<Self> {
        let (out, inner) = weight.dims2()?;
        if has_kernels(weight.device()) {
            return Ok(Self::Cuda(weight.to_dtype(numerics.dtype())?.contiguous()?, numerics.math()));
        }
        if !numerics.supported_on(weight.device()) {
            bail!("frozen layer: {:?} does not compute in {numerics:?}", weight.device());
        }
        Ok(Self::Cpu(PackedWeight::new(weight.flatten_all()?.to_vec1()?, out, inner, numerics)))
    }

    pub(crate) fn cpu(&self) -> Result<&PackedWeight> {
        match self {
            Self::Cpu(weight) => Ok(weight),
            Self::Cuda(..) => bail!("frozen layer: expected weights on the CPU"),
        }
    }

    pub(crate) fn cuda(&self) -> Result<(&Tensor, F32Math)> {
        match self {
            Self::Cuda(weight, math) => Ok((weight, *math)),
            Self::Cpu(_) => bail!("frozen layer: expected weights on a GPU"),
        }
    }
}

impl FrozenVector {
    pub(crate) fn new(values: &Tensor) -> Result<Self> {
        match has_kernels(values.device()) {
            true => Ok(Self::Cuda(values.contiguous()?)),
            false => Ok(Self::Cpu(values.flatten_all()?.to_vec1::<f32>()?.into())),
        }
    }

    pub(crate) fn cpu(&self) -> Result<&Arc<[f32]>> {
        match self {
            Self::Cpu(values) => Ok(values),
            Self::Cuda(_) => bail!("frozen layer: expected numbers on the CPU"),
        }
    }

    pub(crate) fn cuda(&self) -> Result<&Tensor> {
        match self {
            Self::Cuda(values) => Ok(values),
            Self::Cpu(_) => bail!("frozen layer: expected numbers on a GPU"),
        }
    }
}
