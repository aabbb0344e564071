//! Scans through both layouts against the published preprocessing (`tests/golden/synapse_mini`), bit for bit.

use sam_ladder_precompute::scans::{Scan, ScanSource};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::preprocessing::Preprocessing;
use std::path::PathBuf;

/// Every case of a folder below `synapse_mini`.
fn read_all(below: &str) -> (ScanSource, Vec<Scan>) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/synapse_mini").join(below);
    let source = ScanSource::open(&dir, &Preprocessing::default()).expect("the golden folder opens");
    let scans = source.cases().iter().map(|case| source.read(case).expect("a golden case reads")).collect();
    (source, scans)
}

/// Float32 as bits: -0 and 0 differ.
fn bits(image: &[f32]) -> Vec<u32> {
    image.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn raw_scans_become_what_the_published_preprocessing_makes_of_them() {
    let (_, raw) = read_all("");
    let (_, published) = read_all("Synapse");
    assert_eq!(raw.len(), 6);
    for (ours, theirs) in raw.iter().zip(&published) {
        assert_eq!((&ours.case, ours.split, ours.shape), (&theirs.case, theirs.split, theirs.shape));
        assert_eq!(bits(&ours.image), bits(&theirs.image), "image of case {}", ours.case);
        assert_eq!(ours.label, theirs.label, "label of case {}", ours.case);
    }
}

#[test]
fn cases_split_and_spacing_are_those_of_the_files() {
    let (source, raw) = read_all("RawData");
    let names: Vec<(&str, Split, usize)> =
        source.cases().iter().map(|case| (case.case.as_str(), case.split, case.num_slices)).collect();
    let (train, test) = (Split::Train, Split::Test);
    assert_eq!(
        names,
        [
            ("0005", train, 10),
            ("0006", train, 11),
            ("0007", train, 12),
            ("0009", train, 10),
            ("0001", test, 11),
            ("0002", test, 12)
        ]
    );
    assert_eq!(raw[0].spacing_mm, Some([3.0, f64::from(0.6f32), f64::from(0.6f32)]));
    assert!(raw.iter().all(|scan| scan.label.iter().all(|&class| class <= 8)));
    assert!(raw.iter().all(|scan| scan.image.iter().all(|value| (0.0..=1.0).contains(value))));
    let (_, published) = read_all("Synapse");
    assert!(published.iter().all(|scan| scan.spacing_mm.is_none()));
}

#[test]
fn every_slice_names_its_file_and_hash() {
    for folder in ["RawData", "Synapse"] {
        let (source, scans) = read_all(folder);
        let sources = source.sources(&sam_ladder_schemas::observer::Silent).expect("the golden files hash");
        assert_eq!(sources.len(), source.cases().iter().map(|case| case.files.len()).sum::<usize>());
        assert!(sources.is_sorted_by(|a, b| a.path < b.path));
        for scan in &scans {
            assert_eq!(scan.slice_sources.len(), scan.shape[0]);
            assert!(scan.slice_sources.iter().all(|slice| sources.contains(slice)), "case {}", scan.case);
            assert!(
                scan.files.iter().all(|(_, sha256)| sources.iter().any(|source| source.sha256 == *sha256)),
                "case {}",
                scan.case
            );
        }
        for (entry, scan) in source.cases().iter().zip(&scans) {
            let read: Vec<_> = scan.files.iter().map(|(path, _)| path.clone()).collect();
            assert_eq!(read, entry.files, "every file of the case is hashed as it is read");
        }
    }
    let (_, scans) = read_all("Synapse");
    assert_eq!(scans[0].slice_sources[3].path, "train_npz/case0005_slice003.npz");
    assert_eq!(scans[4].slice_sources[3].path, "test_vol_h5/case0001.npy.h5");
}
