//! Synthetic abdominal CT scans in the raw Synapse layout: a body with the organs as deformed ellipsoids, CT-like values and
//! noise. They stand in for patients where the pipeline must run, learn something and be tested without any.
//!
//! Everything follows from the seed: each case draws from its own stream of one ChaCha8 generator.

mod anatomy;

use anatomy::Body;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use rayon::prelude::*;
use sam_ladder_formats::Error as FileError;
use sam_ladder_formats::nifti::{Geometry, write_nifti};
use sam_ladder_schemas::classes::SYNAPSE_TEST_CASES;
use sam_ladder_schemas::observer::{Observer, Phase, Progress, Unit};
use sam_ladder_schemas::setting::{Problem, SettingError};
use std::path::PathBuf;

/// Width and depth of the field of view across the patient, in millimetres.
const FIELD_OF_VIEW_MM: f64 = 400.0;
/// Length of the scan along the patient, in millimetres.
const SCAN_LENGTH_MM: f64 = 300.0;
/// Standard deviation of the noise, in Hounsfield units.
const NOISE_HU: f32 = 12.0;
/// Training cases of the Synapse set, in order: 11 to 20 do not exist.
const TRAIN_CASES: [u32; 18] = [5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40];

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhantomConfig {
    /// Folder that gets `RawData/Training/{img,label}`; none of the scans may be there yet.
    pub out: PathBuf,
    /// Number of scans, 1 to 30: two fifths of them have test numbers, from two scans on at least one.
    pub cases: usize,
    /// Height and width of a slice, in pixels, 16 to 2048.
    pub size: usize,
    /// Slices of a scan, 1 to 2048.
    pub depth: usize,
    /// The same seed gives the same scans.
    pub seed: u64,
}

/// What can go wrong while writing phantoms. [`Self::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PhantomError {
    /// A setting out of range.
    #[error("{0}")]
    Setting(#[from] SettingError),
    /// A scan that would be written is there already.
    #[error("{} exists", .0.display())]
    Exists(PathBuf),
    /// A folder or scan that cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl PhantomError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            PhantomError::Setting(error) => error.hint(),
            PhantomError::Exists(_) => Some("remove it, or choose another --out".into()),
            PhantomError::File(error) => error.hint(),
        }
    }
}

/// Writes the scans, on all threads: `RawData/Training/img/imgNNNN.nii.gz` (int16, Hounsfield units) and
/// `RawData/Training/label/labelNNNN.nii.gz` (uint8, raw Synapse labels).
///
/// # Errors
/// When a setting is out of range, a scan is there already, or a file cannot be written.
pub fn write_phantom(config: &PhantomConfig, observer: &dyn Observer) -> Result<(), PhantomError> {
    for (setting, found, min, max) in
        [("cases", config.cases, 1, 30), ("size", config.size, 16, 2048), ("depth", config.depth, 1, 2048)]
    {
        if !(min..=max).contains(&found) {
            return Err(Problem::expected(format!("a whole number from {min} to {max}"), found).with(setting).into());
        }
    }
    let training = config.out.join("RawData/Training");
    let scans: Vec<(u32, [PathBuf; 2])> = case_numbers(config.cases)
        .into_iter()
        .map(|case| (case, ["img", "label"].map(|kind| training.join(kind).join(format!("{kind}{case:04}.nii.gz")))))
        .collect();
    if let Some(path) = scans.iter().flat_map(|(_, files)| files).find(|path| path.exists()) {
        return Err(PhantomError::Exists(path.clone()));
    }
    for kind in ["img", "label"] {
        let path = training.join(kind);
        std::fs::create_dir_all(&path).map_err(FileError::io("create", &path))?;
    }
    let progress = observer.begin(Phase::new("drawing scans", Unit::Slices, (config.cases * config.depth) as u64));
    scans.par_iter().try_for_each(|(case, [image_path, label_path])| -> Result<(), PhantomError> {
        let (geometry, image, label) = draw_scan(config, *case, &*progress);
        write_nifti(image_path, &geometry, &image)?;
        write_nifti(label_path, &geometry, &label)?;
        Ok(())
    })
}

/// Numbers of `n` cases, training before test.
fn case_numbers(n: usize) -> Vec<u32> {
    let test = if n < 2 { 0 } else { (2 * n / 5).max(1) };
    [&TRAIN_CASES[..n - test], &SYNAPSE_TEST_CASES[..test]].concat()
}

/// One scan: where it lies, Hounsfield units and raw labels, each `[d, h, w]`.
fn draw_scan(config: &PhantomConfig, case: u32, progress: &dyn Progress) -> (Geometry, Vec<i16>, Vec<u8>) {
    let shape @ [depth, size, _] = [config.depth, config.size, config.size];
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    rng.set_stream(case.into());
    let in_plane_mm = FIELD_OF_VIEW_MM / size as f64 * rng.random_range(0.95..1.05);
    let slice_mm = SCAN_LENGTH_MM / depth as f64 * rng.random_range(0.95..1.05);
    let mut geometry = Geometry::aligned(shape, [slice_mm, in_plane_mm, in_plane_mm]);
    // Columns run to the patient's left and rows to the back; slices run upwards. NIfTI's axes point right, forwards and up.
    geometry.affine[0][0] = -in_plane_mm;
    geometry.affine[1][1] = -in_plane_mm;
    geometry.affine[0][3] = in_plane_mm * (size as f64 - 1.0) / 2.0;
    geometry.affine[1][3] = in_plane_mm * (size as f64 - 1.0) / 2.0;
    // Half a turn about the third axis: the same in the quaternion's words.
    geometry.quaternion = [0.0, 0.0, 1.0];
    geometry.translation = [geometry.affine[0][3], geometry.affine[1][3], 0.0];

    let body = Body::draw(&mut rng, shape);
    let noise = Normal::new(0.0, NOISE_HU).expect("a standard deviation is positive");
    let mut image = Vec::with_capacity(depth * size * size);
    let mut label = Vec::with_capacity(depth * size * size);
    for slice in 0..depth {
        let (mut hu, labels) = body.slice(slice);
        blur(&mut hu, size);
        image.extend(hu.iter().map(|hu| (hu + noise.sample(&mut rng)).round().clamp(-1024.0, 3071.0) as i16));
        label.extend(labels);
        progress.advance(1);
    }
    (geometry, image, label)
}

/// Smooths a slice `[size, size]` by 1-2-1 along both axes, as a scanner's resolution does.
fn blur(slice: &mut [f32], size: usize) {
    for (lines, step) in [(size, 1), (1, size)] {
        for line in 0..size {
            let start = line * lines;
            let mut before = slice[start];
            for i in 0..size {
                let at = start + i * step;
                let after = slice[if i + 1 < size { at + step } else { at }];
                let here = slice[at];
                slice[at] = (before + 2.0 * here + after) / 4.0;
                before = here;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scans::ScanSource;
    use sam_ladder_schemas::classes::Split;
    use sam_ladder_schemas::observer::Silent;
    use sam_ladder_schemas::preprocessing::Preprocessing;

    fn config(out: &std::path::Path) -> PhantomConfig {
        PhantomConfig { out: out.into(), cases: 3, size: 64, depth: 12, seed: 5 }
    }

    fn scan(config: &PhantomConfig, case: u32) -> (Geometry, Vec<i16>, Vec<u8>) {
        draw_scan(config, case, &Silent)
    }

    #[test]
    fn numbers_cover_both_splits() {
        assert_eq!(case_numbers(1), [5]);
        assert_eq!(case_numbers(2), [5, 1]);
        assert_eq!(case_numbers(6), [5, 6, 7, 9, 1, 2]);
        assert_eq!(case_numbers(30).len(), 30);
        assert_eq!(case_numbers(30)[18..], SYNAPSE_TEST_CASES);
    }

    #[test]
    fn scans_read_back_with_every_organ() {
        let dir = tempfile::tempdir().unwrap();
        write_phantom(&config(dir.path()), &sam_ladder_schemas::observer::Silent).unwrap();
        let source = ScanSource::open(dir.path(), &Preprocessing::default()).unwrap();
        let splits: Vec<Split> = source.cases().iter().map(|case| case.split).collect();
        assert_eq!(splits, [Split::Train, Split::Train, Split::Test]);
        for case in source.cases() {
            let scan = source.read(case).unwrap();
            assert_eq!(scan.shape, [12, 64, 64]);
            for organ in 1..=8 {
                let voxels = scan.label.iter().filter(|&&class| class == organ).count();
                assert!(voxels >= 10, "case {} has {voxels} voxels of organ {organ}", case.case);
            }
        }
    }

    #[test]
    fn every_raw_label_of_the_map_is_drawn_even_when_small() {
        for (size, depth) in [(16, 1), (24, 4), (32, 8), (128, 24)] {
            for case in [1, 5, 22] {
                let (_, _, label) = scan(&PhantomConfig { size, depth, ..config("x".as_ref()) }, case);
                for raw in [1, 2, 3, 4, 6, 7, 8, 11] {
                    assert!(label.contains(&raw), "label {raw} in case {case} of {size}x{size}x{depth}");
                }
            }
        }
        let (_, _, label) = scan(&PhantomConfig { size: 128, depth: 24, ..config("x".as_ref()) }, 1);
        assert!((0..=13).all(|raw| label.contains(&raw)));
    }

    #[test]
    fn the_seed_decides_everything() {
        let (geometry, image, label) = scan(&config("x".as_ref()), 7);
        assert_eq!((geometry, image.clone(), label), scan(&config("y".as_ref()), 7));
        assert_ne!(image, scan(&config("x".as_ref()), 9).1, "cases differ");
        assert_ne!(image, scan(&PhantomConfig { seed: 6, ..config("x".as_ref()) }, 7).1, "seeds differ");
    }

    #[test]
    fn existing_scans_and_bad_settings_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = PhantomConfig { cases: 1, size: 16, depth: 2, ..config(dir.path()) };
        write_phantom(&config, &Silent).unwrap();
        let message = write_phantom(&config, &Silent).unwrap_err().to_string();
        assert!(message.contains("img0005.nii.gz exists"), "{message}");
        for bad in [
            PhantomConfig { cases: 0, ..config.clone() },
            PhantomConfig { cases: 31, ..config.clone() },
            PhantomConfig { size: 8, ..config.clone() },
            PhantomConfig { depth: 0, ..config.clone() },
        ] {
            assert!(write_phantom(&bad, &Silent).unwrap_err().to_string().contains("expected a whole number from"));
        }
        let file = PhantomConfig { out: dir.path().join("RawData/Training/img/img0005.nii.gz"), ..config };
        assert!(write_phantom(&file, &Silent).unwrap_err().to_string().contains("cannot create"));
    }
}
