//! The 2×2 transposed convolution on the CPU.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::{contiguous_f32, filled_vec, sum_parts, tensor_from, with_f32, with_scratch};
use crate::matmul::{Accumulate, MatMut, MatRef, matmul_serial};

/// As [`super::conv_transpose2d_2x2`].
pub(super) fn conv_transpose2d_2x2(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, ConvTranspose)
}

struct ConvTranspose;

/// `[b, ci, h, w]` and `co`.
struct Sizes {
    b: usize,
    ci: usize,
    co: usize,
    h: usize,
    w: usize,
}

impl Sizes {
    fn of(x: &Shape, weight: &Shape) -> Result<Self> {
        let (b, ci, h, w) = x.dims4()?;
        let (_, co, _, _) = weight.dims4()?;
        Ok(Self { b, ci, co, h, w })
    }

    /// Reorders one image's patches `[co·4, h·w]` to `[co, 2h, 2w]`, and adds the bias.
    fn unfold(&self, patches: &[f32], bias: &[f32], out: &mut [f32]) {
        let Sizes { co, h, w, .. } = *self;
        for o in 0..co {
            for y in 0..2 * h {
                let row = &mut out[(o * 2 * h + y) * 2 * w..][..2 * w];
                let left = &patches[(o * 2 + y % 2) * 2 * h * w + (y / 2) * w..][..w];
                let right = &patches[((o * 2 + y % 2) * 2 + 1) * h * w + (y / 2) * w..][..w];
                for ((pair, l), r) in row.chunks_exact_mut(2).zip(left).zip(right) {
                    pair[0] = l + bias[o];
                    pair[1] = r + bias[o];
                }
            }
        }
    }

    /// Reorders one image's gradient `[co, 2h, 2w]` to patches `[co·4, h·w]`.
    fn patches(&self, grad: &[f32], patches: &mut [f32]) {
        let Sizes { co, h, w, .. } = *self;
        for o in 0..co {
            for y in 0..2 * h {
                let row = &grad[(o * 2 * h + y) * 2 * w..][..2 * w];
                for dx in 0..2 {
                    let out = &mut patches[((o * 2 + y % 2) * 2 + dx) * h * w + (y / 2) * w..][..w];
                    for (out, pair) in out.iter_mut().zip(row.chunks_exact(2)) {
                        *out = pair[dx];
                    }
                }
            }
        }
    }
}

impl CustomOp3 for ConvTranspose {
    fn name(&self) -> &'static str {
        "conv-transpose2d"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _span = tracing::trace_span!("conv-transpose2d").entered();
        let sizes = Sizes::of(l1.shape(), l2.shape())?;
        let Sizes { b, ci, co, h, w } = sizes;
        let x = contiguous_f32(s1, l1, self.name())?;
        let (weight, bias) = (contiguous_f32(s2, l2, self.name())?, contiguous_f32(s3, l3, self.name())?);
        // SAFETY: every image is written by one task, whole.
        let data = unsafe {
            filled_vec(b * co * 4 * h * w, |out| {
                (0..b).into_par_iter().for_each(|image| {
                    let out = out.slice(image * co * 4 * h * w, co * 4 * h * w);
                    with_scratch(co * 4 * h * w, |patches| {
                        let x = MatRef::new(&x[image * ci * h * w..][..ci * h * w], ci, h * w);
                        let weight = MatRef::new(weight, ci, co * 4).t();
                        matmul_serial(MatMut::new(patches, co * 4, h * w), weight, x, 1.0, Accumulate::No);
                        sizes.unfold(patches, bias, out);
                    });
                });
            })
        };
        Ok((CpuStorage::F32(data), Shape::from((b, co, 2 * h, 2 * w))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _span = tracing::trace_span!("conv-transpose2d backward").entered();
        let sizes = Sizes::of(x.shape(), weight.shape())?;
        with_f32(x, self.name(), |x_data| {
            with_f32(weight, self.name(), |weight_data| {
                with_f32(grad, self.name(), |grad| {
                    let backward = Backward { sizes: &sizes, x: x_data, weight: weight_data, grad };
                    let (of_x, of_weight) = backward.of_input_and_weight(x.track_op(), weight.track_op());
                    Ok((
                        of_x.map(|data| tensor_from(data, x.shape())).transpose()?,
                        of_weight.map(|data| tensor_from(data, weight.shape())).transpose()?,
                        bias.track_op().then(|| tensor_from(backward.of_bias(), sizes.co)).transpose()?,
                    ))
                })
            })
        })
    }
}

/// Input of the backward pass.
struct Backward<'a> {
    sizes: &'a Sizes,
    x: &'a [f32],
    weight: &'a [f32],
    grad: &'a [f32],
}

impl Backward<'_> {
    /// The wanted ones of the two gradients, in one pass over the output's gradient.
    fn of_input_and_weight(&self, of_x: bool, of_weight: bool) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
        let Sizes { b, ci, co, h, w } = *self.sizes;
        let mut partial = vec![0.0f32; if of_weight { b * ci * co * 4 } else { 0 }];
        let mut partials: Vec<Option<&mut [f32]>> = (0..b).map(|_| None).collect();
        if of_weight {
            partials = partial.chunks_mut(ci * co * 4).map(Some).collect();
        }
        let each = partials.into_par_iter().enumerate();
        let grad_x = if of_x {
            // SAFETY: every image is written by one task, whole.
            Some(unsafe {
                filled_vec(self.x.len(), |out| {
                    each.for_each(|(image, partial)| self.image(image, Some(out.slice(image * ci * h * w, ci * h * w)), partial));
                })
            })
        } else {
            each.for_each(|(image, partial)| self.image(image, None, partial));
            None
        };
        (grad_x, of_weight.then(|| sum_parts(&partial, ci * co * 4)))
    }

    /// One image's gradient `[ci, h·w]`, and its part of the weight's, `[ci, co·4]`.
    fn image(&self, image: usize, of_x: Option<&mut [f32]>, of_weight: Option<&mut [f32]>) {
        let Sizes { ci, co, h, w, .. } = *self.sizes;
        let hw = h * w;
        with_scratch(co * 4 * hw, |patches| {
            self.sizes.patches(&self.grad[image * co * 4 * hw..][..co * 4 * hw], patches);
            let patches = MatRef::new(patches, co * 4, hw);
            if let Some(of_x) = of_x {
                let weight = MatRef::new(self.weight, ci, co * 4);
                matmul_serial(MatMut::new(of_x, ci, hw), weight, patches, 1.0, Accumulate::No);
            }
            if let Some(of_weight) = of_weight {
                let x = MatRef::new(&self.x[image * ci * hw..][..ci * hw], ci, hw);
                matmul_serial(MatMut::new(of_weight, ci, co * 4), x, patches.t(), 1.0, Accumulate::No);
            }
        });
    }

    /// `[co]`
    fn of_bias(&self) -> Vec<f32> {
        let Sizes { b, co, h, w, .. } = *self.sizes;
        let sum = |o: usize| {
            let plane = |image: usize| &self.grad[(image * co + o) * 4 * h * w..][..4 * h * w];
            (0..b).flat_map(|image| plane(image).chunks(64)).map(|run| run.iter().sum::<f32>() as f64).sum::<f64>() as f32
        };
        (0..co).into_par_iter().map(sum).collect()
    }
}
