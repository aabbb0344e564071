//! The linear layer, `y = x·Wᵀ + b` (`torch.nn.functional.linear`).

mod cpu;
pub(crate) mod cuda;

use candle_core::{DType, Result, Tensor, bail};

use crate::column_sums::column_sums;
use crate::convert::to_format;
use crate::device::{F32Math, matmul};
use crate::dispatch::{Path, path};
use crate::elementwise::relu_backward;
use crate::tape::{Value, record, record_composed};

/// Applies a linear layer; `math` says how a GPU rounds float32 factors.
///
/// # Shapes
/// x `[.., in]`, weight `[out, in]`, bias `[out]` → `[.., out]`. There may be a bias per row, `[n, out]` for x `[.., n, in]`; and a bias whose
/// length divides `out` is repeated.
///
/// Gradients are computed only where they are wanted, so that a frozen layer costs only the input's. The weight is rounded to the input's number
/// format. On a GPU its gradient has that format, too; on the CPU it is float32.
///
/// # Errors
/// If shapes do not match.
pub fn linear(x: &Value, weight: &Value, bias: Option<&Value>, math: F32Math) -> Result<Value> {
    check(x.tensor(), weight.tensor(), bias.map(Value::tensor))?;
    let tensors = [x.tensor(), weight.tensor(), bias.unwrap_or(weight).tensor()];
    let inputs: Vec<&Value> = [x, weight].into_iter().chain(bias).collect();
    // On a GPU converted once for both passes; the CPU rounds it where it is packed.
    let matrix =
        if path(&tensors) == Path::Cuda { to_format(weight.tensor(), x.tensor().dtype())? } else { weight.tensor().clone() };
    let y = {
        let _span = tracing::trace_span!("linear").entered();
        match path(&tensors) {
            Path::Cuda => cuda::linear(x.tensor(), &matrix, bias.map(Value::tensor), math)?,
            Path::Cpu => cpu::linear(x.tensor(), weight.tensor(), bias.map(Value::tensor))?,
            Path::Composed => return record_composed(&inputs, |t| linear_composed(&t[0], &t[1], t.get(2))),
        }
    };
    let shape = x.tensor().shape().clone();
    // What only the weight's gradient needs is kept only for it.
    let of_rows = weight.is_recorded().then(|| x.tensor().clone());
    let of_bias = bias.map(|bias| bias.tensor().clone());
    record(y, &inputs, move |gradient, wanted| {
        let _span = tracing::trace_span!("linear backward").entered();
        let (out_features, in_features) = matrix.dims2()?;
        let gradient = gradient.contiguous()?.reshape(((), out_features))?; // [n, out]
        let mut found = vec![None; wanted.len()];
        if wanted[0] {
            found[0] = Some(product(&gradient, &matrix.contiguous()?, math)?.reshape(shape)?);
        }
        if let Some(x) = of_rows {
            let rows = x.contiguous()?.reshape(((), in_features))?;
            found[1] = Some(transposed_product(&gradient, &rows, math)?);
        }
        if let (Some(bias), Some(true)) = (of_bias, wanted.get(2)) {
            let sums = column_sums(&gradient.reshape(((), bias.elem_count()))?)?;
            found[2] = Some(sums.reshape(bias.shape())?.to_dtype(bias.dtype())?);
        }
        Ok(found)
    })
}

/// A linear layer for each group, then ReLU if `relu`.
///
/// # Shapes
/// x `[g, n, in]`, weight `[g, out, in]`, bias `[g, out]` → `[g, n, out]`.
///
/// # Errors
/// If shapes do not match.
pub fn linear_groups(x: &Value, weight: &Value, bias: &Value, relu: bool, math: F32Math) -> Result<Value> {
    let (rows, matrices) = (x.tensor().clone(), to_format(weight.tensor(), x.tensor().dtype())?);
    let dtype = rows.dtype();
    let y = if path(&[&rows, &matrices, bias.tensor()]) == Path::Cuda {
        cuda::add_group_bias(products((&rows, false), (&matrices, true), math, dtype)?, bias.tensor(), relu)?
    } else {
        // The bias is added before the result is rounded.
        let wide = if dtype == DType::BF16 { DType::F32 } else { dtype };
        let y = products((&rows, false), (&matrices, true), math, wide)?;
        let y = y.broadcast_add(&bias.tensor().to_dtype(wide)?.unsqueeze(1)?)?; // + [g, 1, out]
        to_format(&if relu { y.relu()? } else { y }, dtype)?
    };
    let (of_weight, of_bias) = (weight.tensor().dtype(), bias.tensor().dtype());
    let result = relu.then(|| y.clone());
    record(y, &[x, weight, bias], move |gradient, wanted| {
        let before = result.map(|result| relu_backward(&result, gradient)).transpose()?;
        let gradient = before.as_ref().unwrap_or(gradient);
        Ok(vec![
            wanted[0].then(|| products((gradient, false), (&matrices, false), math, dtype)).transpose()?,
            wanted[1].then(|| products((gradient, true), (&rows, false), math, of_weight)).transpose()?,
            wanted[2].then(|| gradient.to_dtype(of_bias)?.sum(1)).transpose()?,
        ])
    })
}

/// The products `a·bᵀ` of two batches of matrices.
///
/// # Shapes
/// a `[b, m, k]`, b `[b, n, k]` → `[b, m, n]`.
///
/// # Errors
/// If shapes do not match.
pub fn product_transposed(a: &Value, b: &Value, math: F32Math) -> Result<Value> {
    let (left, right) = (a.tensor().clone(), b.tensor().clone());
    let dtype = left.dtype();
    record(products((&left, false), (&right, true), math, dtype)?, &[a, b], move |gradient, wanted| {
        Ok(vec![
            wanted[0].then(|| products((gradient, false), (&right, false), math, dtype)).transpose()?,
            wanted[1].then(|| products((gradient, true), (&left, false), math, dtype)).transpose()?,
        ])
    })
}

/// The products of two batches of matrices of the same number format, in the format `dtype`; each matrix may be transposed first.
fn products(lhs: (&Tensor, bool), rhs: (&Tensor, bool), math: F32Math, dtype: DType) -> Result<Tensor> {
    let on_cpu = path(&[lhs.0, rhs.0]) == Path::Cpu;
    let factor = |(of, transposed): (&Tensor, bool)| -> Result<Tensor> {
        let of = if on_cpu { to_format(of, DType::F32)? } else { of.clone() };
        if transposed { of.t() } else { Ok(of) }
    };
    to_format(&matmul(&factor(lhs)?, &factor(rhs)?, math)?, dtype)
}

fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let (out_features, in_features) = weight.dims2()?;
    if x.dims().last() != Some(&in_features) {
        bail!("linear: the weight takes {in_features} features, the input has shape {:?}", x.dims());
    }
    let rows = x.dims().iter().rev().nth(1).copied().unwrap_or(1);
    if let Some(bias) = bias
        && bias.dims() != [rows, out_features]
        && !matches!(bias.dims(), &[len] if len > 0 && out_features.is_multiple_of(len))
    {
        bail!("linear: the weight gives {out_features} features, the bias has shape {:?}", bias.dims());
    }
    Ok(())
}

/// lhs `[m, k]` · rhs `[k, n]`, in the number format of lhs.
fn product(lhs: &Tensor, rhs: &Tensor, math: F32Math) -> Result<Tensor> {
    match path(&[lhs, rhs]) {
        Path::Cpu => cpu::product(lhs, rhs),
        Path::Cuda | Path::Composed => matmul(lhs, &to_format(rhs, lhs.dtype())?, math),
    }
}

/// lhsᵀ · rhs for lhs `[k, m]`, rhs `[k, n]`
fn transposed_product(lhs: &Tensor, rhs: &Tensor, math: F32Math) -> Result<Tensor> {
    match path(&[lhs, rhs]) {
        Path::Cpu => cpu::transposed_product(lhs, rhs),
        Path::Cuda | Path::Composed => matmul(&lhs.t()?, rhs, math),
    }
}

/// [`linear`] composed of candle's operations: for other devices and number formats, and as the tests' reference.
///
/// # Errors
/// As [`linear`].
pub fn linear_composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    let y = x.reshape(((), in_features))?.matmul(&weight.t()?)?; // [n, out]
    if let Some(last) = dims.last_mut() {
        *last = out_features;
    }
    match bias {
        Some(bias) if bias.rank() == 1 => y.reshape(((), bias.elem_count()))?.broadcast_add(bias)?.reshape(dims),
        Some(bias) => y.reshape(dims)?.broadcast_add(bias),
        None => y.reshape(dims),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::Tape;
    use crate::testing::{assert_gradients_match, relative_difference, uniform};
    use candle_core::DType;

    #[test]
    fn equals_the_composed_layer_and_its_gradients() -> Result<()> {
        let (x, weight, bias) = (uniform(&[2, 3, 5], 1)?, uniform(&[7, 5], 2)?, uniform(&[7], 3)?);
        assert_gradients_match(
            &[x.clone(), weight.clone(), bias],
            |v| linear(&v[0], &v[1], Some(&v[2]), F32Math::Exact),
            |t| linear_composed(&t[0], &t[1], Some(&t[2])),
        )?;
        assert_gradients_match(
            &[x.clone(), weight.clone()],
            |v| linear(&v[0], &v[1], None, F32Math::Exact),
            |t| linear_composed(&t[0], &t[1], None),
        )?;
        // A bias per row.
        assert_gradients_match(
            &[x.clone(), weight.clone(), uniform(&[3, 7], 5)?],
            |v| linear(&v[0], &v[1], Some(&v[2]), F32Math::Exact),
            |t| linear_composed(&t[0], &t[1], Some(&t[2])),
        )?;
        // A bias that is repeated.
        assert_gradients_match(
            &[x.clone(), uniform(&[8, 5], 2)?, uniform(&[4], 5)?],
            |v| linear(&v[0], &v[1], Some(&v[2]), F32Math::Exact),
            |t| linear_composed(&t[0], &t[1], Some(&t[2].repeat(2)?)),
        )?;
        // An input that is a view.
        let view = uniform(&[5, 4], 4)?.t()?;
        let y = linear(&view.clone().into(), &weight.clone().into(), None, F32Math::Exact)?;
        let error = relative_difference(y.tensor(), &linear_composed(&view, &weight, None)?)?;
        assert!(error < 3e-6, "{error}");
        Ok(())
    }

    /// In bfloat16 the products are those of the numbers in float32, rounded once, whatever the kind of bias and the number of rows.
    #[test]
    fn bfloat16_is_rounded_last() -> Result<()> {
        let narrowed = |shape: &[usize], seed| to_format(&uniform(shape, seed)?, DType::BF16);
        let widened = |x: &Tensor| to_format(x, DType::F32);
        // The sums of two orders may round to neighbours.
        let assert_near = |what: &str, got: &Tensor, want: &Tensor| -> Result<()> {
            assert_eq!(got.dtype(), DType::BF16, "{what}");
            let error = relative_difference(&widened(got)?, want)?;
            assert!(error < 3e-3, "{what}: {error}");
            Ok(())
        };
        for n in [70, 5] {
            let (x, weight, gradient) = (narrowed(&[3, n, 36], 1)?, narrowed(&[20, 36], 2)?, narrowed(&[3, n, 20], 3)?);
            let wide = [&x, &weight, &gradient].map(widened);
            let [wide_x, wide_weight, wide_gradient] = [&wide[0], &wide[1], &wide[2]].map(|t| t.as_ref().unwrap());
            for bias in [None, Some(uniform(&[20], 4)?), Some(uniform(&[4], 5)?), Some(uniform(&[n, 20], 6)?)] {
                let what = format!("{n} rows of an item, bias {:?}", bias.as_ref().map(Tensor::dims));
                let (tape, of) = (Tape::default(), bias.clone().map(Value::from));
                let leaves = [&x, wide_weight].map(|t| tape.leaf(t));
                let y = linear(&leaves[0], &leaves[1], of.as_ref(), F32Math::Exact)?;
                let repeated = bias.map(|bias| if bias.dims() == [4] { bias.repeat(5) } else { Ok(bias) }).transpose()?;
                assert_near(&what, y.tensor(), &linear_composed(wide_x, wide_weight, repeated.as_ref())?)?;
                let found = tape.backward(&y, gradient.clone())?;
                let rows = wide_gradient.reshape((3 * n, 20))?;
                assert_near(&what, found.get(&x).unwrap(), &rows.matmul(wide_weight)?.reshape((3, n, 36))?)?;
                let of_weight = rows.t()?.matmul(&wide_x.reshape((3 * n, 36))?)?;
                let error = relative_difference(found.get(wide_weight).unwrap(), &of_weight)?;
                assert!(error < 3e-6, "{what}: {error}");
                // A weight in bfloat16 is as one that is rounded to it.
                let narrow = linear(&leaves[0], &weight.clone().into(), of.as_ref(), F32Math::Exact)?;
                assert_eq!(widened(narrow.tensor())?.to_vec3::<f32>()?, widened(y.tensor())?.to_vec3::<f32>()?, "{what}");
            }
        }
        Ok(())
    }

    #[test]
    fn groups_and_batches_are_products_of_their_matrices() -> Result<()> {
        let inputs = [uniform(&[3, 4, 5], 1)?, uniform(&[3, 7, 5], 2)?, uniform(&[3, 7], 3)?];
        assert_gradients_match(
            &inputs,
            |v| linear_groups(&v[0], &v[1], &v[2], false, F32Math::Exact),
            |t| t[0].matmul(&t[1].t()?)?.broadcast_add(&t[2].unsqueeze(1)?),
        )?;
        assert_gradients_match(&inputs[..2], |v| product_transposed(&v[0], &v[1], F32Math::Exact), |t| t[0].matmul(&t[1].t()?))
    }

    #[test]
    fn frozen_weights_get_no_gradient() -> Result<()> {
        let (x, weight, tape) = (uniform(&[4, 5], 1)?, uniform(&[7, 5], 2)?, Tape::default());
        let y = linear(&tape.leaf(&x), &weight.clone().into(), None, F32Math::Exact)?;
        let gradients = tape.backward(&y, y.tensor().ones_like()?)?;
        assert!(gradients.get(&x).is_some() && gradients.get(&weight).is_none());
        Ok(())
    }

    #[test]
    fn wrong_shapes_are_refused() -> Result<()> {
        let [x, six, weight, bias, none] =
            [&[4, 5][..], &[2, 6], &[7, 6], &[3], &[0, 6]].map(|shape| uniform(shape, 1).map(Value::from));
        let (weight, bias) = (weight?, bias?);
        assert!(linear(&x?, &weight, None, F32Math::Exact).unwrap_err().to_string().contains("takes 6 features"));
        assert!(linear(&six?, &weight, Some(&bias), F32Math::Exact).is_err());
        assert_eq!(linear(&none?, &weight, None, F32Math::Exact)?.tensor().dims(), [0, 7]);
        Ok(())
    }
}
