//! Transposed convolution 2×2 with stride 2 (the mask decoder's upscaling), as one matrix product and a reshuffle.
//!
//! The windows of stride 2 do not overlap, so each input pixel makes its own 2×2 patch: `[co·4, ci] × [ci, h·w]` holds all of them, and only their
//! order differs from the result's.

mod cuda;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::{contiguous_f32, filled_vec, is_native, tensor_from, with_f32, with_scratch};
use crate::device;
use crate::matmul::{Accumulate, MatMut, MatRef, matmul_serial};

/// Transposed convolution with a 2×2 kernel and stride 2. Differentiable by all three arguments.
///
/// # Shapes
/// `x` `[b, ci, h, w]`, `weight` `[ci, co, 2, 2]` (PyTorch's layout), `bias` `[co]` → `[b, co, 2h, 2w]`.
pub fn conv_transpose2d_2x2(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (_, ci, _, _) = x.dims4()?;
    let (wi, co, kh, kw) = weight.dims4()?;
    if wi != ci || (kh, kw) != (2, 2) || bias.dims() != [co] {
        bail!(
            "conv_transpose2d: expected a weight of [{ci}, co, 2, 2] and a bias of [co], found {:?} and {:?}",
            weight.dims(),
            bias.dims()
        );
    }
    if device::runs_on(&[x, weight, bias]) {
        return cuda::conv_transpose2d_2x2(x, weight, bias);
    }
    if is_native(&[x, weight, bias]) {
        x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, ConvTranspose)
    } else {
        conv_transpose2d_2x2_composed(x, weight, bias)
    }
}

/// [`conv_transpose2d_2x2`] as a composition of candle's ops, for any device and data type; the reference of the tests.
pub fn conv_transpose2d_2x2_composed(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (b, ci, h, w) = x.dims4()?;
    let (_, co, _, _) = weight.dims4()?;
    let pixels = x.reshape((b, ci, h * w))?.transpose(1, 2)?.contiguous()?.reshape((b * h * w, ci))?;
    let patches = pixels.matmul(&weight.reshape((ci, co * 4))?)?; // [b*h*w, co*4]
    patches
        .reshape(&[b, h, w, co, 2, 2])?
        .permute([0, 3, 1, 4, 2, 5])? // [b, co, h, 2, w, 2]
        .reshape((b, co, 2 * h, 2 * w))?
        .broadcast_add(&bias.reshape((1, co, 1, 1))?)
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
        let Sizes { b, ci, co, h, w } = sizes;
        let hw = h * w;
        with_f32(x, self.name(), |x_data| {
            with_f32(weight, self.name(), |w_data| {
                with_f32(grad, self.name(), |g| {
                    let mut partial = vec![0.0f32; if weight.track_op() { b * ci * co * 4 } else { 0 }];
                    let image_gradients = |image: usize, out: Option<&mut [f32]>, partial: Option<&mut [f32]>| {
                        with_scratch(co * 4 * hw, |patches| {
                            sizes.patches(&g[image * co * 4 * hw..][..co * 4 * hw], patches);
                            let patches = MatRef::new(patches, co * 4, hw);
                            if let Some(out) = out {
                                let weight = MatRef::new(w_data, ci, co * 4);
                                matmul_serial(MatMut::new(out, ci, hw), weight, patches, 1.0, Accumulate::No);
                            }
                            if let Some(partial) = partial {
                                let x = MatRef::new(&x_data[image * ci * hw..][..ci * hw], ci, hw);
                                matmul_serial(MatMut::new(partial, ci, co * 4), x, patches.t(), 1.0, Accumulate::No);
                            }
                        });
                    };
                    let mut partials: Vec<Option<&mut [f32]>> = (0..b).map(|_| None).collect();
                    if weight.track_op() {
                        partials = partial.chunks_mut(ci * co * 4).map(Some).collect();
                    }
                    let grad_x = if x.track_op() {
                        // SAFETY: every image is written by one task, whole.
                        let data = unsafe {
                            filled_vec(x_data.len(), |out| {
                                partials.into_par_iter().enumerate().for_each(|(image, partial)| {
                                    image_gradients(image, Some(out.slice(image * ci * hw, ci * hw)), partial);
                                });
                            })
                        };
                        Some(tensor_from(data, x.shape())?)
                    } else {
                        partials.into_par_iter().enumerate().for_each(|(image, partial)| image_gradients(image, None, partial));
                        None
                    };
                    let grad_weight = if weight.track_op() {
                        Some(tensor_from(sum_parts(&partial, ci * co * 4), weight.shape())?)
                    } else {
                        None
                    };
                    let grad_bias = if bias.track_op() {
                        let sums = (0..co).into_par_iter().map(|o| {
                            let plane = |image: usize| &g[(image * co + o) * 4 * hw..][..4 * hw];
                            (0..b)
                                .flat_map(|image| plane(image).chunks(64))
                                .map(|run| run.iter().sum::<f32>() as f64)
                                .sum::<f64>() as f32
                        });
                        Some(tensor_from(sums.collect(), co)?)
                    } else {
                        None
                    };
                    Ok((grad_x, grad_weight, grad_bias))
                })
            })
        })
    }
}

/// The sum of the parts of `len` elements each that `parts` holds one after another, in their order.
pub(crate) fn sum_parts(parts: &[f32], len: usize) -> Vec<f32> {
    let mut sum = vec![0.0f32; len];
    for part in parts.chunks_exact(len) {
        for (s, p) in sum.iter_mut().zip(part) {
            *s += p;
        }
    }
    sum
}
