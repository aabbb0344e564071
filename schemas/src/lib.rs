//! Plain data of sam-ladder: configs, rows of every table, names, shapes and version of the store.
//!
//! No I/O and no tensors live here, so that every stage, and every tool around them, can share these types at no cost.

pub mod classes;
pub mod differences;
pub mod encoder;
pub mod precision;
pub mod precompute;
pub mod slurm;
pub mod store;
pub mod sweep;
pub mod tables;
pub mod train;
pub mod variants;
