//! Access to only the training split of a store.

use crate::error::Result;
use crate::reader::{ReadMode, Reader};
use crate::remote::CacheOptions;
use crate::store::Store;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::store::StoreAttributes;
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use sam_ladder_schemas::variants::Variant;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A store without access to the test scans' images, embeddings, labels or masks. Training and sweeps hold this instead of a [`Store`], so
/// that nothing they choose can depend on the test scans.
#[derive(Debug, Clone)]
pub struct TrainingSplit(Arc<Store>);

impl TrainingSplit {
    /// Opens a complete store.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, None)
    }

    /// Opens a complete store; copies of a bucket's chunks are kept where `cache` says.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(path: impl AsRef<Path>, cache: Option<&CacheOptions>) -> Result<Self> {
        Ok(TrainingSplit(Arc::new(Store::open_with(path, cache)?)))
    }

    /// Folder of the store.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Attributes of the store: version, `cache_id`, config, sources.
    pub fn attributes(&self) -> &StoreAttributes {
        self.0.attributes()
    }

    /// Settings with which the tensors were made.
    pub fn config(&self) -> &PrecomputeConfig {
        self.0.config()
    }

    /// The variants of a training slice, by index.
    pub fn variants(&self) -> &[Variant] {
        self.0.variants(Split::Train)
    }

    /// The training slices, by row: grouped by case, slices ascending.
    pub fn slices(&self) -> &[SliceRow] {
        self.0.slices(Split::Train)
    }

    /// The training scans, in the order of their rows.
    pub fn scans(&self) -> &[ScanRow] {
        self.0.scans(Split::Train)
    }

    /// The training cases, sorted.
    pub fn cases(&self) -> Vec<String> {
        let mut cases = self.0.cases(Split::Train);
        cases.sort_unstable();
        cases
    }

    /// Whether a test case has this name; this is all that can be learnt about the test cases.
    pub fn is_test_case(&self, case: &str) -> bool {
        self.0.slices(Split::Test).iter().any(|slice| slice.case == case)
    }

    /// File of SAM's frozen prompt encoder and mask decoder, under the names of SAM's checkpoints.
    pub fn decoder_path(&self) -> PathBuf {
        self.0.decoder_path()
    }

    /// A reader of the training slices.
    pub fn reader(&self, mode: ReadMode) -> Reader {
        Reader::new(self.0.clone(), Split::Train, mode)
    }
}
