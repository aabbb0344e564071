//! Stage two: the side network, the gate, the mask decoder, losses, optimizers, the training loop and sweeps.

pub mod error;
pub mod export;
pub mod init;
pub mod loss;
pub mod model;
pub mod optimizer;
pub mod predict;
pub mod run;
pub mod schedule;
pub mod segment;
pub mod sweep;
pub mod trained_model;
