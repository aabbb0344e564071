//! The three channels of the image of a grey scan: the slices below, at and above, or three windows, against numbers made by hand.

mod cli;
#[path = "common/folders.rs"]
mod folders;
#[path = "common/same_stores.rs"]
mod same_stores;
#[path = "common/stage_one.rs"]
mod stage_one;

use cli::{assert_refused, nifti, on, program, succeed, write_pair};
use folders::files;
use sam_ladder_cache::{Batch, Store};
use sam_ladder_formats::nifti::{Geometry, write_nifti};
use sam_ladder_precompute::scans::ScanSource;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::image_channels::ChannelsFrom;
use sam_ladder_schemas::precompute::{PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::variants::AugmentPolicy;
use same_stores::{assert_filled_alike, assert_same_content};
use stage_one::{Formula, config, fill, fill_whole, write_scan, write_scans};
use std::path::{Path, PathBuf};

const WINDOWS: ChannelsFrom = ChannelsFrom::Windows { hu: ChannelsFrom::DEFAULT_WINDOWS };

fn with(channels_from: ChannelsFrom, mut config: PrecomputeConfig) -> PrecomputeConfig {
    config.preprocessing.channels_from = channels_from;
    config.dtype = StoreDtype::F32;
    config
}

/// One variant of one slice of a split.
fn read(store: &Store, split: Split, row: u32, variant: u32) -> Batch {
    let mut batch = Batch::default();
    store.read_batch(split, &[(row, variant)], &mut batch).unwrap();
    batch
}

/// A store of scans of 16×16 voxels that are stored as they are, and its images by row and channel.
fn channels_of(scans: &Path, store: &Path, channels_from: ChannelsFrom) -> Vec<[Vec<f32>; 3]> {
    let config = PrecomputeConfig { image_size: 16, data_size: 16, ..with(channels_from, config(AugmentPolicy::Flips, 1)) };
    fill_whole(scans, store, &config);
    let store = Store::open(store).unwrap();
    let image = |row: usize| {
        let image = read(&store, Split::Train, row as u32, 0).images.to_vec();
        std::array::from_fn(|channel| image[channel * 256..][..256].to_vec())
    };
    (0..store.slices(Split::Train).len()).map(image).collect()
}

/// A training case of slices of 16×16 voxels, each of one value.
fn write_constant_slices(folder: &Path, values: &[f32]) {
    let size = [16, 16, values.len() as i16];
    let image: Vec<f32> = values.iter().flat_map(|value| [*value; 256]).collect();
    let label: Vec<f32> = (0..image.len()).map(|i| (i % 2) as f32).collect();
    write_pair(folder, 5, &nifti(size, &image), &nifti(size, &label));
}

#[test]
fn neighbours_are_the_slices_below_at_and_above_and_the_ends_repeat() {
    let folder = tempfile::tempdir().unwrap();
    // Of [-125, 275] HU: slice k becomes k/4.
    write_constant_slices(folder.path(), &[-125.0, -25.0, 75.0, 175.0, 275.0]);
    let found = channels_of(folder.path(), &folder.path().join("s.zarr"), ChannelsFrom::Neighbours);
    let expected = [[0.0, 0.0, 0.25], [0.0, 0.25, 0.5], [0.25, 0.5, 0.75], [0.5, 0.75, 1.0], [0.75, 1.0, 1.0]];
    let constant = |value: f32| vec![value; 256];
    assert_eq!(found, expected.map(|image| image.map(constant)));

    let one = tempfile::tempdir().unwrap();
    write_constant_slices(one.path(), &[75.0]);
    let found = channels_of(one.path(), &one.path().join("s.zarr"), ChannelsFrom::Neighbours);
    assert_eq!(found, [[0.5, 0.5, 0.5].map(constant)], "a scan of one slice");
}

#[test]
fn windows_clip_and_scale_each_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    write_constant_slices(folder.path(), &[-1000.0, -160.0, 0.0, 40.0, 100.0, 240.0, 400.0, 1300.0]);
    let found = channels_of(folder.path(), &folder.path().join("s.zarr"), WINDOWS);
    // -160 to 240, 0 to 200, -500 to 1300.
    let expected = [
        [0.0, 0.0, 0.0],
        [0.0, 0.0, 340.0 / 1800.0],
        [0.4, 0.0, 500.0 / 1800.0],
        [0.5, 0.2, 540.0 / 1800.0],
        [0.65, 0.5, 600.0 / 1800.0],
        [1.0, 1.0, 740.0 / 1800.0],
        [1.0, 1.0, 0.5],
        [1.0, 1.0, 1.0],
    ];
    for (slice, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (channel, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!(found.iter().all(|value| (value - expected).abs() < 1e-6), "slice {slice}, channel {channel}: {}", found[0]);
        }
    }
    let store = Store::open(folder.path().join("s.zarr")).unwrap();
    let scan = &store.scans(Split::Train)[0];
    // One file, so five percentiles; three windows, of which each holds so many of the eight slices.
    assert_eq!((scan.percentiles.len(), &scan.in_window), (5, &vec![5.0 / 8.0, 3.0 / 8.0, 7.0 / 8.0]));
}

/// Every variant of every slice has, in its channels, that variant of the single slices, bit for bit.
#[test]
fn variants_are_made_channel_by_channel() {
    let folder = tempfile::tempdir().unwrap();
    let scans = folder.path().join("scans");
    write_scans(&scans);
    let every = config(AugmentPolicy::Reference, 10);
    let store = |name: &str, config: PrecomputeConfig| {
        let path = folder.path().join(name);
        fill_whole(&scans, &path, &config);
        Store::open(&path).unwrap()
    };
    let single = store("slice.zarr", with(ChannelsFrom::Slice, every.clone()));
    let neighbours = store("neighbours.zarr", with(ChannelsFrom::Neighbours, every.clone()));
    let windows = store("windows.zarr", with(WINDOWS, every.clone()));
    let of_window = |hu: [f32; 2]| {
        let mut config = with(ChannelsFrom::Slice, every.clone());
        config.preprocessing.window_hu = hu;
        store(&format!("{}.zarr", hu[0]), config)
    };
    let of_windows = ChannelsFrom::DEFAULT_WINDOWS.map(of_window);
    assert_eq!(single.variants(Split::Train).len(), 8, "four reflections, three rotations");
    for split in Split::ALL {
        for (row, slice) in single.slices(split).iter().enumerate() {
            let rows = single.case_rows(split, &slice.case).unwrap();
            let row = row as u32;
            let three = [row.saturating_sub(1).max(rows.start), row, (row + 1).min(rows.end - 1)];
            for variant in 0..single.variants(split).len() as u32 {
                let expected: Vec<f32> =
                    three.iter().flat_map(|&row| read(&single, split, row, variant).images.to_vec()).collect();
                let found = read(&neighbours, split, row, variant);
                assert!(found.images.to_vec() == expected, "{split} row {row}, variant {variant}");
                assert_eq!(found.labels, read(&single, split, row, variant).labels);
                let expected: Vec<f32> =
                    of_windows.iter().flat_map(|store| read(store, split, row, variant).images.to_vec()).collect();
                assert!(read(&windows, split, row, variant).images.to_vec() == expected, "{split} row {row}, variant {variant}");
            }
        }
    }
}

/// Below and above are those of the settings' orientation, not of the file.
#[test]
fn neighbours_are_those_of_the_scan_as_it_is_turned() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("scans");
    let plane = |slice: usize| (0..72).map(move |i| ((i * 7 + slice * 40) % 200) as f32 - 50.0);
    let (depth, upside_down) = (4, [[-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -3.0, 9.0]]);
    let upright = [[-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]];
    for (case, affine, reversed) in [("a", upright, false), ("b", upside_down, true)] {
        let slices = (0..depth).map(|at| if reversed { depth - 1 - at } else { at });
        let image: Vec<f32> = slices.flat_map(plane).collect();
        let label: Vec<u8> = image.iter().map(|&value| u8::from(value > 0.0)).collect();
        let geometry = Geometry::of_affine([depth, 9, 8], Some(affine));
        for below in ["imagesTr", "labelsTr"] {
            std::fs::create_dir_all(root.join(below)).unwrap();
        }
        write_nifti(&root.join(format!("imagesTr/{case}_0000.nii.gz")), &geometry, &image).unwrap();
        write_nifti(&root.join(format!("labelsTr/{case}.nii.gz")), &geometry, &label).unwrap();
    }
    let json = r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "bright": 1}, "file_ending": ".nii.gz"}"#;
    std::fs::write(root.join("dataset.json"), json).unwrap();
    let mut config = with(ChannelsFrom::Neighbours, config(AugmentPolicy::None, 1));
    config.class_names = vec!["bright".into()];
    (config.preprocessing.label_map, config.preprocessing.orientation) = (vec![0, 1], Some("LPS".parse().unwrap()));
    fill_whole(&root, &folder.path().join("s.zarr"), &config);
    let store = Store::open(folder.path().join("s.zarr")).unwrap();
    for slice in 0..depth as u32 {
        let [a, b] =
            ["a", "b"].map(|case| read(&store, Split::Train, store.case_rows(Split::Train, case).unwrap().start + slice, 0));
        assert!(a == b, "slice {slice}");
        let image = a.images.to_vec();
        assert_eq!(image[..1024] == image[1024..2048], slice == 0, "the slice below differs, except for the first");
        assert_eq!(image[1024..2048] == image[2048..], slice == 3, "the slice above differs, except for the last");
    }
}

#[test]
fn interrupted_shared_and_grown_stores_have_the_bytes_of_one_made_at_once() {
    for channels_from in [ChannelsFrom::Neighbours, WINDOWS] {
        let folder = tempfile::tempdir().unwrap();
        let (scans, at) = (folder.path().join("scans"), |name: &str| folder.path().join(name));
        write_scans(&scans);
        let flips = with(channels_from, config(AugmentPolicy::Flips, 1));
        let more = with(channels_from, config(AugmentPolicy::Reference, 10));
        assert_filled_alike(folder.path(), &flips, &more);
        // A scan is added; neighbours come from the scan, not from the store.
        write_scan(&scans, 6, 3);
        fill_whole(&scans, &at("shared.zarr"), &more);
        fill_whole(&scans, &at("again.zarr"), &more);
        assert_same_content(&at("shared.zarr"), &at("again.zarr"), "one more scan");
        // Another choice is another store.
        let error = fill(&scans, &at("whole.zarr"), &config(AugmentPolicy::Flips, 1), "1/1", Formula::default()).unwrap_err();
        assert!(error.to_string().contains("channels_from"), "{error}");
    }
}

fn golden(below: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/synapse_mini")).join(below)
}

/// The slices of a case are all there in the published layout, so they have their neighbours; its values have no unit for other windows.
#[test]
fn the_published_layout_has_neighbours_and_no_windows() {
    let folder = tempfile::tempdir().unwrap();
    let config = with(ChannelsFrom::Neighbours, config(AugmentPolicy::None, 1));
    let [raw, published] = ["RawData", "Synapse"].map(|layout| {
        let store = folder.path().join(layout);
        fill_whole(&golden(layout), &store, &config);
        let of_arrays = files(&store).into_iter().filter(|(name, _)| name.to_string_lossy().contains("images/c."));
        of_arrays.collect::<Vec<_>>()
    });
    assert!(raw.len() == 66 && raw == published);
    let preprocessing = with(WINDOWS, config).preprocessing;
    let error = ScanSource::open(&golden("Synapse"), &preprocessing).unwrap_err();
    assert!(error.to_string().contains("--channels-from windows does not apply"), "{error}");
}

/// Of neighbours the middle channel is the slice; of windows the first, here the published one, shows what the published image shows.
#[test]
fn pictures_show_the_slice_itself() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 2 --size 32 --depth 3 --seed 3"));
    let pictures = |name: &str, options: &str| {
        let sizes = "--random-encoder 3 --image-size 32 --data-size 32 --augment none";
        succeed(on(at, &format!("precompute --scans @scans --store @{name}.zarr {sizes} {options}")));
        succeed(on(at, &format!("train --store @{name}.zarr --run @{name} --epochs 1 --batch-size 2")));
        succeed(on(at, &format!("eval --store @{name}.zarr --run @{name} --out @{name}-eval --case-pages")));
        let page = std::fs::read_to_string(at.join(format!("{name}-eval/cases/0001.html"))).unwrap();
        let urls = page.split("href=\"data:image/png;base64,").skip(1);
        urls.map(|url| url.split('"').next().unwrap().to_string()).collect::<std::collections::BTreeSet<_>>()
    };
    let of_slice = pictures("slice", "");
    assert_eq!(of_slice.len(), 3, "one of each slice");
    assert_eq!(pictures("neighbours", "--channels-from neighbours"), of_slice);
    assert_eq!(pictures("windows", "--channels-from windows --windows published,soft,bone"), of_slice);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write_scans(&at.join("scans"));
    let refused = |options: &str| {
        let words = format!("precompute --scans @scans --store @s.zarr --random-encoder 0 --image-size 16 {options}");
        assert_refused(on(at, &words))
    };
    assert!(refused("--channels-from windows --window -100,200").contains("--windows"));
    assert!(refused("--windows soft,liver,bone").contains("add --channels-from windows"));
    assert!(refused("--channels-from neighbours --windows soft,liver,bone").contains("--channels-from windows"));
    let published = golden("Synapse").to_string_lossy().into_owned();
    let store = at.join("s.zarr").to_string_lossy().into_owned();
    let words = ["precompute", "--scans", &published, "--store", &store, "--random-encoder", "0", "--channels-from", "windows"];
    assert!(assert_refused(program(&words)).contains("remove --channels-from windows"));
    assert!(!at.join("s.zarr").exists(), "nothing is begun");
}

/// The costs of three channels are said before anything is computed.
#[test]
fn a_dry_run_counts_the_bytes_of_three_channels() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write_scans(&at.join("scans"));
    let mebibytes = |options: &str| {
        let words = "precompute --scans @scans --store @s.zarr --random-encoder 0 --preset native224 --augment none --dry-run";
        let said = succeed(on(at, &format!("{words} {options}")));
        let size = said.split("at most ").nth(1).unwrap().split(" of tensors").next().unwrap().to_string();
        let (number, unit) = size.split_once(' ').unwrap();
        number.parse::<f64>().unwrap() * if unit == "KB" { 1e-3 } else { 1.0 }
    };
    // Seven slices: float16 embeddings 256·14², images 224² a channel, labels 56², and 504 voxels of masks.
    let bytes = |channels: f64| (7.0 * (2.0 * (256.0 * 196.0 + channels * 50176.0) + 3136.0) + 504.0) / 1e6;
    for (options, channels) in [("", 1.0), ("--channels-from neighbours", 3.0), ("--channels-from windows", 3.0)] {
        assert!((mebibytes(options) - bytes(channels)).abs() < 0.06, "{options}: {} {}", mebibytes(options), bytes(channels));
    }
    // inspect, too: 27 images of 400 kB, and what the channels are.
    let words = "inspect --scans @scans --no-time --out @page.html --channels-from windows --windows soft,-125:275,bone";
    let said = succeed(on(at, words));
    let line = said.lines().find(|line| line.contains("--preset native224 --augment flips")).unwrap();
    assert!(line.contains(" 27 ") && line.contains("11 MB"), "{line}");
    let page = std::fs::read_to_string(at.join("page.html")).unwrap();
    assert!(page.contains("CT, -160 to 240, -125 to 275, -500 to 1300 become 0 to 1 in three channels"), "{page}");
}
