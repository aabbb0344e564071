//! Stage one end to end on the small golden scans, with a formula as the encoder: the store's content, and what survives interruptions,
//! damaged scans and failing writes.

use sam_ladder_cache::{Batch, Store};
use sam_ladder_precompute::encoder::EncoderError;
use sam_ladder_precompute::error::Result;
use sam_ladder_precompute::pipeline::{Encode, Loaded, Plan, Summary, fill_store};
use sam_ladder_precompute::preprocess::DataSlice;
use sam_ladder_precompute::scans::ScanSource;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::variants::AugmentPolicy;
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "common/folders.rs"]
mod folders;
use folders::{assert_same_files, files};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/synapse_mini");

fn config() -> PrecomputeConfig {
    PrecomputeConfig {
        image_size: 32,
        data_size: 28,
        augment: AugmentPolicy::Flips,
        dtype: StoreDtype::F32,
        ..PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 })
    }
}

/// Embedding `[c, y, x]` = the mean over patch (y, x) of the image, times c. Fails at the call whose number is `fails_at`.
struct Formula {
    calls: Cell<usize>,
    fails_at: usize,
}

impl Formula {
    fn failing_at(fails_at: usize) -> Self {
        Formula { calls: Cell::new(0), fails_at }
    }
}

impl Encode for Formula {
    fn encode(&self, images: &[f32], batch: usize, size: usize) -> Result<Vec<f32>> {
        assert_eq!(images.len(), batch * size * size);
        self.calls.set(self.calls.get() + 1);
        if self.calls.get() > self.fails_at {
            return Err(EncoderError::Tensor(candle_core::Error::Msg("the power went".into())).into());
        }
        Ok(images.chunks(size * size).flat_map(|image| formula(image, size)).collect())
    }
}

fn formula(image: &[f32], size: usize) -> Vec<f32> {
    let grid = size / 16;
    let patch = |y: usize, x: usize| {
        let pixels = (0..256).map(|i| image[(y * 16 + i / 16) * size + x * 16 + i % 16]);
        pixels.sum::<f32>() / 256.0
    };
    (0..256 * grid * grid).map(|i| (i / (grid * grid)) as f32 * patch(i / grid % grid, i % grid)).collect()
}

fn fill(scans: &Path, store: &Path, batch_size: usize, encoder: Formula) -> Result<Summary> {
    fill_store(Plan::new(scans, &config(), &Silent)?, store, batch_size, || Ok(Loaded { encoder, decoder: b"decoder".to_vec() }))
}

fn fill_whole(scans: &Path, store: &Path) -> Summary {
    fill(scans, store, 4, Formula::failing_at(usize::MAX)).unwrap()
}

/// A copy of the raw golden scans that a test may damage.
fn copy_of_scans(to: &Path) -> PathBuf {
    for below in ["img", "label"] {
        let from = Path::new(GOLDEN).join("RawData/Training").join(below);
        fs::create_dir_all(to.join(below)).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(below).join(path.file_name().unwrap())).unwrap();
        }
    }
    to.to_path_buf()
}

#[test]
fn every_variant_of_every_slice_is_stored_with_its_embedding() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    let scans = Path::new(GOLDEN).join("RawData");
    let summary = fill_whole(&scans, &path);
    let store = Store::open(&path).unwrap();
    let source = ScanSource::open(&scans, &config().preprocessing).unwrap();
    let mut batch = Batch::default();
    let mut images_total = 0;
    for entry in source.cases() {
        let scan = source.read(entry).unwrap();
        let [depth, height, width] = scan.shape;
        let rows = store.case_rows(entry.split, &entry.case).unwrap();
        assert_eq!(rows.len(), depth);
        for slice in 0..depth {
            let row = rows.start + slice as u32;
            let at = slice * height * width..(slice + 1) * height * width;
            let label = &scan.label[at.clone()];
            let data = DataSlice::new(&scan.image[at], label, [height, width], config().data_size);
            for (index, variant) in store.variants(entry.split).iter().enumerate() {
                store.read_batch(entry.split, &[(row, index as u32)], &mut batch).unwrap();
                let expected = data.variant(variant.kind, config().image_size);
                assert_eq!(batch.images.to_vec(), expected.image);
                assert_eq!(batch.labels, expected.label);
                assert_eq!(batch.embeddings.to_vec(), formula(&expected.image, config().image_size));
                images_total += 1;
            }
            let told = &store.slices(entry.split)[row as usize];
            assert_eq!((&told.case, told.slice_index), (&entry.case, slice as u32));
            assert_eq!((told.spacing_mm, told.size), (scan.spacing_mm, [height as u32, width as u32]));
            for (organ, &voxels) in told.voxels.iter().enumerate() {
                assert_eq!(voxels, label.iter().filter(|&&class| usize::from(class) == organ + 1).count() as u64);
            }
            assert_eq!((&told.source, &told.source_sha256), (&scan.slice_sources[slice].path, &scan.slice_sources[slice].sha256));
        }
        let mask = store.mask(entry.split, &entry.case).unwrap();
        assert_eq!((mask.labels, mask.shape), (scan.label, scan.shape));
    }
    assert_eq!(summary.images_encoded, images_total);
    assert_eq!(summary.slices_written, summary.slices_total);
}

#[test]
fn both_layouts_of_the_scans_give_the_same_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let [raw, published] = ["RawData", "Synapse"].map(|layout| {
        let path = folder.path().join(layout);
        fill_whole(&Path::new(GOLDEN).join(layout), &path);
        files(&path)
            .into_iter()
            .filter(|(name, _)| name.file_name().unwrap().to_str().unwrap().starts_with("c."))
            .collect::<Vec<_>>()
    });
    assert!(!raw.is_empty());
    assert!(raw == published);
}

#[test]
fn an_interrupted_run_continues_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let scans = Path::new(GOLDEN).join("RawData");
    let whole = folder.path().join("whole.zarr");
    fill_whole(&scans, &whole);
    let expected = files(&whole);
    for fails_at in [0, 1, 7, 20, 60] {
        let path = folder.path().join(format!("{fails_at}.zarr"));
        let error = fill(&scans, &path, 4, Formula::failing_at(fails_at)).unwrap_err();
        assert!(error.to_string().starts_with("the encoder failed: the power went; "), "{error}");
        assert_eq!(error.hint().as_deref(), Some("run the same command again to continue"));
        assert!(Store::open(&path).unwrap_err().to_string().contains("is incomplete"));
        let summary = fill_whole(&scans, &path);
        assert!(summary.slices_written > 0 && (fails_at < 7 || summary.slices_written < summary.slices_total));
        assert_same_files(&path, &expected, &format!("failed at call {fails_at}"));
    }
}

#[test]
fn the_batch_size_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let scans = Path::new(GOLDEN).join("RawData");
    let whole = folder.path().join("whole.zarr");
    fill_whole(&scans, &whole);
    let expected = files(&whole);
    for batch_size in [1, 13] {
        let path = folder.path().join(format!("{batch_size}.zarr"));
        fill(&scans, &path, batch_size, Formula::failing_at(usize::MAX)).unwrap();
        assert_same_files(&path, &expected, &format!("batch size {batch_size}"));
    }
    let error = fill(&scans, &folder.path().join("0.zarr"), 0, Formula::failing_at(0)).unwrap_err().to_string();
    assert_eq!(error, "batch-size: expected a whole number of at least 1, found 0");
}

#[test]
fn a_complete_store_needs_no_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    let scans = Path::new(GOLDEN).join("RawData");
    fill_whole(&scans, &path);
    let load = || -> Result<Loaded<Formula>> { panic!("nothing is to be encoded") };
    let summary = fill_store(Plan::new(&scans, &config(), &Silent).unwrap(), &path, 4, load).unwrap();
    assert!(summary.already_complete);
    assert_eq!(summary.images_encoded, 0);
}

#[test]
fn a_damaged_scan_is_named_and_the_others_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let scans = copy_of_scans(&folder.path().join("scans"));
    let whole = folder.path().join("whole.zarr");
    fill_whole(&scans, &whole);
    let damaged = scans.join("img/img0006.nii.gz");
    let good = fs::read(&damaged).unwrap();
    fs::write(&damaged, &good[..good.len() * 2 / 3]).unwrap();
    let path = folder.path().join("s.zarr");
    let error = fill(&scans, &path, 4, Formula::failing_at(usize::MAX)).unwrap_err();
    let hint = error.hint().unwrap();
    let error = error.to_string();
    assert!(error.starts_with("1 of 6 scans cannot be used: case 0006: ") && error.contains("img0006.nii.gz"), "{error}");
    assert!(hint.starts_with("put good copies of these files in place, or move these scans out of the folder"), "{hint}");
    assert!(Store::open(&path).unwrap_err().to_string().contains("is incomplete"));
    // With a good copy, only that scan is computed, and the store equals one made from good scans.
    fs::write(&damaged, &good).unwrap();
    let summary = fill_whole(&scans, &path);
    let layout = Plan::new(&scans, &config(), &Silent).unwrap().layout().clone();
    assert_eq!(summary.slices_written, layout.case_rows(Split::Train, "0006").unwrap().len());
    assert_same_files(&path, &files(&whole), "mended");
}

#[test]
fn a_write_that_fails_names_the_file_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let scans = Path::new(GOLDEN).join("RawData");
    let path = folder.path().join("s.zarr");
    fill(&scans, &path, 4, Formula::failing_at(0)).unwrap_err();
    // A folder where the shard would be: that write fails, as on a full disk.
    let in_the_way = path.join("train/embeddings/c.6.0.0.0.0");
    fs::create_dir(&in_the_way).unwrap();
    let error = fill(&scans, &path, 4, Formula::failing_at(usize::MAX)).unwrap_err().to_string();
    assert!(error.contains("train/embeddings/c.6.0.0.0.0: ") && error.contains("6 of "), "{error}");
    fs::remove_dir(&in_the_way).unwrap();
    fill_whole(&scans, &path);
    let whole = folder.path().join("whole.zarr");
    fill_whole(&scans, &whole);
    assert_same_files(&path, &files(&whole), "after a failed write");
}

#[test]
fn of_a_group_only_the_slice_that_cannot_be_written_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    let fill = |fails_at| {
        let config = PrecomputeConfig { augment: AugmentPolicy::None, ..config() };
        let plan = Plan::new(&Path::new(GOLDEN).join("RawData"), &config, &Silent).unwrap();
        let load = || Ok(Loaded { encoder: Formula::failing_at(fails_at), decoder: b"decoder".to_vec() });
        fill_store(plan, &path, 4, load)
    };
    fill(0).unwrap_err();
    // The first of the first group's slices.
    let shard = |row: usize| path.join(format!("train/embeddings/c.{row}.0.0.0.0"));
    fs::create_dir(shard(0)).unwrap();
    let error = fill(usize::MAX).unwrap_err().to_string();
    assert!(error.contains("train/embeddings/c.0.0.0.0.0: "), "{error}");
    assert!(shard(1).is_file() && shard(2).is_file(), "{error}");
    fs::remove_dir(shard(0)).unwrap();
    fill(usize::MAX).unwrap();
}

#[test]
fn an_encoder_of_another_size_is_refused() {
    struct TooFew;
    impl Encode for TooFew {
        fn encode(&self, _images: &[f32], _batch: usize, _size: usize) -> Result<Vec<f32>> {
            Ok(vec![0.0; 5])
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan::new(&Path::new(GOLDEN).join("RawData"), &config(), &Silent).unwrap();
    let load = || Ok(Loaded { encoder: TooFew, decoder: vec![] });
    let error = fill_store(plan, &folder.path().join("s.zarr"), 2, load).unwrap_err().to_string();
    assert!(error.contains("the encoder gave 5 values for 2 images, expected 2048"), "{error}");
}

#[test]
fn the_plan_reports_the_work_in_advance() {
    let plan = Plan::new(&Path::new(GOLDEN).join("RawData"), &config(), &Silent).unwrap();
    let text = plan.to_string();
    assert!(text.starts_with("train: ") && text.contains("slices × 5 variants; test: 2 scans, "), "{text}");
    assert!(text.ends_with("MB of tensors on disk") && !text.contains('\n'), "{text}");
    let wrong = PrecomputeConfig { image_size: 100, ..config() };
    let error = Plan::new(Path::new(GOLDEN), &wrong, &Silent).unwrap_err().to_string();
    assert!(error.contains("image_size: expected a whole number from 16 to 8192, a multiple of 16, found 100"), "{error}");
}
