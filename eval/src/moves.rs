//! How a complete evaluation comes to its place among whatever else its folder holds.
//!
//! Its files lie in a folder whose name says what they replace and which they are. Each step is a rename and can be taken
//! again, so a start that finds such a folder finishes what another had begun.

use crate::error::{EvalError, Result};
use sam_ladder_formats::Error;
use sam_ladder_formats::atomic::sync_folder;
use sam_ladder_formats::outputs::{is_real_folder, is_there, lock_folder};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// Folder of a complete evaluation on its way to its place, within the output folder.
pub(crate) const PUBLISHING: &str = ".sam-ladder-eval-complete";
/// What is on its way, within that folder: [`Moves`].
pub(crate) const MOVES: &str = "moves.json";
/// Folder of what is replaced, within that folder.
pub(crate) const REPLACED: &str = "replaced";
/// What [`Error::Foreign`] says that is expected.
pub(crate) const WHAT: &str = "part of an evaluation by sam-ladder";

/// What moves when an evaluation comes to its place.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Moves {
    /// Parts of the earlier evaluation.
    pub(crate) replaces: Vec<String>,
    /// Parts of the new one.
    pub(crate) brings: Vec<String>,
}

/// Finishes the moves of an evaluation that was complete, if there is one; the folder must be locked.
pub(crate) fn finish_moves(folder: &Path) -> Result<()> {
    let publishing = folder.join(PUBLISHING);
    if !is_real_folder(&publishing) {
        return Ok(());
    }
    let replaced = publishing.join(REPLACED);
    // Without it the moves were finished, and only their folder was not removed.
    if is_there(&publishing.join(MOVES)) {
        let path = publishing.join(MOVES);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let moves: Moves = serde_json::from_slice(&bytes).map_err(|source| EvalError::Json { path, source })?;
        fs::create_dir_all(&replaced).map_err(Error::io("create", &replaced))?;
        // The table that says that there is an evaluation goes first and comes last.
        for name in moves.replaces.iter().rev() {
            let is_published = moves.brings.contains(name) && !is_there(&publishing.join(name));
            if !is_published && !is_there(&replaced.join(name)) && is_there(&folder.join(name)) {
                move_to(&folder.join(name), &replaced.join(name))?;
            }
        }
        for name in &moves.brings {
            let (made, place) = (publishing.join(name), folder.join(name));
            if is_there(&made) {
                if is_there(&place) {
                    return Err(Error::Foreign { path: place, what: WHAT }.into());
                }
                move_to(&made, &place)?;
            }
        }
        sync_folder(folder)?;
        fs::remove_file(publishing.join(MOVES)).map_err(Error::io("remove", &publishing))?;
    }
    fs::remove_dir_all(&publishing).map_err(Error::io("remove", &publishing))?;
    Ok(sync_folder(folder)?)
}

fn move_to(from: &Path, to: &Path) -> Result<()> {
    Ok(fs::rename(from, to).map_err(Error::io("write", to))?)
}

/// As [`finish_moves`], for who only wants to read; what cannot be done is left to the next evaluation.
pub(crate) fn finish_interrupted(folder: &Path) {
    if is_real_folder(&folder.join(PUBLISHING)) {
        let _ = lock_folder(folder).map(|_lock| finish_moves(folder));
    }
}
