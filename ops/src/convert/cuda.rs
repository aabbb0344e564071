//! Number formats on a GPU.

use candle_core::{DType, Result, Tensor};

use crate::device::{Arg, Gpu, Grid, Input, suffix};

const MODULE: &str = "convert";
/// Tensors of one launch, as in the source.
const TENSORS: usize = 64;
/// Elements of one block, as in the source.
const CHUNK: usize = 4096;
/// 32-bit numbers of the source's `Table` after its pointers: the lengths, the first blocks and one past the last, the count.
const SMALL: usize = 2 * TENSORS + 2;
/// Words of the source's `Table`: two pointers per tensor, then these numbers.
const TABLE_WORDS: usize = 2 * TENSORS + SMALL / 2;

/// As [`super::to_format`], of a contiguous tensor and between float32 and another format.
pub(super) fn convert(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let (gpu, n, input) = (Gpu::of(x), x.elem_count(), Input::new(x)?);
    let out = gpu.output(dtype, x.shape())?;
    let fours = input.is_aligned(x.dtype());
    let args = [input.arg(), out.arg(), Arg::Size(n as u64), Arg::Int(i32::from(fours))];
    let kernel = format!("convert_{}_{}", suffix(x.dtype())?, suffix(dtype)?);
    // SAFETY: both tensors have `n` elements of these formats.
    unsafe { gpu.launch(MODULE, &kernel, Grid::over(n.div_ceil(4)), &args)? };
    Ok(out.tensor())
}

/// As [`super::convert_all`].
pub(super) fn convert_all(pairs: &[(Tensor, Tensor)], dtype: DType) -> Result<()> {
    let (aligned, others): (Vec<_>, Vec<_>) = pairs.iter().partition(|(from, to)| {
        [(from, DType::F32), (to, dtype)].iter().all(|(t, dtype)| Input::new(t).is_ok_and(|input| input.is_aligned(*dtype)))
    });
    for (from, to) in others {
        crate::device::copy_into(to, &super::to_format(from, dtype)?)?;
    }
    for pairs in aligned.chunks(TENSORS) {
        let (table, blocks) = table(pairs)?;
        let kernel = format!("convert_all_{}", suffix(dtype)?);
        let gpu = Gpu::of(&pairs[0].0);
        // SAFETY: the table's tensors have the lengths that it gives and are aligned: just checked.
        unsafe { gpu.launch(MODULE, &kernel, Grid::blocks([blocks, 1, 1]), &[Arg::LongWords(&table)])? };
    }
    Ok(())
}

/// The source's `Table`, and how many blocks it takes.
fn table(pairs: &[&(Tensor, Tensor)]) -> Result<([u64; TABLE_WORDS], u32)> {
    let mut table = [0u64; TABLE_WORDS];
    let mut small = [0u32; SMALL];
    let mut blocks = 0;
    for (i, (from, to)) in pairs.iter().enumerate() {
        (table[i], table[TENSORS + i]) = (Input::new(from)?.pointer(), Input::new(to)?.pointer());
        let len = from.elem_count();
        (small[i], small[TENSORS + i]) = (len as u32, blocks);
        blocks += len.div_ceil(CHUNK) as u32;
    }
    small[TENSORS + pairs.len()] = blocks;
    small[SMALL - 1] = pairs.len() as u32;
    for (word, pair) in table[2 * TENSORS..].iter_mut().zip(small.chunks_exact(2)) {
        *word = u64::from(pair[0]) | u64::from(pair[1]) << 32;
    }
    Ok((table, blocks))
}

/// As [`super::sum_second_axis`], of a contiguous tensor.
pub(super) fn sum_second_axis(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let (n, m) = (x.dim(0)?, std::mem::replace(&mut dims[1], 1));
    let (gpu, k) = (Gpu::of(x), x.elem_count() / (n * m).max(1));
    let out = gpu.output(dtype, dims)?;
    let args = [&[Input::new(x)?.arg(), out.arg()][..], &[n, m, k].map(|n| Arg::Unsigned(n as u32))].concat();
    // SAFETY: `x` has n·m·k elements, the result n·k.
    unsafe { gpu.launch(MODULE, &format!("sum_middle_{}", suffix(dtype)?), Grid::over(n * k), &args)? };
    Ok(out.tensor())
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Result, Tensor};

    use super::super::{convert_all, sum_second_axis, to_format};
    use crate::testing::kernels::{FORMATS, assert_close, on_device};
    use crate::testing::uniform;

    #[test]
    fn formats_are_candles_casts() -> Result<()> {
        on_device(|device| {
            for n in [1, 7, 1024, 9001] {
                let x = (uniform(&[n], 1)? * 100.0)?;
                for dtype in FORMATS {
                    let (there, want) = (x.to_device(device)?, x.to_dtype(dtype)?);
                    let got = to_format(&there, dtype)?;
                    assert_close(&format!("{n} to {dtype:?}"), &got, &want, 0.0)?;
                    assert_close(&format!("{n} from {dtype:?}"), &to_format(&got, DType::F32)?, &want, 0.0)?;
                }
            }
            Ok(())
        })
    }

    /// More tensors than one launch takes, some longer than a block, and one that starts between aligned places.
    #[test]
    fn many_tensors_are_converted_together() -> Result<()> {
        on_device(|device| {
            let lens: Vec<usize> = (0..70).map(|i| if i % 20 == 3 { 9001 } else { 1 + 5 * i }).collect();
            let made = lens.iter().enumerate().map(|(i, &n)| uniform(&[n], i as u64));
            let mut values: Vec<Tensor> = made.collect::<Result<_>>()?;
            values.push(uniform(&[50], 99)?);
            for dtype in FORMATS {
                let pairs = values.iter().map(|x| Ok((x.to_device(device)?, Tensor::zeros(x.dims(), dtype, device)?)));
                let mut pairs: Vec<(Tensor, Tensor)> = pairs.collect::<Result<_>>()?;
                if let Some((from, to)) = pairs.last_mut() {
                    (*from, *to) = (from.narrow(0, 1, 49)?, to.narrow(0, 1, 49)?);
                }
                convert_all(&pairs)?;
                for (i, (from, to)) in pairs.iter().enumerate() {
                    assert_close(&format!("tensor {i} as {dtype:?}"), to, &from.to_dtype(dtype)?, 0.0)?;
                }
            }
            Ok(())
        })
    }

    #[test]
    fn sums_over_the_second_axis() -> Result<()> {
        let x = uniform(&[9, 3, 7, 5], 1)?;
        on_device(|device| {
            for dtype in FORMATS {
                let got = sum_second_axis(&x.to_device(device)?, dtype)?;
                assert_close(&format!("{dtype:?}"), &got, &x.sum_keepdim(1)?.to_dtype(dtype)?, 1e-2)?;
                assert_eq!(got.dims(), [9, 1, 7, 5]);
            }
            Ok(())
        })
    }
}
