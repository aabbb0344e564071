//! Layer norm over the last axis, and over the channels of an image.

mod cuda;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::simd::{madd, multiversion, sum_by};
use crate::cpu::{contiguous_f32, expect_f32};
use crate::device;

/// Layer norm over the last axis (`torch.nn.LayerNorm`), differentiable.
///
/// # Shapes
/// x `[.., c]`, weight `[c]`, bias `[c]` → `[.., c]`, float32. The variance is the biased one.
///
/// # Errors
/// If shapes do not match or a tensor is not float32.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    check_channels("layer norm", x.dims().last().copied().unwrap_or(0), weight, bias)?;
    if device::runs_on(&[x, weight, bias]) {
        return cuda::layer_norm(x, weight, bias, eps);
    }
    if !x.device().is_cpu() {
        return layer_norm_composed(x, weight, bias, eps);
    }
    expect_f32("layer norm", &[x, weight, bias])?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm { eps: eps as f32 })
}

/// Layer norm over the channels of an image, at each pixel by itself (SAM's `LayerNorm2d`, `modeling/common.py`),
/// differentiable.
///
/// # Shapes
/// x `[b, c, h, w]`, weight `[c]`, bias `[c]` → `[b, c, h, w]`, float32.
///
/// # Errors
/// If shapes do not match or a tensor is not float32.
pub fn layer_norm_2d(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    check_channels("layer norm 2d", x.dims4()?.1, weight, bias)?;
    if device::runs_on(&[x, weight, bias]) {
        return cuda::layer_norm_2d(x, weight, bias, eps);
    }
    if !x.device().is_cpu() {
        return layer_norm_2d_composed(x, weight, bias, eps);
    }
    expect_f32("layer norm 2d", &[x, weight, bias])?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm2d { eps: eps as f32 })
}

/// [`layer_norm`] made of candle's own operations: the reference of the tests.
///
/// # Errors
/// As [`layer_norm`].
pub fn layer_norm_composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// [`layer_norm_2d`] made of candle's own operations: the reference of the tests.
///
/// # Errors
/// As [`layer_norm_2d`].
pub fn layer_norm_2d_composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let channels = x.dims4()?.1;
    let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
    let variance = centred.sqr()?.mean_keepdim(1)?;
    let normalised = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normalised.broadcast_mul(&weight.reshape((1, channels, 1, 1))?)?.broadcast_add(&bias.reshape((1, channels, 1, 1))?)
}

fn check_channels(op: &str, channels: usize, weight: &Tensor, bias: &Tensor) -> Result<()> {
    if channels == 0 || weight.dims() != [channels] || bias.dims() != [channels] {
        bail!("{op}: {channels} channels, but a weight of shape {:?} and a bias of shape {:?}", weight.dims(), bias.dims());
    }
    Ok(())
}

multiversion! {
    /// Layer norm of each row of `x` (rows as long as `weight`) into the same row of `y`.
    pub fn layer_norm_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let channels = weight.len();
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            let (mean, inverse_deviation) = row_statistics(x, eps);
            for (((y, &x), &weight), &bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = madd::<FMA>((x - mean) * inverse_deviation, weight, bias);
            }
        }
    }
}

multiversion! {
    /// Adds `added` to each row of `x`, in place, then writes the row's layer norm to the same row of `y`: a linear layer's bias, the
    /// residual sum and the norm in one pass.
    pub fn add_layer_norm_rows(x: &mut [f32], added: &[f32], norm: (&[f32], &[f32]), eps: f32, y: &mut [f32]) {
        let (weight, bias) = norm;
        let channels = weight.len();
        for (x, y) in x.chunks_exact_mut(channels).zip(y.chunks_exact_mut(channels)) {
            for (x, &added) in x.iter_mut().zip(added) {
                *x += added;
            }
            let (mean, inverse_deviation) = row_statistics(x, eps);
            for (((y, &x), &weight), &bias) in y.iter_mut().zip(x.iter()).zip(weight).zip(bias) {
                *y = madd::<FMA>((x - mean) * inverse_deviation, weight, bias);
            }
        }
    }
}

/// Mean and 1/sqrt(variance + eps) of a row.
#[inline(always)]
fn row_statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum_by(x, |v| v) / n;
    let variance = sum_by(x, |v| (v - mean) * (v - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

multiversion! {
    /// Gradient of [`layer_norm_rows`] with respect to its input: `grad` holds the output's gradient and takes the input's.
    fn layer_norm_rows_backward(x: &[f32], weight: &[f32], eps: f32, grad: &mut [f32]) {
        let channels = weight.len();
        let n = channels as f32;
        for (x, grad) in x.chunks_exact(channels).zip(grad.chunks_exact_mut(channels)) {
            let (mean, inverse_deviation) = row_statistics(x, eps);
            let (mut sum, mut dot) = ([0f32; 16], [0f32; 16]);
            for ((grad, x), weight) in grad.chunks_mut(16).zip(x.chunks(16)).zip(weight.chunks(16)) {
                for (i, ((grad, &x), &weight)) in grad.iter_mut().zip(x).zip(weight).enumerate() {
                    *grad *= weight;
                    sum[i] += *grad;
                    dot[i] = madd::<FMA>(*grad, (x - mean) * inverse_deviation, dot[i]);
                }
            }
            let (sum, dot) = (sum.iter().sum::<f32>() / n, dot.iter().sum::<f32>() / n);
            for (grad, &x) in grad.iter_mut().zip(x) {
                let normalised = (x - mean) * inverse_deviation;
                *grad = (*grad - sum - normalised * dot) * inverse_deviation;
            }
        }
    }
}

/// On a GPU: adds `delta` (of any of the formats) and `added` to the rows of `x`, in place, and gives their layer norm in the number format
/// `dtype`; as [`add_layer_norm_rows`]. `x` stays float32, so that sums over many layers lose nothing.
///
/// # Shapes
/// x `[rows, c]`, delta as x, added, weight and bias `[c]`, float32 → `[rows, c]`
///
/// # Errors
/// If shapes do not match or the tensors are not on a GPU.
pub fn add_layer_norm_on_device(
    x: &Tensor,
    (delta, added): (Option<&Tensor>, Option<&Tensor>),
    (weight, bias): (&Tensor, &Tensor),
    eps: f64,
    dtype: candle_core::DType,
) -> Result<Tensor> {
    let (_, channels) = x.dims2()?;
    check_channels("layer norm", channels, weight, bias)?;
    let fits = delta.is_none_or(|delta| delta.dims() == x.dims() && delta.dtype() == dtype)
        && added.is_none_or(|added| added.dims() == [channels])
        && [Some(x), added, Some(weight), Some(bias)].into_iter().flatten().all(|t| t.dtype() == candle_core::DType::F32);
    if !fits || !device::runs_on(&[x, weight, bias]) {
        bail!("layer norm: rows {:?}, sum {delta:?} and bias {added:?} do not go together on the GPU", x.dims());
    }
    cuda::add_layer_norm(x, (delta, added), (weight, bias), eps, dtype)
}

/// Rows that one task works on.
const ROWS: usize = 64;

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer norm"
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
        let _span = tracing::trace_span!("layer norm").entered();
        let x = contiguous_f32(s1, l1, "layer norm")?;
        let (weight, bias) = (contiguous_f32(s2, l2, "layer norm")?, contiguous_f32(s3, l3, "layer norm")?);
        let mut y = vec![0f32; x.len()];
        let chunk = ROWS * weight.len();
        y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| layer_norm_rows(x, weight, bias, self.eps, y));
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
        let _span = tracing::trace_span!("layer norm backward").entered();
        let channels = weight.elem_count();
        let grad = grad.contiguous()?;
        let grad_x = match x.track_op() {
            true => Some(x.apply_op3_no_bwd(weight, &grad, &LayerNormBackward { eps: self.eps })?),
            false => None,
        };
        let rows = (x.reshape(((), channels))?, grad.reshape(((), channels))?);
        let grad_weight = match weight.track_op() {
            true => {
                let centred = rows.0.broadcast_sub(&rows.0.mean_keepdim(1)?)?;
                let deviation = (centred.sqr()?.mean_keepdim(1)? + f64::from(self.eps))?.sqrt()?;
                Some((centred.broadcast_div(&deviation)? * &rows.1)?.sum(0)?)
            }
            false => None,
        };
        let grad_bias = if bias.track_op() { Some(rows.1.sum(0)?) } else { None };
        Ok((grad_x, grad_weight, grad_bias))
    }
}

struct LayerNormBackward {
    eps: f32,
}

impl CustomOp3 for LayerNormBackward {
    fn name(&self) -> &'static str {
        "layer norm backward"
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
        let x = contiguous_f32(s1, l1, "layer norm backward")?;
        let weight = contiguous_f32(s2, l2, "layer norm backward")?;
        let mut grad = contiguous_f32(s3, l3, "layer norm backward")?.to_vec();
        let chunk = ROWS * weight.len();
        grad.par_chunks_mut(chunk)
            .zip(x.par_chunks(chunk))
            .for_each(|(grad, x)| layer_norm_rows_backward(x, weight, self.eps, grad));
        Ok((CpuStorage::F32(grad), l1.shape().clone()))
    }
}

/// Pixels that are normalised side by side: their sums stay in cache while the channels go by.
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
    /// [`layer_norm_2d`] of one image `[c, plane]`.
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
    /// Backward of [`normalise_image`]: `grad` holds the output's gradient and takes the input's; the gradients of weight and
    /// bias are added to `parameters`, `[2c]`.
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
        let mut parameters = vec![0f32; b * 2 * c]; // one row an image, so that the sum's order is fixed
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_match, uniform};

    #[test]
    fn layer_norm_equals_the_composed_one_and_its_gradients() -> Result<()> {
        for channels in [3, 16, 70] {
            let inputs = [(uniform(&[2, 9, channels], 1)? * 3.0)?, uniform(&[channels], 2)?, uniform(&[channels], 3)?];
            assert_gradients_match(
                &inputs,
                |t| layer_norm(&t[0], &t[1], &t[2], 1e-5),
                |t| layer_norm_composed(&t[0], &t[1], &t[2], 1e-5),
            )?;
        }
        Ok(())
    }

    #[test]
    fn layer_norm_2d_equals_the_composed_one_and_its_gradients() -> Result<()> {
        for (channels, h, w) in [(4, 3, 5), (64, 28, 19), (7, 1, 1)] {
            let inputs = [(uniform(&[3, channels, h, w], 1)? + 0.5)?, uniform(&[channels], 2)?, uniform(&[channels], 3)?];
            assert_gradients_match(
                &inputs,
                |t| layer_norm_2d(&t[0], &t[1], &t[2], 1e-6),
                |t| layer_norm_2d_composed(&t[0], &t[1], &t[2], 1e-6),
            )?;
        }
        Ok(())
    }

    #[test]
    fn wrong_channels_are_refused() -> Result<()> {
        let (x, ok, wrong) = (uniform(&[2, 4], 1)?, uniform(&[4], 1)?, uniform(&[5], 1)?);
        assert!(layer_norm(&x, &wrong, &ok, 1e-6).unwrap_err().to_string().contains("4 channels"));
        assert!(layer_norm_2d(&x.reshape((1, 4, 1, 2))?, &ok, &wrong, 1e-6).is_err());
        Ok(())
    }
}
