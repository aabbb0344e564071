//! The residual stream on a GPU. The sum is float32 at every precision; inputs of matrix products have the precision's format.

use candle_core::{DType, Result, Tensor, bail};

use super::{Steps, Tile};
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

    fn take(&mut self) -> Result<Tensor> {
        match self.rows.take() {
            Some(rows) => Ok(rows),
            None => bail!("residual stream: a step without the one before it"),
        }
    }

    /// Adds the pending product and bias.
    fn finish(&mut self) -> Result<()> {
        if let Some((delta, bias)) = self.pending.take() {
            self.x = add_widened_cuda(Some(&self.x), &delta, &bias)?;
        }
        Ok(())
    }
}

impl super::Stream for Stream {
    fn each_tile(&mut self, steps: &(dyn Fn(&mut Tile<'_>) -> Result<()> + Sync)) -> Result<()> {
        steps(&mut Tile(self))?;
        self.finish()
    }

    fn attend(&mut self, attention: &RelPosAttention, qkv: &FrozenLinear, grid: TokenGrid) -> Result<()> {
        let rows = self.take()?;
        self.rows = Some(attention.forward(&rows, qkv.bias().cuda()?, grid)?);
        Ok(())
    }

    fn attend_with_prefix(&mut self, attention: &PrefixAttention, qkv: &FrozenLinear, grid: TokenGrid) -> Result<()> {
        let rows = self.take()?;
        self.rows = Some(attention.forward(&rows, qkv.bias().cuda()?, grid)?);
        Ok(())
    }

    fn tokens(&self) -> Result<Tensor> {
        Ok(self.x.clone())
    }

    fn into_tokens(self: Box<Self>) -> Result<Tensor> {
        Ok(self.x)
    }

    fn of_tokens(&self, x: Tensor) -> Result<Box<dyn super::Stream>> {
        Ok(Box::new(Self::new(x, self.dtype)))
    }
}

impl Steps for Stream {
    fn add_linear(&mut self, layer: &FrozenLinear) -> Result<()> {
        let rows = self.take()?;
        self.pending = Some((multiply(&rows, layer)?, layer.bias().cuda()?.clone()));
        Ok(())
    }

    /// x += pending, in place; then its norm, in the precision's format.
    fn norm(&mut self, norm: &FrozenNorm) -> Result<()> {
        let pending = self.pending.take();
        let sum = (pending.as_ref().map(|(delta, _)| delta), pending.as_ref().map(|(_, bias)| bias));
        let norms = (norm.weight().cuda()?, norm.bias().cuda()?);
        self.rows = Some(add_layer_norm(&self.x, sum, norms, norm.eps(), self.dtype)?);
        Ok(())
    }

    fn add_mlp(&mut self, lin1: &FrozenLinear, lin2: &FrozenLinear) -> Result<()> {
        let rows = self.take()?;
        let (weight, math) = lin1.weight().cuda()?;
        let hidden = product(&rows, weight, Some(lin1.bias().cuda()?), Activation::Gelu, math)?.tensor();
        self.pending = Some((multiply(&hidden, lin2)?, lin2.bias().cuda()?.clone()));
        Ok(())
    }

    fn qkv(&mut self, layer: &FrozenLinear) -> Result<()> {
        let rows = self.take()?;
        self.rows = Some(multiply(&rows, layer)?);
        Ok(())
    }
}

/// `rows·Wᵀ`
fn multiply(rows: &Tensor, layer: &FrozenLinear) -> Result<Tensor> {
    let (weight, math) = layer.weight().cuda()?;
    Ok(product(rows, weight, None, Activation::None, math)?.tensor())
}
