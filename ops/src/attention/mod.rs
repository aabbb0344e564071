//! Softmax attention (Vaswani et al. 2017, equation 1), differentiable. [`crate::rel_pos_attention`] is the encoder's, with relative
//! positions.

mod cpu;
mod cuda;
mod softmax;

use candle_core::{D, Result, Tensor, bail};

use crate::dispatch::{Path, path};
use crate::tape::{Value, record, record_composed};

/// Attends from every query to every key, head by head: `softmax(scale·q·kᵀ)·v`, for tokens with concatenated heads.
///
/// # Shapes
/// q `[b, nq, heads·d]`, k and v `[b, nk, heads·d]` → `[b, nq, heads·d]`.
///
/// Only one head's scores exist at a time; the backward pass recomputes them.
///
/// # Errors
/// If shapes do not match.
pub fn multi_head_attention(q: &Value, k: &Value, v: &Value, heads: usize, scale: f64) -> Result<Value> {
    Attention { heads, scale, parts: [(0, 0), (1, 0), (2, 0)] }.apply(&[q, k, v])
}

/// [`multi_head_attention`] to tokens in which keys and values lie one behind the other.
///
/// # Shapes
/// q `[b, nq, heads·d]`, kv `[b, nk, 2·heads·d]` → `[b, nq, heads·d]`.
///
/// # Errors
/// If shapes do not match.
pub fn multi_head_cross_attention(q: &Value, kv: &Value, heads: usize, scale: f64) -> Result<Value> {
    Attention { heads, scale, parts: [(0, 0), (1, 0), (1, 1)] }.apply(&[q, kv])
}

/// [`multi_head_attention`] among the same tokens, in which queries, keys and values lie one behind the other.
///
/// # Shapes
/// qkv `[b, n, 3·heads·d]` → `[b, n, heads·d]`.
///
/// # Errors
/// If shapes do not match.
pub fn multi_head_self_attention(qkv: &Value, heads: usize, scale: f64) -> Result<Value> {
    Attention { heads, scale, parts: [(0, 0), (0, 1), (0, 2)] }.apply(&[qkv])
}

/// An attention whose queries, keys and values are parts of its inputs.
#[derive(Debug, Clone, Copy)]
struct Attention {
    heads: usize,
    scale: f64,
    /// Of queries, keys and values: the input, and the number of the part within it.
    parts: [(usize, usize); 3],
}

impl Attention {
    fn apply(self, inputs: &[&Value]) -> Result<Value> {
        let packs = inputs.iter().map(|input| input.tensor().contiguous()).collect::<Result<Vec<_>>>()?;
        let tensors = self.split(&packs)?;
        let span = tracing::trace_span!("attention").entered();
        let [q, k, v] = &tensors;
        let (y, on_gpu) = match path(&[q, k, v]) {
            Path::Cuda if cuda::has_kernel(q.dim(2)? / self.heads, [q, k, v]) => {
                let forward = cuda::forward(&self, &tensors)?;
                (forward.out.clone(), Some(forward))
            }
            Path::Cpu => (cpu::forward(&self, &tensors)?, None),
            Path::Cuda | Path::Composed => {
                return record_composed(inputs, move |packs| {
                    let [q, k, v] = self.split(packs)?;
                    attention_composed(&q, &k, &v, self.heads, self.scale)
                });
            }
        };
        drop(span);
        record(y, inputs, move |gradient, wanted| {
            let _span = tracing::trace_span!("attention backward").entered();
            let (gradient, of_keys) = (gradient.contiguous()?, wanted[self.parts[1].0] || wanted[self.parts[2].0]);
            let found = match &on_gpu {
                Some(forward) => cuda::backward(&self, &packs, &tensors, forward, &gradient, of_keys)?,
                None => cpu::backward(&self, &packs, &tensors, &gradient)?,
            };
            Ok(found.into_iter().zip(wanted).map(|(found, &wanted)| wanted.then_some(found)).collect())
        })
    }

    /// Number of parts in an input.
    fn parts_of(&self, pack: usize) -> usize {
        self.parts.iter().filter(|(of, _)| *of == pack).count()
    }

    /// Queries, keys and values: views whose last axis is contiguous.
    fn split(&self, packs: &[Tensor]) -> Result<[Tensor; 3]> {
        let part = |(pack, part): (usize, usize)| -> Result<Tensor> {
            let (all, parts) = (&packs[pack], self.parts_of(pack));
            let (_, _, c) = all.dims3()?;
            if c % parts != 0 {
                bail!("attention: {parts} parts have {c} channels together");
            }
            all.narrow(2, c / parts * part, c / parts)
        };
        let [q, k, v] = self.parts.map(part);
        let (q, k, v) = (q?, k?, v?);
        let ((b, _, c), (_, keys, _)) = (q.dims3()?, k.dims3()?);
        if k.dims() != [b, keys, c] || v.dims() != k.dims() || self.heads == 0 || !c.is_multiple_of(self.heads) {
            bail!(
                "attention: queries {:?}, keys {:?} and values {:?} of {} heads do not go together",
                q.dims(),
                k.dims(),
                v.dims(),
                self.heads
            );
        }
        Ok([q, k, v])
    }
}

/// [`multi_head_attention`] composed of candle's operations: for other devices and number formats, and as the tests' reference.
fn attention_composed(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let (b, queries, c) = q.dims3()?;
    let split = |t: &Tensor| t.contiguous()?.reshape((b, t.dim(1)?, heads, c / heads))?.transpose(1, 2)?.contiguous(); // [b, heads, n, d]
    let (q, k, v) = (split(q)?, split(k)?, split(v)?);
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?; // [b, heads, nq, nk]
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let probabilities = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    probabilities.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((b, queries, c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_match, uniform};

    #[test]
    fn equals_the_composed_one_and_its_gradients() -> Result<()> {
        for (b, heads, queries, keys, d) in [(2, 3, 5, 11, 16), (1, 8, 10, 196, 32), (2, 2, 70, 9, 16), (1, 1, 1, 1, 4)] {
            let c = heads * d;
            let inputs = [uniform(&[b, queries, c], 1)?, uniform(&[b, keys, c], 2)?, uniform(&[b, keys, c], 3)?];
            assert_gradients_match(
                &inputs,
                |v| multi_head_attention(&v[0], &v[1], &v[2], heads, 0.7),
                |t| attention_composed(&t[0], &t[1], &t[2], heads, 0.7),
            )?;
        }
        Ok(())
    }

    #[test]
    fn queries_keys_and_values_may_lie_in_one_tensor() -> Result<()> {
        let qkv = uniform(&[2, 5, 72], 1)?;
        let part = |t: &Tensor, i: usize| t.narrow(2, 24 * i, 24);
        assert_gradients_match(
            &[uniform(&[2, 7, 24], 2)?, uniform(&[2, 5, 48], 3)?],
            |v| multi_head_cross_attention(&v[0], &v[1], 3, 0.3),
            |t| attention_composed(&t[0], &part(&t[1], 0)?, &part(&t[1], 1)?, 3, 0.3),
        )?;
        assert_gradients_match(
            &[qkv],
            |v| multi_head_self_attention(&v[0], 3, 0.3),
            |t| attention_composed(&part(&t[0], 0)?, &part(&t[0], 1)?, &part(&t[0], 2)?, 3, 0.3),
        )
    }

    #[test]
    fn large_scores_do_not_overflow() -> Result<()> {
        let (q, v) = ((uniform(&[1, 4, 8], 1)? * 100.0)?.into(), uniform(&[1, 4, 8], 2)?.into());
        let y = multi_head_attention(&q, &q, &v, 1, 10.0)?.tensor().flatten_all()?.to_vec1::<f32>()?;
        assert!(y.iter().all(|y| y.is_finite()));
        Ok(())
    }

    #[test]
    fn mismatched_shapes_are_refused() -> Result<()> {
        let (q, k) = (uniform(&[1, 3, 8], 1)?.into(), uniform(&[1, 3, 10], 1)?.into());
        assert!(multi_head_attention(&q, &k, &k, 2, 1.0).unwrap_err().to_string().contains("do not go together"));
        assert!(multi_head_attention(&q, &q, &q, 3, 1.0).unwrap_err().to_string().contains("of 3 heads"));
        assert!(multi_head_self_attention(&k, 1, 1.0).unwrap_err().to_string().contains("3 parts have 10 channels"));
        Ok(())
    }
}
