//! Stage two: the side network, the gate, the mask decoder, losses, optimizers, the training loop and sweeps.
//!
//! | file | what it defines |
//! | --- | --- |
//! | [`model`] | the side network, the gate, the mask decoder |
//! | `loss`, `optimizer`, `average`, `schedule`, `init` | equation (4), the updates, the average of weights, the learning rate, the initial weights |
//! | [`run`] | a training run: batches, steps, validation, checkpoints |
//! | [`sweep`] | many runs, and which of them continue |
//! | `trained_model`, `predict`, `segment`, `on_grid`, `agreement` | a trained model, and masks from it |
//! | `groups` | the cases of one patient, and folds |
//! | `held_out` | the cases that a run held out, for a validation at full resolution |
//! | `export` | a model as one file: in the published names, or in ONNX |
//! | `onnx` | the model as a graph of ONNX operators |

mod agreement;
mod average;
mod checksum;
mod error;
mod export;
mod groups;
mod held_out;
mod init;
mod lock;
mod loss;
pub mod model;
mod on_grid;
mod onnx;
mod optimizer;
mod predict;
pub mod run;
mod schedule;
mod segment;
pub mod sweep;
mod trained_model;

pub use agreement::Agreement;
pub use average::Average;
pub use error::{Result, TrainError};
pub use export::{ExportArgs, Exported, export};
pub use groups::Groups;
pub use held_out::{HeldOut, held_out};
pub use init::{InitSources, initial_weights};
pub use loss::{LadderLoss, class_weights, ladder_loss};
pub use optimizer::Optimizer;
pub use predict::{CaseRequest, Ensemble, PredictedMask, identity_variant};
pub use schedule::{learning_rate, scheduled_rate};
pub use segment::{MaskRule, Segmented, masks_of_logits};
pub use trained_model::{RunCheckpoint, WeightSource, load_model, load_trained, run_checkpoint};
