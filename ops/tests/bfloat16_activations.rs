//! Operations on bfloat16 activations on the CPU: what float32 gives for the same numbers, rounded to the nearest.

use candle_core::{DType, Device, Result, Tensor};
use sam_ladder_ops::{
    BatchNormGradients, BatchStatistics, Conv2d, LossParts, NormalizedShortcut, Region, SegmentationLoss, Tail, Tape, Value, add,
    add_layer_norm, add_relu, batch_statistics, dice_ce, gelu, layer_norm, max_pool2d_3x3_s2_p1, mix, multi_head_cross_attention,
    multi_head_self_attention, normalize, normalize_backward, normalize_relu_max_pool, normalize_relu_max_pool_backward, relu,
    relu_backward_summed, segmentation_loss, to_format,
};

const SHAPE: [usize; 4] = [3, 4, 9, 11];

/// Numbers of both formats, in [-2, 2).
fn numbers(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        half::bf16::from_f32((state >> 40) as f32 / 4_194_304.0 - 2.0).to_f32()
    };
    Tensor::from_vec((0..shape.iter().product()).map(|_| next()).collect::<Vec<f32>>(), shape, &Device::Cpu)
}

fn narrow(x: &Tensor) -> Result<Tensor> {
    to_format(x, DType::BF16)
}

/// The bits of a result, rounded if it is float32.
fn bits(x: &Tensor) -> Result<Vec<u16>> {
    let values = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(|v| half::bf16::from_f32(v).to_bits()).collect())
}

#[track_caller]
fn assert_rounded(what: &str, got: &Tensor, exact: &Tensor) -> Result<()> {
    assert_eq!((got.dtype(), exact.dtype()), (DType::BF16, DType::F32), "{what}");
    assert_eq!(got.dims(), exact.dims(), "{what}");
    assert!(bits(got)? == bits(exact)?, "{what}");
    Ok(())
}

#[track_caller]
fn assert_same(what: &str, got: &Tensor, exact: &Tensor) -> Result<()> {
    assert_eq!(got.to_vec1::<f32>()?, exact.to_vec1::<f32>()?, "{what}");
    Ok(())
}

#[test]
fn sums_relu_and_pooling() -> Result<()> {
    let [a, b, c] = [numbers(&SHAPE, 1)?, numbers(&SHAPE, 2)?, numbers(&SHAPE, 3)?];
    let [na, nb, nc] = [narrow(&a)?, narrow(&b)?, narrow(&c)?];
    assert_rounded("sum", &add(&na, &nb)?, &add(&a, &b)?)?;
    assert_rounded("sum and ReLU", &add_relu(&na, &nb)?, &add_relu(&a, &b)?)?;
    assert_rounded("pooling", &max_pool2d_3x3_s2_p1(&na)?, &max_pool2d_3x3_s2_p1(&a)?)?;
    let statistics = batch_statistics(&a, 1e-5)?;
    let before = |y: &Tensor, parts| relu_backward_summed(y, parts, (y, &statistics), None).map(|(grad, _)| grad);
    assert_rounded("ReLU's gradient", &before(&na, (&nb, None))?, &before(&a, (&b, None))?)?;
    assert_rounded("ReLU's gradient in parts", &before(&na, (&nb, Some(&nc)))?, &before(&a, (&b, Some(&c)))?)
}

type Operation = fn(&[Value]) -> Result<Value>;

/// What an operation gives, and the gradients of its inputs, the first `activations` of which are in this format.
fn recorded(operation: Operation, inputs: &[Tensor], activations: usize, dtype: DType) -> Result<(Tensor, Vec<Tensor>)> {
    let of = |(i, input): (usize, &Tensor)| if i < activations { to_format(input, dtype) } else { Ok(input.clone()) };
    let inputs: Vec<Tensor> = inputs.iter().enumerate().map(of).collect::<Result<_>>()?;
    let tape = Tape::default();
    let leaves: Vec<Value> = inputs.iter().map(|input| tape.leaf(input)).collect();
    let y = operation(&leaves)?;
    let gradient = to_format(&numbers(y.tensor().dims(), 9)?, dtype)?;
    let found = tape.backward(&y, gradient)?;
    Ok((y.into_tensor(), inputs.iter().map(|input| found.get(input).unwrap().clone()).collect()))
}

/// Of activations and, behind them, parameters in float32.
#[test]
fn recorded_operations() -> Result<()> {
    let tokens = |seed| numbers(&[2, 7, 24], seed);
    let (one, wide) = (numbers(&[24], 4)?, numbers(&[2, 7, 72], 5)?);
    // Sums of these are numbers of bfloat16, too, so that what is kept of a sum is not rounded.
    let coarse = |seed| (tokens(seed)? * 32.0)?.round()? / 32.0;
    let cases: [(&str, Operation, Vec<Tensor>, usize); 7] = [
        ("GELU", |v| gelu(&v[0]), vec![tokens(1)?], 1),
        ("ReLU", |v| relu(&v[0]), vec![tokens(1)?], 1),
        ("gate", |v| mix(&v[0], &v[1], &v[2]), vec![tokens(1)?, tokens(2)?, numbers(&[1], 3)?], 2),
        ("layer norm", |v| layer_norm(&v[0], &v[1], &v[2], 1e-5), vec![tokens(1)?, one.clone(), numbers(&[24], 5)?], 1),
        (
            "layer norm of a sum",
            |v| add_layer_norm(&v[0], &v[1], &v[2], &v[3], 1e-5),
            vec![coarse(1)?, coarse(2)?, one, numbers(&[24], 5)?],
            2,
        ),
        ("self-attention", |v| multi_head_self_attention(&v[0], 3, 0.3), vec![wide], 1),
        ("attention", |v| multi_head_cross_attention(&v[0], &v[1], 2, 0.3), vec![tokens(1)?, numbers(&[2, 11, 48], 6)?], 2),
    ];
    for (what, operation, inputs, activations) in cases {
        let (exact, of_exact) = recorded(operation, &inputs, activations, DType::F32)?;
        let (got, of_got) = recorded(operation, &inputs, activations, DType::BF16)?;
        assert_rounded(what, &got, &exact)?;
        for (i, (got, exact)) in of_got.iter().zip(&of_exact).enumerate() {
            match i < activations {
                true => assert_rounded(&format!("{what}, gradient {i}"), got, exact)?,
                false => assert_same(&format!("{what}, gradient {i}"), got, exact)?,
            }
        }
    }
    Ok(())
}

#[test]
fn losses() -> Result<()> {
    let logits = numbers(&[2, 5, 8, 9], 1)?;
    let labels = Tensor::from_vec((0..144u8).map(|i| i % 5).collect::<Vec<u8>>(), (2, 8, 9), &Device::Cpu)?;
    let other = SegmentationLoss {
        lambda: 0.8,
        gamma: 2.0,
        region: Region::Tversky { alpha: 0.3, beta: 0.7 },
        smooth: 1e-5,
        weights: Tensor::new(&[1f32, 2.0, 0.5, 1.0, 1.0], &Device::Cpu)?,
        ignore: None,
        unions: None,
    };
    let both = |logits: &Tensor| -> Result<[LossParts; 2]> {
        Ok([dice_ce(logits, &labels, 0.8, 1e-5)?, segmentation_loss(logits, &labels, &other)?])
    };
    for (got, exact) in both(&narrow(&logits)?)?.iter().zip(&both(&logits)?) {
        assert_same("loss", &got.numbers, &exact.numbers)?;
        assert_rounded("gradient", &got.gradient, &exact.gradient)?;
    }
    Ok(())
}

/// Of an input and a second one in one format.
struct Passed {
    statistics: BatchStatistics,
    results: Vec<Tensor>,
    gradients: Vec<BatchNormGradients>,
    pooled: Tensor,
    pooled_gradients: BatchNormGradients,
}

fn passed(x: &Tensor, other: &Tensor, pooled_gradient: &Tensor) -> Result<Passed> {
    let [weight, bias] = [numbers(&SHAPE[1..2], 5)?, numbers(&SHAPE[1..2], 6)?];
    let [statistics, of_other] = [batch_statistics(x, 1e-5)?, batch_statistics(other, 1e-5)?];
    let shortcut = NormalizedShortcut { x: other, statistics: &of_other, weight: &bias, bias: &weight };
    let tails = [Tail::None, Tail::Relu, Tail::AddRelu(other), Tail::AddNormalizedRelu(shortcut)];
    let results = tails.into_iter().map(|tail| normalize(x, &statistics, &weight, &bias, tail)).collect::<Result<_>>()?;
    let gradients = [false, true].map(|relu| normalize_backward(x, &statistics, &weight, &bias, relu, other));
    let (pooled, places) = normalize_relu_max_pool(x, &statistics, &weight, &bias)?;
    let parts = (pooled_gradient, Some(pooled_gradient));
    let pooled_gradients = normalize_relu_max_pool_backward(x, &statistics, &weight, &bias, &places, parts)?;
    Ok(Passed { statistics, results, gradients: gradients.into_iter().collect::<Result<_>>()?, pooled, pooled_gradients })
}

#[test]
fn batch_norm() -> Result<()> {
    let [x, other, of_pooled] = [numbers(&SHAPE, 1)?, numbers(&SHAPE, 2)?, numbers(&[3, 4, 5, 6], 3)?];
    let exact = passed(&x, &other, &of_pooled)?;
    let got = passed(&narrow(&x)?, &narrow(&other)?, &narrow(&of_pooled)?)?;
    assert_same("mean", &got.statistics.mean, &exact.statistics.mean)?;
    assert_same("variance", &got.statistics.var_unbiased, &exact.statistics.var_unbiased)?;
    for (i, (got, exact)) in got.results.iter().zip(&exact.results).enumerate() {
        assert_rounded(&format!("tail {i}"), got, exact)?;
    }
    for (got, exact) in got.gradients.iter().zip(&exact.gradients) {
        assert_rounded("gradient", &got.x, &exact.x)?;
        assert_same("weight", &got.weight, &exact.weight)?;
        assert_same("bias", &got.bias, &exact.bias)?;
    }
    assert_rounded("pooled", &got.pooled, &exact.pooled)?;
    // Twice a number of bfloat16 is one, so the sums are the same; the gradient before the ReLU is rounded once more.
    assert_same("weight, pooled", &got.pooled_gradients.weight, &exact.pooled_gradients.weight)?;
    assert_same("bias, pooled", &got.pooled_gradients.bias, &exact.pooled_gradients.bias)?;
    let values = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (got, exact) = (values(&got.pooled_gradients.x)?, values(&exact.pooled_gradients.x)?);
    let largest = exact.iter().fold(0f32, |most, v| most.max(v.abs()));
    for (got, exact) in got.iter().zip(&exact) {
        assert!((got - exact).abs() < largest / 128.0, "{got}, in float32 {exact}");
    }
    Ok(())
}

/// Whatever the processor has: where there are no instructions for bfloat16, float32's compute.
#[test]
fn convolutions() -> Result<()> {
    for (ci, co, kernel, stride, padding) in
        [(32, 16, 3, 1, 1), (16, 32, 3, 2, 1), (32, 16, 1, 2, 0), (1, 8, 7, 2, 3), (4, 4, 5, 1, 0)]
    {
        let conv = Conv2d::new(stride, padding);
        let [x, weight] = [numbers(&[2, ci, 12, 14], 1)?, numbers(&[co, ci, kernel, kernel], 2)?];
        let exact = conv.forward(&x, &weight)?;
        let grad = numbers(exact.dims(), 3)?;
        let close = |what: &str, got: &Tensor, exact: &Tensor| -> Result<()> {
            let values = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
            let (got, exact) = (values(got)?, values(exact)?);
            let largest = exact.iter().fold(0f32, |most, v| most.max(v.abs()));
            // Half of the last of eight bits, and another order of the sum.
            for (got, exact) in got.iter().zip(&exact) {
                assert!((got - exact).abs() <= exact.abs() / 256.0 + largest * 1e-5, "{what}: {got}, in float32 {exact}");
            }
            Ok(())
        };
        let (nx, ngrad) = (narrow(&x)?, narrow(&grad)?);
        for weight in [&weight, &narrow(&weight)?] {
            let got = conv.forward(&nx, weight)?;
            assert_eq!(got.dtype(), DType::BF16);
            close("forward", &got, &exact)?;
            let got = conv.backward_input(&ngrad, weight, (12, 14))?;
            assert_eq!(got.dtype(), DType::BF16);
            close("to the input", &got, &conv.backward_input(&grad, weight, (12, 14))?)?;
        }
        let got = conv.backward_weight(&nx, &ngrad, kernel)?;
        assert_eq!(got.dtype(), DType::F32);
        close("to the weight", &got, &conv.backward_weight(&x, &grad, kernel)?)?;
    }
    Ok(())
}
