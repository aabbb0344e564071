//! Sums of values, and their elements in another shape or order.

use candle_core::{DType, Result, Shape, Tensor};

use super::{Value, record};
use crate::add::add;
use crate::convert::{sum_second_axis, to_format};
use crate::strided_copy::{contiguous, with_zeros};

impl Value {
    /// The same elements as another shape.
    ///
    /// # Errors
    /// Another number of elements; a value that is not contiguous.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Value> {
        let before = self.tensor().shape().clone();
        record(self.tensor().reshape(shape.into())?, &[self], move |gradient, _| Ok(vec![Some(gradient.reshape(before)?)]))
    }

    /// A copy with the axes in another order: axis `i` of the result is axis `axes[i]`.
    ///
    /// # Errors
    /// `axes` that are no permutation.
    pub fn permute(&self, axes: &[usize]) -> Result<Value> {
        let mut back = vec![0; axes.len()];
        for (i, &axis) in axes.iter().enumerate() {
            if let Some(at) = back.get_mut(axis) {
                *at = i;
            }
        }
        record(contiguous(&self.tensor().permute(axes)?)?, &[self], move |gradient, _| {
            Ok(vec![Some(contiguous(&gradient.permute(back)?)?)])
        })
    }

    /// A copy of `len` elements along an axis, from `start`.
    ///
    /// # Errors
    /// A part that is not within the axis.
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Value> {
        let rest = self.tensor().dim(axis)?.saturating_sub(start + len);
        record(contiguous(&self.tensor().narrow(axis, start, len)?)?, &[self], move |gradient, _| {
            Ok(vec![Some(with_zeros(gradient, axis, start, rest)?)])
        })
    }

    /// Values of one shape along a new first axis.
    ///
    /// # Errors
    /// Other shapes.
    pub fn stack(values: &[Value]) -> Result<Value> {
        let tensors: Vec<&Tensor> = values.iter().map(Value::tensor).collect();
        record(Tensor::stack(&tensors, 0)?, &values.iter().collect::<Vec<_>>(), |gradient, wanted| {
            wanted.iter().enumerate().map(|(i, &wanted)| wanted.then(|| gradient.get(i)).transpose()).collect()
        })
    }

    /// The sum of two values of one shape.
    ///
    /// # Errors
    /// Other shapes.
    pub fn add(&self, other: &Value) -> Result<Value> {
        record(add(self.tensor(), other.tensor())?, &[self, other], |gradient, wanted| {
            Ok(wanted.iter().map(|&wanted| wanted.then(|| gradient.clone())).collect())
        })
    }

    /// `copies` of it along a new first axis, which must be 1 before.
    ///
    /// # Errors
    /// A first axis that is not 1.
    pub fn repeat_first(&self, copies: usize) -> Result<Value> {
        let mut dims = self.tensor().dims().to_vec();
        if let Some(first) = dims.first_mut() {
            *first = copies;
        }
        record(contiguous(&self.tensor().broadcast_as(dims)?)?, &[self], |gradient, _| Ok(vec![Some(gradient.sum_keepdim(0)?)]))
    }

    /// Each element `copies` times, one after the other: `[.., n]` → `[.., copies·n]`. Pixels of a patch as in
    /// [`conv_transpose2d_2x2`](crate::conv_transpose2d_2x2), which all have the value of the pixel that the patch is of.
    ///
    /// # Errors
    /// A value without axes.
    pub fn repeat_each(&self, copies: usize) -> Result<Value> {
        let (before, dtype) = (self.tensor().shape().clone(), self.tensor().dtype());
        let (mut each, mut dims) = (before.dims().to_vec(), before.dims().to_vec());
        each.push(copies);
        if let Some(last) = dims.last_mut() {
            *last *= copies;
        }
        let repeated = contiguous(&self.tensor().unsqueeze(before.rank())?.broadcast_as(each)?)?.reshape(dims)?;
        record(repeated, &[self], move |gradient, _| {
            let groups = to_format(gradient, DType::F32)?.reshape((before.elem_count(), copies, 1))?;
            Ok(vec![Some(sum_second_axis(&groups, dtype)?.reshape(before)?)])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_match, uniform};

    #[test]
    fn copies_of_each_have_candles_gradients() -> Result<()> {
        assert_gradients_match(
            &[uniform(&[2, 3, 5], 1)?],
            |v| v[0].repeat_each(4),
            |t| t[0].unsqueeze(3)?.broadcast_as((2, 3, 5, 4))?.contiguous()?.reshape((2, 3, 20)),
        )
    }

    #[test]
    fn views_have_candles_gradients() -> Result<()> {
        let inputs = [uniform(&[1, 3, 4], 1)?, uniform(&[1, 3, 4], 2)?];
        assert_gradients_match(
            &inputs,
            |v| v[0].add(&v[1])?.repeat_first(5)?.permute(&[2, 0, 1])?.reshape((4, 15)),
            |t| {
                let sum = (&t[0] + &t[1])?.broadcast_as((5, 3, 4))?;
                sum.permute((2, 0, 1))?.contiguous()?.reshape((4, 15))
            },
        )?;
        assert_gradients_match(
            &inputs,
            |v| Value::stack(&[v[0].narrow(2, 1, 2)?, v[1].narrow(2, 0, 2)?]),
            |t| Tensor::stack(&[t[0].narrow(2, 1, 2)?, t[1].narrow(2, 0, 2)?], 0),
        )
    }
}
