//! What stage one will do, found out from file names, headers and hashes before anything is computed.

use crate::disk::in_words;
use crate::error::Result;
use crate::rungs::RungMaps;
use crate::scans::{ScanSource, find_new_scans};
use sam_ladder_cache::{CaseLayout, StoreLayout};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::observer::Observer;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::store::StoreAttributes;
use std::fmt;
use std::path::Path;

/// The scans, and the store that they become.
#[derive(Debug)]
pub struct Plan {
    pub(super) source: ScanSource,
    pub(super) layout: StoreLayout,
    /// Bytes of the reference masks, uncompressed.
    mask_bytes: u64,
    /// The rungs' maps, if they are not made for the store.
    pub(super) rungs: Option<RungMaps>,
}

impl Plan {
    /// Opens the folder of scans, checks the labels, hashes every file and lays the store out. The observer gets what the user should know of
    /// the scans.
    ///
    /// # Errors
    /// When the settings do not go together, a scan's file cannot be read, or the labels cannot be used.
    pub fn new(scans: &Path, config: &PrecomputeConfig, observer: &dyn Observer) -> Result<Self> {
        config.validate()?;
        let source = if config.unlabelled {
            let found = find_new_scans(&[scans.into()], &config.preprocessing)?;
            found.notes.iter().for_each(|note| observer.message(note));
            ScanSource::unlabelled(&found.scans, &config.preprocessing)?
        } else {
            ScanSource::open(scans, &config.preprocessing)?.with_test_cases(&config.test_cases)?
        };
        Self::of(source, config, observer)
    }

    /// As [`Self::new`], of scans that are found already.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(source: ScanSource, config: &PrecomputeConfig, observer: &dyn Observer) -> Result<Self> {
        config.validate()?;
        for note in config.region_notes().into_iter().chain(source.notes(&config.class_names)) {
            observer.message(&note);
        }
        // A byte per voxel.
        let mask_bytes = source.check_labels(&config.class_names, observer)? as u64;
        let sources = source.sources(observer)?;
        for note in source.repeated(&sources) {
            observer.message(&note);
        }
        let attributes = StoreAttributes::new(config.clone(), sources);
        let cases = source
            .cases()
            .iter()
            .map(|case| CaseLayout {
                case: case.case.clone(),
                split: case.split,
                num_slices: case.num_slices,
                sources: case.all_files().map(|file| source.source_name(file)).collect(),
            })
            .collect();
        Ok(Plan { layout: StoreLayout::new(attributes, cases)?, source, mask_bytes, rungs: None })
    }

    /// The same with rungs by these maps, such as those of a run's store, instead of maps made for the store.
    pub fn with_rungs(self, rungs: Option<RungMaps>) -> Self {
        Plan { rungs, ..self }
    }

    /// Reads every scan, without encoding it, and reports what the encoding would: strange values, cases that cannot be used.
    pub fn check_values(&self, observer: &dyn Observer) {
        self.source.check_values(observer);
    }

    /// The layout of the store.
    pub fn layout(&self) -> &StoreLayout {
        &self.layout
    }
}

impl fmt::Display for Plan {
    /// One line: scans, slices and variants of each split, images to encode, bytes on disk.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cases = |split| self.source.cases().iter().filter(|case| case.split == split).count();
        for split in Split::ALL {
            let (slices, variants) = (self.layout.num_slices(split), self.layout.num_variants(split));
            let (scans, slices) = (counted(cases(split), "scan"), counted(slices, "slice"));
            write!(f, "{split}: {scans}, {slices} × {}; ", counted(variants, "variant"))?;
        }
        let size = in_words(self.layout.num_bytes() + self.mask_bytes);
        write!(f, "{} to encode, at most {size} of tensors on disk", counted(self.layout.num_items(), "image"))
    }
}
