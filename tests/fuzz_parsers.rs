//! Runs every parser of external bytes on damaged and hostile files (`tests/fuzz`): no panic, memory bounded by the file's size.
//!
//! Takes three seconds per parser; `make fuzz` takes longer.

mod cli;
#[path = "fuzz/harness.rs"]
mod harness;
#[path = "fuzz/meter.rs"]
mod meter;
#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "../formats/tests/common/nifti_2.rs"]
mod nifti_2;

use candle_core::Device;
use cli::nifti;
use harness::{Scratch, Seed, Target};
use nifti_2::nifti_2 as nifti_2_header;
use sam_ladder_cache::{Batch, CaseLayout, Opened, ReferenceMask, SliceTensors, Store, StoreLayout, StoreWriter};
use sam_ladder_formats::csv::read_column;
use sam_ladder_formats::nifti::read_image;
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_formats::volume::{read_geometry, read_volume};
use sam_ladder_precompute::scans::{ScanSource, SourceOptions, configure};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
use sam_ladder_schemas::preprocessing::Preprocessing;
use sam_ladder_schemas::store::{SourceFile, StoreAttributes, cache_id};
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::run::read_info;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Bytes of fixed-size buffers for reading a single file.
const FLOOR: usize = 1 << 20;
/// The same for a zip archive, whose end is searched in blocks of a mebibyte.
const ZIP_FLOOR: usize = 3 << 20;
/// The same for a whole store, with its tables and the threads that decompress.
const STORE_FLOOR: usize = 8 << 20;
/// The same if a panic in a dependency is caught.
const PANIC_FLOOR: usize = 512 << 20;
/// Zeros in a bomb.
const BOMB: usize = 128 << 20;
/// More than any honest file claims.
const HUGE: u64 = 1 << 60;

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn gzip(bytes: Vec<u8>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&bytes).unwrap();
    encoder.finish().unwrap()
}

fn seed_file(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz_seeds").join(name)).unwrap()
}

/// Opens a folder of scans and reads every case.
fn read_scans(folder: &Path) -> Result<(), String> {
    let source = ScanSource::open(folder, &Preprocessing::default()).map_err(words)?;
    source.cases().iter().try_for_each(|case| source.read(case).map(drop).map_err(words))
}

/// A NIfTI-2 file of `[x, y, z]` voxels of uint8, with the spacing of [`nifti`]: image and label must lie on one grid.
fn nifti_2(dims: [i64; 3], voxels: &[u8]) -> Vec<u8> {
    [&nifti_2_header(dims), voxels].concat()
}

#[test]
fn nifti_and_gzip() {
    let folder = Scratch::new();
    let [images, labels] = ["img", "label"].map(|name| folder.path().join("RawData/Training").join(name));
    for folder in [&images, &labels] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(labels.join("label0005.nii"), nifti([4, 3, 2], &[1.0; 24])).unwrap();
    let path = images.join("img0005.nii.gz");
    let parse = || read_image(&path).map(drop).map_err(words).and_then(|()| read_scans(folder.path()));
    let target = Target { name: "nifti", path: path.clone(), floor: FLOOR, per_byte: 64, parse: &parse };
    let (first, second) = (nifti([4, 3, 2], &[7.5; 24]), nifti_2([4, 3, 2], &[7; 24]));
    target.fuzz(&[
        Seed::file(first.clone()),
        Seed::file(gzip(first.clone())),
        Seed::inside(first, gzip),
        Seed::file(second.clone()),
        Seed::inside(second, gzip),
    ]);

    let side = (HUGE as f64).cbrt() as i64;
    for dims in [[HUGE as i64, 1, 1], [side, side, side], [i64::MAX, i64::MAX, i64::MAX]] {
        for file in [nifti_2(dims, &[0; 24]), gzip(nifti_2(dims, &[0; 24]))] {
            target.refuses("a header of 2^60 voxels", &file, 0);
        }
    }
    // A small scan before a long tail is read to its end, for the checksum, and not kept.
    let mut file = nifti([4, 3, 2], &[0.0; 24]);
    file.resize(BOMB, 0);
    let mut bomb = gzip(file);
    let end = bomb.len() - 5;
    bomb[end] ^= 1;
    target.refuses("a gzip bomb", &bomb, bomb.len());
}

fn zlib(bytes: Vec<u8>) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&bytes).unwrap();
    encoder.finish().unwrap()
}

/// Headers of text with voxels of 4 × 3 × 2 int16 behind them: read as volumes, header and all.
#[test]
fn nrrd_and_metaimage() {
    let folder = Scratch::new();
    let voxels = vec![7; 48];
    for (name, header, packed, words) in [
        (
            "a.nrrd",
            "NRRD0004\n# a comment\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\n\
             space directions: (0.5,0,0) (0,0.75,0) (0,0,3)\nspace units: \"mm\" \"mm\" \"mm\"\nkinds: domain domain domain\n\
             endian: little\nbyte skip: 0\nencoding: raw\nspace origin: (1,2,3)\n\n",
            ("encoding: raw", "encoding: gzip"),
            ("encoding: raw", "encoding: ascii"),
        ),
        (
            "a.mha",
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n\
             TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\nElementSpacing = 0.5 0.75 3\nDimSize = 4 3 2\nElementType = MET_SHORT\n\
             HeaderSize = 0\nElementDataFile = LOCAL\n",
            ("CompressedData = False", "CompressedData = True"),
            ("BinaryData = True", "BinaryData = False"),
        ),
    ] {
        let path = folder.path().join(name);
        let parse = || read_geometry(&path).map(drop).and_then(|()| read_volume(&path).map(drop)).map_err(words_of(name));
        let target = Target { name, path: path.clone(), floor: FLOOR, per_byte: 64, parse: &parse };
        let (packed, in_words) = (header.replace(packed.0, packed.1), header.replace(words.0, words.1));
        let compress = if name.ends_with("nrrd") { gzip } else { zlib };
        let stream = [packed.as_bytes(), &compress(voxels.clone())].concat();
        target.fuzz(&[
            Seed::file([header.as_bytes(), &voxels].concat()),
            Seed::file(stream),
            Seed::file([in_words.as_bytes(), "12 ".repeat(24).as_bytes()].concat()),
            // Damage only to the header.
            Seed::inside(packed.clone().into_bytes(), move |header| [&header[..], &compress(vec![7; 48])].concat()),
        ]);
        for sizes in [format!("{HUGE} 1 1"), format!("{side} {side} {side}", side = 1 << 20), format!("{} 3 2", u64::MAX)] {
            for header in [header, &packed, &in_words] {
                let huge = [header.replace("4 3 2", &sizes).as_bytes(), &voxels].concat();
                target.refuses("a header of 2^60 voxels", &huge, 0);
            }
        }
        let bomb = [packed.replace("4 3 2", "1024 1024 64").as_bytes(), &compress(vec![0; BOMB - 1])].concat();
        target.refuses("a bomb that ends early", &bomb, 3 * BOMB);
        target.refuses("a megabyte of lines", "a: b\n".repeat(1 << 20).as_bytes(), 64 << 20);
    }
}

/// Errors that name a volume's other file name both.
fn words_of(name: &'static str) -> impl Fn(sam_ladder_formats::Error) -> String {
    move |error| format!("{name}: {error}")
}

#[test]
fn pairs_of_header_and_voxels() {
    let folder = Scratch::new();
    let path = folder.path().join("a.hdr");
    let parse = || read_geometry(&path).map(drop).and_then(|()| read_volume(&path).map(drop)).map_err(words_of("a.hdr"));
    let target = Target { name: "pair", path: path.clone(), floor: FLOOR, per_byte: 64, parse: &parse };
    let mut header = nifti([4, 3, 2], &[0.0; 24])[..348].to_vec();
    header[108..112].fill(0); // The voxels begin with their file.
    header[344..348].fill(0);
    let analyze = header.clone();
    header[344..348].copy_from_slice(b"ni1\0");
    fs::write(folder.path().join("a.img"), [0; 96]).unwrap();
    target.fuzz(&[Seed::file(header.clone()), Seed::file(gzip(header.clone())), Seed::file(analyze), Seed::inside(header, gzip)]);
}

/// An `.npy` file of float32.
fn npy(shape: &str, values: &[f32]) -> Vec<u8> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n").into_bytes();
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.append(&mut header);
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    file
}

fn zip(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn npz() {
    let folder = Scratch::new();
    fs::create_dir(folder.path().join("train_npz")).unwrap();
    let path = folder.path().join("train_npz/case0005_slice000.npz");
    let parse = || read_scans(folder.path());
    let target = Target { name: "npz", path, floor: ZIP_FLOOR, per_byte: 64, parse: &parse };
    let good = npy("(2, 3)", &[1.0; 6]);
    let pack = |method| {
        let good = good.clone();
        move |image: Vec<u8>| zip(&[("image.npy", &image), ("label.npy", &good)], method)
    };
    let whole = pack(CompressionMethod::Stored)(good.clone());
    target.fuzz(&[
        Seed::file(whole),
        Seed::file(pack(CompressionMethod::Deflated)(good.clone())),
        Seed::inside(good.clone(), pack(CompressionMethod::Stored)),
        Seed::inside(good.clone(), pack(CompressionMethod::Deflated)),
    ]);

    for shape in [format!("({HUGE}, 1)"), format!("({}, {})", 1u64 << 30, 1u64 << 30), format!("({HUGE}, {HUGE})")] {
        target.refuses("a shape of 2^60 values", &pack(CompressionMethod::Stored)(npy(&shape, &[1.0; 6])), 0);
    }
    let mut tail = good.clone();
    tail.resize(BOMB, 0);
    target.refuses("a zip bomb behind a small array", &pack(CompressionMethod::Deflated)(tail), 4 * BOMB / 1000);
    let mut header = b"\x93NUMPY\x02\x00".to_vec();
    header.extend(u32::MAX.to_le_bytes());
    header.resize(BOMB, b' ');
    target.refuses("a zip bomb of a header", &pack(CompressionMethod::Deflated)(header), 4 * BOMB / 1000);
}

#[test]
fn hdf5() {
    let folder = Scratch::new();
    fs::create_dir(folder.path().join("test_vol_h5")).unwrap();
    let path = folder.path().join("test_vol_h5/case0001.npy.h5");
    let parse = || read_scans(folder.path());
    // Chunks that a file omits are read as their fill value: as much as a deflated chunk could be, in float64 and float32.
    let target = Target { name: "hdf5", path, floor: FLOOR, per_byte: 1032 * 16, parse: &parse };
    let files = ["contiguous.npy.h5", "chunked.npy.h5", "newer.npy.h5"].map(seed_file);
    target.fuzz(&files.clone().map(Seed::file));

    // The shape [2, 3, 4], wherever it stands.
    let shape: Vec<u8> = [2u64, 3, 4].iter().flat_map(|n| n.to_le_bytes()).collect();
    for dims in [[HUGE, 1, 1], [1 << 20, 1 << 20, 1 << 20], [u64::MAX, 3, 4]] {
        let huge: Vec<u8> = dims.iter().flat_map(|n| n.to_le_bytes()).collect();
        let mut file = files[0].clone();
        let places: Vec<usize> = (0..file.len() - 24).filter(|&at| file[at..at + 24] == shape).collect();
        assert!(!places.is_empty());
        for at in places {
            file[at..at + 24].copy_from_slice(&huge);
        }
        target.refuses("a shape of 2^60 values", &file, 0);
    }
}

/// Opens a checkpoint and reads every tensor.
fn read_checkpoint(path: &Path) -> Result<(), String> {
    let state = StateDict::open(path).map_err(words)?;
    let names: Vec<String> = state.names().map(String::from).collect();
    names.iter().try_for_each(|name| state.tensor(name, &Device::Cpu).map(drop).map_err(words))
}

/// PyTorch's zip layout around another pickle, with one storage of twelve floats.
fn pth(pickle: Vec<u8>) -> Vec<u8> {
    let mut archive = ZipArchive::new(Cursor::new(seed_file("zip.pth"))).unwrap();
    let names: Vec<String> = archive.file_names().map(|name| name.unwrap().into_owned()).collect();
    let mut entries = Vec::new();
    for name in &names {
        let mut bytes = Vec::new();
        archive.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
        entries.push((name.as_str(), if name.ends_with("data.pkl") { pickle.clone() } else { bytes }));
    }
    let entries: Vec<(&str, &[u8])> = entries.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    zip(&entries, CompressionMethod::Stored)
}

fn pickle_of_zip_pth() -> Vec<u8> {
    let mut archive = ZipArchive::new(Cursor::new(seed_file("zip.pth"))).unwrap();
    let mut bytes = Vec::new();
    archive.by_name("zip/data.pkl").unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn pth_in_both_layouts() {
    let folder = Scratch::new();
    let path = folder.path().join("model.pth");
    let parse = || read_checkpoint(&path);
    // An empty dict is one byte and, once it has an entry, a few allocations.
    let target = Target { name: "pth", path: path.clone(), floor: ZIP_FLOOR, per_byte: 512, parse: &parse };
    target.fuzz(&[Seed::file(seed_file("zip.pth")), Seed::file(seed_file("legacy.pth")), Seed::inside(pickle_of_zip_pth(), pth)]);

    let string = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let storage = |key: &str| {
        [b"((".to_vec(), string("storage"), b"ctorch\nFloatStorage\n".to_vec(), string(key), string("cpu"), b"K\x0ctQ".to_vec()]
            .concat()
    };
    // Tensors that share one shape of many axes: each takes a few bytes of the file.
    let ones = [vec![b'('], b"K\x01".repeat(20_000), b"tq\x01".to_vec()].concat();
    let rebuild = b"h\x02(h\x03K\x00h\x01h\x01tR".repeat(2_000);
    let function = b"ctorch._utils\n_rebuild_tensor_v2\nq\x02".to_vec();
    let shapes =
        [b"\x80\x02".to_vec(), ones, function, storage("0")[1..].to_vec(), b"q\x03".to_vec(), rebuild, b"}.".to_vec()].concat();
    // Storages that share one long key.
    let parts = [string("storage"), string(&"k".repeat(60_000))];
    let start = [&b"\x80\x02"[..], &parts[0], b"q\x01", &parts[1], b"q\x02", b"ctorch\nFloatStorage\nq\x03"].concat();
    let keys = [start, b"(h\x01h\x03h\x02NK\x0ctQ".repeat(20_000), b"}.".to_vec()].concat();
    for (what, pickle) in [
        ("a string of 4 GiB", b"\x80\x02X\xff\xff\xff\xff".to_vec()),
        ("a million open marks", [b"\x80\x02".to_vec(), vec![b'('; 1_000_000]].concat()),
        ("a million nested tuples", [b"\x80\x02)".to_vec(), vec![0x85; 1_000_000], b".".to_vec()].concat()),
        ("a million empty dicts", [b"\x80\x02".to_vec(), vec![b'}'; 1_000_000], b"N.".to_vec()].concat()),
        ("a shape of 20000 axes, 2000 times", shapes),
        ("a key of 60000 bytes, 20000 times", keys),
    ] {
        let file = pth(pickle);
        target.refuses(what, &file, 512 * file.len());
    }
    // A compressed pickle, which torch.save never writes, is read only as far as a plain one could be.
    let dicts = [b"\x80\x02".to_vec(), vec![b'}'; BOMB / 8]].concat();
    let file = zip(&[("zip/data.pkl", &dicts)], CompressionMethod::Deflated);
    target.refuses("a compressed pickle", &file, 512 * file.len());
}

#[test]
fn safetensors_headers() {
    let folder = Scratch::new();
    let path = folder.path().join("checkpoint.safetensors");
    let parse = || read_info(&path).map_err(words).and_then(|_| read_checkpoint(&path));
    let target = Target { name: "safetensors", path: path.clone(), floor: FLOOR, per_byte: 512, parse: &parse };
    let with = |header: &str, data: usize| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![1; data]].concat();
    let tensor = |shape: &str, end: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#);
    let info = r#"{"__metadata__":{"sam_ladder":"{\"image_size\":64,\"num_classes\":9,\"arm\":\"full\",\"cache_id\":\"0\",\"steps\":1,\"epochs\":1,\"val_dice\":null}"},"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}"#;
    target.fuzz(&[Seed::file(with(&tensor("[2,3]", "24"), 24)), Seed::file(with(info, 12))]);

    let mut long = with(&tensor("[2,3]", "24"), 24);
    for length in [HUGE, u64::MAX, 99_999_999] {
        long[..8].copy_from_slice(&length.to_le_bytes());
        target.refuses("a header of 2^60 bytes", &long, 0);
    }
    for (shape, end) in
        [("[1152921504606846976]", "4611686018427387904"), ("[4294967296,4294967296]", "24"), ("[2,3]", "18446744073709551615")]
    {
        target.refuses("a tensor of 2^60 values", &with(&tensor(shape, end), 24), 0);
    }
    let deep = with(&"[".repeat(1_000_000), 0);
    target.refuses("a million nested lists", &deep, 8 * deep.len());
}

#[test]
fn dataset_json() {
    let folder = Scratch::new();
    fs::create_dir(folder.path().join("imagesTr")).unwrap();
    let path = folder.path().join("dataset.json");
    let published = || PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 0 });
    let parse = || {
        let config = configure(folder.path(), &SourceOptions::default(), published()).map_err(words)?;
        // The config's check, which knows no file, may refuse what the parser accepts.
        drop(config.validate());
        Ok(())
    };
    let target = Target { name: "dataset.json", path, floor: FLOOR, per_byte: 256, parse: &parse };
    let new = r#"{"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "liver": 1, "spleen": 2},
                  "numTraining": 7, "file_ending": ".nii.gz"}"#;
    let old = r#"{"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "left atrium"}, "training": [{"image": "a"}]}"#;
    target.fuzz(&[Seed::file(new.into()), Seed::file(old.into())]);

    let nested = format!(r#"{{"labels": {}"#, "[".repeat(1_000_000));
    target.refuses("a million nested lists", nested.as_bytes(), 8 * nested.len());
    let many: Vec<String> = (0..100_000).map(|i| format!("\"c{i}\":{i}")).collect();
    let many = format!(r#"{{"channel_names": {{"0": "CT"}}, "labels": {{{}}}}}"#, many.join(","));
    target.refuses("a hundred thousand labels", many.as_bytes(), 64 * many.len());
}

/// A store of one training and one test slice.
fn write_store(path: &Path) {
    let mut config = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 0 });
    (config.image_size, config.data_size, config.augment) = (16, 16, AugmentPolicy::None);
    config.class_names = vec!["liver".into()];
    let source = SourceFile { path: "img.nii".into(), sha256: "0".repeat(64) };
    let case = |case: &str, split| CaseLayout { case: case.into(), split, num_slices: 1, sources: vec![source.path.clone()] };
    let cases = vec![case("0005", Split::Train), case("0001", Split::Test)];
    let layout = StoreLayout::new(StoreAttributes::new(config, vec![source.clone()]), cases).unwrap();
    let Opened::Writer(writer) = StoreWriter::open_or_create(path, layout).unwrap() else { panic!("the store is there already") };
    for (case, split) in [("0005", Split::Train), ("0001", Split::Test)] {
        writer
            .write_slice(
                split,
                0,
                &SliceTensors { embeddings: &[0.5; 256], images: &[0.25; 256], labels: &[1; 16], half_labels: &[], rungs: &[] },
            )
            .unwrap();
        let row = SliceRow {
            row: 0,
            case: case.into(),
            slice_index: 0,
            spacing_mm: Some([1.0; 3]),
            size: [5, 7],
            voxels: vec![35],
            source: source.path.clone(),
            source_sha256: source.sha256.clone(),
        };
        let mask = ReferenceMask { labels: vec![1; 35], shape: [1, 5, 7] };
        let scan = ScanRow::of_array(case, [1, 5, 7], Some([1.0; 3]));
        writer.write_case(split, &scan, &[row], &mask).unwrap();
    }
    writer.write_decoder(b"no weights").unwrap();
    writer.finish().unwrap();
}

/// Opens a store and reads all of it.
fn read_store(path: &Path) -> Result<(), String> {
    let store = Store::open(path).map_err(words)?;
    for split in Split::ALL {
        store.read_batch(split, &[(0, 0)], &mut Batch::default()).map_err(words)?;
    }
    store.mask(Split::Train, "0005").map_err(words)?;
    store.mask(Split::Test, "0001").map(drop).map_err(words)
}

/// The manifest with a matching `cache_id`, if it is still a manifest.
fn signed(manifest: Vec<u8>) -> Vec<u8> {
    let Ok(mut json) = serde_json::from_slice::<serde_json::Value>(&manifest) else { return manifest };
    let Ok(attributes) = serde_json::from_value::<StoreAttributes>(json["attributes"].clone()) else { return manifest };
    json["attributes"]["cache_id"] = cache_id(&attributes.config, &attributes.sources).into();
    json.to_string().into_bytes()
}

#[test]
fn store_manifest() {
    let folder = Scratch::new();
    let store = folder.path().join("zarr.json.zarr");
    write_store(&store);
    let path = store.join("zarr.json");
    let parse = || read_store(&store);
    let target = Target { name: "manifest", path: path.clone(), floor: STORE_FLOOR, per_byte: 512, parse: &parse };
    let good = fs::read(&path).unwrap();
    target.fuzz(&[Seed::file(good.clone()), Seed::inside(good.clone(), signed)]);

    let text = String::from_utf8(good).unwrap();
    for (setting, value) in [("image_size", HUGE.to_string()), ("image_size", "16777216".into()), ("data_size", HUGE.to_string())]
    {
        let huge = text.replace(&format!("\"{setting}\": 16"), &format!("\"{setting}\": {value}"));
        assert_ne!(huge, text);
        let error = target.refuses(&format!("{setting} {value}"), &signed(huge.into()), 0);
        assert!(error.contains(setting), "{error}");
    }
    let nested = "[".repeat(1_000_000);
    target.refuses("a million nested lists", nested.as_bytes(), 8 * nested.len());
}

#[test]
fn csv_tables() {
    let folder = Scratch::new();
    let path = folder.path().join("patients.csv");
    let parse = || read_column(&path, "case", "patient").map(drop).map_err(words);
    let target = Target { name: "csv", path: path.clone(), floor: FLOOR, per_byte: 64, parse: &parse };
    let good = b"case,age,patient\n0005,61,\"A, \"\"B\"\"\"\n0006,61,A\n\"00\n07\",48,B\n";
    target.fuzz(&[Seed::file(good.to_vec()), Seed::file(b"\xef\xbb\xbfpatient;case\r\nA;5\r\nB;6\r\n".to_vec())]);
    let commas = ",".repeat(1_000_000);
    target.refuses("a line of a million columns", commas.as_bytes(), 2 * commas.len());
    let quoted = format!("case,patient\n\"{}", "x\n".repeat(1_000_000));
    target.refuses("a quotation without an end", quoted.as_bytes(), 8 * quoted.len());
    target.refuses("a file of many megabytes", &vec![b'#'; 65 << 20], 0);
}

#[test]
fn sweep_files() {
    let folder = Scratch::new();
    let path = folder.path().join("sweep.toml");
    let parse = || sam_ladder_train::sweep::read_config(&path).map(drop).map_err(words);
    let target = Target { name: "sweep", path: path.clone(), floor: FLOOR, per_byte: 1024, parse: &parse };
    let good = br#"
[settings]
epochs = 9
optimizer = ["adamw", "sgd"]
lr = { min = 1e-4, max = 1e-2, scale = "log", points = 3 }
weight-decay = { values = [0, 0.1], when = { optimizer = "adamw" } }
warmup = { min = 0, max = 0x14 }
[search]
method = "tpe"
[pruning]
method = "median"
interval = 2
[objective]
metric = ["dice", "hd95"]
[validation]
folds = 3
seeds = [1, 2]
[budget]
trials = 20
hours = 1.5
"#;
    let demo = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sweep.toml")).unwrap();
    target.fuzz(&[Seed::file(good.to_vec()), Seed::file(demo)]);
    target.refuses("ten thousand brackets", "[".repeat(10_000).as_bytes(), 64 << 20);
    let nested = format!("[settings]\nlr = {}1{}", "[".repeat(10_000), "]".repeat(10_000));
    target.refuses("nested lists", nested.as_bytes(), 64 << 20);
    let dotted = format!("[settings.{}]\na = 1", vec!["a"; 10_000].join("."));
    target.refuses("dotted keys", dotted.as_bytes(), 64 << 20);
    target.refuses("a file of some megabytes", &vec![b'#'; 4 << 20], 0);
}

#[test]
fn arrays_of_a_store() {
    let folder = Scratch::new();
    let store = folder.path().join("s.zarr");
    write_store(&store);
    let parse = || read_store(&store);
    for (name, below) in [
        ("shard", "test/masks/0001/c.0.0.0"),
        ("embeddings", "train/embeddings/c.0.0.0.0.0"),
        ("slices", "test/slices.parquet"),
        ("variants", "variants.parquet"),
        ("checksums", "checksums.parquet"),
        ("mask", "test/masks/0001/zarr.json"),
    ] {
        let path = store.join(below);
        let good = fs::read(&path).unwrap();
        // If a table's rows are read as other rows, the error may name what the store lacks for them.
        let named = |error: String| match below.strip_suffix(".parquet") {
            Some(_) if error.contains("s.zarr") => format!("{below}: {error}"),
            _ => error.replace("test/masks/0001,", "c.0.0.0,"),
        };
        let parse = || parse().map_err(named);
        // The Parquet reader's panics are caught; if RUST_BACKTRACE is set, their messages read the program's debug information.
        let floor = if below.ends_with(".parquet") { PANIC_FLOOR } else { STORE_FLOOR };
        let target = Target { name, path: path.clone(), floor, per_byte: 512, parse: &parse };
        target.fuzz(&[Seed::file(good.clone())]);
        if name == "mask" {
            let text = String::from_utf8(good.clone()).unwrap();
            let compact = serde_json::from_str::<serde_json::Value>(&text).unwrap().to_string();
            for shape in ["[1,1048576,1099511627776]", "[1099511627776,1048576,1]"] {
                let chunk = shape.replacen("1099511627776,1048576,1", "1,1048576,1", 1);
                let huge = compact.replacen("\"shape\":[1,5,7]", &format!("\"shape\":{shape}"), 1);
                let huge = huge.replacen("\"chunk_shape\":[1,5,7]", &format!("\"chunk_shape\":{shape}"), 1);
                let huge = huge.replacen("\"chunk_shape\":[1,5,7]", &format!("\"chunk_shape\":{chunk}"), 1);
                assert_ne!(huge, compact);
                target.refuses("a mask of 2^60 voxels", huge.as_bytes(), 0);
            }
        }
        fs::write(&path, good).unwrap();
    }
}
