//! Softmax attention (Vaswani et al. 2017, equation 1), differentiable. [`crate::rel_pos_attention`] is the encoder's, with relative
//! positions.

mod cpu;
mod cuda;
mod softmax;

use candle_core::{D, Result, Tensor, bail};

use crate::dispatch::{Path, path};

/// Attends from every query to every key, head by head: `softmax(scale·q·kᵀ)·v`.
///
/// # Shapes
/// q `[b, heads, nq, d]`, k and v `[b, heads, nk, d]` → `[b, heads, nq, d]`. Inputs are copied unless their last axis is contiguous. The
/// result is stored as `[b, nq, heads, d]`, so that joining the heads needs no copy.
///
/// Only one head's scores exist at a time; the backward pass recomputes them.
///
/// # Errors
/// If shapes do not match.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    let ((b, heads, _, d), (_, _, keys, _)) = (q.dims4()?, k.dims4()?);
    if k.dims() != [b, heads, keys, d] || v.dims() != k.dims() {
        bail!("attention: queries {:?}, keys {:?} and values {:?} do not go together", q.dims(), k.dims(), v.dims());
    }
    let row_contiguous = |t: &Tensor| if t.stride().last() == Some(&1) { Ok(t.clone()) } else { t.contiguous() };
    let (q, k, v) = (row_contiguous(q)?, row_contiguous(k)?, row_contiguous(v)?);
    match path(&[&q, &k, &v]) {
        Path::Cuda if cuda::has_kernel(d, [&q, &k, &v]) => cuda::attention(&q, &k, &v, scale as f32)?.transpose(1, 2),
        Path::Cpu => cpu::attention(&q, &k, &v, scale as f32)?.transpose(1, 2),
        Path::Cuda | Path::Composed => attention_composed(&q, &k, &v, scale),
    }
}

/// As [`attention`], for tokens with concatenated heads. It is a single node of the graph: the backward pass splits and joins nothing.
///
/// # Shapes
/// q `[b, nq, heads·d]`, k and v `[b, nk, heads·d]` → `[b, nq, heads·d]`.
///
/// # Errors
/// As [`attention`].
pub fn multi_head_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let ((b, queries, c), (_, keys, _)) = (q.dims3()?, k.dims3()?);
    if k.dims() != [b, keys, c] || v.dims() != k.dims() || heads == 0 || !c.is_multiple_of(heads) {
        bail!(
            "attention: queries {:?}, keys {:?} and values {:?} of {heads} heads do not go together",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    match path(&[&q, &k, &v]) {
        Path::Cuda if cuda::has_kernel(c / heads, [&q, &k, &v]) => cuda::multi_head(&q, &k, &v, heads, scale as f32),
        Path::Cpu => cpu::multi_head(&q, &k, &v, heads, scale as f32),
        Path::Cuda | Path::Composed => {
            let split = |t: &Tensor| t.reshape((b, t.dim(1)?, heads, c / heads))?.transpose(1, 2); // [b, heads, n, d]
            let attended = attention_composed(&split(&q)?, &split(&k)?, &split(&v)?, scale)?;
            attended.transpose(1, 2)?.contiguous()?.reshape((b, queries, c))
        }
    }
}

/// [`attention`] composed of candle's operations: for other devices and number formats, and as the tests' reference.
///
/// # Errors
/// As [`attention`].
pub fn attention_composed(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    let scores = (q.contiguous()?.matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?; // [b, heads, nq, nk]
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let probabilities = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    probabilities.matmul(&v.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_match, uniform};

    #[test]
    fn equals_the_composed_one_and_its_gradients() -> Result<()> {
        for (b, heads, queries, keys, d) in [(2, 3, 5, 11, 16), (1, 8, 10, 196, 32), (2, 2, 70, 9, 16), (1, 1, 1, 1, 4)] {
            let inputs =
                [uniform(&[b, heads, queries, d], 1)?, uniform(&[b, heads, keys, d], 2)?, uniform(&[b, heads, keys, d], 3)?];
            assert_gradients_match(
                &inputs,
                |t| attention(&t[0], &t[1], &t[2], 0.7),
                |t| attention_composed(&t[0], &t[1], &t[2], 0.7),
            )?;
        }
        Ok(())
    }

    #[test]
    fn takes_heads_split_by_a_view() -> Result<()> {
        let inputs = [uniform(&[2, 5, 24], 1)?, uniform(&[2, 7, 24], 2)?, uniform(&[2, 7, 24], 3)?];
        let split = |t: &Tensor| t.reshape((2, t.dim(1)?, 3, 8))?.transpose(1, 2);
        assert_gradients_match(
            &inputs,
            |t| attention(&split(&t[0])?, &split(&t[1])?, &split(&t[2])?, 0.3)?.transpose(1, 2)?.reshape((2, 5, 24)),
            |t| attention_composed(&split(&t[0])?, &split(&t[1])?, &split(&t[2])?, 0.3)?.transpose(1, 2)?.reshape((2, 5, 24)),
        )
    }

    #[test]
    fn tokens_of_several_heads_need_no_splitting() -> Result<()> {
        let inputs = [uniform(&[2, 5, 24], 1)?, uniform(&[2, 7, 24], 2)?, uniform(&[2, 7, 24], 3)?];
        let split = |t: &Tensor| t.reshape((2, t.dim(1)?, 3, 8))?.transpose(1, 2);
        assert_gradients_match(
            &inputs,
            |t| multi_head_attention(&t[0], &t[1], &t[2], 3, 0.3),
            |t| attention_composed(&split(&t[0])?, &split(&t[1])?, &split(&t[2])?, 0.3)?.transpose(1, 2)?.reshape((2, 5, 24)),
        )?;
        let reason = multi_head_attention(&inputs[0], &inputs[1], &inputs[2], 5, 1.0).unwrap_err().to_string();
        assert!(reason.contains("of 5 heads"), "{reason}");
        Ok(())
    }

    #[test]
    fn large_scores_do_not_overflow() -> Result<()> {
        let (q, v) = ((uniform(&[1, 1, 4, 8], 1)? * 100.0)?, uniform(&[1, 1, 4, 8], 2)?);
        let y = attention(&q, &q, &v, 10.0)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(y.iter().all(|y| y.is_finite()));
        Ok(())
    }

    #[test]
    fn mismatched_shapes_are_refused() -> Result<()> {
        let (q, k) = (uniform(&[1, 2, 3, 4], 1)?, uniform(&[1, 2, 3, 5], 1)?);
        assert!(attention(&q, &k, &k, 1.0).unwrap_err().to_string().contains("do not go together"));
        Ok(())
    }
}
