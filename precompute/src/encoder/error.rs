//! Why the encoder cannot be made or run.

use super::other_model::OtherModel;
use sam_ladder_formats::Error as FileError;
use sam_ladder_ops::error_line;
use sam_ladder_schemas::precision::Precision;

/// What the functions of this module return.
pub type Result<T> = std::result::Result<T, EncoderError>;

/// Why the encoder could not be made or run; [`Self::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// A tensor of the checkpoint is missing, damaged or of another shape.
    #[error(transparent)]
    Weights(#[from] FileError),
    /// The checkpoint is of another architecture.
    #[error("{path} is a {found} checkpoint, expected {expected}")]
    OtherArchitecture {
        /// The file.
        path: String,
        /// Name of the checkpoint's architecture.
        found: &'static str,
        /// Name of the requested architecture.
        expected: &'static str,
    },
    /// The checkpoint has no table of positions, by which SAM's encoders are known.
    #[error("{path}: the key {key} is missing, so it is not a SAM checkpoint{}", model.as_ref().map_or_else(String::new, |model| format!("; it looks like {}", model.name())))]
    NoPositions {
        /// The file.
        path: String,
        /// The table's name.
        key: String,
        /// What the file's names are those of, if that is known.
        model: Option<OtherModel>,
    },
    /// The checkpoint's table of positions is none of SAM's.
    #[error("{path}: {key} has shape {found:?}, expected [1, n, n, 768], [1, n, n, 1024] or [1, n, n, 1280]")]
    PositionsShape {
        /// The file.
        path: String,
        /// The table's name.
        key: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// The checkpoint is none of DINOv2's and DINOv3's that are known.
    #[error("{path} is not a checkpoint of DINOv2's or DINOv3's ViT-S, B or L{}", model.as_ref().map_or_else(String::new, |model| format!("; it looks like {}", model.name())))]
    NoDino {
        /// The file.
        path: String,
        /// What the file's names are those of, if that is known.
        model: Option<OtherModel>,
    },
    /// The checkpoint's table of positions is not DINOv2's.
    #[error("{path}: pos_embed has shape {found:?}, expected [1, {}n·n, {width}]", if *class { "1 + " } else { "" })]
    DinoPositions {
        /// The file.
        path: String,
        /// Its shape.
        found: Vec<usize>,
        /// Width of a token.
        width: usize,
        /// Whether the class token has a position.
        class: bool,
    },
    /// The checkpoint's rotary positions are not DINOv3's.
    #[error("{path}: {key} are not those of DINOv3, 100^(4·k/d)")]
    OtherPeriods {
        /// The file.
        path: String,
        /// Their name.
        key: &'static str,
    },
    /// The checkpoint holds tensors that the encoder lacks.
    #[error("{path}: the key {key}{} is not one of {arch}", if *others > 0 { format!(" and {others} more") } else { String::new() })]
    ForeignTensors {
        /// The file.
        path: String,
        /// The first of them.
        key: String,
        /// How many there are besides.
        others: usize,
        /// The architecture, and whose it is.
        arch: String,
    },
    /// The image size is not a positive multiple of 16.
    #[error("image size {0} is not a positive multiple of 16")]
    ImageSize(usize),
    /// A batch of images has another shape than the encoder takes.
    #[error("images of shape {found:?}, expected [b, 1 to 3, {size}, {size}]")]
    ImageShape {
        /// The batch's shape.
        found: Vec<usize>,
        /// The encoder's image size.
        size: usize,
    },
    /// The device does not compute in this precision.
    #[error("--precision {} needs {}, but the device is {device}", asked.name(), if *asked == Precision::Bf16 { "a GPU or a processor with AVX512-BF16" } else { "a GPU" })]
    Precision {
        /// The requested precision.
        asked: Precision,
        /// Where the encoder would live.
        device: String,
    },
    /// A tensor operation failed.
    #[error("the encoder failed: {}", error_line(.0))]
    Tensor(#[from] candle_core::Error),
}

impl EncoderError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            EncoderError::OtherArchitecture { found, expected, .. } => {
                Some(format!("pass --encoder {found} or a checkpoint of {expected}"))
            }
            EncoderError::NoPositions { model: Some(model), .. } => Some(model.advice()),
            EncoderError::NoPositions { .. } | EncoderError::PositionsShape { .. } => {
                Some("pass sam_vit_b, sam_vit_l or sam_vit_h as Segment Anything publishes them (make weights)".into())
            }
            EncoderError::ForeignTensors { arch, .. } if arch.starts_with("SAM") => Some("pass SAM's own checkpoint".into()),
            EncoderError::NoDino { model: Some(model), .. } => Some(model.advice()),
            EncoderError::ForeignTensors { .. }
            | EncoderError::NoDino { .. }
            | EncoderError::DinoPositions { .. }
            | EncoderError::OtherPeriods { .. } => {
                Some("pass the pretrained backbone as its publisher or timm publishes it, without heads".into())
            }
            EncoderError::ImageSize(size) => Some(format!("the next one is {}", size.next_multiple_of(16).max(16))),
            EncoderError::Precision { .. } => Some("pass --precision f32".into()),
            EncoderError::Weights(error) => error.hint(),
            EncoderError::ImageShape { .. } | EncoderError::Tensor(_) => None,
        }
    }
}
