//! A frozen linear layer of tokens, `y = x·Wᵀ + b`, in float32. On the CPU the bits of a token's result do not depend on the other tokens.

mod cpu;
mod cuda;

use candle_core::{Result, Tensor, bail};

use crate::frozen::{FrozenLinear, FrozenWeight};

/// Applies the layer to every token.
///
/// # Shapes
/// x `[tokens, in]`, float32; layer `[out, in]` → `[tokens, out]`
///
/// # Errors
/// If shapes do not match, or the layer is on another device.
pub fn token_linear(x: &Tensor, layer: &FrozenLinear) -> Result<Tensor> {
    let (_, found) = x.dims2()?;
    let expected = match layer.weight() {
        FrozenWeight::Cpu(weight) => weight.inner(),
        FrozenWeight::Cuda(weight, _) => weight.dim(1)?,
    };
    if found != expected {
        bail!("token linear: the layer takes {expected} features, the tokens have {found}");
    }
    match layer.weight() {
        FrozenWeight::Cpu(_) => cpu::forward(x, layer),
        FrozenWeight::Cuda(..) => cuda::forward(x, layer),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result, Tensor};

    use super::token_linear;
    use crate::frozen::FrozenLinear;
    use crate::linear::linear_composed;
    use crate::numerics::Numerics;
    use crate::testing::{relative_difference, uniform};

    #[test]
    fn is_the_composed_layer_and_no_token_depends_on_others() -> Result<()> {
        let (x, weight, bias) = (uniform(&[301, 40], 1)?, uniform(&[24, 40], 2)?, uniform(&[24], 3)?);
        let layer = FrozenLinear::new(&weight, &bias, Numerics::F32)?;
        let y = token_linear(&x, &layer)?;
        let error = relative_difference(&y, &linear_composed(&x, &weight, Some(&bias))?)?;
        assert!(error < 3e-6, "{error}");
        for (start, len) in [(0, 7), (123, 100), (290, 11)] {
            let part = token_linear(&x.narrow(0, start, len)?, &layer)?;
            assert_eq!(part.to_vec2::<f32>()?, y.narrow(0, start, len)?.to_vec2::<f32>()?);
        }
        let narrow = Tensor::zeros((3, 39), candle_core::DType::F32, &Device::Cpu)?;
        assert!(token_linear(&narrow, &layer).is_err());
        Ok(())
    }
}
