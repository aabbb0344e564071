//! Attention among all tokens of an image on a GPU: the library's products, and candle's operations between them, in float32. An image is processed
//! at a time, so that only its scores exist.

use candle_core::{D, DType, Result, Tensor};

use super::PrefixAttention;
use crate::convert::to_format;
use crate::device::{F32Math, matmul, parameters};
use crate::numerics::Numerics;
use crate::rel_pos_attention::TokenGrid;
use crate::strided_copy::contiguous;

/// As [`PrefixAttention::forward`], which checks the shapes; `turned` are sines and cosines, `[tokens, d/2]`.
pub(super) fn forward(
    layer: &PrefixAttention,
    turned: Option<&[Tensor; 2]>,
    numerics: Numerics,
    (qkv, bias): (&Tensor, &Tensor),
    grid: TokenGrid,
) -> Result<Tensor> {
    let (heads, d, n) = (layer.heads, layer.d, layer.tokens(grid));
    // Factors of products have at least the bits of the 16-bit formats.
    let math = if numerics == Numerics::F32 { F32Math::Exact } else { F32Math::Tf32 };
    let bias = parameters(bias)?;
    let of_image = |image: usize| -> Result<Tensor> {
        let rows = to_format(&qkv.narrow(0, image * n, n)?.contiguous()?, DType::F32)?.broadcast_add(&bias)?;
        let parts = contiguous(&rows.reshape((n, 3, heads, d))?.permute((1, 2, 0, 3))?)?; // [3, heads, n, d]
        let (q, k, v) = (turn(&parts.get(0)?, turned)?, turn(&parts.get(1)?, turned)?, parts.get(2)?);
        let scores = matmul(&(q * (d as f64).powf(-0.5))?, &k.transpose(1, 2)?, math)?; // [heads, n, n]
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let shares = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        contiguous(&matmul(&shares, &v, math)?.transpose(0, 1)?)?.reshape((n, heads * d))
    };
    let images = (0..grid.batch).map(of_image).collect::<Result<Vec<_>>>()?;
    to_format(&Tensor::cat(&images, 0)?, qkv.dtype())
}

/// Queries or keys `[heads, n, d]`, each pair of numbers turned by its token's angle.
fn turn(x: &Tensor, turned: Option<&[Tensor; 2]>) -> Result<Tensor> {
    let Some([sines, cosines]) = turned else { return Ok(x.clone()) };
    let half = x.dim(2)? / 2;
    let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let first = (a.broadcast_mul(cosines)? - b.broadcast_mul(sines)?)?;
    let second = (b.broadcast_mul(cosines)? + a.broadcast_mul(sines)?)?;
    Tensor::cat(&[first, second], 2)
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Device, Result, Tensor};

    use super::super::PrefixAttention;
    use crate::numerics::Numerics;
    use crate::rel_pos_attention::TokenGrid;
    use crate::testing::kernels::{FORMATS, assert_close, on_device, tolerance};
    use crate::testing::uniform;

    #[test]
    fn tokens_before_the_patches_with_and_without_rotary_positions() -> Result<()> {
        for (batch, side, heads, d, prefix, rotary) in [(2, 5, 3, 64, 5, true), (1, 9, 2, 64, 1, false), (2, 1, 1, 16, 1, true)] {
            let (grid, n, width) = (TokenGrid { batch, grid: side }, prefix + side * side, heads * d);
            let (qkv, bias) = (uniform(&[batch * n, 3 * width], 1)?, uniform(&[3 * width], 2)?);
            let angles = if rotary { Some((uniform(&[side * side, d / 2], 3)? * 6.0)?) } else { None };
            for (dtype, numerics) in FORMATS.into_iter().zip([Numerics::F32, Numerics::Bf16, Numerics::F16]) {
                let rounded = |t: &Tensor| t.to_dtype(dtype)?.to_dtype(DType::F32);
                let layer = PrefixAttention::new(angles.as_ref(), (heads, d), prefix, Numerics::F32, &Device::Cpu)?;
                let want = layer.forward(&rounded(&qkv)?, &bias, grid)?;
                on_device(|device| {
                    let layer = PrefixAttention::new(angles.as_ref(), (heads, d), prefix, numerics, device)?;
                    let got = layer.forward(&qkv.to_dtype(dtype)?.to_device(device)?, &bias.to_device(device)?, grid)?;
                    assert_close(&format!("{prefix} tokens before {grid:?}, {dtype:?}"), &got, &want, 2.0 * tolerance(dtype))
                })?;
            }
        }
        Ok(())
    }
}
