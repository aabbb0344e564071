//! Bad input of every kind: each is refused with a line that names the file and a hint, and nothing panics.

use super::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sam_ladder_formats::nifti::{Geometry, NiftiImage, NiftiVersion, decode_image, read_image, write_nifti};
use sam_ladder_formats::{Error as FileError, hdf5, npz as formats_npz};
use std::io::Write;

/// An uncompressed NIfTI-1 file of `[x, y, z]` voxels.
fn nifti_1(code: i16, dims: [i16; 3], slope: f32, intercept: f32, voxels: &[u8]) -> Vec<u8> {
    let mut file = vec![0u8; 352];
    let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &348i32.to_le_bytes());
    for (i, n) in [3, dims[0], dims[1], dims[2], 1, 1, 1, 1].into_iter().enumerate() {
        put(40 + 2 * i, &n.to_le_bytes());
    }
    put(70, &code.to_le_bytes());
    for (i, n) in [1.0f32, 0.5, 0.75, 2.5].into_iter().enumerate() {
        put(76 + 4 * i, &n.to_le_bytes());
    }
    for (offset, value) in [(108, 352.0f32), (112, slope), (116, intercept)] {
        put(offset, &value.to_le_bytes());
    }
    put(344, b"n+1\0");
    file.extend_from_slice(voxels);
    file
}

/// The same file in the other byte order, for voxels of 2 bytes.
fn byte_swapped(file: &[u8]) -> Vec<u8> {
    let mut swapped = file.to_vec();
    let mut swap = |offset: usize, width: usize, count: usize| {
        swapped[offset..offset + width * count].chunks_exact_mut(width).for_each(<[u8]>::reverse);
    };
    swap(0, 4, 1);
    swap(40, 2, 8);
    swap(68, 2, 4);
    swap(76, 4, 12);
    swap(252, 2, 2);
    swap(256, 4, 18);
    swap(352, 2, (file.len() - 352) / 2);
    swapped
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut stream = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    stream.write_all(bytes).unwrap();
    stream.finish().unwrap()
}

/// Sixty voxels of int16: 3 wide, 4 high, 5 deep.
fn int16_file() -> Vec<u8> {
    let voxels: Vec<u8> = (0..60i16).flat_map(|i| (i * 10 - 300).to_le_bytes()).collect();
    nifti_1(4, [3, 4, 5], 0.0, 0.0, &voxels)
}

fn message(result: Result<impl std::fmt::Debug, ScanError>) -> String {
    let error = result.expect_err("this input is bad");
    let message = error.to_string();
    assert!(error.hint().is_some(), "no hint: {message}");
    assert!(!message.contains('\n'), "one line: {message}");
    message
}

fn decode(file: &[u8]) -> Result<NiftiImage, ScanError> {
    Ok(decode_image(Path::new("img0001.nii.gz"), file)?)
}

/// A folder in the raw layout with one good pair, case 5.
fn raw_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["img", "label"] {
        std::fs::create_dir_all(dir.path().join("RawData/Training").join(folder)).unwrap();
    }
    write_raw(&dir, "img/img0005.nii", &int16_file());
    let labels: Vec<u8> = (0..60).map(|i| i % 14).collect();
    write_raw(&dir, "label/label0005.nii", &nifti_1(2, [3, 4, 5], 0.0, 0.0, &labels));
    dir
}

fn write_raw(dir: &tempfile::TempDir, below: &str, bytes: &[u8]) {
    std::fs::write(dir.path().join("RawData/Training").join(below), bytes).unwrap();
}

fn open(dir: &tempfile::TempDir) -> Result<ScanSource, ScanError> {
    ScanSource::open(dir.path(), &Preprocessing::default())
}

fn read_first(dir: &tempfile::TempDir) -> Result<Scan, ScanError> {
    let source = open(dir)?;
    source.read(&source.cases()[0])
}

#[test]
fn a_pair_is_windowed_transposed_and_mapped() {
    let scan = read_first(&raw_folder()).unwrap();
    assert_eq!((scan.shape, scan.split, scan.case.as_str()), ([5, 4, 3], Split::Train, "0005"));
    assert_eq!(scan.spacing_mm, Some([2.5, 0.75, 0.5]));
    let hu = |at: i32| (at * 10 - 300) as f32;
    assert_eq!(scan.image[0], 0.0);
    assert_eq!(scan.image[59], ((hu(59).min(275.0)) + 125.0) / 400.0);
    assert_eq!(scan.label[..14], sam_ladder_schemas::classes::SYNAPSE_LABEL_MAP);
    assert_eq!(scan.slice_sources.len(), 5);
    assert_eq!(scan.slice_sources[0].path, "RawData/Training/img/img0005.nii");
}

#[test]
fn byte_order_compression_and_version_do_not_matter() {
    let file = int16_file();
    let expected = decode(&file).unwrap();
    assert_eq!(expected.voxels[..3], [-300.0, -290.0, -280.0]);
    assert_eq!(decode(&byte_swapped(&file)).unwrap(), expected);
    assert_eq!(decode(&gzip(&file)).unwrap(), expected);
    assert_eq!(decode(&gzip(&byte_swapped(&file))).unwrap(), expected);
    for big_endian in [false, true] {
        let mut second = vec![0u8; 544];
        macro_rules! put {
            ($offset:expr, $value:expr) => {
                let bytes = if big_endian { $value.to_be_bytes() } else { $value.to_le_bytes() };
                second[$offset..$offset + bytes.len()].copy_from_slice(&bytes);
            };
        }
        put!(0, 540i32);
        put!(12, 4i16);
        for (i, n) in [3i64, 3, 4, 5, 1, 1, 1, 1].into_iter().enumerate() {
            put!(16 + 8 * i, n);
        }
        for (i, n) in [1.0f64, 0.5, 0.75, 2.5].into_iter().enumerate() {
            put!(104 + 8 * i, n);
        }
        put!(168, 544i64);
        second[4..12].copy_from_slice(b"n+2\0\r\n\x1a\n");
        second.extend_from_slice(&if big_endian { byte_swapped(&file) } else { file.clone() }[352..]);
        for file in [gzip(&second), second] {
            let image = decode(&file).unwrap();
            assert_eq!((image.voxels, image.geometry.spacing_mm()), (expected.voxels.clone(), [2.5, 0.75, 0.5]));
        }
    }
}

#[test]
fn slope_and_intercept_follow_nibabel() {
    let voxels: Vec<u8> = (0..60u16).flat_map(|i| i.to_le_bytes()).collect();
    let first = |slope, intercept| decode(&nifti_1(512, [3, 4, 5], slope, intercept, &voxels)).map(|image| image.voxels[7]);
    assert_eq!(first(1.0, -1024.0).unwrap(), -1017.0);
    assert_eq!(first(0.25, 3.0).unwrap(), 4.75);
    assert_eq!(first(0.0, -1024.0).unwrap(), 7.0, "slope 0 means unscaled, whatever the intercept");
    assert_eq!(first(f32::NAN, -1024.0).unwrap(), 7.0);
    assert_eq!(first(f32::INFINITY, f32::NAN).unwrap(), 7.0);
    assert!(message(first(2.0, f32::NAN)).contains("intercept"));
    let double = 0.1f32 as f64 * 7.0 + 0.3f32 as f64;
    assert_eq!(first(0.1, 0.3).unwrap(), double as f32);
}

#[test]
fn files_that_are_no_nifti_say_so() {
    for (bytes, why) in [
        (&b""[..], "too few"),
        (&[7u8; 4000], "first four bytes"),
        (b"\x1f\x8b\x08\x00garbage that is no deflate stream at all", "gzip"),
    ] {
        assert!(message(decode(bytes)).contains(why), "{why}");
    }
    let patched = |offset: usize, bytes: &[u8]| {
        let mut file = int16_file();
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        message(decode(&file))
    };
    assert!(patched(344, b"ni1\0").contains(".hdr/.img pair"));
    assert!(patched(344, b"xxxx").contains("magic code is xxxx"));
    assert!(patched(70, &1536i16.to_le_bytes()).contains("type code 1536"));
    assert!(patched(40, &2i16.to_le_bytes()).contains("2 axes"));
    assert!(patched(42, &(-3i16).to_le_bytes()).contains("-3"));
    assert!(patched(108, &12f32.to_le_bytes()).contains("byte 12"));
    assert!(patched(108, &f32::NAN.to_le_bytes()).contains("byte NaN"));
    assert!(patched(80, &0f32.to_le_bytes()).contains("spacing"));
    assert!(message(decode(&[int16_file(), vec![0; 8]].concat()[..470])).contains("promises 120 bytes of voxels, found 118"));
}

#[test]
fn a_header_that_promises_more_than_the_file_holds_allocates_nothing() {
    let mut file = int16_file();
    for axis in 1..4 {
        file[40 + 2 * axis..42 + 2 * axis].copy_from_slice(&i16::MAX.to_le_bytes());
    }
    assert!(matches!(decode(&file), Err(ScanError::File(FileError::Truncated { expected: 70_362_301_792_256.., .. }))));
    assert!(matches!(decode(&gzip(&file)), Err(ScanError::File(FileError::Truncated { .. }))));
    let mut second = vec![0u8; 600];
    second[..4].copy_from_slice(&540i32.to_le_bytes());
    second[4..8].copy_from_slice(b"n+2\0");
    second[12..14].copy_from_slice(&64i16.to_le_bytes());
    for (i, n) in [3i64, 1 << 40, 1 << 40, 1].into_iter().enumerate() {
        second[16 + 8 * i..24 + 8 * i].copy_from_slice(&n.to_le_bytes());
    }
    assert!(message(decode(&second)).contains("beyond any file"));
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let plain = int16_file();
    for file in [gzip(&plain), plain] {
        for length in 0..file.len() {
            message(decode(&file[..length]));
        }
    }
}

#[test]
fn damaged_bytes_never_panic() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for file in [gzip(&int16_file()), int16_file()] {
        for _ in 0..4000 {
            let mut damaged = file.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..damaged.len());
                damaged[at] = rng.random();
            }
            if let Ok(image) = decode(&damaged) {
                assert_eq!(image.voxels.len(), image.geometry.shape.iter().product::<usize>());
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_compressed_voxels_is_noticed() {
    let file = gzip(&int16_file());
    let mut damaged = file.clone();
    // The checksum stands in the last eight bytes.
    let at = file.len() - 6;
    damaged[at] ^= 1;
    assert!(message(decode(&damaged)).contains("damaged gzip data"));
}

#[test]
fn folders_without_scans_or_with_both_layouts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(message(open(&dir)).contains("no scans found"));
    std::fs::create_dir(dir.path().join("img")).unwrap();
    std::fs::create_dir(dir.path().join("label")).unwrap();
    assert!(message(open(&dir)).contains("no scans found"));
    std::fs::create_dir(dir.path().join("test_vol_h5")).unwrap();
    assert!(message(open(&dir)).contains("in two layouts"));
    let missing = ScanSource::open(&dir.path().join("nowhere"), &Preprocessing::default());
    assert!(message(missing).contains("nowhere"));
}

#[test]
fn pairs_must_be_complete_and_unique() {
    let dir = raw_folder();
    write_raw(&dir, "img/img0007.nii", &int16_file());
    assert!(message(open(&dir)).contains("img0007.nii: its partner"));
    std::fs::remove_file(dir.path().join("RawData/Training/img/img0007.nii")).unwrap();
    write_raw(&dir, "label/label0009.nii", &int16_file());
    assert!(message(open(&dir)).contains("label0009.nii: its partner"));
    std::fs::remove_file(dir.path().join("RawData/Training/label/label0009.nii")).unwrap();
    write_raw(&dir, "img/img0005.nii.gz", &gzip(&int16_file()));
    assert!(message(open(&dir)).contains("same case as"));
    std::fs::remove_file(dir.path().join("RawData/Training/img/img0005.nii.gz")).unwrap();
    write_raw(&dir, "img/scan.nii.gz", &gzip(&int16_file()));
    assert!(message(open(&dir)).contains("img0001.nii.gz"));
    std::fs::remove_file(dir.path().join("RawData/Training/img/scan.nii.gz")).unwrap();
    write_raw(&dir, "img/._img0006.nii.gz", b"left by a file manager");
    write_raw(&dir, "img/README.txt", b"notes");
    assert_eq!(open(&dir).unwrap().cases().len(), 1);
}

#[test]
fn image_and_label_must_agree_in_shape() {
    let dir = raw_folder();
    write_raw(&dir, "label/label0005.nii", &nifti_1(2, [4, 3, 5], 0.0, 0.0, &[0; 60]));
    let message = message(open(&dir));
    assert!(message.contains("label0005.nii") && message.contains("[5, 3, 4]") && message.contains("[5, 4, 3]"), "{message}");
}

#[test]
fn labels_outside_the_map_and_nan_are_named() {
    let dir = raw_folder();
    let mut labels = vec![0u8; 60];
    labels[3 * 12 + 5] = 14;
    write_raw(&dir, "label/label0005.nii", &nifti_1(2, [3, 4, 5], 0.0, 0.0, &labels));
    let text = message(read_first(&dir));
    assert!(text.contains("label0005.nii: label 14 in slice 3") && text.contains("0 to 13"), "{text}");
    for (value, shown) in [(1.5f32, "1.5"), (-1.0, "-1"), (f32::NAN, "NaN"), (1e30, "1e30 ")] {
        let labels: Vec<u8> = (0..60).flat_map(|i| if i == 59 { value } else { 2.0 }.to_le_bytes()).collect();
        write_raw(&dir, "label/label0005.nii", &nifti_1(16, [3, 4, 5], 0.0, 0.0, &labels));
        let text = message(read_first(&dir));
        assert!(text.contains(&format!("label {shown}")) && text.contains("slice 4"), "{text}");
    }
    let dir = raw_folder();
    let voxels: Vec<u8> = (0..60).flat_map(|i| if i == 31 { f32::NAN } else { 1.0 }.to_le_bytes()).collect();
    write_raw(&dir, "img/img0005.nii", &nifti_1(16, [3, 4, 5], 0.0, 0.0, &voxels));
    let text = message(read_first(&dir));
    assert!(text.contains("img0005.nii: NaN in slice 2, row 2, column 1"), "{text}");
}

#[test]
fn what_is_written_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mask.nii.gz");
    let mut geometry = Geometry::aligned([2, 3, 4], [2.5, 0.75, 0.5]);
    geometry.affine = [[-0.5, 0.0, 0.0, 10.0], [0.0, -0.75, 0.0, 20.0], [0.0, 0.0, 2.5, -30.0]];
    let voxels: Vec<i16> = (0..24).map(|i| i * 100 - 1024).collect();
    write_nifti(&path, &geometry, &voxels).unwrap();
    let first = std::fs::read(&path).unwrap();
    let image = read_image(&path).unwrap();
    assert_eq!(image.geometry, geometry);
    assert_eq!(image.voxels, voxels.iter().map(|&value| f32::from(value)).collect::<Vec<_>>());
    write_nifti(&path, &geometry, &voxels).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first, "same voxels, same bytes");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    let missing = dir.path().join("nowhere/mask.nii.gz");
    assert!(write_nifti(&missing, &geometry, &voxels).unwrap_err().to_string().contains("nowhere"));
    // Of NIfTI-2, numbers keep their 64 bits, and a fourth axis of length 1 stays.
    let third = 1.0 / 3.0;
    geometry = Geometry { version: NiftiVersion::Two, rank: 4, qform_code: 2, translation: [third; 3], ..geometry };
    geometry.affine[1][3] = third;
    write_nifti(&path, &geometry, &voxels).unwrap();
    assert_eq!(read_image(&path).unwrap().geometry, geometry);
}

/// An `.npz` of two 2-D arrays with the type and the bytes given.
fn npz(entries: &[(&str, &str, [usize; 2], Vec<u8>)]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, type_string, [h, w], data) in entries {
        archive.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        let mut head = format!("{{'descr': '{type_string}', 'fortran_order': False, 'shape': ({h}, {w}), }}");
        head.push_str(&" ".repeat((64 - (head.len() + 11) % 64) % 64));
        head.push('\n');
        archive.write_all(b"\x93NUMPY\x01\x00").unwrap();
        archive.write_all(&(head.len() as u16).to_le_bytes()).unwrap();
        archive.write_all(head.as_bytes()).unwrap();
        archive.write_all(data).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn good_npz() -> Vec<u8> {
    npz(&[("image", "<f4", [2, 3], floats(&[0.0, 0.1, 0.2, 0.3, 0.4, 1.0])), ("label", "|u1", [2, 3], vec![0, 1, 8, 3, 0, 0])])
}

fn published_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("train_npz")).unwrap();
    for slice in ["000", "001"] {
        std::fs::write(dir.path().join(format!("train_npz/case0005_slice{slice}.npz")), good_npz()).unwrap();
    }
    dir
}

#[test]
fn slices_of_a_case_are_gathered() {
    let dir = published_folder();
    let scan = read_first(&dir).unwrap();
    assert_eq!((scan.shape, scan.case.as_str(), scan.spacing_mm), ([2, 2, 3], "0005", None));
    assert_eq!(scan.label, [[0, 1, 8, 3, 0, 0]; 2].concat());
    assert_eq!(scan.slice_sources[1].path, "train_npz/case0005_slice001.npz");
    assert_eq!(open(&dir).unwrap().sources(&sam_ladder_schemas::observer::Silent).unwrap().len(), 2);
}

#[test]
fn bad_slices_are_named() {
    let dir = published_folder();
    let path = |name: &str| dir.path().join("train_npz").join(name);
    let with = |bytes: Vec<u8>| {
        std::fs::write(path("case0005_slice001.npz"), bytes).unwrap();
        let text = message(read_first(&dir));
        assert!(text.contains("case0005_slice001.npz"), "{text}");
        text
    };
    let image = || ("image", "<f4", [2, 3], floats(&[0.5; 6]));
    assert!(with(b"no archive".to_vec()).contains("npz"));
    assert!(with(npz(&[image()])).contains("array label"));
    assert!(with(npz(&[image(), ("label", "|u1", [2, 3], vec![0, 0, 9, 0, 0, 0])])).contains("label 9 in slice 0"));
    assert!(with(npz(&[image(), ("label", "|u1", [3, 2], vec![0; 6])])).contains("shape"));
    assert!(with(npz(&[image(), ("label", "<c8", [1, 1], vec![0; 8])])).contains("type <c8"));
    assert!(with(npz(&[image(), ("label", "|u1", [2, 3], vec![0; 5])])).contains("5 bytes"));
    assert!(with(npz(&[image(), ("label", "|u1", [1 << 40, 1 << 40], vec![0; 5])])).contains("impossible shape"));
    let wide = [("image", "<f4", [2, 4], floats(&[0.5; 8])), ("label", "|u1", [2, 4], vec![0; 8])];
    assert!(with(npz(&wide)).contains("[1, 2, 4]"));
    let nan = ("image", "<f4", [2, 3], floats(&[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0]));
    assert!(with(npz(&[nan, ("label", "|u1", [2, 3], vec![0; 6])])).contains("NaN in slice 0, row 1, column 1"));
    std::fs::write(path("case0005_slice001.npz"), good_npz()).unwrap();
    std::fs::write(path("case0005_slice003.npz"), good_npz()).unwrap();
    assert!(message(open(&dir)).contains("case 0005 has 3 slices but none with number 2"));
    std::fs::rename(path("case0005_slice003.npz"), path("case0005_slice01.npz")).unwrap();
    assert!(message(open(&dir)).contains("same slice as"));
    std::fs::rename(path("case0005_slice01.npz"), path("slice5.npz")).unwrap();
    assert!(message(open(&dir)).contains("case0005_slice000.npz"));
}

#[test]
fn damaged_npz_and_hdf5_never_panic() {
    let mut builder = hdf5_pure::FileBuilder::new();
    builder.create_dataset("image").with_f32_data(&[0.5; 24]).with_shape(&[2, 3, 4]);
    builder.create_dataset("label").with_f32_data(&[1.0; 24]).with_shape(&[2, 3, 4]);
    let volume = builder.finish().unwrap();
    let path = Path::new("case0001.npy.h5");
    let [image, label] = hdf5::read_arrays(path, volume.clone(), ["image", "label"]).unwrap();
    assert_eq!((image.shape, image.values, label.values), ([2, 3, 4], vec![0.5; 24], vec![1.0; 24]));
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for file in [volume, good_npz()] {
        for round in 0..3000 {
            let mut damaged = file.clone();
            if round % 3 == 0 {
                damaged.truncate(rng.random_range(0..file.len()));
            } else {
                for _ in 0..rng.random_range(1..4) {
                    let at = rng.random_range(0..damaged.len());
                    damaged[at] = rng.random();
                }
            }
            // Damage may hit bytes that carry no checksum: what matters is that nothing panics.
            let _ = hdf5::read_arrays(path, damaged.clone(), ["image", "label"]).map(|_| ());
            let _ = formats_npz::read_arrays(path, damaged, ["image", "label"]).map(|_| ());
        }
    }
}

#[test]
fn damaged_volumes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("test_vol_h5")).unwrap();
    let path = dir.path().join("test_vol_h5/case0001.npy.h5");
    std::fs::write(&path, b"not HDF5").unwrap();
    assert!(message(open(&dir)).contains("case0001.npy.h5: not a readable HDF5 file"));
    let mut builder = hdf5_pure::FileBuilder::new();
    builder.create_dataset("image").with_f32_data(&[0.5; 24]).with_shape(&[2, 3, 4]);
    builder.create_dataset("label").with_f32_data(&[1.0; 24]).with_shape(&[2, 4, 3]);
    builder.write(&path).unwrap();
    assert!(message(read_first(&dir)).contains("[2, 4, 3]"));
    let mut builder = hdf5_pure::FileBuilder::new();
    builder.create_dataset("image").with_f32_data(&[0.5; 24]).with_shape(&[24]);
    builder.write(&path).unwrap();
    assert!(message(open(&dir)).contains("[24]"));
    std::fs::rename(&path, dir.path().join("test_vol_h5/first.npy.h5")).unwrap();
    assert!(message(open(&dir)).contains("expected a name like case0001.npy.h5"));
}

/// A volume of the published layout.
fn volume(dir: &tempfile::TempDir, shape: [usize; 3], value: impl Fn(usize) -> f32) {
    std::fs::create_dir_all(dir.path().join("test_vol_h5")).unwrap();
    let (voxels, shape) = (shape.iter().product(), shape.map(|side| side as u64));
    let mut builder = hdf5_pure::FileBuilder::new();
    builder.create_dataset("image").with_f32_data(&(0..voxels).map(value).collect::<Vec<_>>()).with_shape(&shape);
    builder.create_dataset("label").with_f32_data(&vec![1.0; voxels]).with_shape(&shape);
    builder.write(dir.path().join("test_vol_h5/case0001.npy.h5")).unwrap();
}

#[test]
fn a_volume_whose_slices_lie_along_its_last_axis_is_refused() {
    let check = |dir: &tempfile::TempDir| open(dir).unwrap().check_labels(&[], &sam_ladder_schemas::observer::Silent);
    // The training slices are 2x3.
    let dir = published_folder();
    volume(&dir, [2, 3, 4], |_| 0.5);
    let text = message(check(&dir));
    assert!(text.contains("case0001.npy.h5: shape [2, 3, 4] has slices of 3x4, but the training slices have 2x3"), "{text}");
    volume(&dir, [4, 2, 3], |_| 0.5);
    check(&dir).unwrap();
    // Without training slices, equal sides say which axes are a slice's.
    let alone = tempfile::tempdir().unwrap();
    volume(&alone, [6, 6, 4], |_| 0.5);
    assert!(message(check(&alone)).contains("first two axes are equal"));
    volume(&alone, [4, 6, 6], |_| 0.5);
    check(&alone).unwrap();
}

#[test]
fn images_far_from_0_to_1_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let notes = |value: fn(usize) -> f32| {
        volume(&dir, [4, 6, 6], value);
        read_first(&dir).unwrap().notes
    };
    // As far as splines leave [0, 1] in real sets.
    assert_eq!(notes(|at| at as f32 / 143.0 * 1.34 - 0.15), [""; 0]);
    let hu = notes(|at| at as f32 * 10.0 - 1000.0);
    assert!(hu[0].contains("case0001.npy.h5: expected values in [0, 1]") && hu[0].contains("from -1000 to 430"), "{hu:?}");
    assert!(notes(|_| 0.0)[0].contains("from 0 to 0"));
}

#[test]
fn what_the_published_layout_lacks_can_be_stated() {
    let dir = published_folder();
    let stated = SourceOptions {
        orientation: Some("LAS".parse().unwrap()),
        spacing_mm: Some([3.0, 0.8, 0.7]),
        class_names: Some(["a", "b", "c", "d", "e", "f", "g", "h"].map(String::from).to_vec()),
        ..SourceOptions::default()
    };
    let config = |dir: &tempfile::TempDir, options: &SourceOptions| configure(dir.path(), options, Default::default());
    let config_of = config(&dir, &stated).unwrap();
    let source = ScanSource::open(dir.path(), &config_of.preprocessing).unwrap();
    let scan = source.read(&source.cases()[0]).unwrap();
    assert_eq!((scan.spacing_mm, scan.row.axis_codes.as_deref()), (Some([3.0, 0.8, 0.7]), Some("LAS")));
    assert_eq!(scan.label[..3], [0, 1, 8]);
    assert_eq!(
        source.notes(&config_of.class_names)[0].split(';').next().unwrap(),
        "labels 1 to 8 are taken as a, b, c, d, e, f, g, h"
    );
    let fewer = SourceOptions { class_names: Some(vec!["a".into()]), ..SourceOptions::default() };
    let source = ScanSource::open(dir.path(), &config(&dir, &fewer).unwrap().preprocessing).unwrap();
    let refused = source.check_labels(&[], &sam_ladder_schemas::observer::Silent);
    assert_eq!(refused.as_ref().unwrap_err().hint().unwrap(), "correct the labels, or state the classes with --classes");
    let text = message(refused);
    assert!(text.contains("case0005_slice000.npz: label 8 in slice 0, expected whole numbers from 0 to 1"), "{text}");
    let raw = raw_folder();
    for (options, option) in
        [(SourceOptions { spacing_mm: stated.spacing_mm, ..SourceOptions::default() }, "--spacing"), (fewer, "--classes")]
    {
        let text = message(config(&raw, &options));
        assert!(text.contains(&format!("to which {option} does not apply")), "{text}");
    }
}
