//! Transposed convolution 2×2 with stride 2 (`torch.nn.ConvTranspose2d(ci, co, 2, 2)`, the mask decoder's upscaling), of pixels as rows.
//!
//! Windows with stride 2 do not overlap, so each pixel gives its own patch of 2×2 pixels: a linear layer. The patches stay where their pixels
//! were, and whatever comes next looks at one pixel at a time; [`patches_to_image`] puts the last ones in the image's order.

use candle_core::{Result, bail};

use crate::device::F32Math;
use crate::linear::linear;
use crate::tape::Value;

/// Transposed convolution with a 2×2 kernel and stride 2. Differentiable with respect to all three values; `math` says how a GPU rounds float32
/// factors.
///
/// # Shapes
/// `x` `[b, n, ci]`, `weight` `[ci, co, 2, 2]` (PyTorch's layout), `bias` `[co]` → `[b, 4n, co]`: for each pixel its patch, row by row.
///
/// # Errors
/// Other shapes.
pub fn conv_transpose2d_2x2(x: &Value, weight: &Value, bias: &Value, math: F32Math) -> Result<Value> {
    let (b, n, ci) = x.tensor().dims3()?;
    let (wi, co, kh, kw) = weight.tensor().dims4()?;
    if wi != ci || (kh, kw) != (2, 2) || bias.tensor().dims() != [co] {
        bail!(
            "conv_transpose2d: expected a weight of [{ci}, co, 2, 2] and a bias of [co], found {:?} and {:?}",
            weight.tensor().dims(),
            bias.tensor().dims()
        );
    }
    let matrix = weight.permute(&[2, 3, 1, 0])?.reshape((4 * co, ci))?;
    linear(x, &matrix, Some(bias), math)?.reshape((b, 4 * n, co))
}

/// Pixels in the order in which `times` [`conv_transpose2d_2x2`] in a row give them, in the order of the image.
///
/// # Shapes
/// `[b, c, 4ᵗ·h·w]` → `[b, c, 2ᵗ·h, 2ᵗ·w]`
///
/// # Errors
/// Other shapes.
pub fn patches_to_image(x: &Value, (h, w): (usize, usize), times: usize) -> Result<Value> {
    let (b, c, _) = x.tensor().dims3()?;
    // Two axes each for the pixel, its patch, the patch's patches and so on.
    let dims: Vec<usize> = [b, c, h, w].into_iter().chain(std::iter::repeat_n(2, 2 * times)).collect();
    let of_side = |side: usize| (0..=times).map(move |level| 2 + 2 * level + side);
    let axes: Vec<usize> = [0, 1].into_iter().chain(of_side(0)).chain(of_side(1)).collect();
    x.reshape(dims)?.permute(&axes)?.reshape((b, c, h << times, w << times))
}

/// The pixels of an image as rows, in the order in which `times` [`conv_transpose2d_2x2`] in a row give them: the inverse of
/// [`patches_to_image`], channels last.
///
/// # Shapes
/// `[b, c, 2ᵗ·h, 2ᵗ·w]` → `[b, 4ᵗ·h·w, c]`
///
/// # Errors
/// A side that 2ᵗ does not divide.
pub fn image_to_patches(x: &Value, times: usize) -> Result<Value> {
    let (b, c, height, width) = x.tensor().dims4()?;
    let scale = 1 << times;
    if !height.is_multiple_of(scale) || !width.is_multiple_of(scale) {
        bail!("image_to_patches: {height}×{width} pixels are not whole patches of {scale}×{scale}");
    }
    // One axis for the pixel and one for the place within each patch, of rows and then of columns.
    let sides = |side: usize| std::iter::once(side / scale).chain(std::iter::repeat_n(2, times));
    let dims: Vec<usize> = [b, c].into_iter().chain(sides(height)).chain(sides(width)).collect();
    let pairs = (0..=times).flat_map(|level| [2 + level, 3 + times + level]);
    let axes: Vec<usize> = std::iter::once(0).chain(pairs).chain([1]).collect();
    x.reshape(dims)?.permute(&axes)?.reshape((b, height * width, c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_match, uniform};
    use candle_core::Tensor;

    /// The transposed convolution of an image, composed of candle's operations: `[b, ci, h, w]` → `[b, co, 2h, 2w]`.
    fn conv_transpose2d_2x2_composed(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
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

    #[test]
    fn two_in_a_row_are_those_of_an_image() -> Result<()> {
        let (b, h, w) = (2, 3, 5);
        let inputs = [
            uniform(&[b, 4, h, w], 1)?,
            uniform(&[4, 6, 2, 2], 2)?,
            uniform(&[6], 3)?,
            uniform(&[6, 3, 2, 2], 4)?,
            uniform(&[3], 5)?,
        ];
        assert_gradients_match(
            &inputs,
            |v| {
                let pixels = v[0].reshape((b, 4, h * w))?.permute(&[0, 2, 1])?;
                let x = conv_transpose2d_2x2(&pixels, &v[1], &v[2], F32Math::Exact)?;
                let x = conv_transpose2d_2x2(&x, &v[3], &v[4], F32Math::Exact)?;
                patches_to_image(&x.permute(&[0, 2, 1])?, (h, w), 2)
            },
            |t| {
                let x = conv_transpose2d_2x2_composed(&t[0], &t[1], &t[2])?;
                conv_transpose2d_2x2_composed(&x, &t[3], &t[4])
            },
        )
    }

    /// Rows of pixels go back to the image that they came of, and one of 2×2 pixels has its rows one after the other.
    #[test]
    fn an_image_is_taken_apart_as_two_in_a_row_put_it_together() -> Result<()> {
        let (b, c, h, w) = (2, 3, 2, 5);
        for times in [1, 2, 3] {
            let image = uniform(&[b, c, h << times, w << times], 1)?;
            assert_gradients_match(
                std::slice::from_ref(&image),
                |v| patches_to_image(&image_to_patches(&v[0], times)?.permute(&[0, 2, 1])?, (h, w), times),
                |t| t[0].affine(1.0, 0.0),
            )?;
        }
        let image = uniform(&[b, c, 4 * h, 4 * w], 1)?;
        // [1, 2, 2, 4]: channel 0 counts from 0, channel 1 from 10.
        let two: Vec<f32> = (0..8).chain(10..18).map(|n| n as f32).collect();
        let rows = image_to_patches(&Tensor::from_vec(two, (1, 2, 2, 4), image.device())?.into(), 1)?;
        let found = rows.tensor().narrow(2, 0, 1)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(found, [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        assert_eq!(rows.tensor().get(0)?.get(2)?.to_vec1::<f32>()?, [4.0, 14.0]);
        assert!(image_to_patches(&image.into(), 3).unwrap_err().to_string().contains("8×20 pixels"));
        Ok(())
    }

    #[test]
    fn other_shapes_are_refused() -> Result<()> {
        let [x, weight, bias] = [&[2, 9, 4][..], &[3, 6, 2, 2], &[6]].map(|shape| uniform(shape, 1).map(Value::from));
        assert!(conv_transpose2d_2x2(&x?, &weight?, &bias?, F32Math::Exact).unwrap_err().to_string().contains("[4, co, 2, 2]"));
        Ok(())
    }
}
