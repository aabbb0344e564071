//! Stage two: the side network, the gate, the mask decoder, losses, optimizers, the training loop and sweeps.
//!
//! | file | what it defines |
//! | --- | --- |
//! | [`model`] | the side network, the gate, the mask decoder |
//! | `loss`, `optimizer`, `schedule`, `init` | equation (4), the updates, the learning rate, the initial weights |
//! | [`run`] | a training run: batches, steps, validation, checkpoints |
//! | [`sweep`] | many runs, and which of them continue |
//! | `trained_model`, `predict`, `segment` | a trained model, and masks from it |
//! | `groups` | the cases of one patient, and folds |
//! | `held_out` | the cases that a run held out, for a validation at full resolution |
//! | `export` | a model as one file: in the published names, or in ONNX |
//! | `onnx` | the model as a graph of ONNX operators |

mod checksum;
mod error;
mod export;
mod groups;
mod held_out;
mod init;
mod lock;
mod loss;
pub mod model;
mod onnx;
mod optimizer;
mod predict;
pub mod run;
mod schedule;
mod segment;
pub mod sweep;
mod trained_model;

pub use error::{Result, TrainError};
pub use export::{ExportArgs, Exported, export};
pub use groups::Groups;
pub use held_out::{HeldOut, held_out};
pub use init::{InitSources, initial_weights};
pub use loss::ladder_loss;
pub use optimizer::Optimizer;
pub use predict::{CaseRequest, Ensemble, PredictedMask, identity_variant};
pub use schedule::learning_rate;
pub use segment::masks_of_logits;
pub use trained_model::{RunCheckpoint, WeightSource, load_model, load_trained};
