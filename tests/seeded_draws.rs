//! `precompute --augment seeded`: the store's draws are those that the draws' definition makes of each slice, however the store came about; and what
//! training does with them.

mod cli;
mod common;
#[path = "common/folders.rs"]
mod folders;
#[path = "common/same_stores.rs"]
mod same_stores;
#[path = "common/stage_one.rs"]
mod stage_one;

use cli::{assert_refused, on, succeed};
use folders::{assert_same_files, files};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_ops::image::ndimage::{zoom_cubic, zoom_nearest};
use sam_ladder_precompute::draw::Draw;
use sam_ladder_precompute::preprocess::DataSlice;
use sam_ladder_precompute::scans::ScanSource;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::variants::AugmentPolicy;
use same_stores::assert_same_content;
use stage_one::{Formula, config, fill, fill_whole, write_scans};

fn seeded(draws: u32, draw_seed: u64) -> PrecomputeConfig {
    PrecomputeConfig { draws, draw_seed, ..config(AugmentPolicy::Seeded, 1) }
}

/// Image and labels of draws, made here from the scan's slice at data size.
#[test]
fn each_slice_has_draws_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    write_scans(&scans);
    let config = seeded(3, 9);
    fill_whole(&scans, &store, &config);
    let (source, store) = (ScanSource::open(&scans, &config.preprocessing).unwrap(), Store::open(&store).unwrap());
    let mut seen = 0;
    for entry in source.cases().iter().filter(|entry| entry.split == Split::Train) {
        let scan = source.read(entry).unwrap();
        let [_, height, width] = scan.shape;
        let first = store.case_rows(Split::Train, &entry.case).unwrap().start;
        for slice in 0..scan.shape[0] {
            let pixels = slice * height * width..(slice + 1) * height * width;
            let data = DataSlice::new(&scan.image[pixels.clone()], &scan.label[pixels], [height, width], 16);
            for number in 0..3u32 {
                let draw = Draw::of(9, number, &entry.case, slice);
                let image = zoom_cubic(&draw.image(data.image(), 16), [16, 16], [32, 32]);
                let label = zoom_nearest(&draw.label(data.label(), 16), [16, 16], [32, 32]);
                let mut batch = Batch::default();
                store.read_batch(Split::Train, &[(first + slice as u32, number + 1)], &mut batch).unwrap();
                let found = batch.images.to_vec();
                assert!(found.iter().zip(&image).all(|(a, b)| (a - b).abs() < 1e-3), "case {}, slice {slice}", entry.case);
                assert!(batch.labels.iter().copied().eq(zoom_nearest(&label, [32, 32], [8, 8])));
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 5 * 3);
}

#[test]
fn a_store_gets_more_draws_and_keeps_those_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, grown, whole) = (folder.path().join("scans"), folder.path().join("g.zarr"), folder.path().join("w.zarr"));
    write_scans(&scans);
    fill_whole(&scans, &whole, &seeded(4, 9));
    fill_whole(&scans, &grown, &seeded(2, 9));
    fill_whole(&scans, &grown, &seeded(4, 9));
    assert_same_content(&grown, &whole, "two draws and two more");
    // Workers, one after the other.
    let shared = folder.path().join("s.zarr");
    for share in ["2/2", "1/2"] {
        fill(&scans, &shared, &seeded(4, 9), share, Formula::default()).unwrap();
    }
    assert_same_files(&shared, &files(&whole), "two workers");
    let other = fill(&scans, &grown, &seeded(4, 8), "1/1", Formula::default());
    assert!(other.is_err(), "draws of another seed are no growth");
    let fewer = fill(&scans, &grown, &seeded(3, 9), "1/1", Formula::default());
    assert!(fewer.is_err(), "draws are not dropped");
    assert_same_content(&grown, &whole, "what is refused changes nothing");
}

const PRECOMPUTE: &str = "precompute --scans @scans --random-encoder 3 --image-size 32 --data-size 32 --store";
const TRAIN: &str = "train --batch-size 4 --warmup 1 --epochs 2";

#[test]
fn training_draws_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 5 --size 32 --depth 3 --seed 3"));
    for (line, said) in [
        ("--augment seeded", "expected a number of draws, such as 20, for augment = seeded, found 0"),
        ("--augment flips --draws 3", "draws need augment = seeded"),
        ("--augment none --draw-seed 3", "a seed of draws needs augment = seeded"),
        ("--augment seeded --draws 2 --test-augment flips", "flips need augment = flips or reference"),
    ] {
        let refused = assert_refused(on(at, &format!("{PRECOMPUTE} @none.zarr {line}")));
        assert!(refused.contains(said) && !at.join("none.zarr").exists(), "{line}: {refused}");
    }
    succeed(on(at, &format!("{PRECOMPUTE} @s.zarr --augment seeded --draws 2")));
    succeed(on(at, &format!("{TRAIN} --store @s.zarr --run @whole")));
    succeed(on(at, &format!("{TRAIN} --store @s.zarr --run @named --augment seeded")));
    succeed(on(at, &format!("{TRAIN} --store @s.zarr --run @plain --augment none")));
    let model = |run: &str| std::fs::read(at.join(run).join("checkpoint.safetensors")).unwrap();
    assert!(model("whole") == model("named"), "all that is stored, by name");
    assert!(model("whole") != model("plain"));
    let refused = assert_refused(on(at, &format!("{TRAIN} --store @s.zarr --run @next --neighbours 1")));
    assert!(
        refused.contains("do not go together") && refused.contains("--augment none") && !at.join("next").exists(),
        "{refused}"
    );
    succeed(on(at, &format!("{TRAIN} --store @s.zarr --run @next --neighbours 1 --augment none")));
    let refused = assert_refused(on(at, &format!("{TRAIN} --store @s.zarr --run @other --augment flips")));
    assert!(refused.contains("lacks the variant"), "{refused}");
}
