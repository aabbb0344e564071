//! Plain data of sam-ladder: configs, rows of every table, names, shapes and version of the store.
//!
//! It has no I/O and no tensors, so that every stage and tool can share these types at no cost.

/// The conversions by which serde reads and writes a type as its text: `#[serde(try_from = "String", into = "String")]`.
macro_rules! by_text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}
pub(crate) use by_text;

pub mod classes;
pub mod counted;
pub mod cuda_graph;
pub mod device_store;
pub mod differences;
pub mod encoder;
pub mod eval;
pub mod group_by;
pub mod image_channels;
pub mod inspection;
pub mod json_schema;
pub mod observer;
pub mod orientation;
pub mod postprocessing;
pub mod precision;
pub mod precompute;
pub mod preprocessing;
pub mod read_mode;
pub mod regions;
pub mod rungs;
pub mod sam_names;
pub mod setting;
pub mod slurm;
pub mod store;
pub mod sweep;
pub mod tables;
pub mod toml_file;
pub mod train;
pub mod train_choices;
pub mod variants;
