//! The store's behaviour: batches match their picks, interruptions leave no trace, damage is reported, wrong data are never read.

use sam_ladder_cache::{
    Batch, CaseLayout, Opened, ReadMode, Reader, ReferenceMask, SliceTensors, Store, StoreLayout, StoreWriter,
};
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::{PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::store::{SourceFile, StoreAttributes};
use sam_ladder_schemas::tables::{SliceRow, VariantRow};
use std::fs;
use std::path::Path;
use std::sync::Arc;

#[path = "common/folders.rs"]
mod folders;
use folders::{assert_same_files, files};

#[path = "common/small_store.rs"]
mod small_store;
use small_store::*;

#[test]
fn batches_follow_their_picks_in_every_reading_mode() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(write_whole(&folder.path().join("s.zarr"), StoreDtype::F16));
    let picks = [(4, 2), (0, 0), (4, 2), (2, 4)];
    for mode in [ReadMode::Stream, ReadMode::Resident, ReadMode::Auto] {
        let reader = Reader::new(store.clone(), Split::Train, mode);
        assert_eq!(reader.is_resident(), mode != ReadMode::Stream);
        let mut batch = Batch::default();
        for _ in 0..2 {
            reader.read_batch(&picks, &mut batch).unwrap();
            for (i, (row, variant)) in picks.into_iter().enumerate() {
                let all = tensors(&layout(StoreDtype::F16), Split::Train, row as usize);
                let of = |len: usize, at: usize| at * len..(at + 1) * len;
                assert_eq!(batch.embeddings.to_vec()[of(1024, i)], all.embeddings[of(1024, variant as usize)]);
                assert_eq!(batch.images.to_vec()[of(1024, i)], all.images[of(1024, variant as usize)]);
                assert_eq!(batch.labels[of(64, i)], all.labels[of(64, variant as usize)]);
            }
        }
        reader.read_batch(&[], &mut batch).unwrap();
        assert!(batch.embeddings.is_empty() && batch.labels.is_empty());
    }
    let reader = Reader::new(store, Split::Test, ReadMode::Auto);
    let error = reader.read_batch(&[(0, 0), (3, 0)], &mut Batch::default()).unwrap_err().to_string();
    assert!(error.contains("no test slice 3, variant 0"), "{error}");
}

#[test]
fn an_interruption_after_any_step_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    write_whole(&folder.path().join("whole.zarr"), StoreDtype::F16);
    let expected = files(&folder.path().join("whole.zarr"));
    let steps = CASES.iter().map(|(.., num_slices)| num_slices + 1).sum::<usize>();
    for step in 0..=steps {
        let path = folder.path().join(format!("{step}.zarr"));
        write_steps(&writer(&path, layout(StoreDtype::F16)), step);
        // A write that was cut off, and one whose neighbours were finished.
        fs::write(path.join("train/images/c.2.0.0.0.tmp"), b"half").unwrap();
        fs::write(path.join("zarr.json.tmp"), b"{").unwrap();
        fs::remove_file(path.join("train/embeddings/c.0.0.0.0.0")).ok();
        let writer = writer(&path, layout(StoreDtype::F16));
        assert!(write_steps(&writer, usize::MAX));
        writer.finish().unwrap();
        assert_same_files(&path, &expected, &format!("interrupted after step {step}"));
        fs::remove_dir_all(&path).unwrap();
    }
}

#[test]
fn an_interruption_while_finishing_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    write_whole(&path, StoreDtype::F16);
    let expected = files(&path);
    let begun = folder.path().join("begun.zarr");
    write_steps(&writer(&begun, layout(StoreDtype::F16)), usize::MAX);
    let recorded = files(&begun.join("progress"));
    // Killed after the manifest said complete, before all records were removed.
    fs::create_dir(path.join("progress")).unwrap();
    let (name, bytes) = recorded.first_key_value().unwrap();
    fs::write(path.join("progress").join(name), bytes).unwrap();
    assert!(matches!(StoreWriter::open_or_create(&path, layout(StoreDtype::F16)).unwrap(), Opened::Complete(_)));
    assert_same_files(&path, &expected, "killed after the manifest");
    // Killed before the manifest said so: all tables are there, and all records.
    for name in ["checksums.parquet", "variants.parquet", "train/slices.parquet"] {
        fs::copy(path.join(name), begun.join(name)).unwrap();
    }
    let writer = writer(&begun, layout(StoreDtype::F16));
    assert!(write_steps(&writer, 0), "nothing is left to write");
    writer.finish().unwrap();
    assert_same_files(&begun, &expected, "killed before the manifest");
}

#[test]
fn a_start_that_was_cut_off_at_once_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("zarr.json.tmp"), b"{").unwrap();
    write_whole(&path, StoreDtype::F16);
    assert!(!path.join("zarr.json.tmp").exists());
}

#[test]
fn a_complete_store_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    write_whole(&path, StoreDtype::F16);
    let before = files(&path);
    assert!(matches!(StoreWriter::open_or_create(&path, layout(StoreDtype::F16)).unwrap(), Opened::Complete(_)));
    assert_same_files(&path, &before, "opened again");
}

#[test]
fn lost_files_of_a_complete_store_are_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    write_whole(&path, StoreDtype::F16);
    let expected = files(&path);
    for name in ["train/labels/c.2.0.0.0", "test/masks/0002/c.0.0.0", "train/masks/0006/c.0.0.0", "sam_decoder.safetensors"] {
        fs::remove_file(path.join(name)).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(error.hint().unwrap().contains("`sam-ladder verify --repair`") && error.to_string().contains(name), "{error}");
        let writer = writer(&path, layout(StoreDtype::F16));
        assert!(write_steps(&writer, 2), "{name}: more than one slice and its case were missing");
        writer.finish().unwrap();
        assert_same_files(&path, &expected, name);
    }
}

#[test]
fn a_store_of_another_config_is_refused_with_both_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    write_whole(&path, StoreDtype::F16);
    let before = files(&path);
    let other = PrecomputeConfig { image_size: 64, ..config(StoreDtype::Bf16) };
    let error = StoreWriter::open_or_create(&path, layout_of(other, "sha of 0006")).unwrap_err().to_string();
    assert!(error.contains("config.image_size: store 32, requested 64"), "{error}");
    assert!(error.contains("config.dtype: store \"f16\", requested \"bf16\""), "{error}");
    let error = StoreWriter::open_or_create(&path, layout_of(config(StoreDtype::F16), "changed")).unwrap_err().to_string();
    assert!(error.contains("sources.img/img0006.nii.gz: store \"sha of 0006\", requested \"changed\""), "{error}");
    assert_same_files(&path, &before, "refused");
}

#[test]
fn a_replaced_scan_of_an_unfinished_store_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    let changed = || layout_of(config(StoreDtype::F16), "sha of the good copy");
    // Case 0005 takes the first three slices and its record; nothing of 0006 is stored.
    write_steps(&writer(&path, layout(StoreDtype::F16)), 4);
    let resumed = writer(&path, changed());
    assert!(resumed.is_case_done(Split::Train, "0005").unwrap());
    write_steps(&resumed, 1);
    drop(resumed);
    // Now a slice of 0006 is stored. It is not taken for a slice of the next copy.
    let again = || layout_of(config(StoreDtype::F16), "sha of the last copy");
    let last = writer(&path, again());
    assert!(last.is_case_done(Split::Train, "0005").unwrap());
    assert!(!last.is_slice_done(Split::Train, 3));
    assert!(!path.join("train/images/c.3.0.0.0").exists());
    write_steps(&last, usize::MAX);
    let store = last.finish().unwrap();
    assert!(store.attributes().complete);
    assert_eq!(store.attributes().cache_id, again().attributes().cache_id);
    // A finished store keeps to its sources.
    let error = StoreWriter::open_or_create(&path, changed()).unwrap_err().to_string();
    assert!(error.contains("made for another configuration"), "{error}");
}

#[test]
fn an_unfinished_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    let writer = writer(&path, layout(StoreDtype::F16));
    write_steps(&writer, 2);
    let error = Store::open(&path).unwrap_err();
    assert!(error.to_string().contains("is incomplete") && error.hint().unwrap().contains("again to continue"), "{error}");
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("2 of 5 train slices are done; 0 of 3 test slices are done"), "{error}");
    assert!(error.contains("sam_decoder.safetensors is missing"), "{error}");
}

#[test]
fn anything_but_a_store_is_refused_and_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| Store::open(path).unwrap_err().to_string();
    let create = |path: &Path| {
        let error = StoreWriter::open_or_create(path, layout(StoreDtype::F16)).unwrap_err();
        format!("{error}\nhint: {}", error.hint().unwrap())
    };
    assert!(open(&folder.path().join("absent")).contains("there is no such folder"));
    let path = folder.path().join("full");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("thesis.txt"), b"years of work").unwrap();
    assert!(open(&path).contains("full is not a sam-ladder store: it has no zarr.json"));
    assert!(create(&path).contains("pass --store a folder that does not exist yet"));
    assert_eq!(files(&path).len(), 1);
    fs::write(path.join("zarr.json"), br#"{"zarr_format": 3, "node_type": "group", "attributes": {}}"#).unwrap();
    assert!(create(&path).contains("has no format_version and cache_id"));
    assert!(create(&path.join("thesis.txt")).contains("it is not a folder"));
}

#[test]
fn another_format_version_and_an_edited_manifest_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    write_whole(&path, StoreDtype::F16);
    let manifest = fs::read_to_string(path.join("zarr.json")).unwrap();
    let edit = |from: &str, to: &str| {
        assert!(manifest.contains(from));
        fs::write(path.join("zarr.json"), manifest.replacen(from, to, 1)).unwrap();
        Store::open(&path).unwrap_err().to_string()
    };
    let error = edit("\"format_version\": 2", "\"format_version\": 1");
    assert!(error.contains("format version 1, but this program reads version 2"), "{error}");
    let hint = Store::open(&path).unwrap_err().hint().unwrap();
    assert!(hint.contains("make the store again: run `sam-ladder precompute`") && hint.contains("new folder"), "{hint}");
    edit("\"format_version\": 2", "\"format_version\": 3");
    assert!(Store::open(&path).unwrap_err().hint().unwrap().contains("newer version of sam-ladder"));
    let error = edit("\"seed\": 7", "\"seed\": 8");
    assert!(error.contains("hash to") && error.contains("zarr.json"), "{error}");
    let error = edit("{", "[");
    assert!(error.contains("zarr.json is damaged"), "{error}");
}

#[test]
fn a_damaged_chunk_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    let store = write_whole(&path, StoreDtype::F16);
    let shard = path.join("train/images/c.3.0.0.0");
    let bytes = fs::read(&shard).unwrap();
    let read_all = || {
        // Opened again, since the shards' indexes are read once and kept.
        let store = Store::open(&path).unwrap();
        (0..5).map(|variant| store.read_batch(Split::Train, &[(3, variant)], &mut Batch::default())).collect::<Vec<_>>()
    };
    assert!(read_all().iter().all(Result::is_ok));
    // A checksum covers every byte of the file.
    for at in (0..bytes.len()).step_by(13).chain([bytes.len() - 1]) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        fs::write(&shard, flipped).unwrap();
        let errors: Vec<String> = read_all().into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
        assert!(!errors.is_empty(), "byte {at}");
        for error in errors {
            assert!(error.starts_with("train/images of slice 3 (case 0006, slice 0 of it, variant "), "{error}");
            assert!(error.contains("checksum") && error.contains("c.3.0.0.0"), "{error}");
        }
    }
    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    assert!(read_all().iter().all(Result::is_err));
    fs::write(&shard, b"").unwrap();
    assert!(read_all()[4].as_ref().unwrap_err().to_string().contains("cut short"));
    fs::remove_file(&shard).unwrap();
    let error = store.read_batch(Split::Train, &[(3, 1)], &mut Batch::default()).unwrap_err().to_string();
    assert!(error.contains("variant 1 rot90x0_flip0) is damaged: its file is missing"), "{error}");
    let error = Store::open(&path).unwrap_err().to_string();
    assert!(error.contains("train/images of slice 3 (case 0006, slice 0 of it) is damaged: its file is missing"), "{error}");
}

#[test]
fn damaged_masks_tables_and_metadata_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    let store = write_whole(&path, StoreDtype::F16);
    let damage = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let bytes = fs::read(path.join(name)).unwrap();
        fs::write(path.join(name), change(bytes.clone())).unwrap();
        let read = Store::open(&path).and_then(|store| {
            store.mask(Split::Train, "0005")?;
            store.mask(Split::Test, "0001")
        });
        let error = read.unwrap_err().to_string();
        fs::write(path.join(name), bytes).unwrap();
        error
    };
    let flip = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    };
    for mask in ["test/masks/0001", "train/masks/0005"] {
        let error = damage(&format!("{mask}/c.0.0.0"), &flip);
        assert!(error.starts_with(&format!("{mask} of slice")) && error.contains("checksum"), "{error}");
    }
    let error = damage("train/slices.parquet", &|bytes| bytes[..20].to_vec());
    assert!(
        error.contains("train/slices.parquet is damaged: its SHA-256 is ") && error.contains("the manifest records"),
        "{error}"
    );
    let wrong_shape = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replacen('5', "6", 1).into_bytes();
    let error = damage("train/embeddings/zarr.json", &wrong_shape);
    assert!(error.contains("train/embeddings/zarr.json is damaged: shape"), "{error}");
    let whole = fs::read(path.join("train/slices.parquet")).unwrap();
    fs::copy(path.join("test/slices.parquet"), path.join("train/slices.parquet")).unwrap();
    assert!(Store::open(&path).unwrap_err().to_string().contains("the manifest records"));
    fs::write(path.join("train/slices.parquet"), whole).unwrap();
    let error = store.mask(Split::Test, "0009").unwrap_err();
    assert!(error.to_string().contains("has no test case \"0009\""), "{error}");
    assert_eq!(error.hint().as_deref(), Some("it has 0001, 0002"));
    for name in ["sam_decoder.safetensors", "test/masks/0002/c.0.0.0"] {
        let bytes = fs::read(path.join(name)).unwrap();
        fs::remove_file(path.join(name)).unwrap();
        assert!(Store::open(&path).unwrap_err().to_string().contains(name));
        fs::write(path.join(name), bytes).unwrap();
    }
    Store::open(&path).unwrap();
}

#[test]
fn tables_describe_the_arrays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    let store = write_whole(&path, StoreDtype::F16);
    let expected: Vec<SliceRow> =
        ["0005", "0006"].into_iter().flat_map(|case| rows_of(&layout(StoreDtype::F16), Split::Train, case)).collect();
    assert_eq!(store.slices(Split::Train), expected);
    assert_eq!(store.slices(Split::Test).len(), 3);
    let variants: Vec<VariantRow> = read_rows(&path.join("variants.parquet")).unwrap();
    let (variant, last) = (store.variants(Split::Train).last().unwrap(), variants.len() - 1);
    assert_eq!((variants.len(), &variants[last]), (store.variants(Split::Train).len(), &VariantRow::new(last, variant)));
    assert!(!path.join("progress").exists());
}

#[test]
fn wrong_tensors_are_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let writer = writer(&folder.path().join("s.zarr"), layout(StoreDtype::F16));
    let Tensors { embeddings, images, mut labels } = tensors(writer.layout(), Split::Train, 0);
    let write = |embeddings: &[f32], images: &[f32], labels: &[u8]| {
        writer
            .write_slice(Split::Train, 0, &SliceTensors { embeddings, images, labels, half_labels: &[], rungs: &[] })
            .unwrap_err()
            .to_string()
    };
    let mut not_finite = embeddings.clone();
    not_finite[1024 + 3] = 1e6;
    let error = write(&not_finite, &images, &labels);
    assert!(error.contains("train/embeddings of slice 0, variant 1: value 1000000 is not finite as F16"), "{error}");
    let error = write(&embeddings[1..], &images, &labels);
    assert!(error.contains("train/embeddings of slice 0: expected 5120 values, got 5119"), "{error}");
    labels[5] = 9;
    let error = write(&embeddings, &images, &labels);
    assert!(error.contains("label 9 is not below the number of classes 9"), "{error}");
    assert!(!writer.is_slice_done(Split::Train, 0));
    let rows = rows_of(writer.layout(), Split::Train, "0005");
    let no_class = ReferenceMask { labels: vec![9; 35], shape: [1, 5, 7] };
    let test_rows = rows_of(writer.layout(), Split::Test, "0002");
    write_slice(&writer, Split::Test, 2).unwrap();
    let error = writer.write_case(Split::Test, &scan_of("0002", 1), &test_rows, &no_class).unwrap_err().to_string();
    assert!(error.contains("class 9 in its mask is not below the number of classes 9"), "{error}");
    let error = writer.write_case(Split::Train, &scan_of("0005", 3), &rows[1..], &mask(Split::Train, 3)).unwrap_err();
    assert!(error.to_string().contains("expected rows 0..3"), "{error}");
    let error = writer.write_case(Split::Train, &scan_of("0005", 3), &rows, &mask(Split::Train, 2)).unwrap_err().to_string();
    assert!(error.contains("expected a mask of shape [3, 5, 7], got 70 voxels of shape [2, 5, 7]"), "{error}");
}

#[test]
fn cases_that_cannot_be_laid_out_are_refused() {
    let attributes = || StoreAttributes::new(config(StoreDtype::F16), vec![]);
    let case = |case: &str, num_slices| CaseLayout { case: case.into(), split: Split::Train, num_slices, sources: vec![] };
    let refused = |cases: Vec<CaseLayout>| StoreLayout::new(attributes(), cases).unwrap_err().to_string();
    assert!(refused(vec![case("1", 2), case("1", 3)]).contains("two scans of that name"));
    assert!(refused(vec![case("1", 0)]).contains("it has no slices"));
    assert!(refused(vec![case("../1", 2)]).contains("cannot be that of a folder"));
}

#[test]
fn a_store_of_one_split_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    let cases = vec![CaseLayout { case: "0001".into(), split: Split::Test, num_slices: 2, sources: vec![] }];
    let source = SourceFile { path: "img/img0001.nii.gz".into(), sha256: "sha of 0001".into() };
    let layout = StoreLayout::new(StoreAttributes::new(config(StoreDtype::F16), vec![source]), cases).unwrap();
    let writer = writer(&path, layout);
    for row in 0..2 {
        write_slice(&writer, Split::Test, row).unwrap();
    }
    let rows = rows_of(writer.layout(), Split::Test, "0001");
    writer.write_case(Split::Test, &scan_of("0001", 2), &rows, &mask(Split::Test, 2)).unwrap();
    writer.write_decoder(DECODER).unwrap();
    let store = writer.finish().unwrap();
    assert!(store.slices(Split::Train).is_empty());
    assert_eq!(store.cases(Split::Test), ["0001"]);
}

/// A writer's view of an unfinished store after its files were harmed: no slice is taken for done that is not as it was written.
#[test]
fn a_harmed_shard_of_an_unfinished_store_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.zarr");
    write_whole(&whole, StoreDtype::F16);
    let expected = files(&whole);
    let foreign = folder.path().join("foreign.zarr");
    let other = PrecomputeConfig { data_size: 16, ..config(StoreDtype::F16) };
    write_foreign(&foreign, layout_of(other, "sha of 0006"));
    let masks = ["train/masks/0005/c.0.0.0", "test/masks/0001/c.0.0.0"];
    for name in ["train/embeddings/c.2.0.0.0.0", "train/images/c.0.0.0.0", "train/labels/c.2.0.0.0"].into_iter().chain(masks) {
        let other = name.replace("c.2.", "c.3.").replace("c.0.0.0.0", "c.3.0.0.0");
        let bytes = fs::read(whole.join(name)).unwrap();
        let half = bytes.len() / 2;
        let harms = [
            bytes[..half].to_vec(),
            vec![],
            vec![0; bytes.len()],
            [&bytes[..half], &vec![0; bytes.len() - half][..]].concat(),
            [&vec![0; half][..], &bytes[half..]].concat(),
            fs::read(whole.join(&other)).unwrap(),
            fs::read(foreign.join(name)).unwrap(),
        ];
        for (i, harmed) in harms.into_iter().enumerate().filter(|(_, harmed)| *harmed != bytes) {
            let path = folder.path().join("s.zarr");
            write_steps(&writer(&path, layout(StoreDtype::F16)), usize::MAX);
            fs::write(path.join(name), harmed).unwrap();
            let writer = writer(&path, layout(StoreDtype::F16));
            for row in 0..5 {
                writer.check_slice(Split::Train, row);
            }
            assert!(writer.missing().unwrap().is_some() || writer.finish().is_err(), "{name}, harm {i}");
            write_steps(&writer, usize::MAX);
            writer.finish().unwrap();
            assert_same_files(&path, &expected, &format!("{name}, harm {i}"));
            fs::remove_dir_all(&path).unwrap();
        }
    }
}

/// A store of the same shape with other values.
fn write_foreign(path: &Path, layout: StoreLayout) {
    let writer = writer(path, layout);
    for (case, split, num_slices) in CASES {
        for row in writer.layout().case_rows(split, case).unwrap() {
            let Tensors { embeddings, images, labels } = tensors(writer.layout(), split, row + 40);
            writer
                .write_slice(
                    split,
                    row,
                    &SliceTensors { embeddings: &embeddings, images: &images, labels: &labels, half_labels: &[], rungs: &[] },
                )
                .unwrap();
        }
        let mut mask = mask(split, num_slices);
        mask.labels.rotate_left(3);
        writer.write_case(split, &scan_of(case, num_slices), &rows_of(writer.layout(), split, case), &mask).unwrap();
    }
    writer.write_decoder(DECODER).unwrap();
    writer.finish().unwrap();
}

#[test]
fn a_harmed_decoder_or_record_of_an_unfinished_store_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.zarr");
    write_whole(&whole, StoreDtype::F16);
    let expected = files(&whole);
    let path = folder.path().join("s.zarr");
    let begin = || {
        fs::remove_dir_all(&path).ok();
        write_steps(&writer(&path, layout(StoreDtype::F16)), usize::MAX);
    };
    begin();
    let names: Vec<_> = files(&path).into_keys().filter(|name| !name.to_str().unwrap().contains("/c.")).collect();
    assert!(names.iter().any(|name| name.starts_with("progress")) && names.len() > 15, "{names:?}");
    for name in names.iter().filter(|name| *name != Path::new("manifest.json")) {
        for harm in 0..2 {
            begin();
            let name = files(&path).into_keys().find(|found| same_record(found, name)).unwrap();
            let mut bytes = fs::read(path.join(&name)).unwrap();
            let middle = bytes.len() / 2;
            match harm {
                0 => bytes.truncate(middle),
                _ => bytes[middle] ^= 2,
            }
            fs::write(path.join(&name), bytes).unwrap();
            let writer = writer(&path, layout(StoreDtype::F16));
            write_steps(&writer, usize::MAX);
            writer.finish().unwrap();
            assert_same_files(&path, &expected, &format!("{} harmed, {harm}", name.display()));
        }
    }
    // With both copies of the manifest gone, nothing tells what there is.
    begin();
    for name in ["zarr.json", "manifest.json"] {
        fs::write(path.join(name), b"{").unwrap();
    }
    let error = StoreWriter::open_or_create(&path, layout(StoreDtype::F16)).unwrap_err();
    assert!(error.to_string().contains("so is the copy of the manifest"), "{error}");
    assert!(error.hint().unwrap().contains("into a new folder"));
}

/// Names of records end with a random number.
fn same_record(a: &Path, b: &Path) -> bool {
    let stem = |path: &Path| path.to_str().unwrap().rsplitn(3, '.').skip(2).collect::<String>();
    a == b
        || (a.starts_with("progress") && b.starts_with("progress") && !a.ends_with("decoder.json") && stem(a) == stem(b) && {
            let rows = |path: &Path| path.to_str().unwrap().ends_with("rows.json");
            rows(a) == rows(b)
        })
}

#[test]
fn a_scan_may_be_left_out_of_an_unfinished_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    // All of 0005 and 0006, and a slice of the test case 0001.
    write_steps(&writer(&path, layout(StoreDtype::F16)), 4 + 3 + 1);
    let without = |left_out: &str| {
        let whole = layout(StoreDtype::F16);
        let cases = whole.attributes().cases.iter().filter(|case| case.case != left_out).cloned().collect();
        let sources = whole.attributes().sources.iter().filter(|source| !source.path.contains(left_out)).cloned().collect();
        StoreLayout::new(StoreAttributes::new(config(StoreDtype::F16), sources), cases).unwrap()
    };
    let writer = writer(&path, without("0005"));
    // 0006 has moved to the first rows, with what is stored of it.
    assert_eq!(writer.layout().case_rows(Split::Train, "0006").unwrap(), 0..2);
    assert!(writer.is_case_done(Split::Train, "0006").unwrap());
    assert!(writer.is_slice_done(Split::Test, 0) && !writer.is_slice_done(Split::Test, 1));
    drop(writer);
    // Added again, it comes last.
    let writer = small_store::writer(&path, layout(StoreDtype::F16));
    assert_eq!(writer.layout().case_rows(Split::Train, "0005").unwrap(), 2..5);
    assert!(writer.is_case_done(Split::Train, "0006").unwrap() && !writer.is_slice_done(Split::Train, 2));
    // Other scans altogether are refused.
    let other = StoreLayout::new(
        StoreAttributes::new(config(StoreDtype::F16), vec![SourceFile { path: "b".into(), sha256: "b".into() }]),
        vec![CaseLayout { case: "0009".into(), split: Split::Train, num_slices: 1, sources: vec!["b".into()] }],
    );
    let error = StoreWriter::open_or_create(&path, other.unwrap()).unwrap_err().to_string();
    assert!(error.contains("made for another configuration"), "{error}");
}

#[test]
fn a_manifest_that_claims_too_many_slices_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.zarr");
    let whole = write_whole(&path, StoreDtype::F16);
    for claimed in [1usize << 63, usize::MAX, 1 << 40] {
        for complete in [true, false] {
            let mut cases = whole.attributes().cases.clone();
            cases[0].num_slices = claimed;
            let mut attributes = whole.attributes().clone().with_cases(cases);
            if !complete {
                attributes = attributes.unfinished();
            }
            let manifest = serde_json::json!({ "zarr_format": 3, "node_type": "group", "attributes": attributes }).to_string();
            for name in ["zarr.json", "manifest.json"] {
                fs::write(path.join(name), &manifest).unwrap();
            }
            let unfinished = sam_ladder_cache::VerifyReport::of_unfinished(&path).map(drop);
            let errors = [
                Store::open(&path).map(drop),
                sam_ladder_cache::verify(&path, &|_, _| {}).map(drop),
                sam_ladder_cache::images_stored(&path, &layout(StoreDtype::F16)).map(drop),
                StoreWriter::open_or_create(&path, layout(StoreDtype::F16)).map(drop),
                unfinished,
            ];
            for error in errors {
                let error = error.unwrap_err().to_string();
                assert!(error.contains("damaged") && error.contains("slices, and a store at most"), "{error}");
            }
        }
    }
}
