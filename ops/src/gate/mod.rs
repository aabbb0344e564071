//! The gate of equation (3), `g·sam + (1 - g)·cnn` with `g = sigmoid(logits)`: one for all, one per channel, or one per pixel.

mod cpu;
mod cuda;

use candle_core::{DType, Result, Tensor, bail};

use crate::column_sums::column_sums;
use crate::convert::to_format;
use crate::dispatch::{Path, path};
use crate::tape::{Value, record};

/// Mixes two maps, differentiable with respect to all three values.
///
/// # Shapes
/// `sam`, `cnn` and the result `[b, c, h, w]`, or any shape for one gate; logits, float32: one element, `[c, 1, 1]`, or `[b, 1, h, w]`
///
/// # Errors
/// Other shapes.
pub fn mix(sam: &Value, cnn: &Value, logits: &Value) -> Result<Value> {
    let tensors = [sam.tensor().contiguous()?, cnn.tensor().contiguous()?, logits.tensor().contiguous()?];
    let [a, b, of_gate] = &tensors;
    let sizes = Sizes::of(a, b, of_gate)?;
    let by = path(&[a, b, of_gate]);
    let y = match by {
        Path::Cuda => cuda::mix(a, b, of_gate, sizes)?,
        Path::Cpu => cpu::mix(a, b, of_gate, sizes)?,
        Path::Composed => ((a - b)?.broadcast_mul(&gate_of(of_gate, a)?)? + b)?,
    };
    record(y, &[sam, cnn, logits], move |gradient, wanted| {
        let ([sam, cnn, logits], gradient) = (&tensors, gradient.contiguous()?);
        if gradient.dtype() != sam.dtype() {
            bail!("mix: a gradient of {:?} for maps of {:?}", gradient.dtype(), sam.dtype());
        }
        let of_map = |map: Map| match by {
            Path::Cuda => cuda::mix_backward(&gradient, logits, sizes, map),
            Path::Cpu => cpu::mix_backward(&gradient, logits, sizes, map),
            Path::Composed => {
                let of_sam = gradient.broadcast_mul(&gate_of(logits, sam)?)?;
                if map == Map::Sam { Ok(of_sam) } else { &gradient - of_sam }
            }
        };
        let of_logits = || match by {
            Path::Cuda => cuda::mix_backward_logits(&gradient, sam, cnn, logits, sizes),
            Path::Cpu => cpu::mix_backward_logits(&gradient, sam, cnn, logits, sizes),
            Path::Composed => {
                let gate = sigmoid(logits)?;
                let slope = (&gate - gate.sqr()?)?;
                sizes.summed(&(&gradient * (sam - cnn)?)?)?.reshape(logits.shape())?.to_dtype(logits.dtype())? * slope
            }
        };
        Ok(vec![
            wanted[0].then(|| of_map(Map::Sam)).transpose()?,
            wanted[1].then(|| of_map(Map::Cnn)).transpose()?,
            wanted[2].then(of_logits).transpose()?,
        ])
    })
}

/// Adds a scalar to `x` in float32; used for the logits of a gate per pixel.
///
/// # Shapes
/// any, and a number of float32 with one element → the same
///
/// # Errors
/// More than one number.
pub fn add_number(x: &Value, number: &Value) -> Result<Value> {
    if number.tensor().elem_count() != 1 || number.tensor().dtype() != DType::F32 {
        bail!("add_number: expected one number of float32, found {:?}", number.tensor());
    }
    let (dtype, shape) = (x.tensor().dtype(), number.tensor().shape().clone());
    let y = match path(&[x.tensor(), number.tensor()]) {
        Path::Cuda => cuda::add_number(&x.tensor().contiguous()?, number.tensor())?,
        _ => to_format(x.tensor(), DType::F32)?.broadcast_add(&number.tensor().flatten_all()?)?,
    };
    record(y, &[x, number], move |gradient, wanted| {
        let of_number = || column_sums(&gradient.contiguous()?.reshape(((), 1))?)?.reshape(&shape);
        Ok(vec![wanted[0].then(|| to_format(gradient, dtype)).transpose()?, wanted[1].then(of_number).transpose()?])
    })
}

/// Writes the mean of the logits and the mean of their sigmoids, without a graph, to memory that a CUDA graph can write each time.
///
/// # Shapes
/// logits any but an empty one, float32; `to` `[2]`, float32
///
/// # Errors
/// Other shapes or types.
pub fn write_gate_means(logits: &Tensor, to: &Tensor) -> Result<()> {
    if logits.dtype() != DType::F32 || logits.elem_count() == 0 || to.dtype() != DType::F32 || to.dims() != [2] {
        bail!("gate means: expected float32 and two places, found {logits:?} and {to:?}");
    }
    match path(&[logits, to]) {
        Path::Cuda => cuda::write_means(&logits.detach().contiguous()?, to),
        _ => {
            let logits = logits.detach();
            let means = [logits.mean_all()?, sigmoid(&logits)?.mean_all()?];
            to.slice_set(&Tensor::stack(&means, 0)?, 0, 0)
        }
    }
}

/// `1 / (1 + exp(-x))`, on candle's graph.
///
/// # Errors
/// Those of the tensor library.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// The gate in the number format of a map, with which it is multiplied.
fn gate_of(logits: &Tensor, map: &Tensor) -> Result<Tensor> {
    let gate = sigmoid(logits)?.to_dtype(map.dtype())?;
    if logits.elem_count() == 1 { gate.reshape(1) } else { Ok(gate) }
}

/// One of the maps that are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Map {
    /// Times the gate.
    Sam,
    /// Times one minus the gate.
    Cnn,
}

/// What has a gate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gates {
    One,
    Channels,
    Pixels,
}

/// Sizes of the maps, `[images, channels, pixels]`, and the gates.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    images: usize,
    channels: usize,
    pixels: usize,
    gates: Gates,
}

impl Sizes {
    fn of(sam: &Tensor, cnn: &Tensor, logits: &Tensor) -> Result<Self> {
        let (dims, of_gate) = (sam.dims(), logits.dims());
        let (images, channels, pixels, gates) = match *dims {
            _ if logits.elem_count() == 1 => (1, 1, sam.elem_count(), Gates::One),
            [b, c, h, w] if of_gate == [c, 1, 1] => (b, c, h * w, Gates::Channels),
            [b, c, h, w] if of_gate == [b, 1, h, w] => (b, c, h * w, Gates::Pixels),
            _ => bail!("mix: {dims:?} has no gates {of_gate:?}, expected a number, one per channel or one per pixel"),
        };
        if cnn.dims() != dims || cnn.dtype() != sam.dtype() {
            bail!("mix: expected two tensors of one shape and format, found {sam:?} and {cnn:?}");
        }
        Ok(Sizes { images, channels, pixels, gates })
    }

    /// The sums of a map's numbers over those that have one gate, composed of candle's operations.
    fn summed(self, map: &Tensor) -> Result<Tensor> {
        let map = map.reshape((self.images, self.channels, self.pixels))?;
        match self.gates {
            Gates::One => map.sum_all(),
            Gates::Channels => map.sum((0, 2)),
            Gates::Pixels => map.sum(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::testing::{assert_gradients_match, uniform};

    fn composed(sam: &Tensor, cnn: &Tensor, logits: &Tensor) -> Result<Tensor> {
        (sam - cnn)?.broadcast_mul(&sigmoid(logits)?)? + cnn
    }

    #[test]
    fn every_gate_has_candles_gradients() -> Result<()> {
        let maps = [uniform(&[2, 3, 5, 4], 1)?, uniform(&[2, 3, 5, 4], 2)?];
        for shape in [&[1][..], &[3, 1, 1], &[2, 1, 5, 4]] {
            let inputs = [&maps[..], &[(uniform(shape, 3)? * 4.0)?]].concat();
            assert_gradients_match(&inputs, |v| mix(&v[0], &v[1], &v[2]), |t| composed(&t[0], &t[1], &t[2]))?;
        }
        let tokens = [uniform(&[2, 7], 1)?, uniform(&[2, 7], 2)?, uniform(&[1], 3)?];
        assert_gradients_match(&tokens, |v| mix(&v[0], &v[1], &v[2]), |t| composed(&t[0], &t[1], &t[2]))
    }

    /// A closed gate passes the bits of cnn, and an open one those of sam if cnn is zero.
    #[test]
    fn a_gate_closes_and_opens() -> Result<()> {
        let (sam, cnn) = (uniform(&[2, 3, 5, 4], 1)?, uniform(&[2, 3, 5, 4], 2)?);
        let bits = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        for shape in [&[1][..], &[3, 1, 1], &[2, 1, 5, 4]] {
            let at = |logit: f64| (Tensor::ones(shape, DType::F32, &Device::Cpu)? * logit).map(Value::from);
            let closed = mix(&(&sam).into(), &(&cnn).into(), &at(-200.0)?)?;
            assert_eq!(bits(closed.tensor())?, bits(&cnn)?);
            let zero = sam.zeros_like()?;
            let open = mix(&(&sam).into(), &(&zero).into(), &at(200.0)?)?;
            assert_eq!(bits(open.tensor())?, bits(&sam)?);
        }
        Ok(())
    }

    #[test]
    fn other_gates_are_refused() -> Result<()> {
        let of = |shape: &[usize]| uniform(shape, 1).map(Value::from);
        let map = of(&[2, 3, 5, 4])?;
        for shape in [&[2][..], &[3], &[2, 1, 5, 5], &[1, 1, 5, 4]] {
            let error = mix(&map, &map, &of(shape)?).unwrap_err().to_string();
            assert!(error.contains("one per channel"), "{shape:?}: {error}");
        }
        assert!(mix(&map, &of(&[2, 3, 4, 5])?, &of(&[1])?).unwrap_err().to_string().contains("one shape"));
        let narrow = to_format(map.tensor(), DType::BF16)?.into();
        assert!(mix(&map, &narrow, &of(&[1])?).unwrap_err().to_string().contains("format"));
        assert!(add_number(&map, &of(&[2])?).is_err());
        Ok(())
    }

    #[test]
    fn a_number_is_added_in_float32() -> Result<()> {
        let inputs = [uniform(&[2, 1, 3, 4], 1)?, uniform(&[1], 2)?];
        assert_gradients_match(&inputs, |v| add_number(&v[0], &v[1]), |t| t[0].broadcast_add(&t[1]))?;
        let narrow = to_format(&inputs[0], DType::BF16)?;
        let y = add_number(&(&narrow).into(), &(&inputs[1]).into())?;
        let want = to_format(&narrow, DType::F32)?.broadcast_add(&inputs[1])?;
        assert_eq!(y.tensor().flatten_all()?.to_vec1::<f32>()?, want.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    #[test]
    fn means_of_logits_and_gates() -> Result<()> {
        let to = Tensor::zeros(2, DType::F32, &Device::Cpu)?;
        write_gate_means(&Tensor::new(&[0f32, 2.0], &Device::Cpu)?, &to)?;
        let found = to.to_vec1::<f32>()?;
        let want = [1.0, (0.5 + 1.0 / (1.0 + (-2f32).exp())) / 2.0];
        assert!(found.iter().zip(want).all(|(found, want)| (found - want).abs() < 1e-6), "{found:?}");
        assert!(write_gate_means(&to, &Tensor::zeros(3, DType::F32, &Device::Cpu)?).is_err());
        Ok(())
    }
}
