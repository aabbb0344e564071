//! What is said of the names in a checkpoint.

use crate::print::print_note;
use sam_ladder_formats::state_dict::StateDict;
use std::path::Path;

/// Says what is removed from the names of a checkpoint's tensors, if anything is. One that cannot be read is reported by who reads it.
pub fn note_prefix(path: &Path) {
    if let Ok(state) = StateDict::open(path)
        && let Some(prefix) = state.removed_prefix()
    {
        print_note!("{}: {prefix} is removed from the names of its tensors", path.display());
    }
}
