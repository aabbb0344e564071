//! The encoder's attention: global or within windows, with decomposed relative positions (`image_encoder.py`, `Attention`,
//! `window_partition`, `add_decomposed_rel_pos`). Forward only: the encoder is frozen.
//!
//! Queries, keys and values are gathered per head and window, so nothing is permuted in memory. A window's padding tokens are zero after the
//! norm, so their keys and values are the biases: they take part as keys without a matrix product. Only one tile's scores exist at a time.

pub(crate) mod cpu;
pub(crate) mod cuda;

use candle_core::{Result, Tensor, bail};

use crate::cpu::{tensor_from, with_f32};
use crate::device::has_kernels;
use crate::matmul::packed::RowFormat;
use crate::numerics::Numerics;

/// An attention layer without its two linear layers: `softmax(q·kᵀ/√d + q·R_h + q·R_w)·v` per head, within windows of `side × side` tokens.
#[derive(Debug)]
pub struct RelPosAttention {
    side: usize,
    heads: usize,
    d: usize,
    tables: Tables,
}

/// Relative positions along both axes.
#[derive(Debug)]
enum Tables {
    Cpu(cpu::Tables),
    /// `[2·(2·side - 1), d]`: heights, then widths, in the number format of the activations.
    Cuda(Tensor),
}

/// Consecutive images of `grid × grid` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrid {
    /// Number of images.
    pub batch: usize,
    /// Tokens along the side of an image.
    pub grid: usize,
}

impl TokenGrid {
    /// Number of tokens of all images.
    pub fn tokens(self) -> usize {
        self.batch * self.grid * self.grid
    }
}

impl RelPosAttention {
    /// With `heads` heads, over windows of `side × side` tokens; over whole images if `side` is the grid's. `rel_pos_h` and `rel_pos_w` are
    /// `[2·side - 1, d]`.
    ///
    /// # Errors
    /// Tables of another shape; numerics or a head width for which the device has no kernel.
    pub fn new(rel_pos_h: &Tensor, rel_pos_w: &Tensor, side: usize, heads: usize, numerics: Numerics) -> Result<Self> {
        let (rows, d) = rel_pos_h.dims2()?;
        if rows != 2 * side - 1 || rel_pos_w.dims() != [rows, d] {
            bail!(
                "attention: expected tables of relative positions of [{}, d], found {:?} and {:?}",
                2 * side - 1,
                rel_pos_h.dims(),
                rel_pos_w.dims()
            );
        }
        let tables = if has_kernels(rel_pos_h.device()) {
            if !cuda::has_kernel(d, numerics.dtype()) {
                bail!("attention: no kernel for heads of {d} as {:?}", numerics.dtype());
            }
            Tables::Cuda(Tensor::cat(&[rel_pos_h, rel_pos_w], 0)?.to_dtype(numerics.dtype())?.contiguous()?)
        } else {
            if !numerics.supported_on(rel_pos_h.device()) {
                bail!("attention: {:?} does not compute in {numerics:?}", rel_pos_h.device().location());
            }
            let flat = |table: &Tensor| table.flatten_all()?.to_vec1::<f32>();
            Tables::Cpu(cpu::Tables::new(&flat(rel_pos_h)?, &flat(rel_pos_w)?, (side, d), numerics))
        };
        Ok(Self { side, heads, d, tables })
    }

    /// Attends.
    ///
    /// # Shapes
    /// qkv (output of the qkv layer without bias) `[b·grid·grid, 3·heads·d]`, bias `[3·heads·d]` → `[b·grid·grid, heads·d]`
    ///
    /// # Errors
    /// Other shapes, or tensors on another device than the tables.
    pub fn forward(&self, qkv: &Tensor, bias: &Tensor, grid: TokenGrid) -> Result<Tensor> {
        let width = self.heads * self.d;
        if qkv.dims() != [grid.tokens(), 3 * width] || bias.dims() != [3 * width] {
            bail!("attention: qkv of {:?} with a bias of {:?} and {} heads of {}", qkv.dims(), bias.dims(), self.heads, self.d);
        }
        match &self.tables {
            Tables::Cuda(table) => cuda::rel_pos_attention(qkv, bias, table, (self.side, self.heads, self.d), grid),
            Tables::Cpu(_) => with_f32(&qkv.broadcast_add(bias)?, "attention", |qkv| {
                with_f32(bias, "attention", |bias| {
                    let mut out = vec![0f32; grid.tokens() * width];
                    self.forward_cpu(qkv, bias, grid, &mut out)?;
                    tensor_from(out, (grid.tokens(), width))
                })
            }),
        }
    }

    /// As [`Self::forward`], with `qkv` that has the bias, into a buffer.
    ///
    /// # Panics
    /// If a slice has another length, or `qkv` is bfloat16, but the numerics are not.
    pub(crate) fn forward_cpu<T: RowFormat>(&self, qkv: &[T], bias: &[f32], grid: TokenGrid, out: &mut [T]) -> Result<()> {
        let Tables::Cpu(tables) = &self.tables else { bail!("attention: expected tables on the CPU") };
        let bias: Vec<T> = bias.iter().map(|bias| T::nearest(*bias)).collect();
        cpu::Layer { qkv, bias: &bias, tables, heads: self.heads, grid }.forward(out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use half::bf16;

    use super::*;
    use crate::testing::uniform;

    /// Queries, keys and values in bfloat16 give what they give in float32, rounded.
    #[test]
    fn bfloat16_in_memory_is_rounded_only_at_the_end() -> Result<()> {
        if !Numerics::Bf16.supported_on(&Device::Cpu) {
            return Ok(());
        }
        let (grid, side, heads, d) = (TokenGrid { batch: 2, grid: 9 }, 4, 2, 32);
        let (tokens, width) = (grid.tokens(), heads * d);
        let table = |seed| uniform(&[2 * side - 1, d], seed);
        let layer = RelPosAttention::new(&table(1)?, &table(2)?, side, heads, Numerics::Bf16)?;
        let narrowed = |shape: &[usize], seed| {
            let values = (uniform(shape, seed)? * 3.0)?.flatten_all()?.to_vec1::<f32>()?;
            Ok::<_, candle_core::Error>(values.into_iter().map(bf16::from_f32).collect::<Vec<bf16>>())
        };
        let widened = |narrow: &[bf16]| narrow.iter().map(|value| value.to_f32()).collect::<Vec<f32>>();
        let (narrow, bias) = (narrowed(&[tokens, 3 * width], 3)?, narrowed(&[3 * width], 4)?);
        let (mut found, mut want) = (vec![bf16::ZERO; tokens * width], vec![0f32; tokens * width]);
        layer.forward_cpu(&narrow, &widened(&bias), grid, &mut found)?;
        layer.forward_cpu(&widened(&narrow), &widened(&bias), grid, &mut want)?;
        assert_eq!(found, want.into_iter().map(bf16::from_f32).collect::<Vec<_>>());
        Ok(())
    }
}
