//! SAM's prompt encoder without prompts: the positional encoding of the grid and the embedding for "no mask".

use candle_core::{D, Device, Result, Tensor};

use super::error::ModelError;
use super::parameters::Parameters;

/// The parts of `prompt_encoder` that the mask decoder needs. Its other weights are kept in the state dict but not used.
pub(super) struct PromptEncoder {
    /// [1, 256, g, g]
    image_pe: Tensor,
    /// [1, 256]
    no_mask_embed: Tensor,
}

impl PromptEncoder {
    /// For a grid of `grid`×`grid` embeddings.
    pub(super) fn new(grid: usize, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        let gaussian = parameters.frozen("sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")?;
        let no_mask_embed = parameters.frozen("sam.prompt_encoder.no_mask_embed.weight")?;
        let image_pe = dense_positional_encoding(&gaussian, grid)?.to_device(parameters.device())?;
        Ok(PromptEncoder { image_pe, no_mask_embed })
    }

    /// `[1, 256, g, g]`
    pub(super) fn image_pe(&self) -> &Tensor {
        &self.image_pe
    }

    /// The dense prompt embedding, the same at every position of the grid: `[1, 256]`.
    pub(super) fn no_mask_embed(&self) -> &Tensor {
        &self.no_mask_embed
    }
}

/// Random Fourier features of the centres of a grid's cells (SAM's `PositionEmbeddingRandom`): `gaussian` `[2, c]` → `[1, 2c, g, g]`,
/// sines first. Computed once, on the CPU.
fn dense_positional_encoding(gaussian: &Tensor, grid: usize) -> Result<Tensor> {
    let (_, features) = gaussian.dims2()?;
    let centre = |i: usize| 2.0 * ((i as f32 + 0.5) / grid as f32) - 1.0;
    let coordinates: Vec<f32> = (0..grid * grid).flat_map(|at| [centre(at % grid), centre(at / grid)]).collect(); // (x, y)
    let coordinates = Tensor::from_vec(coordinates, (grid * grid, 2), &Device::Cpu)?;
    let angles = (coordinates.matmul(&gaussian.to_device(&Device::Cpu)?)? * (2.0 * std::f64::consts::PI))?; // [g·g, c]
    let encoding = Tensor::cat(&[angles.sin()?, angles.cos()?], D::Minus1)?; // [g·g, 2c]
    encoding.t()?.contiguous()?.reshape((1, 2 * features, grid, grid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_of_a_zero_matrix_is_zeros_then_ones() -> Result<()> {
        let gaussian = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu)?;
        let encoding = dense_positional_encoding(&gaussian, 2)?;
        assert_eq!(encoding.dims(), [1, 6, 2, 2]);
        let values = encoding.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(values, [[0.0; 12], [1.0; 12]].concat());
        Ok(())
    }

    #[test]
    fn the_first_feature_axis_is_x() -> Result<()> {
        // One feature that looks only at x, at a quarter turn for x = 1.
        let gaussian = Tensor::new(&[[0.25f32], [0.0]], &Device::Cpu)?;
        let encoding = dense_positional_encoding(&gaussian, 2)?;
        let sine = encoding.get(0)?.get(0)?.to_vec2::<f32>()?;
        let expected = (std::f32::consts::FRAC_PI_2 * 0.5).sin();
        assert!((sine[0][0] + expected).abs() < 1e-6 && (sine[0][1] - expected).abs() < 1e-6);
        assert_eq!(sine[0], sine[1]);
        Ok(())
    }
}
