//! Every kernel against the CPU's path, in value and gradient, in each number format: on the host that stands in for a GPU
//! (`make test-kernels`), or on the GPU that `SAM_LADDER_TEST_DEVICE` names (`make gpu-check`).

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::batch_norm::{BatchStatistics, Tail, batch_norm_train, batch_statistics, follow, normalize, normalize_backward};
use crate::testing::uniform;

const FORMATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Largest difference over the largest value that a result may have from float32's: the rounding of inputs, intermediate results and output.
fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 1.6e-2,
        DType::F16 => 2e-3,
        _ => 5e-6,
    }
}

/// The device under test.
fn device() -> Device {
    #[cfg(feature = "cuda")]
    if let Ok(name) = std::env::var("SAM_LADDER_TEST_DEVICE")
        && let Some(index) = name.strip_prefix("cuda:").and_then(|index| index.parse().ok())
    {
        thread_local! {
            static OPENED: std::cell::OnceCell<Device> = const { std::cell::OnceCell::new() };
        }
        return OPENED.with(|opened| opened.get_or_init(|| crate::device::open(index).expect("the GPU opens")).clone());
    }
    Device::Cpu
}

/// Calls `f` where kernels run; nothing is tested in a CUDA build on a machine without a GPU.
fn on_device(f: impl FnOnce(&Device) -> Result<()>) -> Result<()> {
    let device = device();
    if device.is_cuda() {
        return f(&device);
    }
    #[cfg(feature = "emulate-kernels")]
    return super::emulated::with(|| f(&device));
    #[cfg(not(feature = "emulate-kernels"))]
    {
        eprintln!("skipped: SAM_LADDER_TEST_DEVICE names no GPU");
        Ok(())
    }
}

/// What does not depend on the device under test.
fn off_device<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "emulate-kernels")]
    return super::emulated::without(f);
    #[cfg(not(feature = "emulate-kernels"))]
    f()
}

fn to_cpu(t: &Tensor) -> Result<Tensor> {
    t.to_device(&Device::Cpu)?.to_dtype(DType::F32)
}

fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f32) -> Result<()> {
    let (got, want) = (to_cpu(got)?, to_cpu(want)?);
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (got.flatten_all()?.to_vec1::<f32>()?, want.flatten_all()?.to_vec1::<f32>()?);
    let largest = want.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let same = (g.is_nan() && w.is_nan()) || g == w || (g - w).abs() <= tolerance * largest;
        assert!(same, "{what}, element {i}: {g}, expected {w} of at most {largest}");
    }
    Ok(())
}

/// What a function gives on the device, where the inputs of `activations` have the number format `dtype`, against what it gives on the CPU
/// for the same values in float32: results, and the gradients of every input of the first result.
fn compare(
    what: &str,
    inputs: &[Tensor],
    activations: &[usize],
    dtype: DType,
    op: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<()> {
    let rounded = |i: usize, t: &Tensor| if activations.contains(&i) { t.to_dtype(dtype) } else { Ok(t.clone()) };
    let inputs = inputs.iter().enumerate().map(|(i, t)| rounded(i, t)).collect::<Result<Vec<_>>>()?;
    let run = |inputs: Vec<Tensor>| -> Result<(Vec<Tensor>, Vec<Option<Tensor>>)> {
        let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let results = op(&tensors)?;
        let mut gradients = Vec::new();
        if results[0].track_op() {
            let weights = uniform(&[results[0].elem_count()], 77)?.reshape(results[0].dims())?;
            let weights = weights.to_device(results[0].device())?.to_dtype(results[0].dtype())?;
            let grads = (&results[0] * weights)?.to_dtype(DType::F32)?.sum_all()?.backward()?;
            gradients = tensors.iter().map(|t| grads.get(t).cloned()).collect();
        }
        Ok((results, gradients))
    };
    let wide = inputs.iter().map(|t| t.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
    let want = off_device(|| run(wide))?;
    on_device(|device| {
        let got = run(inputs.iter().map(|t| t.to_device(device)).collect::<Result<Vec<_>>>()?)?;
        for (i, (got, want)) in got.0.iter().zip(&want.0).enumerate() {
            assert_close(&format!("{what} as {dtype:?}, result {i}"), got, want, tolerance(dtype))?;
        }
        assert_eq!(got.1.len(), want.1.len(), "{what} as {dtype:?}: one has a graph and the other none");
        for (i, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
            match (got, want) {
                (Some(got), Some(want)) => {
                    let name = format!("{what} as {dtype:?}, gradient of input {i}");
                    assert_close(&name, got, want, 2.0 * tolerance(dtype))?;
                }
                (got, want) => assert_eq!(got.is_some(), want.is_some(), "{what} as {dtype:?}: gradient of input {i}"),
            }
        }
        Ok(())
    })
}

#[test]
fn layer_norms() -> Result<()> {
    for dtype in FORMATS {
        for (rows, c) in [(7, 256), (65, 33), (1, 1)] {
            let inputs = [uniform(&[rows, c], 1)?, uniform(&[c], 2)?, uniform(&[c], 3)?];
            compare("layer norm", &inputs, &[0], dtype, |t| Ok(vec![crate::layer_norm::layer_norm(&t[0], &t[1], &t[2], 1e-5)?]))?;
        }
        for (b, c, h, w) in [(2, 64, 6, 7), (1, 5, 1, 3), (3, 16, 20, 20)] {
            let inputs = [uniform(&[b, c, h, w], 1)?, uniform(&[c], 2)?, uniform(&[c], 3)?];
            compare("layer norm 2d", &inputs, &[0], dtype, |t| {
                Ok(vec![crate::layer_norm::layer_norm_2d(&t[0], &t[1], &t[2], 1e-6)?])
            })?;
        }
    }
    Ok(())
}

#[test]
fn residual_sum_and_norm_in_one() -> Result<()> {
    for dtype in FORMATS {
        let (rows, c) = (9, 100);
        let (x, delta) = (uniform(&[rows, c], 1)?, uniform(&[rows, c], 2)?.to_dtype(dtype)?);
        let [added, weight, bias] = [3, 4, 5].map(|seed| uniform(&[c], seed));
        let (added, weight, bias) = (added?, weight?, bias?);
        let sum = (&x + delta.to_dtype(DType::F32)?)?.broadcast_add(&added)?;
        let want = crate::layer_norm::layer_norm_composed(&sum, &weight, &bias, 1e-6)?;
        on_device(|device| {
            let there = |t: &Tensor| t.to_device(device)?.copy();
            let x = there(&x)?;
            let (added, weight, bias, delta) = (there(&added)?, there(&weight)?, there(&bias)?, there(&delta)?);
            let y = crate::layer_norm::add_layer_norm_on_device(&x, (Some(&delta), Some(&added)), (&weight, &bias), 1e-6, dtype)?;
            assert_close("sum", &x, &sum, 1e-6)?;
            assert_close("norm of the sum", &y, &want, tolerance(dtype))?;
            let y = crate::layer_norm::add_layer_norm_on_device(&x, (None, None), (&weight, &bias), 1e-6, dtype)?;
            assert_close("norm alone", &y, &want, tolerance(dtype))
        })?;
    }
    Ok(())
}

#[test]
fn elementwise_passes() -> Result<()> {
    for dtype in FORMATS {
        for n in [1, 5, 4096, 3 * 1023] {
            let inputs = [(uniform(&[n], 1)? * 4.0)?, uniform(&[n], 2)?, uniform(&[n], 3)?, uniform(&[1], 4)?];
            let (one, two) = (&inputs[..1], &inputs[..2]);
            // Beside a value of 4: GELU's error is one of the input's size, not of the result's, which may be near zero.
            let one = &[Tensor::cat(&[&one[0], &Tensor::new(&[4.0f32], &Device::Cpu)?], 0)?];
            compare("gelu", one, &[0], dtype, |t| Ok(vec![crate::gelu::gelu(&t[0])?]))?;
            compare("add-relu", two, &[0, 1], dtype, |t| Ok(vec![crate::elementwise::add_relu(&t[0], &t[1])?]))?;
            compare("mix", &[&inputs[1..3], &inputs[3..]].concat(), &[0, 1], dtype, |t| {
                Ok(vec![crate::elementwise::mix(&t[0], &t[1], &t[2])?])
            })?;
            compare("relu backward", &inputs[..3], &[0, 1, 2], dtype, |t| {
                let t: Vec<Tensor> = t.iter().map(Tensor::detach).collect();
                let sum = crate::elementwise::relu_backward_sum(&t[0], &t[1], &t[2])?;
                Ok(vec![crate::elementwise::relu_backward(&t[0], &t[1])?, sum])
            })?;
        }
    }
    Ok(())
}

#[test]
fn not_a_number_stays_one() -> Result<()> {
    let x = Tensor::new(&[f32::NAN, -1.0, 2.0], &Device::Cpu)?;
    on_device(|device| {
        let x = x.to_device(device)?;
        let y = to_cpu(&crate::elementwise::add_relu(&x, &x)?)?.to_vec1::<f32>()?;
        assert!(y[0].is_nan() && y[1..] == [0.0, 4.0], "{y:?}");
        Ok(())
    })
}

#[test]
fn linear_layers() -> Result<()> {
    for dtype in FORMATS {
        let inputs = [uniform(&[2, 9, 20], 1)?, uniform(&[13, 20], 2)?, uniform(&[13], 3)?];
        compare("linear", &inputs, &[0], dtype, |t| Ok(vec![crate::linear::linear(&t[0], &t[1], Some(&t[2]))?]))?;
        compare("linear without bias", &inputs[..2], &[0], dtype, |t| Ok(vec![crate::linear::linear(&t[0], &t[1], None)?]))?;
        let want = off_device(|| {
            let y = crate::linear::linear(&inputs[0].to_dtype(dtype)?.to_dtype(DType::F32)?, &inputs[1], Some(&inputs[2]))?;
            crate::gelu::gelu(&y)
        })?;
        on_device(|device| {
            let there = inputs.iter().map(|t| t.to_device(device)).collect::<Result<Vec<_>>>()?;
            let y = crate::linear::linear_on_device(&there[0].to_dtype(dtype)?, &there[1], Some(&there[2]), true)?;
            assert_close("linear with GELU", &y, &want, tolerance(dtype))
        })?;
    }
    Ok(())
}

#[test]
fn batch_norm_alone_with_relu_and_with_a_shortcut() -> Result<()> {
    for dtype in FORMATS {
        // Odd planes move element by element, others four at a time.
        for (b, c, h, w) in [(2, 5, 8, 6), (3, 4, 5, 5), (2, 3, 40, 40)] {
            let x = ((uniform(&[b, c, h, w], 1)? * 2.0)? + 3.0)?;
            let inputs = [x, uniform(&[c], 2)?, uniform(&[c], 3)?, uniform(&[b, c, h, w], 4)?];
            for relu in [false, true] {
                compare("batch norm", &inputs[..3], &[0], dtype, |t| {
                    Ok(vec![batch_norm_train(&t[0], &t[1], &t[2], 1e-5, relu)?.0])
                })?;
            }
            compare("batch norm and shortcut", &inputs, &[0, 3], dtype, |t| {
                let t: Vec<Tensor> = t.iter().map(Tensor::detach).collect();
                let statistics = batch_statistics(&t[0], 1e-5)?;
                let y = normalize(&t[0], &statistics, &t[1], &t[2], Tail::AddRelu(&t[3]))?;
                let g = normalize_backward(&t[0], &statistics, &t[1], &t[2], true, &t[3])?;
                let BatchStatistics { mean, var_unbiased, inv_std } = statistics;
                Ok(vec![y, mean, var_unbiased, inv_std, g.x, g.weight, g.bias])
            })?;
        }
    }
    Ok(())
}

#[test]
fn statistics_far_from_zero_lose_nothing() -> Result<()> {
    let x = ((uniform(&[4, 2, 30, 30], 1)? * 0.01)? + 1000.0)?;
    let want = off_device(|| batch_statistics(&x, 1e-5))?;
    on_device(|device| {
        let got = batch_statistics(&x.to_device(device)?, 1e-5)?;
        assert_close("mean", &got.mean, &want.mean, 1e-7)?;
        assert_close("variance", &got.var_unbiased, &want.var_unbiased, 1e-4)
    })
}

#[test]
fn running_statistics_follow() -> Result<()> {
    let statistics = |device: &Device| -> Result<BatchStatistics> {
        let t = |seed| uniform(&[7], seed)?.to_device(device);
        Ok(BatchStatistics { mean: t(1)?, var_unbiased: t(2)?, inv_std: t(3)? })
    };
    let run = |device: &Device| -> Result<(Tensor, Tensor)> {
        let (mean, var) =
            (Var::from_tensor(&uniform(&[7], 4)?.to_device(device)?)?, Var::from_tensor(&uniform(&[7], 5)?.to_device(device)?)?);
        follow((&mean, &var), &statistics(device)?, 0.1)?;
        Ok((mean.as_detached_tensor(), var.as_detached_tensor()))
    };
    let want = off_device(|| run(&Device::Cpu))?;
    on_device(|device| {
        let got = run(device)?;
        assert_close("mean", &got.0, &want.0, 1e-6)?;
        assert_close("variance", &got.1, &want.1, 1e-6)
    })
}

#[test]
fn max_pooling_alone_and_after_batch_norm() -> Result<()> {
    for dtype in FORMATS {
        for (b, c, h, w) in [(2, 3, 8, 6), (1, 2, 7, 9), (2, 2, 1, 1), (1, 1, 33, 40)] {
            // Few values, so that windows have equal maxima.
            let x = (uniform(&[b, c, h, w], 1)? * 4.0)?.round()?;
            compare("max-pool", &[x], &[0], dtype, |t| Ok(vec![crate::max_pool::max_pool2d_3x3_s2_p1(&t[0])?]))?;
            if b * h * w < 2 {
                continue;
            }
            let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
            let inputs = [uniform(&[b, c, h, w], 1)?, uniform(&[c], 2)?, uniform(&[c], 3)?, uniform(&[b, c, oh, ow], 4)?];
            // The gradient goes to one element of a window: in 16 bits the statistics' rounding could choose another, so they are exact here.
            let statistics = |t: &Tensor| -> Result<BatchStatistics> {
                let ones = Tensor::ones(c, DType::F32, t.device())?;
                Ok(BatchStatistics {
                    mean: ones.affine(0.125, 0.0)?,
                    var_unbiased: ones.clone(),
                    inv_std: ones.affine(2.0, 0.0)?,
                })
            };
            compare("batch norm, ReLU and max-pool", &inputs, &[0, 3], dtype, |t| {
                let t: Vec<Tensor> = t.iter().map(Tensor::detach).collect();
                let statistics = statistics(&t[0])?;
                let y = crate::batch_norm_pool::normalize_relu_max_pool(&t[0], &statistics, &t[1], &t[2])?;
                let g = crate::batch_norm_pool::normalize_relu_max_pool_backward(&t[0], &statistics, &t[1], &t[2], &t[3])?;
                Ok(vec![y, g.x, g.weight, g.bias])
            })?;
        }
    }
    let x = Tensor::new(&[[[[1.0f32, f32::NAN], [3.0, 0.0]]]], &Device::Cpu)?;
    compare("max-pool of what is not a number", &[x], &[0], DType::F32, |t| {
        Ok(vec![crate::max_pool::max_pool2d_3x3_s2_p1(&t[0].detach())?])
    })
}

#[test]
fn convolutions_and_transposed_ones() -> Result<()> {
    for dtype in FORMATS {
        for (b, ci, co, h, w) in [(2, 3, 5, 4, 6), (1, 8, 4, 7, 3)] {
            let inputs = [uniform(&[b, ci, h, w], 1)?, uniform(&[ci, co, 2, 2], 2)?, uniform(&[co], 3)?];
            compare("transposed convolution", &inputs, &[0], dtype, |t| {
                Ok(vec![crate::conv_transpose::conv_transpose2d_2x2(&t[0], &t[1], &t[2])?])
            })?;
        }
        for (ci, co, k, stride, padding) in [(4, 8, 3, 1, 1), (8, 4, 3, 2, 1), (3, 8, 7, 2, 3), (4, 8, 1, 2, 0)] {
            let inputs = [uniform(&[2, ci, 12, 14], 1)?, uniform(&[co, ci, k, k], 2)?];
            compare("convolution", &inputs, &[0], dtype, |t| Ok(vec![crate::conv2d::conv2d(&t[0], &t[1], stride, padding)?]))?;
        }
    }
    Ok(())
}

#[test]
fn attention_between_tokens_and_pixels() -> Result<()> {
    for dtype in FORMATS {
        for (b, heads, queries, keys, d) in
            [(2, 3, 5, 70, 16), (1, 2, 70, 10, 16), (1, 2, 10, 10, 32), (1, 1, 1, 1, 8), (2, 2, 33, 31, 8)]
        {
            let inputs =
                [uniform(&[b, queries, heads * d], 1)?, uniform(&[b, keys, heads * d], 2)?, uniform(&[b, keys, heads * d], 3)?];
            let split = |t: &Tensor| t.reshape((b, t.dim(1)?, heads, d))?.transpose(1, 2);
            compare("attention", &inputs, &[0, 1, 2], dtype, |t| {
                Ok(vec![crate::attention::attention(&split(&t[0])?, &split(&t[1])?, &split(&t[2])?, 0.7)?.contiguous()?])
            })?;
            compare("attention of several heads", &inputs, &[0, 1, 2], dtype, |t| {
                Ok(vec![crate::attention::multi_head_attention(&t[0], &t[1], &t[2], heads, 0.7)?])
            })?;
        }
    }
    Ok(())
}

#[test]
fn the_encoders_attention() -> Result<()> {
    use crate::rel_pos_attention::{DeviceRelPosAttention, RelPosAttention, RelPosTable};
    for (batch, grid, side, heads, d) in [
        (1, 8, 8, 2, 16),   // global, one tile
        (2, 5, 5, 1, 16),   // global, fewer tokens than a tile
        (1, 20, 20, 1, 32), // global, several tiles, the last not full
        (1, 20, 14, 2, 64), // windows that reach over the edge
        (2, 14, 14, 1, 80),
        (1, 6, 4, 3, 8), // float32 alone
    ] {
        let (width, tokens, rows) = (heads * d, batch * grid * grid, 2 * side - 1);
        let (qkv, bias, table) = (uniform(&[tokens, 3 * width], 1)?, uniform(&[3 * width], 2)?, uniform(&[2 * rows, d], 3)?);
        for dtype in FORMATS {
            if !DeviceRelPosAttention::has_kernel(d, dtype) {
                assert_ne!(dtype, DType::F32);
                continue;
            }
            let rounded = |t: &Tensor| t.to_dtype(dtype)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
            let (qkv_values, table_values) = (rounded(&qkv)?, rounded(&table)?);
            let (heights, widths) = table_values.split_at(rows * d);
            let mut want = vec![0.0; tokens * width];
            let bias_values = bias.to_vec1::<f32>()?;
            let rel_pos = &RelPosTable::new(heights, widths, side, d);
            RelPosAttention { qkv: &qkv_values, bias: &bias_values, rel_pos, batch, grid, heads }.forward(&mut want);
            let want = Tensor::from_vec(want, (tokens, width), &Device::Cpu)?;
            on_device(|device| {
                let there = |t: &Tensor| t.to_device(device);
                let layer = DeviceRelPosAttention {
                    qkv: &there(&qkv)?.to_dtype(dtype)?,
                    bias: &there(&bias)?,
                    rel_pos: &there(&table)?,
                    side,
                    batch,
                    grid,
                    heads,
                };
                assert_close(
                    &format!("attention of {grid} by {side}, {d} wide, {dtype:?}"),
                    &layer.forward()?,
                    &want,
                    2.0 * tolerance(dtype),
                )
            })?;
        }
    }
    Ok(())
}

/// The loss written out from the published code's definition, in float64.
fn dice_ce_reference(logits: &Tensor, labels: &[u8], lambda: f64) -> Result<Tensor> {
    let (b, c, h, w) = logits.dims4()?;
    let one_hot: Vec<f64> = (0..b * c * h * w)
        .map(|i| f64::from(u8::from(usize::from(labels[i / (c * h * w) * h * w + i % (h * w)]) == i / (h * w) % c)))
        .collect();
    let t = Tensor::from_vec(one_hot, (b, c, h, w), &Device::Cpu)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    let log_p = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
    let p = log_p.exp()?;
    let ce = ((&log_p * &t)?.sum_all()? * (-1.0 / (b * h * w) as f64))?;
    let per_class = |x: Tensor| x.transpose(0, 1)?.reshape((c, ()))?.sum(1);
    let numerator = ((per_class((&p * &t)?)? * 2.0)? + 1e-5)?;
    let denominator = ((per_class(p.sqr()?)? + per_class(t)?)? + 1e-5)?;
    let dice = (1.0 - (numerator / denominator)?.mean_all()?)?;
    let total = ((&ce * (1.0 - lambda))? + (&dice * lambda)?)?;
    Tensor::stack(&[total, ce, dice], 0)
}

#[test]
fn the_loss_and_its_gradient() -> Result<()> {
    for dtype in FORMATS {
        for (b, c, h, w) in [(2, 9, 14, 14), (1, 2, 3, 5), (3, 32, 8, 9)] {
            let logits = (uniform(&[b, c, h, w], 1)? * 4.0)?.to_dtype(dtype)?;
            // The last class never occurs.
            let labels: Vec<u8> =
                uniform(&[b * h * w], 2)?.to_vec1::<f32>()?.iter().map(|x| ((x + 1.0) / 2.0 * (c as f32 - 1.0)) as u8).collect();
            for lambda in [0.0, 0.8, 1.0] {
                let wide = Var::from_tensor(&logits.to_dtype(DType::F64)?)?;
                let want = dice_ce_reference(wide.as_tensor(), &labels, lambda)?;
                let want_grad = (want.get(0)? * 3.0)?.backward()?;
                on_device(|device| {
                    let logits = Var::from_tensor(&logits.to_device(device)?)?;
                    let labels = Tensor::from_slice(&labels, (b, h, w), device)?;
                    let (loss, losses) = crate::dice_ce::dice_ce(logits.as_tensor(), &labels, lambda, 1e-5)?;
                    assert_close("losses", &losses, &want, 2e-6)?;
                    assert_close("the loss", &loss, &want.get(0)?, 2e-6)?;
                    let grad = (loss * 3.0)?.backward()?;
                    let (Some(got), Some(want)) = (grad.get(&logits), want_grad.get(&wide)) else { panic!("no gradient") };
                    assert_close("the loss's gradient", got, want, tolerance(dtype))
                })?;
            }
        }
    }
    on_device(|device| {
        let logits = uniform(&[1, 3, 2, 2], 1)?.to_device(device)?;
        let labels = Tensor::new(&[[[0u8, 1], [2, 3]]], device)?;
        let (_, losses) = crate::dice_ce::dice_ce(&logits, &labels, 0.8, 1e-5)?;
        let losses = to_cpu(&losses)?.to_vec1::<f32>()?;
        assert!(losses[0].is_nan() && losses[1].is_nan(), "a label that is no class: {losses:?}");
        Ok(())
    })
}

#[test]
fn the_optimizers_update_all_variables_or_none() -> Result<()> {
    use crate::optimizer::{Slot, UpdateRule, step};
    let adam = UpdateRule {
        sgd: false,
        lr: 1e-2,
        keep: 0.999,
        l2: 0.01,
        step_size: 0.1,
        correction2_sqrt: 0.05,
        rest1: 0.1,
        beta2: 0.999,
        rest2: 0.001,
        eps: 1e-8,
        momentum: 0.9,
    };
    // More variables than one launch takes, and some longer than a block.
    let lens: Vec<usize> = (0..90).map(|i| if i % 30 == 7 { 9000 } else { 1 + i * 3 }).collect();
    let sgd = UpdateRule { sgd: true, ..adam };
    // The last takes what changes from step to step from memory, and its launch has other numbers.
    for (rule, guard, in_memory) in
        [(adam, Some(0.5), false), (sgd, None, false), (adam, Some(f32::NAN), false), (adam, None, true)]
    {
        on_device(|device| {
            let make = |seed: usize, scale: f64| -> Result<Vec<Tensor>> {
                lens.iter()
                    .enumerate()
                    .map(|(i, &n)| (uniform(&[n], (seed * 100 + i) as u64)? * scale)?.to_device(device)?.copy())
                    .collect()
            };
            let (values, gradients, firsts) = (make(1, 1.0)?, make(2, 1.0)?, make(3, 0.1)?);
            let seconds: Vec<Tensor> = make(4, 0.1)?.iter().map(Tensor::sqr).collect::<Result<_>>()?;
            let before: Vec<Vec<Vec<f32>>> = (0..lens.len())
                .map(|i| {
                    [&values[i], &gradients[i], &firsts[i], &seconds[i]]
                        .map(|t| to_cpu(t)?.to_vec1::<f32>())
                        .into_iter()
                        .collect()
                })
                .collect::<Result<_>>()?;
            let slots: Vec<Slot<'_>> = (0..lens.len())
                .map(|i| Slot { value: &values[i], gradient: &gradients[i], first: &firsts[i], second: &seconds[i] })
                .collect();
            let guard = guard.map(|g| Tensor::new(&[1.0f32, g], device)).transpose()?;
            let moving = Tensor::new(&rule.moving(), device)?;
            match in_memory {
                true => step(&slots, &UpdateRule { lr: 9.0, keep: 9.0, step_size: 9.0, ..rule }, guard.as_ref(), Some(&moving))?,
                false => step(&slots, &rule, guard.as_ref(), None)?,
            }
            let frozen = guard.as_ref().is_some_and(|g| to_cpu(g).and_then(|g| g.to_vec1::<f32>()).is_ok_and(|g| g[1].is_nan()));
            for (i, old) in before.iter().enumerate() {
                let (value, first) = (to_cpu(&values[i])?.to_vec1::<f32>()?, to_cpu(&firsts[i])?.to_vec1::<f32>()?);
                for j in 0..lens[i] {
                    let [v, g, m, s] = [0, 1, 2, 3].map(|part: usize| f64::from(old[part][j]));
                    let g = g + f64::from(rule.l2) * v;
                    let (want_m, want_v) = if frozen {
                        (m, v)
                    } else if rule.sgd {
                        let m = 0.9 * m + g;
                        (m, v - f64::from(rule.lr) * m)
                    } else {
                        let (m, s) = (m + 0.1 * (g - m), 0.999 * s + 0.001 * g * g);
                        (m, 0.999 * v - 0.1 * m / (s.sqrt() / 0.05 + 1e-8))
                    };
                    let close = |a: f32, b: f64| (f64::from(a) - b).abs() < 2e-5 * b.abs().max(1.0);
                    assert!(
                        close(value[j], want_v) && close(first[j], want_m),
                        "variable {i}, element {j}: {} {want_v}",
                        value[j]
                    );
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn batches_are_gathered_from_every_format() -> Result<()> {
    use crate::gather::{Stored, gather, gather_bytes};
    let (items, item_len, channels) = (5, 303, 3);
    let values = uniform(&[items, item_len], 1)?;
    let picks = [3u32, 0, 4, 4];
    let chosen = |t: &Tensor| t.index_select(&Tensor::new(&picks, &Device::Cpu)?, 0);
    for stored in FORMATS {
        let rounded = values.to_dtype(stored)?;
        let bytes: Vec<u8> = match stored {
            DType::F32 => rounded.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::BF16 => rounded.flatten_all()?.to_vec1::<half::bf16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            _ => rounded.flatten_all()?.to_vec1::<half::f16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        for dtype in FORMATS {
            on_device(|device| {
                let bytes = Tensor::from_slice(&bytes, bytes.len(), device)?;
                let from = Stored { bytes: &bytes, dtype: stored, item_len, quantization: None };
                let got = gather(&from, &Tensor::new(&picks, device)?, dtype)?;
                let want = chosen(&rounded.to_dtype(DType::F32)?)?.to_dtype(dtype)?;
                assert_close(&format!("{stored:?} as {dtype:?}"), &got, &want, 0.0)
            })?;
        }
    }
    // Items of an odd number of bytes are padded.
    let codes: Vec<u8> = (0..items * (item_len + 1)).map(|i| (i * 37 % 256) as u8).collect();
    let pairs = uniform(&[items, channels, 2], 2)?;
    let pair_values = pairs.flatten_all()?.to_vec1::<f32>()?;
    let want: Vec<f32> = picks
        .iter()
        .flat_map(|&item| {
            let (codes, pair_values) = (&codes, &pair_values);
            (0..item_len).map(move |i| {
                let pair = (item as usize * channels + i / (item_len / channels)) * 2;
                pair_values[pair + 1] + pair_values[pair] * f32::from(codes[item as usize * (item_len + 1) + i])
            })
        })
        .collect();
    on_device(|device| {
        let (bytes, pairs) = (Tensor::from_slice(&codes, codes.len(), device)?, pairs.to_device(device)?);
        let from = Stored { bytes: &bytes, dtype: DType::F32, item_len, quantization: Some(&pairs) };
        let picked = Tensor::new(&picks, device)?;
        assert_close(
            "8 bits",
            &gather(&from, &picked, DType::F32)?,
            &Tensor::from_slice(&want, (4, item_len), &Device::Cpu)?,
            1e-6,
        )?;
        let labels = to_cpu(&gather_bytes(&bytes, 304, &picked)?)?.to_vec2::<f32>()?;
        for (row, &pick) in labels.iter().zip(&picks) {
            assert!(row.iter().zip(&codes[pick as usize * 304..]).all(|(&a, &b)| a == f32::from(b)));
        }
        Ok(())
    })
}
