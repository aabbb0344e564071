//! Why a model cannot be made.

use sam_ladder_ops::error_line;
use thiserror::Error;

/// Why a model cannot be made of the weights given.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The model needs a tensor that the weights lack.
    #[error("weight `{0}` is missing")]
    Missing(String),
    /// The weights hold a tensor that the model has no place for.
    #[error("weight `{0}` is not one of the model's")]
    Extra(String),
    /// A tensor of another shape.
    #[error("weight `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// The shape that the model needs.
        expected: Vec<usize>,
        /// The shape of the tensor given.
        found: Vec<usize>,
    },
    /// An image size that patches do not tile.
    #[error("image size must be a positive multiple of 16, got {0}")]
    ImageSize(usize),
    /// Too few classes.
    #[error("the number of classes must be at least 2 with the background, got {0}")]
    Classes(usize),
    /// Skips without what they come from.
    #[error("the decoder's skips need a ResNet as side network, in an arm that uses it")]
    NoStages,
    /// Neighbours without what they join.
    #[error("neighbours join SAM's embeddings, which the arm cnn-only leaves out")]
    NoNeighbours,
    /// A ladder without one of its sides.
    #[error("the ladder mixes SAM's rungs into the side network, in the arm full")]
    NoLadder,
    /// An error of the tensor library.
    #[error("{}", error_line(.0))]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            ModelError::Missing(_) => {
                Some("the model needs every tensor of the published state dict but the image encoder's".into())
            }
            ModelError::Extra(_) => Some("leave out what belongs to the image encoder or to the CNN beyond layer3".into()),
            ModelError::NoNeighbours => Some("take another arm, or no neighbours".into()),
            ModelError::NoLadder => Some("take the arm full, or no ladder".into()),
            ModelError::NoStages => Some("take another side network or arm, or the plain decoder".into()),
            ModelError::Shape { .. } | ModelError::ImageSize(_) | ModelError::Classes(_) | ModelError::Tensor(_) => None,
        }
    }
}
