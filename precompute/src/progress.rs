//! Bars for what takes long before the first image is encoded; drawn on standard error, and only where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// How often a bar is drawn while nothing moves.
const REDRAW: Duration = Duration::from_secs(1);

/// A bar of bytes that are read; `what` says for what.
pub(crate) fn bytes(len: u64, what: &str) -> ProgressBar {
    bar(len, what, "{bytes}/{total_bytes}")
}

/// A bar of slices that are made.
pub(crate) fn slices(len: usize, what: &str) -> ProgressBar {
    bar(len as u64, what, "{pos}/{len} slices")
}

/// A bar of tensors that are loaded.
pub(crate) fn tensors(len: usize, what: &str) -> ProgressBar {
    bar(len as u64, what, "{pos}/{len} tensors")
}

fn bar(len: u64, what: &str, done: &str) -> ProgressBar {
    let bar = ProgressBar::new(len);
    if let Ok(style) = ProgressStyle::with_template(&format!("{{wide_bar}} {{msg}}, {done}, {{eta}} left")) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(REDRAW);
    bar
}
