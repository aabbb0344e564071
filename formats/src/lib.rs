//! Reads others' file formats and writes files. This crate knows nothing of slices, stores and runs.
//!
//! | module | what it reads and writes |
//! | --- | --- |
//! | [`atomic`] | any file: written under a temporary name, synced and renamed, so that no half-written file is ever seen |
//! | [`rows`] | Parquet tables, whose rows are structs with serde |
//! | [`volume`] | volumes of any format that is read: NIfTI, `.hdr`/`.img` pairs, NRRD, MetaImage |
//! | [`nifti`] | NIfTI-1 and NIfTI-2, where voxels lie in space, and writing `.nii` and `.nii.gz` |
//! | [`npz`], [`hdf5`] | arrays of numbers in `.npz` and HDF5 files (read only) |
//! | [`csv`] | a column of a table, and fields to write |
//! | [`state_dict`] | checkpoints: `.pth` and `.safetensors` (feature `state-dict`) |
//! | [`onnx`] | models in ONNX (write only) |
//! | [`placeholder`] | links and pointer files of git-annex and Git LFS, whose content was not fetched |
//! | [`hash`] | SHA-256 of bytes and files |
//!
//! Readers do not trust headers: the file's size bounds what they allocate.

pub mod atomic;
pub mod csv;
mod error;
mod gzip;
pub mod hash;
pub mod hdf5;
pub mod nifti;
pub mod npz;
mod numeric;
pub mod onnx;
pub mod outputs;
mod packed;
mod pages;
pub mod placeholder;
pub mod rows;
#[cfg(feature = "state-dict")]
pub mod state_dict;
pub mod volume;

pub use error::{Error, Result, io_hint};

/// An array with three axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// `[d, h, w]`.
    pub shape: [usize; 3],
    /// In C order.
    pub values: Vec<f32>,
}
