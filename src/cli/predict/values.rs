//! Whether a new scan's values are like those of the training scans.

use super::settings::Settings;
use sam_ladder_schemas::preprocessing::Intensity;
use sam_ladder_schemas::tables::{PERCENTILES, ScanRow};

/// A line for each windowed channel whose values are far from those of the training scans. Other channels are scaled between their own
/// percentiles, so that only their order matters.
pub fn strange(scan: &ScanRow, settings: &Settings) -> Vec<String> {
    let preprocessing = &settings.config.preprocessing;
    let [low, high] = preprocessing.window_hu.map(f64::from);
    let channels = preprocessing.channels.iter().zip(&settings.training_values).zip(scan.percentiles.chunks(PERCENTILES.len()));
    let strange = channels.filter(|((channel, training), percentiles)| {
        // Training scans of the published layout are windowed already: their values say nothing of a file's.
        let windowed_already = training.spread() < 0.1 * (high - low);
        channel.intensity == Intensity::Window && !windowed_already && training.is_far_from(percentiles)
    });
    strange
        .map(|((channel, training), percentiles)| {
            let part = |at: usize| {
                let (found, low, high) = (percentiles[at], training.low[at], training.high[at]);
                format!("{found:.1} ({low:.1} to {high:.1})")
            };
            format!(
                "warning: scan {}: its {} values differ from the training scans' (in brackets): 0.5th percentile {}, 50th {}, 99.5th {}",
                scan.case,
                channel.name,
                part(0),
                part(2),
                part(4)
            )
        })
        .collect()
}
