//! Convolution on the CPU, by the first way that applies (see [`super`]).

use candle_core::{DType, Result, Tensor};
use half::bf16 as Narrow;

use super::im2col;
use super::shape::ConvShape;
#[cfg(target_arch = "x86_64")]
use super::{bf16, implicit, winograd};
use crate::convert::to_format;
use crate::cpu::activation::Activation;
use crate::cpu::{tensor_from, with_f32, with_numbers};

/// As [`super::Conv2d::forward`]. The input, and so the result, is float32 or bfloat16.
pub(super) fn forward(x: &Tensor, weight: &Tensor, g: &ConvShape) -> Result<Tensor> {
    let shape = (g.b, g.co, g.oh, g.ow);
    with_f32(&to_format(weight, DType::F32)?, "conv2d", |weight| match is_narrow(x) {
        true => with_numbers(x, "conv2d", |x| tensor_from(narrow_output(g, x, weight), shape)),
        false => with_f32(x, "conv2d", |x| tensor_from(output(g, x, weight), shape)),
    })
}

/// As [`super::Conv2d::backward_input`], in the gradient's number format.
pub(super) fn backward_input(grad: &Tensor, weight: &Tensor, g: &ConvShape) -> Result<Tensor> {
    let shape = (g.b, g.ci, g.h, g.w);
    with_f32(&to_format(weight, DType::F32)?, "conv2d", |weight| match is_narrow(grad) {
        true => with_numbers(grad, "conv2d", |grad| tensor_from(narrow_input_gradient(g, grad, weight), shape)),
        false => with_f32(grad, "conv2d", |grad| tensor_from(input_gradient(g, grad, weight), shape)),
    })
}

/// As [`super::Conv2d::backward_weight`], in float32; both arguments have one number format.
pub(super) fn backward_weight(x: &Tensor, grad: &Tensor, g: &ConvShape) -> Result<Tensor> {
    let data = match is_narrow(x) {
        true => with_numbers(x, "conv2d", |x| with_numbers(grad, "conv2d", |grad| Ok(narrow_weight_gradient(g, x, grad)))),
        false => with_f32(x, "conv2d", |x| with_f32(grad, "conv2d", |grad| Ok(weight_gradient(g, x, grad)))),
    }?;
    tensor_from(data, (g.co, g.ci, g.k, g.k))
}

fn is_narrow(x: &Tensor) -> bool {
    x.dtype() == DType::BF16
}

fn output(g: &ConvShape, x: &[f32], weight: &[f32]) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if winograd::applies(g) {
        return winograd::forward(g, x, weight);
    } else if implicit::applies(g) {
        return implicit::forward(g, x, weight);
    }
    im2col::forward(g, x, weight)
}

fn input_gradient(g: &ConvShape, grad: &[f32], weight: &[f32]) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if winograd::applies(g) {
        return winograd::backward_data(g, grad, weight);
    } else if implicit::applies(g) {
        return implicit::backward_data(g, grad, weight);
    }
    im2col::backward_data(g, grad, weight)
}

fn weight_gradient(g: &ConvShape, x: &[f32], grad: &[f32]) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if winograd::applies(g) {
        return winograd::backward_weight(g, x, grad);
    } else if implicit::applies(g) {
        return implicit::backward_weight(g, x, grad);
    }
    im2col::backward_weight(g, x, grad)
}

// Of bfloat16 activations. Where the processor or the kernel's size asks for another way than `bf16`, it computes with the numbers in float32.

fn narrow_output(g: &ConvShape, x: &[Narrow], weight: &[f32]) -> Vec<Narrow> {
    #[cfg(target_arch = "x86_64")]
    if bf16::applies(g) {
        return bf16::forward(g, x, weight);
    }
    narrowed(&output(g, &widened(x), &rounded(weight)))
}

fn narrow_input_gradient(g: &ConvShape, grad: &[Narrow], weight: &[f32]) -> Vec<Narrow> {
    #[cfg(target_arch = "x86_64")]
    if bf16::applies(g) {
        return bf16::backward_data(g, grad, weight);
    }
    narrowed(&input_gradient(g, &widened(grad), &rounded(weight)))
}

fn narrow_weight_gradient(g: &ConvShape, x: &[Narrow], grad: &[Narrow]) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if bf16::applies(g) {
        return bf16::backward_weight(g, x, grad);
    }
    weight_gradient(g, &widened(x), &widened(grad))
}

fn widened(x: &[Narrow]) -> Vec<f32> {
    x.iter().map(|v| v.value()).collect()
}

fn narrowed(x: &[f32]) -> Vec<Narrow> {
    x.iter().map(|v| Narrow::nearest(*v)).collect()
}

fn rounded(x: &[f32]) -> Vec<f32> {
    widened(&narrowed(x))
}

#[cfg(test)]
mod tests {
    use candle_core::Shape;

    use super::*;
    use crate::testing::values;

    fn assert_same(what: &str, got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        let error = norm(&mut got.iter().zip(want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
        assert!(error < 3e-6, "{what} differs by {error:e}");
    }

    /// Compares the ways that this processor would not use with those that it does.
    #[test]
    fn all_ways_to_compute_a_convolution_agree() {
        for (ci, co, h, w, k, stride, padding) in [
            (16, 32, 13, 14, 3, 1, 1),
            (64, 256, 10, 9, 3, 1, 1),
            (256, 128, 14, 14, 3, 1, 1),
            (3, 20, 21, 18, 7, 2, 3),
            (8, 16, 9, 8, 1, 2, 0),
        ] {
            let (x, weight) = (Shape::from((3, ci, h, w)), Shape::from((co, ci, k, k)));
            let g = ConvShape::new(&x, &weight, stride, padding).unwrap();
            let (x, weight, grad) = (values(g.input_len(), 1), values(g.weight_len(), 2), values(g.output_len(), 3));
            let plain = (
                im2col::forward(&g, &x, &weight),
                im2col::backward_data(&g, &grad, &weight),
                im2col::backward_weight(&g, &x, &grad),
            );
            let chosen = (output(&g, &x, &weight), input_gradient(&g, &grad, &weight), weight_gradient(&g, &x, &grad));
            for (what, got, want) in
                [("forward", &chosen.0, &plain.0), ("data", &chosen.1, &plain.1), ("weight", &chosen.2, &plain.2)]
            {
                assert_same(&format!("{what} {g:?}"), got, want);
            }
            #[cfg(target_arch = "x86_64")]
            if implicit::applies(&g) {
                assert_same("implicit forward", &implicit::forward(&g, &x, &weight), &plain.0);
                assert_same("implicit data", &implicit::backward_data(&g, &grad, &weight), &plain.1);
                assert_same("implicit weight", &implicit::backward_weight(&g, &x, &grad), &plain.2);
            }
        }
    }

    /// With factors that are bfloat16 already, products are exact, so that only the order of the sums differs.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn bfloat16_convolutions_are_those_of_the_rounded_factors() {
        for (ci, co, h, w, k, stride, padding) in [
            (32, 16, 7, 18, 3, 1, 1),
            (64, 48, 10, 9, 3, 1, 1),
            (64, 32, 28, 28, 3, 2, 1),
            (32, 64, 15, 17, 3, 2, 1),
            (32, 33, 9, 40, 1, 2, 0),
            (1, 64, 32, 30, 7, 2, 3),
            (3, 20, 21, 18, 7, 2, 3),
            (48, 16, 5, 6, 2, 3, 1),
            (16, 40, 4, 4, 4, 4, 0),
        ] {
            let (x, weight) = (Shape::from((3, ci, h, w)), Shape::from((co, ci, k, k)));
            let g = ConvShape::new(&x, &weight, stride, padding).unwrap();
            if !bf16::applies(&g) {
                return;
            }
            let rounded = |len, seed| values(len, seed).iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect::<Vec<_>>();
            let (x, weight, grad) = (rounded(g.input_len(), 1), rounded(g.weight_len(), 2), rounded(g.output_len(), 3));
            let (narrow_x, narrow_grad) = (narrowed(&x), narrowed(&grad));
            // The sum of another order, rounded to the last of eight bits.
            let assert_rounded = |what: &str, got: Vec<Narrow>, want: Vec<f32>| {
                let largest = want.iter().fold(0f32, |most, v| most.max(v.abs()));
                for (i, (got, want)) in widened(&got).iter().zip(&want).enumerate() {
                    let near = want.abs() / 256.0 + largest * 1e-6;
                    assert!((got - want).abs() <= near, "{what} {g:?}: element {i} is {got}, not {want}");
                }
            };
            assert_rounded("forward", bf16::forward(&g, &narrow_x, &weight), im2col::forward(&g, &x, &weight));
            assert_rounded("data", bf16::backward_data(&g, &narrow_grad, &weight), im2col::backward_data(&g, &grad, &weight));
            let want = im2col::backward_weight(&g, &x, &grad);
            assert_same(&format!("weight {g:?}"), &bf16::backward_weight(&g, &narrow_x, &narrow_grad), &want);
        }
    }
}
