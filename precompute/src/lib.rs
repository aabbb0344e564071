//! Stage one: read scans, preprocess, augment, encode with the frozen SAM encoder, write the store.

pub mod augment;
pub mod disk;
pub mod draw;
pub mod encoder;
pub mod error;
pub mod phantom;
pub mod pipeline;
pub mod preprocess;
pub mod rungs;
pub mod scans;
