//! How long stage one would take, measured without writing anything.

use super::encode::{Encode, encode_batches};
use super::plan::Plan;
use crate::error::Result;
use sam_ladder_cache::{Survey, images_stored, survey};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Batches whose time is taken, after one that warms up.
const MEASURED_BATCHES: usize = 2;

/// What is left to do for a store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Images that the store holds already.
    pub images_stored: usize,
    /// Images that are left to encode.
    pub images_left: usize,
    /// Slices that are encoded first, of whose tokens the rungs' projection is made.
    pub sampled: usize,
    /// Time of encoding one, as measured.
    pub seconds_per_image: f64,
    /// Images of a measured batch.
    pub batch_size: usize,
}

/// Looks at the store and encodes a few batches of made-up images. Writes nothing.
///
/// # Errors
/// Those with which the store would be refused, and the encoder's.
pub fn estimate<E: Encode>(plan: &Plan, store: &Path, batch_size: usize, load: impl FnOnce() -> Result<E>) -> Result<Estimate> {
    let images_stored = images_stored(store, &plan.layout)?;
    let seconds_per_image = seconds_per_image(&load()?, &plan.layout.attributes().config, batch_size)?;
    let images_left = plan.layout.num_items().saturating_sub(images_stored);
    let sampled = match survey(store, &plan.layout)? {
        Survey::New => plan.layout.attributes().rung_sample.len(),
        Survey::Begun | Survey::Grows(_) | Survey::Complete => 0,
    };
    Ok(Estimate { images_stored, images_left, sampled, seconds_per_image, batch_size })
}

/// Encodes a few batches of made-up images and takes the time.
///
/// # Errors
/// The encoder's.
pub fn seconds_per_image<E: Encode>(encoder: &E, config: &PrecomputeConfig, batch_size: usize) -> Result<f64> {
    let size = config.image_size;
    // A ramp of grey: the encoder's time does not depend on what it sees.
    let batch_len = batch_size * config.image_len();
    let images: Vec<f32> = (0..MEASURED_BATCHES * batch_len).map(|i| (i % size) as f32 / size as f32).collect();
    let sizes = (batch_size, config.image_len(), size);
    encode_batches(encoder, &images[..batch_len], sizes, [config.embeddings_len(), 0])?;
    let start = Instant::now();
    encode_batches(encoder, &images, sizes, [config.embeddings_len(), 0])?;
    Ok(start.elapsed().as_secs_f64() / (MEASURED_BATCHES * batch_size) as f64)
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Estimate { images_stored, images_left, sampled, seconds_per_image, batch_size } = self;
        if *images_stored > 0 {
            write!(f, "{} stored already; ", counted(*images_stored, "image"))?;
        }
        let total = Duration::from_secs_f64(seconds_per_image * (images_left + sampled) as f64).as_secs();
        let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
        let images = counted(*images_left, "image");
        if *sampled > 0 {
            write!(f, "{} to sample for the rungs' projection; ", counted(*sampled, "slice"))?;
        }
        write!(f, "{images} to encode: about {hours} h {minutes:02} min {seconds:02} s on this machine ")?;
        write!(f, "({seconds_per_image:.3} s per image, measured over {MEASURED_BATCHES} batches of {batch_size})")
    }
}
