//! The embedding store: Zarr arrays and Parquet tables.
//!
//! [`StoreWriter`] makes a store; [`Store`] and [`Reader`] read a finished one. `docs/reference/store-format.md` describes the layout for
//! other programs. A store lies in a folder or under a key of an S3 bucket: `/data/s.zarr`, `s3://bucket/s.zarr`. No other crate of the
//! workspace touches a store's files.

mod arrays;
mod batch;
mod checksums;
mod chunk_cache;
mod error;
mod layout;
mod manifest;
mod number;
mod reader;
mod remote;
mod rung_sample;
mod shard;
mod slice_table;
mod storage;
mod store;
mod stored_array;
mod training;
mod verify;
mod writer;

pub use batch::{Batch, BatchParts, Values};
pub use error::{Error, Result};
pub use layout::StoreLayout;
pub use manifest::read_file;
pub use reader::{ReadMode, Reader};
pub use remote::CacheOptions;
pub use sam_ladder_schemas::store::CaseLayout;
pub use storage::is_remote;
pub use store::{ReferenceMask, Store};
pub use training::TrainingSplit;
pub use verify::{Damage, Part, VerifyReport, verify};
pub use writer::{Opened, SliceTensors, StoreWriter, Stored, Survey, Wanted, begin_repair, images_stored, stored, survey};
