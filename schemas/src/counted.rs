//! Numbers of things in messages.

use std::fmt::Display;

/// `1 scan`, `2 scans`: a number with its noun, of which the singular is given.
///
/// ```
/// # use sam_ladder_schemas::counted::counted;
/// assert_eq!(counted(1u32, "training case"), "1 training case");
/// assert_eq!(counted(0usize, "training case"), "0 training cases");
/// ```
pub fn counted<N: Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let plural = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
