//! The check of all values without encoding: what a dry run says of the scans.

use super::ScanSource;
use rayon::prelude::*;
use sam_ladder_schemas::observer::{Observer, Phase, Unit};

/// Cases whose voxels are in memory at the same time.
const AT_ONCE: usize = 2;

impl ScanSource {
    /// Reads every case as the encoding will, and reports to the observer what it would: values that are not what the layout promises, and
    /// cases that cannot be used.
    pub fn check_values(&self, observer: &dyn Observer) {
        let progress = observer.begin(Phase::new("checking the values", Unit::Files, self.cases.len() as u64));
        for cases in self.cases.chunks(AT_ONCE) {
            let notes: Vec<Vec<String>> = cases
                .par_iter()
                .map(|case| match self.read(case) {
                    Ok(scan) => scan.notes,
                    Err(error) => vec![format!("warning: case {} cannot be used: {error}", case.case)],
                })
                .collect();
            notes.iter().flatten().for_each(|note| observer.message(note));
            progress.advance(cases.len() as u64);
        }
    }
}
