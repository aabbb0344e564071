//! The residual stream on a GPU. The sum is float32 at every precision; inputs of matrix products have the precision's format.

use candle_core::{DType, Result, Tensor, bail};

use crate::add::add_widened_cuda;
use crate::frozen::{FrozenLinear, FrozenNorm};
use crate::layer_norm::cuda::add_layer_norm;
use crate::linear::cuda::{Activation, product};
use crate::prefix_attention::PrefixAttention;
use crate::rel_pos_attention::{RelPosAttention, TokenGrid};

/// All tokens.
pub(super) struct Stream {
    /// `[tokens, c]`, float32, changed in place.
    x: Tensor,
    dtype: DType,
    /// Input of the next step: the attention's result, a norm, or queries, keys and values.
    rows: Option<Tensor>,
    /// A product and its bias, not yet added to x.
    pending: Option<(Tensor, Tensor)>,
}

impl Stream {
    pub(super) fn new(x: Tensor, dtype: DType) -> Self {
        Self { x, dtype, rows: None, pending: None }
    }

    /// The number format of products.
    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn attend(&mut self, attention: &RelPosAttention, qkv: &FrozenLinear, grid: TokenGrid) -> Result<()> {
        let rows = self.take()?;
        self.rows = Some(attention.forward(&rows, qkv.bias().cuda()?, grid)?);
        Ok(())
    }

    pub(super) fn attend_with_prefix(&mut self, attention: &PrefixAttention, qkv: &FrozenLinear, grid: TokenGrid) -> Result<()> {
        let rows = self.take()?;
        self.rows = Some(attention.forward(&rows, qkv.bias().cuda()?, grid)?);
        Ok(())
    }

    pub(super) fn add_linear(&mut self, layer: &FrozenLinear) -> Result<()> {
        let rows = self.take()?;
        self.pending = Some((multiply(&rows, layer)?, layer.bias().cuda()?.clone()));
        Ok(())
    }

    /// x += pending, in place; then its norm, in the precision's format.
    pub(super) fn norm(&mut self, norm: &FrozenNorm) -> Result<()> {
        let pending = self.pending.take();
        let sum = (pending.as_ref().map(|(delta, _)| delta), pending.as_ref().map(|(_, bias)| bias));
        let norms = (norm.weight().cuda()?, norm.bias().cuda()?);
        self.rows = Some(add_layer_norm(&self.x, sum, norms, norm.eps(), self.dtype)?);
        Ok(())
    }

    pub(super) fn add_mlp(&mut self, lin1: &FrozenLinear, lin2: &FrozenLinear) -> Result<()> {
        let rows = self.take()?;
        let (weight, math) = lin1.weight().cuda()?;
        let hidden = product(&rows, weight, Some(lin1.bias().cuda()?), Activation::Gelu, math)?.tensor();
        self.pending = Some((multiply(&hidden, lin2)?, lin2.bias().cuda()?.clone()));
        Ok(())
    }

    pub(super) fn qkv(&mut self, layer: &FrozenLinear) -> Result<()> {
        let rows = self.take()?;
        self.rows = Some(multiply(&rows, layer)?);
        Ok(())
    }

    /// Adds the pending product and bias.
    pub(super) fn finish(&mut self) -> Result<()> {
        if let Some((delta, bias)) = self.pending.take() {
            self.x = add_widened_cuda(Some(&self.x), &delta, &bias)?;
        }
        Ok(())
    }

    pub(super) fn tokens(&self) -> Tensor {
        self.x.clone()
    }

    pub(super) fn into_tokens(self) -> Tensor {
        self.x
    }

    fn take(&mut self) -> Result<Tensor> {
        match self.rows.take() {
            Some(rows) => Ok(rows),
            None => bail!("residual stream: a step without the one before it"),
        }
    }
}

/// `rows·Wᵀ`
fn multiply(rows: &Tensor, layer: &FrozenLinear) -> Result<Tensor> {
    let (weight, math) = layer.weight().cuda()?;
    Ok(product(rows, weight, None, Activation::None, math)?.tensor())
}
