//! Layer norm over the channels of an image, on the CPU.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::contiguous_f32;
use crate::cpu::simd::{madd, multiversion};

/// As [`super::layer_norm_2d`].
pub(super) fn layer_norm_2d(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm2d { eps: eps as f32 })
}

/// Pixels that are normalised together: their sums stay in cache during the loop over channels.
const PIXELS: usize = 256;

multiversion! {
    /// Mean and 1/sqrt(variance + eps) over the channels of `mean.len()` neighbouring pixels; `x` starts at the first of them,
    /// channels are `plane` elements apart.
    fn pixel_statistics(x: &[f32], plane: usize, channels: usize, eps: f32, statistics: (&mut [f32], &mut [f32])) {
        let (mean, inverse_deviation) = statistics;
        let pixels = mean.len();
        mean.fill(0.0);
        inverse_deviation.fill(0.0);
        for c in 0..channels {
            for (mean, &x) in mean.iter_mut().zip(&x[c * plane..c * plane + pixels]) {
                *mean += x;
            }
        }
        let scale = 1.0 / channels as f32;
        mean.iter_mut().for_each(|m| *m *= scale);
        for c in 0..channels {
            for ((variance, &mean), &x) in inverse_deviation.iter_mut().zip(mean.iter()).zip(&x[c * plane..c * plane + pixels]) {
                *variance = madd::<FMA>(x - mean, x - mean, *variance);
            }
        }
        inverse_deviation.iter_mut().for_each(|v| *v = 1.0 / (*v * scale + eps).sqrt());
    }
}

multiversion! {
    /// [`super::layer_norm_2d`] of one image `[c, plane]`.
    fn normalise_image(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let (channels, plane) = (weight.len(), x.len() / weight.len());
        let (mut mean, mut inverse_deviation) = ([0f32; PIXELS], [0f32; PIXELS]);
        for start in (0..plane).step_by(PIXELS) {
            let pixels = PIXELS.min(plane - start);
            let (mean, inverse_deviation) = (&mut mean[..pixels], &mut inverse_deviation[..pixels]);
            pixel_statistics(&x[start..], plane, channels, eps, (mean, inverse_deviation));
            for c in 0..channels {
                let at = c * plane + start..c * plane + start + pixels;
                for (((y, &x), &mean), &inverse) in y[at.clone()].iter_mut().zip(&x[at]).zip(mean.iter()).zip(inverse_deviation.iter())
                {
                    *y = madd::<FMA>((x - mean) * inverse, weight[c], bias[c]);
                }
            }
        }
    }
}

multiversion! {
    /// Backward of [`normalise_image`]: replaces the output's gradient in `grad` by the input's; adds the gradients of weight and bias to
    /// `parameters`, `[2c]`.
    fn normalise_image_backward(x: &[f32], weight: &[f32], eps: f32, grad: &mut [f32], parameters: &mut [f32]) {
        let (channels, plane) = (weight.len(), x.len() / weight.len());
        let mut buffers = [[0f32; PIXELS]; 4];
        for start in (0..plane).step_by(PIXELS) {
            let pixels = PIXELS.min(plane - start);
            let [mean, inverse_deviation, sum, dot] = &mut buffers;
            let (mean, inverse_deviation) = (&mut mean[..pixels], &mut inverse_deviation[..pixels]);
            let (sum, dot) = (&mut sum[..pixels], &mut dot[..pixels]);
            pixel_statistics(&x[start..], plane, channels, eps, (&mut *mean, &mut *inverse_deviation));
            sum.fill(0.0);
            dot.fill(0.0);
            for c in 0..channels {
                let at = c * plane + start..c * plane + start + pixels;
                let (x, grad) = (&x[at.clone()], &mut grad[at]);
                let (mut grad_weight, mut grad_bias) = ([0f32; 16], [0f32; 16]);
                for block in (0..pixels).step_by(16) {
                    for i in block..(block + 16).min(pixels) {
                        let normalised = (x[i] - mean[i]) * inverse_deviation[i];
                        grad_weight[i - block] = madd::<FMA>(grad[i], normalised, grad_weight[i - block]);
                        grad_bias[i - block] += grad[i];
                        grad[i] *= weight[c];
                        sum[i] += grad[i];
                        dot[i] = madd::<FMA>(grad[i], normalised, dot[i]);
                    }
                }
                parameters[c] += grad_weight.iter().sum::<f32>();
                parameters[channels + c] += grad_bias.iter().sum::<f32>();
            }
            let scale = 1.0 / channels as f32;
            for c in 0..channels {
                let at = c * plane + start..c * plane + start + pixels;
                let (x, grad) = (&x[at.clone()], &mut grad[at]);
                for i in 0..pixels {
                    let normalised = (x[i] - mean[i]) * inverse_deviation[i];
                    grad[i] = (grad[i] - scale * madd::<FMA>(normalised, dot[i], sum[i])) * inverse_deviation[i];
                }
            }
        }
    }
}

struct LayerNorm2d {
    eps: f32,
}

impl CustomOp3 for LayerNorm2d {
    fn name(&self) -> &'static str {
        "layer norm 2d"
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
        let _span = tracing::trace_span!("layer norm 2d").entered();
        let (_, c, h, w) = l1.shape().dims4()?;
        let x = contiguous_f32(s1, l1, "layer norm 2d")?;
        let (weight, bias) = (contiguous_f32(s2, l2, "layer norm 2d")?, contiguous_f32(s3, l3, "layer norm 2d")?);
        let mut y = vec![0f32; x.len()];
        let image = (c * h * w).max(1);
        y.par_chunks_mut(image).zip(x.par_chunks(image)).for_each(|(y, x)| normalise_image(x, weight, bias, self.eps, y));
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _span = tracing::trace_span!("layer norm 2d backward").entered();
        let channels = weight.elem_count();
        let (elements, op) = (x.elem_count(), LayerNorm2dBackward { eps: self.eps });
        let all = x.apply_op3_no_bwd(weight, &grad.contiguous()?, &op)?; // [elements + 2c]
        let grad_x = if x.track_op() { Some(all.narrow(0, 0, elements)?.reshape(x.dims())?) } else { None };
        let grad_weight = if weight.track_op() { Some(all.narrow(0, elements, channels)?) } else { None };
        let grad_bias = if bias.track_op() { Some(all.narrow(0, elements + channels, channels)?) } else { None };
        Ok((grad_x, grad_weight, grad_bias))
    }
}

/// Gradients of input, weight and bias, one after the other in one flat tensor.
struct LayerNorm2dBackward {
    eps: f32,
}

impl CustomOp3 for LayerNorm2dBackward {
    fn name(&self) -> &'static str {
        "layer norm 2d backward"
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
        let (b, c, h, w) = l1.shape().dims4()?;
        let x = contiguous_f32(s1, l1, "layer norm 2d backward")?;
        let weight = contiguous_f32(s2, l2, "layer norm 2d backward")?;
        let mut all = contiguous_f32(s3, l3, "layer norm 2d backward")?.to_vec();
        let image = (c * h * w).max(1);
        let mut parameters = vec![0f32; b * 2 * c]; // one row per image, so that the sum's order is fixed
        all.par_chunks_mut(image)
            .zip(x.par_chunks(image))
            .zip(parameters.par_chunks_mut(2 * c))
            .for_each(|((grad, x), parameters)| normalise_image_backward(x, weight, self.eps, grad, parameters));
        let mut sums = vec![0f32; 2 * c];
        for row in parameters.chunks_exact(2 * c) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        all.extend_from_slice(&sums);
        let shape = Shape::from(all.len());
        Ok((CpuStorage::F32(all), shape))
    }
}
