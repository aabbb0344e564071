//! What is said of the names in a checkpoint.

use crate::print::print_note;
use sam_ladder_formats::state_dict::StateDict;
use std::path::Path;

/// Says which of several models in a checkpoint is taken, and what is removed from the names of its tensors. One that cannot be read is
/// reported by who reads it.
pub fn note_names(path: &Path) {
    let notes = StateDict::open(path).map(|state| state.notes()).unwrap_or_default();
    notes.iter().for_each(|note| print_note!("{note}"));
}
