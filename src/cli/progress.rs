//! Progress bars of the commands: on standard error, and only where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// How often a bar is drawn while nothing moves.
const REDRAW: Duration = Duration::from_secs(1);

/// A bar of `len` steps; `template` is what stands right of it.
///
/// # Errors
/// A template that indicatif does not know.
pub fn bar(len: usize, template: &str) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(len as u64);
    bar.set_style(ProgressStyle::with_template(&format!("{{wide_bar}} {template}"))?);
    bar.enable_steady_tick(REDRAW);
    Ok(bar)
}

/// Seconds in words: `42 s`, `3 min 20 s`, `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let whole = Duration::from_secs_f64(seconds.max(0.0)).as_secs();
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_are_said_as_people_say_them() {
        let said = [0.04, 9.94, 42.0, 200.0, 7500.0].map(duration);
        assert_eq!(said, ["0.0 s", "9.9 s", "42 s", "3 min 20 s", "2 h 05 min"]);
    }
}
