//! Attention of a vision transformer among all tokens of an image, those that are no patches (class and registers) before the patches, with or
//! without rotary positions (`dinov3/layers/attention.py`; RoPE: Su et al. 2021). Forward only: the encoder is frozen.
//!
//! Rotary positions turn each pair of a query's and a key's numbers by an angle that depends on the patch. Tokens that are no patches are not
//! turned.

mod cpu;
mod cuda;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::device::has_kernels;
use crate::matmul::packed::RowFormat;
use crate::numerics::Numerics;
use crate::rel_pos_attention::TokenGrid;

/// An attention layer without its two linear layers: `softmax(R(q)·R(k)ᵀ/√d)·v` per head and image.
#[derive(Debug)]
pub struct PrefixAttention {
    heads: usize,
    d: usize,
    /// Tokens before the patches of an image.
    prefix: usize,
    path: Path,
}

#[derive(Debug)]
enum Path {
    Cpu(Option<cpu::Rotation>, Numerics),
    /// Sines and cosines, `[prefix + n, d/2]`, float32.
    Cuda(Option<[Tensor; 2]>, Numerics),
}

impl PrefixAttention {
    /// With `heads` heads of width `d` and `prefix` tokens before the patches; `angles` `[patches, d/2]`, in radians, are rotary positions: of a
    /// token's numbers `i` and `i + d/2`.
    ///
    /// # Errors
    /// Angles of another shape; a device that does not compute in these numerics.
    pub fn new(
        angles: Option<&Tensor>,
        (heads, d): (usize, usize),
        prefix: usize,
        numerics: Numerics,
        device: &Device,
    ) -> Result<Self> {
        if !numerics.supported_on(device) {
            bail!("attention: {:?} does not compute in {numerics:?}", device.location());
        }
        let turned = angles.map(|angles| sines(angles, d, prefix)).transpose()?;
        let path = if has_kernels(device) {
            let on_device = |[sines, cosines]: [Tensor; 2]| {
                Ok::<_, candle_core::Error>([sines.to_device(device)?, cosines.to_device(device)?])
            };
            Path::Cuda(turned.map(on_device).transpose()?, numerics)
        } else {
            let flat = |[sines, cosines]: [Tensor; 2]| {
                Ok::<_, candle_core::Error>(cpu::Rotation { sines: flat(&sines)?, cosines: flat(&cosines)? })
            };
            Path::Cpu(turned.map(flat).transpose()?, numerics)
        };
        Ok(Self { heads, d, prefix, path })
    }

    /// Tokens of an image.
    fn tokens(&self, grid: TokenGrid) -> usize {
        self.prefix + grid.grid * grid.grid
    }

    /// Refuses inputs of other sizes.
    fn check(&self, rows: usize, bias: usize, grid: TokenGrid, patches: Option<usize>) -> Result<()> {
        let (width, tokens) = (self.heads * self.d, self.tokens(grid));
        if rows != grid.batch * tokens || bias != 3 * width || patches.is_some_and(|rows| rows != tokens) {
            bail!("attention: {rows} tokens and a bias of {bias} for {grid:?}, {} heads of {}", self.heads, self.d);
        }
        Ok(())
    }

    /// Attends.
    ///
    /// # Shapes
    /// qkv (output of the qkv layer without bias) `[b·(prefix + grid·grid), 3·heads·d]`, bias `[3·heads·d]` → `[b·(prefix + grid·grid), heads·d]`
    ///
    /// # Errors
    /// Other shapes, or tensors on another device.
    pub fn forward(&self, qkv: &Tensor, bias: &Tensor, grid: TokenGrid) -> Result<Tensor> {
        match &self.path {
            Path::Cuda(turned, numerics) => {
                let rows = turned.as_ref().map(|[sines, _]| sines.dim(0)).transpose()?;
                self.check(qkv.dim(0)?, bias.elem_count(), grid, rows)?;
                cuda::forward(self, turned.as_ref(), *numerics, (qkv, bias), grid)
            }
            Path::Cpu(..) => {
                let mut out = vec![0f32; qkv.dim(0)? * self.heads * self.d];
                self.check(qkv.dim(0)?, bias.elem_count(), grid, None)?;
                self.forward_cpu(&flat(&qkv.broadcast_add(bias)?)?, grid, &mut out)?;
                Tensor::from_vec(out, (qkv.dim(0)?, self.heads * self.d), &Device::Cpu)
            }
        }
    }

    /// As [`Self::forward`], with `qkv` that has the bias, into a buffer.
    ///
    /// # Panics
    /// If `out` has another length, or `qkv` is bfloat16, but the numerics are not.
    pub(crate) fn forward_cpu<T: RowFormat>(&self, qkv: &[T], grid: TokenGrid, out: &mut [T]) -> Result<()> {
        let Path::Cpu(rotation, numerics) = &self.path else { bail!("attention: expected a layer on the CPU") };
        let (width, rows) = (self.heads * self.d, rotation.as_ref().map(|rotation| rotation.sines.len() / (self.d / 2)));
        self.check(qkv.len() / (3 * width).max(1), 3 * width, grid, rows)?;
        let (rotation, tokens) = (rotation.as_ref(), self.tokens(grid));
        cpu::Layer { qkv, rotation, heads: self.heads, d: self.d, tokens, numerics: *numerics }.forward(out);
        Ok(())
    }
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Sines and cosines of the angles `[patches, d/2]`, after those of `prefix` tokens that are not turned, computed in float64.
fn sines(angles: &Tensor, d: usize, prefix: usize) -> Result<[Tensor; 2]> {
    let (patches, half) = angles.dims2()?;
    if 2 * half != d {
        bail!("attention: angles of {:?} for heads of {d}", angles.dims());
    }
    let angles = angles.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let table = |of: fn(f64) -> f64| {
        let values = std::iter::repeat_n(of(0.0), prefix * half).chain(angles.iter().map(|angle| of(*angle)));
        Tensor::from_vec(values.map(|value| value as f32).collect::<Vec<_>>(), (prefix + patches, half), &Device::Cpu)
    };
    Ok([table(f64::sin)?, table(f64::cos)?])
}

/// The layer composed of candle's operations, as the tests' reference; float32.
#[cfg(test)]
fn composed(
    qkv: &Tensor,
    bias: &Tensor,
    angles: Option<&Tensor>,
    (heads, d): (usize, usize),
    (prefix, grid): (usize, TokenGrid),
) -> Result<Tensor> {
    let n = prefix + grid.grid * grid.grid;
    let qkv = qkv.broadcast_add(bias)?.reshape((grid.batch, n, 3, heads, d))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
    let turned = |x: Tensor| -> Result<Tensor> {
        let Some(angles) = angles else { return Ok(x) };
        let patches = x.narrow(2, prefix, n - prefix)?;
        let angles = Tensor::cat(&[angles, angles], 1)?.to_dtype(DType::F32)?;
        let other = Tensor::cat(&[patches.narrow(3, d / 2, d / 2)?.neg()?, patches.narrow(3, 0, d / 2)?], 3)?;
        let patches = (patches.broadcast_mul(&angles.cos()?)? + other.broadcast_mul(&angles.sin()?)?)?;
        Tensor::cat(&[x.narrow(2, 0, prefix)?, patches], 2)
    };
    let (q, k, v) = (turned(qkv.get(0)?)?, turned(qkv.get(1)?)?, qkv.get(2)?);
    let scores = (q.contiguous()?.matmul(&k.t()?.contiguous()?)? / (d as f64).sqrt())?;
    let shares = scores.broadcast_sub(&scores.max_keepdim(3)?)?.exp()?;
    let shares = shares.broadcast_div(&shares.sum_keepdim(3)?)?;
    shares.matmul(&v.contiguous()?)?.transpose(1, 2)?.contiguous()?.reshape((grid.batch * n, heads * d))
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{relative_difference, uniform};

    #[test]
    fn is_the_composed_attention_and_no_image_depends_on_others() -> Result<()> {
        for (batch, side, heads, d, prefix, rotary) in
            [(2, 5, 3, 64, 5, true), (1, 1, 2, 8, 1, false), (2, 20, 1, 32, 1, false), (1, 17, 2, 16, 5, true)]
        {
            let (grid, n, width) = (TokenGrid { batch, grid: side }, prefix + side * side, heads * d);
            // Scores far from equal.
            let (qkv, bias) = ((uniform(&[batch * n, 3 * width], 1)? * 3.0)?, uniform(&[3 * width], 2)?);
            let angles = if rotary { Some((uniform(&[side * side, d / 2], 3)? * 6.0)?) } else { None };
            let layer = PrefixAttention::new(angles.as_ref(), (heads, d), prefix, Numerics::F32, &Device::Cpu)?;
            let found = layer.forward(&qkv, &bias, grid)?;
            let want = composed(&qkv, &bias, angles.as_ref(), (heads, d), (prefix, grid))?;
            let error = relative_difference(&found, &want)?;
            assert!(error < 3e-6, "{side} by {side}, {prefix} before: {error}");
            if Numerics::Bf16.supported_on(&Device::Cpu) {
                let rounding = PrefixAttention::new(angles.as_ref(), (heads, d), prefix, Numerics::Bf16, &Device::Cpu)?;
                let error = relative_difference(&rounding.forward(&qkv, &bias, grid)?, &want)?;
                assert!(error < 3e-2, "{side} by {side}, {prefix} before, in bfloat16: {error}");
            }
            for image in 0..batch {
                let own = layer.forward(&qkv.narrow(0, image * n, n)?, &bias, TokenGrid { batch: 1, grid: side })?;
                assert_eq!(own.to_vec2::<f32>()?, found.narrow(0, image * n, n)?.to_vec2::<f32>()?);
            }
        }
        Ok(())
    }

    /// Queries, keys and values in bfloat16 give what they give in float32, rounded.
    #[test]
    fn bfloat16_in_memory_is_rounded_only_at_the_end() -> Result<()> {
        if !Numerics::Bf16.supported_on(&Device::Cpu) {
            return Ok(());
        }
        let (grid, heads, d, prefix) = (TokenGrid { batch: 2, grid: 9 }, 2, 32, 5);
        let (tokens, width) = (2 * (prefix + 81), heads * d);
        let angles = (uniform(&[81, d / 2], 3)? * 6.0)?;
        let layer = PrefixAttention::new(Some(&angles), (heads, d), prefix, Numerics::Bf16, &Device::Cpu)?;
        let narrow: Vec<bf16> = flat(&(uniform(&[tokens, 3 * width], 1)? * 3.0)?)?.into_iter().map(bf16::from_f32).collect();
        let wide: Vec<f32> = narrow.iter().map(|value| value.to_f32()).collect();
        let (mut found, mut want) = (vec![bf16::ZERO; tokens * width], vec![0f32; tokens * width]);
        layer.forward_cpu(&narrow, grid, &mut found)?;
        layer.forward_cpu(&wide, grid, &mut want)?;
        assert_eq!(found, want.into_iter().map(bf16::from_f32).collect::<Vec<_>>());
        Ok(())
    }

    #[test]
    fn other_sizes_are_refused() -> Result<()> {
        let grid = TokenGrid { batch: 1, grid: 2 };
        let layer = PrefixAttention::new(Some(&uniform(&[4, 4], 1)?), (1, 8), 1, Numerics::F32, &Device::Cpu)?;
        assert!(layer.forward(&uniform(&[5, 24], 1)?, &uniform(&[24], 1)?, grid).is_ok());
        assert!(layer.forward(&uniform(&[4, 24], 1)?, &uniform(&[24], 1)?, grid).is_err());
        assert!(layer.forward(&uniform(&[5, 24], 1)?, &uniform(&[8], 1)?, grid).is_err());
        let larger = TokenGrid { batch: 1, grid: 3 };
        assert!(layer.forward(&uniform(&[10, 24], 1)?, &uniform(&[24], 1)?, larger).is_err(), "angles of another grid");
        assert!(PrefixAttention::new(Some(&uniform(&[4, 3], 1)?), (1, 8), 1, Numerics::F32, &Device::Cpu).is_err());
        Ok(())
    }
}
