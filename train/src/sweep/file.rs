//! Reads the sweep's TOML file; `sam_ladder_schemas::sweep::SweepFile` defines it.

use crate::error::{Result, io};
use sam_ladder_schemas::setting::{FileError, Problem};
use sam_ladder_schemas::sweep::{SweepConfig, parse_sweep};
use std::path::Path;

/// Largest accepted file.
const LARGEST_FILE: u64 = 1 << 20;

/// Reads and checks a sweep's file.
///
/// # Errors
/// The operating system's, and problems of the file with line, column and key.
pub fn read_config(path: &Path) -> Result<SweepConfig> {
    let name = path.display().to_string();
    let refuse = |problem: Problem| FileError { file: name.clone(), line: 1, column: 1, error: problem.with("") };
    let length = std::fs::metadata(path).map_err(io(path))?.len();
    if length > LARGEST_FILE {
        return Err(refuse(Problem::expected("at most 1 MiB", format!("{length} bytes"))).into());
    }
    let bytes = std::fs::read(path).map_err(io(path))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| refuse(Problem::Syntax(error.to_string())))?;
    Ok(parse_sweep(&name, text)?)
}
