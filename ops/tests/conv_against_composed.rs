//! Values and gradients of convolution, batch norm and pooling against compositions of candle's operations and finite
//! differences in float64. Also checks other properties: the same bits in every run, NaN as in PyTorch.

use candle_core::{DType, Device, Result, Tensor, Var};
use sam_ladder_ops::composed::{batch_norm_train_composed, max_pool2d_3x3_s2_p1_composed};
use sam_ladder_ops::{
    BatchNormParams, Conv2d, Tail, add_relu, batch_norm_inference, batch_statistics, max_pool2d_3x3_s2_p1, normalize,
    normalize_backward, normalize_relu_max_pool, normalize_relu_max_pool_backward, relu_backward, relu_backward_sum,
};

fn conv2d(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    Conv2d::new(stride, padding).forward(x, weight)
}

fn conv2d_backward_input(
    grad: &Tensor,
    weight: &Tensor,
    input_size: (usize, usize),
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    Conv2d::new(stride, padding).backward_input(grad, weight, input_size)
}

fn conv2d_backward_weight(x: &Tensor, grad: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    Conv2d::new(stride, padding).backward_weight(x, grad, kernel)
}

/// Tolerance of a result: largest difference over the largest value.
const VALUE: f64 = 2e-6;
/// The same for a gradient.
const GRADIENT: f64 = 1e-5;

/// Values in [-1, 1) that depend only on `seed`.
fn uniform(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn difference(got: &Tensor, want: &Tensor) -> Result<f64> {
    assert_eq!(got.dims(), want.dims());
    let got = got.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let want = want.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    assert!(got.iter().all(|v| v.is_finite()));
    let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
    Ok(worst / want.iter().fold(1e-30, |m: f64, w| m.max(w.abs())))
}

/// A few elements of the gradients of `Σ weights·reference(inputs)` against central differences in float64.
fn assert_finite_differences(
    what: &str,
    inputs: &[Tensor],
    grads: &[Tensor],
    weights: &Tensor,
    reference: &impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    const STEP: f64 = 1e-6;
    let weights = weights.to_dtype(DType::F64)?;
    let inputs = inputs.iter().map(|t| t.to_dtype(DType::F64)).collect::<Result<Vec<_>>>()?;
    for (which, grad) in grads.iter().enumerate() {
        let grad = grad.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let largest = grad.iter().fold(1e-30, |m: f64, g| m.max(g.abs()));
        for element in (0..grad.len()).step_by(grad.len().div_ceil(3)) {
            let at = |step: f64| -> Result<f64> {
                let mut inputs = inputs.clone();
                let mut values = inputs[which].flatten_all()?.to_vec1::<f64>()?;
                values[element] += step;
                inputs[which] = Tensor::from_vec(values, inputs[which].dims(), &Device::Cpu)?;
                (reference(&inputs)? * &weights)?.sum_all()?.to_scalar()
            };
            let want = (at(STEP)? - at(-STEP)?) / (2.0 * STEP);
            let error = (grad[element] - want).abs() / largest;
            assert!(error < GRADIENT, "{what}: element {element} of the gradient of input {which} is off by {error:e}");
        }
    }
    Ok(())
}

#[test]
fn convolution_agrees_at_all_sizes() -> Result<()> {
    // (b, ci, h, w, co, k, stride, padding)
    let cases = [
        (1, 1, 5, 5, 1, 3, 1, 1),
        (2, 3, 7, 9, 5, 3, 1, 1),
        (1, 64, 14, 14, 64, 3, 1, 1),
        (3, 16, 13, 11, 24, 3, 1, 1),
        (2, 8, 6, 6, 32, 3, 1, 0),
        (2, 8, 8, 8, 16, 3, 2, 1),
        (3, 5, 9, 7, 6, 3, 2, 1),
        (2, 1, 32, 32, 16, 7, 2, 3),
        (1, 3, 17, 21, 8, 7, 2, 3),
        (2, 12, 10, 10, 20, 1, 2, 0),
        (1, 7, 9, 11, 9, 1, 2, 0),
        (2, 16, 6, 5, 8, 1, 1, 0),
        (9, 4, 4, 4, 4, 3, 1, 1),
        (2, 6, 2, 2, 6, 3, 1, 1),
        (2, 2, 1, 1, 2, 3, 1, 1),
        (1, 40, 28, 28, 33, 3, 1, 1),
        (1, 16, 4, 4, 16, 3, 1, 1),
        (2, 16, 5, 7, 32, 3, 1, 1),
        (3, 32, 14, 14, 48, 3, 1, 1),
        (2, 48, 13, 3, 16, 3, 1, 1),
        (1, 16, 1, 1, 16, 3, 1, 1),
        (1, 16, 57, 43, 16, 3, 1, 1),
        (2, 3, 12, 12, 4, 5, 3, 2),
    ];
    for (b, ci, h, w, co, k, stride, padding) in cases {
        let inputs = [uniform(&[b, ci, h, w], 1)?, uniform(&[co, ci, k, k], 2)?];
        let [x, weight] = &inputs;
        assert_gradients(
            &format!("{b}x{ci}x{h}x{w}, {co} {k}x{k}/{stride} pad {padding}"),
            &inputs,
            &conv2d(x, weight, stride, padding)?,
            |grad| {
                let of_x = conv2d_backward_input(grad, weight, (h, w), stride, padding)?;
                Ok(vec![of_x, conv2d_backward_weight(x, grad, k, stride, padding)?])
            },
            |t| direct(&t[0], &t[1], stride, padding),
        )?;
    }
    Ok(())
}

/// Convolution as a sum over the kernel's taps of strided views times a slice of the weight: every step is an op whose gradient candle has right.
fn direct(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let (b, ci, h, w) = x.dims4()?;
    let (co, _, k, _) = weight.dims4()?;
    let (oh, ow) = ((h + 2 * padding - k) / stride + 1, (w + 2 * padding - k) / stride + 1);
    let padded = x.pad_with_zeros(2, padding, padding + stride)?.pad_with_zeros(3, padding, padding + stride)?;
    let mut sum: Option<Tensor> = None;
    for dy in 0..k {
        for dx in 0..k {
            let rows = Tensor::from_vec((0..oh).map(|o| (o * stride + dy) as u32).collect::<Vec<_>>(), oh, x.device())?;
            let columns = Tensor::from_vec((0..ow).map(|o| (o * stride + dx) as u32).collect::<Vec<_>>(), ow, x.device())?;
            let view = padded.index_select(&rows, 2)?.index_select(&columns, 3)?; // [b, ci, oh, ow]
            let pixels = view.permute((1, 0, 2, 3))?.contiguous()?.reshape((ci, b * oh * ow))?;
            let tap = weight.narrow(2, dy, 1)?.narrow(3, dx, 1)?.contiguous()?.reshape((co, ci))?;
            let term = tap.matmul(&pixels)?;
            sum = Some(match sum {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
    }
    sum.expect("a kernel has taps").reshape((co, b, oh, ow))?.permute((1, 0, 2, 3))?.contiguous()
}

#[test]
fn batch_norm_agrees() -> Result<()> {
    for (relu, shape) in
        [(true, [3, 5, 7, 9]), (false, [3, 5, 7, 9]), (true, [2, 4, 16, 16]), (false, [1, 3, 33, 31]), (true, [3, 2, 2, 2])]
    {
        let c = shape[1];
        let inputs = [((uniform(&shape, 3)? * 2.0)? + 1.5)?, uniform(&[c], 4)?, uniform(&[c], 5)?];
        let [x, weight, bias] = &inputs;
        let statistics = batch_statistics(x, 1e-3)?;
        assert_gradients(
            &format!("{shape:?}, relu {relu}"),
            &inputs,
            &normalize(x, &statistics, weight, bias, if relu { Tail::Relu } else { Tail::None })?,
            |grad| {
                let g = normalize_backward(x, &statistics, weight, bias, relu, grad)?;
                Ok(vec![g.x, g.weight, g.bias])
            },
            |t| batch_norm_train_composed(&t[0], &t[1], &t[2], 1e-3, relu),
        )?;
        let got = batch_statistics(x, 1e-5)?;
        // Other data types use the path of other devices.
        let want = batch_statistics(&x.to_dtype(DType::F64)?, 1e-5)?;
        assert!(difference(&got.mean, &want.mean)? < VALUE && difference(&got.var_unbiased, &want.var_unbiased)? < VALUE);
        assert!(difference(&got.inv_std, &want.inv_std)? < VALUE);
    }
    Ok(())
}

/// `got` by the explicit backward against candle's own, in float64, of `reference`.
fn assert_gradients(
    what: &str,
    inputs: &[Tensor],
    y: &Tensor,
    got: impl Fn(&Tensor) -> Result<Vec<Tensor>>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let vars = inputs.iter().map(|t| Var::from_tensor(&t.to_dtype(DType::F64)?)).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let want = reference(&tensors)?;
    assert!(difference(y, &want)? < VALUE, "{what}");
    let grad = uniform(y.dims(), 9)?;
    let wants = (want * grad.to_dtype(DType::F64)?)?.sum_all()?.backward()?;
    let gots = got(&grad)?;
    assert_eq!(gots.len(), inputs.len());
    for (i, (got, var)) in gots.iter().zip(&vars).enumerate() {
        let error = difference(got, wants.get(var).expect("a gradient"))?;
        assert!(error < GRADIENT, "gradient {i} of {what} is off by {error}");
    }
    assert_finite_differences(what, inputs, &gots, &grad, &reference)
}

#[test]
fn batch_norm_with_pooling_is_the_two_after_each_other() -> Result<()> {
    for shape in [[3, 5, 8, 12], [2, 4, 7, 9], [1, 3, 33, 40]] {
        let inputs = [uniform(&shape, 3)?, uniform(&[shape[1]], 4)?, uniform(&[shape[1]], 5)?];
        for dtype in [DType::F32, DType::F64] {
            // float64 takes the path of other devices
            let [x, weight, bias] = [0, 1, 2].map(|i| inputs[i].to_dtype(dtype));
            let (x, weight, bias) = (x?, weight?, bias?);
            let statistics = batch_statistics(&x, 1e-3)?;
            let (y, places) = normalize_relu_max_pool(&x, &statistics, &weight, &bias)?;
            assert_gradients(
                &format!("{shape:?} {dtype:?}"),
                &inputs,
                &y,
                |grad| {
                    let grad = grad.to_dtype(dtype)?;
                    let g = normalize_relu_max_pool_backward(&x, &statistics, &weight, &bias, &places, (&grad, None))?;
                    Ok(vec![g.x, g.weight, g.bias])
                },
                |t| max_pool2d_3x3_s2_p1_composed(&batch_norm_train_composed(&t[0], &t[1], &t[2], 1e-3, true)?),
            )?;
        }
        let statistics = batch_statistics(&inputs[0], 1e-3)?;
        let (pooled, _) = normalize_relu_max_pool(&inputs[0], &statistics, &inputs[1], &inputs[2])?;
        let y = normalize(&inputs[0], &statistics, &inputs[1], &inputs[2], Tail::Relu)?;
        assert!(difference(&pooled, &max_pool2d_3x3_s2_p1(&y)?)? == 0.0);
    }
    Ok(())
}

/// The end of a residual block as in the side network (normalise, add the shortcut, ReLU), also for other data types, which use the path of
/// other devices.
#[test]
fn a_residual_blocks_end_agrees() -> Result<()> {
    let shape = [3, 5, 7, 9];
    let inputs = [uniform(&shape, 3)?, uniform(&[5], 4)?, uniform(&[5], 5)?, uniform(&shape, 6)?];
    for dtype in [DType::F32, DType::F64] {
        let t = inputs.iter().map(|t| t.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
        let statistics = batch_statistics(&t[0], 1e-3)?;
        let y = normalize(&t[0], &statistics, &t[1], &t[2], Tail::AddRelu(&t[3]))?;
        assert_gradients(
            &format!("{dtype:?}"),
            &inputs,
            &y,
            |grad| {
                let half = (grad.to_dtype(dtype)? * 0.5)?;
                let grad = relu_backward_sum(&y, &half, &half)?;
                assert!(difference(&grad, &relu_backward(&y, &(&half + &half)?)?)? == 0.0);
                let g = normalize_backward(&t[0], &statistics, &t[1], &t[2], false, &grad)?;
                Ok(vec![g.x, g.weight, g.bias, grad])
            },
            |t| (batch_norm_train_composed(&t[0], &t[1], &t[2], 1e-3, false)? + &t[3])?.relu(),
        )?;
        let y = normalize(&t[0], &statistics, &t[1], &t[2], Tail::Relu)?;
        assert_gradients(
            &format!("ReLU {dtype:?}"),
            &inputs[..3],
            &y,
            |grad| {
                let g = normalize_backward(&t[0], &statistics, &t[1], &t[2], true, &grad.to_dtype(dtype)?)?;
                Ok(vec![g.x, g.weight, g.bias])
            },
            |t| batch_norm_train_composed(&t[0], &t[1], &t[2], 1e-3, true),
        )?;
    }
    Ok(())
}

#[test]
fn a_convolutions_explicit_gradients_agree() -> Result<()> {
    // Square, because candle's backward (the path of other devices) supports no other strided convolutions.
    for (stride, padding, kernel) in [(1, 1, 3), (2, 3, 7), (2, 0, 1)] {
        let inputs = [uniform(&[2, 3, 8, 8], 1)?, uniform(&[4, 3, kernel, kernel], 2)?];
        for dtype in [DType::F32, DType::F64] {
            let (x, weight) = (inputs[0].to_dtype(dtype)?, inputs[1].to_dtype(dtype)?);
            assert_gradients(
                &format!("{kernel} {dtype:?}"),
                &inputs,
                &conv2d(&x, &weight, stride, padding)?,
                |grad| {
                    let grad = grad.to_dtype(dtype)?;
                    Ok(vec![
                        conv2d_backward_input(&grad, &weight, (8, 8), stride, padding)?,
                        conv2d_backward_weight(&x, &grad, kernel, stride, padding)?,
                    ])
                },
                |t| direct(&t[0], &t[1], stride, padding),
            )?;
        }
    }
    let x = uniform(&[2, 3, 9, 8], 1)?;
    assert!(conv2d_backward_weight(&x, &x, 3, 1, 0).is_err());
    assert!(conv2d_backward_input(&x, &uniform(&[4, 3, 3, 3], 2)?, (9, 8), 1, 1).is_err());
    Ok(())
}

#[test]
fn batch_norm_statistics_do_not_cancel() -> Result<()> {
    let x = ((uniform(&[4, 1, 56, 56], 6)? * 1e-3)? + 1000.0)?;
    let got = batch_statistics(&x, 0.0)?;
    let double = x.to_dtype(DType::F64)?.flatten_all()?;
    let want = double.broadcast_sub(&double.mean(0)?)?.sqr()?.sum(0)?.to_scalar::<f64>()? / (double.elem_count() - 1) as f64;
    let got = f64::from(got.var_unbiased.to_vec1::<f32>()?[0]);
    assert!((got / want - 1.0).abs() < 1e-6, "{got} is not {want}");
    Ok(())
}

#[test]
fn batch_norm_in_evaluation_uses_the_running_statistics() -> Result<()> {
    let (weight, bias) = (uniform(&[5], 4)?, uniform(&[5], 5)?);
    let (running_mean, running_var) = (uniform(&[5], 6)?, (uniform(&[5], 7)? + 1.5)?);
    let params =
        BatchNormParams { weight: &weight, bias: &bias, running_mean: &running_mean, running_var: &running_var, eps: 1e-5 };
    let x = uniform(&[2, 5, 6, 7], 8)?;
    let column = |t: &Tensor| t.reshape((1, 5, 1, 1));
    let plain = x
        .broadcast_sub(&column(&running_mean)?)?
        .broadcast_div(&column(&(&running_var + 1e-5)?.sqrt()?)?)?
        .broadcast_mul(&column(&weight)?)?
        .broadcast_add(&column(&bias)?)?;
    assert!(difference(&batch_norm_inference(&x, &params, false)?, &plain)? < VALUE);
    assert!(difference(&batch_norm_inference(&x, &params, true)?, &plain.relu()?)? < VALUE);
    Ok(())
}

#[test]
fn pooling_and_sum_agree() -> Result<()> {
    for shape in [[2, 3, 8, 8], [1, 2, 7, 9], [1, 1, 1, 1], [3, 2, 2, 3], [1, 2, 33, 40]] {
        let x = uniform(&shape, 10)?;
        assert!(difference(&max_pool2d_3x3_s2_p1(&x)?, &max_pool2d_3x3_s2_p1_composed(&x)?)? == 0.0);
    }
    let inputs = [uniform(&[2, 3, 5, 7], 15)?, uniform(&[2, 3, 5, 7], 16)?];
    let y = add_relu(&inputs[0], &inputs[1])?;
    assert_gradients(
        "sum",
        &inputs,
        &y,
        |grad| relu_backward(&y, grad).map(|grad| vec![grad.clone(), grad]),
        |t| (&t[0] + &t[1])?.relu(),
    )
}

#[test]
fn gradients_have_the_same_bits_on_every_run() -> Result<()> {
    let (x, weight) = (uniform(&[11, 32, 20, 18], 1)?, uniform(&[24, 32, 3, 3], 2)?);
    let (scale, shift) = (uniform(&[24], 3)?, uniform(&[24], 4)?);
    let run = |threads: usize| -> Result<Vec<Vec<u32>>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| {
            let y = conv2d(&x, &weight, 1, 1)?;
            let statistics = batch_statistics(&y, 1e-5)?;
            let (pooled, places) = normalize_relu_max_pool(&y, &statistics, &scale, &shift)?;
            let g = normalize_relu_max_pool_backward(&y, &statistics, &scale, &shift, &places, (&pooled, None))?;
            let of_x = conv2d_backward_input(&g.x, &weight, (20, 18), 1, 1)?;
            let of_weight = conv2d_backward_weight(&x, &g.x, 3, 1, 1)?;
            let bits = |t: Tensor| Ok(t.flatten_all()?.to_vec1::<f32>()?.iter().map(|v| v.to_bits()).collect());
            [pooled, of_x, of_weight, g.weight, g.bias].into_iter().map(bits).collect()
        })
    };
    let first = run(1)?;
    for threads in [1, 2, 3, 4] {
        assert!(run(threads)? == first, "{threads} threads");
    }
    Ok(())
}

#[test]
fn nan_goes_through() -> Result<()> {
    let mut values = uniform(&[1, 1, 8, 8], 1)?.flatten_all()?.to_vec1::<f32>()?;
    values[27] = f32::NAN;
    let x = Tensor::from_vec(values, (1, 1, 8, 8), &Device::Cpu)?;
    let nans = |t: &Tensor| -> Result<usize> { Ok(t.flatten_all()?.to_vec1::<f32>()?.iter().filter(|v| v.is_nan()).count()) };
    assert_eq!(nans(&max_pool2d_3x3_s2_p1(&x)?)?, 4);
    assert_eq!(nans(&max_pool2d_3x3_s2_p1_composed(&x)?)?, 4);
    assert_eq!(nans(&add_relu(&x, &x.ones_like()?)?)?, 1);
    let one = Tensor::ones(1, DType::F32, &Device::Cpu)?;
    assert_eq!(nans(&normalize(&x, &batch_statistics(&x, 1e-5)?, &one, &one, Tail::Relu)?)?, 64);
    assert!(nans(&conv2d(&x, &Tensor::ones((1, 1, 3, 3), DType::F32, &Device::Cpu)?, 1, 1)?)? >= 9);
    Ok(())
}

#[test]
fn wrong_shapes_are_reported() -> Result<()> {
    let x = uniform(&[1, 2, 6, 6], 1)?;
    let message = conv2d(&x, &uniform(&[3, 4, 3, 3], 2)?, 1, 1).unwrap_err().to_string();
    assert!(message.contains("expected a weight of [co, 2, k, k]"), "{message}");
    assert!(conv2d(&x, &uniform(&[3, 2, 9, 9], 2)?, 1, 1).is_err());
    let statistics = batch_statistics(&x, 1e-5)?;
    assert!(normalize(&x, &statistics, &uniform(&[3], 2)?, &uniform(&[3], 3)?, Tail::Relu).is_err());
    assert!(batch_statistics(&uniform(&[1, 2, 1, 1], 1)?, 1e-5).is_err());
    assert!(add_relu(&x, &uniform(&[1, 2, 6, 5], 1)?).is_err());
    Ok(())
}
