//! Whether training reads its batches from disk or from memory.

/// Where batches come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum ReadMode {
    /// From memory if half of the available memory is enough, otherwise from disk
    #[default]
    Auto,
    /// From disk at each step; memory holds two batches and the shards' indexes, however large the store
    // For a store in a bucket: from the local copies of its chunks. An index takes 48 bytes per slice and variant.
    Stream,
    /// From disk once, then from memory, in the stored number format
    Resident,
}
