//! Files as SimpleITK 2.5.7 and nibabel 5.4.2 write them, with the values and places that they read.

use super::*;
use std::fs;

/// 0 to 23 as int16, little-endian.
fn voxels() -> Vec<u8> {
    (0i16..24).flat_map(i16::to_le_bytes).collect()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Asserts the values 0 to 23 in `[2, 3, 4]`, and an affine.
#[track_caller]
fn assert_read(path: &Path, affine: Option<Affine>) {
    let image = read_volume(path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(image.geometry.shape, [2, 3, 4]);
    assert_eq!(image.voxels, (0..24).map(|value| value as f32).collect::<Vec<_>>());
    let rounded = |affine: Affine| affine.map(|row| row.map(|value| (value * 1e9).round() / 1e9));
    assert_eq!(image.geometry.world_affine().map(rounded), affine);
    assert_eq!(read_geometry(path).unwrap(), image.geometry);
}

/// SimpleITK's image of direction (0, 1, 0, 0.6, 0, 0.8, -0.8, 0, 0.6), spacing (0.5, 0.75, 3) and origin (1, 2, 3), in RAS+.
const OBLIQUE: Affine = [[0.0, -0.75, 0.0, -1.0], [-0.3, 0.0, -2.4, -2.0], [-0.4, 0.0, 1.8, 3.0]];
const META: &str = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n\
                    TransformMatrix = 0 0.59999999999999998 -0.80000000000000004 1 0 0 0 0.80000000000000004 0.59999999999999998\n\
                    Offset = 1 2 3\nCenterOfRotation = 0 0 0\nAnatomicalOrientation = SRA\nElementSpacing = 0.5 0.75 3\nDimSize = 4 3 2\n\
                    ElementType = MET_SHORT\nElementDataFile = LOCAL\n";
const NRRD: &str = "NRRD0004\n# Complete NRRD file format specification at:\n# http://teem.sourceforge.net/nrrd/format.html\ntype: short\n\
                    dimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\n\
                    space directions: (0,0.29999999999999999,-0.40000000000000002) (0.75,0,0) (0,2.4000000000000004,1.7999999999999998)\n\
                    kinds: domain domain domain\nendian: little\nencoding: raw\nspace origin: (1,2,3)\n\n";
/// The voxels as SimpleITK compresses them.
const ZLIB: &str = "785e05c1850180200000b05918800122ff7feac66034992d82d566778892ec74b93d8aead57cba1f12280115";
const GZIP: &str =
    "1f8b080000000000000305c1850180200000b05918800122ff7feac66034992d82d566778892ec74b93d8aead57cba1f7cdd19d330000000";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, parts: &[&[u8]]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, parts.concat()).unwrap();
        path
    }

    /// An error with its hint.
    fn refused(&self, name: &str, parts: &[&[u8]]) -> String {
        let path = self.write(name, parts);
        let error = read_volume(&path).unwrap_err();
        let text = format!("{error}; {}", error.hint().unwrap_or_default());
        assert!(text.contains(name), "{text}");
        text
    }
}

#[test]
fn values_and_places_are_simpleitks() {
    let folder = Folder::new();
    let compressed = META.replace("CompressedData = False", "CompressedData = True\nCompressedDataSize = 44");
    assert_read(&folder.write("a.mha", &[META.as_bytes(), &voxels()]), Some(OBLIQUE));
    assert_read(&folder.write("b.MHA", &[compressed.as_bytes(), &bytes_of(ZLIB)]), Some(OBLIQUE));
    assert_read(&folder.write("c.nrrd", &[NRRD.as_bytes(), &voxels()]), Some(OBLIQUE));
    let gzip = NRRD.replace("encoding: raw", "encoding: gzip");
    assert_read(&folder.write("d.nrrd", &[gzip.as_bytes(), &bytes_of(GZIP)]), Some(OBLIQUE));
    // Voxels in a file of their own, with and without compression.
    folder.write("e.raw", &[&voxels()]);
    folder.write("e.zraw", &[&bytes_of(ZLIB)]);
    folder.write("e.raw.gz", &[&bytes_of(GZIP)]);
    let names = |header: &str, file: &str| header.replace("LOCAL", file);
    let detached = folder.write("e.mhd", &[names(META, "e.raw").as_bytes()]);
    assert_read(&detached, Some(OBLIQUE));
    assert_eq!(voxel_file(&detached).unwrap(), Some(folder.0.path().join("e.raw")));
    assert_read(&folder.write("f.mhd", &[names(&compressed, "e.zraw").trim_end().as_bytes()]), Some(OBLIQUE));
    let nrrd = |header: &str, file: &str| header.trim_end().to_owned() + "\ndata file: " + file + "\n";
    assert_read(&folder.write("e.nhdr", &[nrrd(NRRD, "e.raw").as_bytes()]), Some(OBLIQUE));
    assert_read(&folder.write("f.nhdr", &[nrrd(&gzip, "./e.raw.gz").as_bytes(), b"\n"]), Some(OBLIQUE));
}

#[test]
fn spaces_and_units_of_nrrd() {
    let folder = Folder::new();
    let with = |lines: &[&str]| {
        let header = "NRRD0005\ntype: int16\ndimension: 3\nsizes: 4 3 2\nendian: little\nencoding: raw\n";
        folder.write("a.nrrd", &[header.as_bytes(), lines.join("\n").as_bytes(), b"\n\n", &voxels()])
    };
    let directions = "space directions: (0.5,0,0) (0,0.75,0) (0, 0, 3)";
    let origin = "space origin: (1,2,3)";
    // SimpleITK reads the direction (1, 1, 1), (-1, -1, 1), (1, -1, 1) along the diagonal, in LPS.
    for (space, x, y) in [("left-posterior-superior", -1.0, -1.0), ("RAS", 1.0, 1.0), ("Left-Anterior-Superior", -1.0, 1.0)] {
        let affine =
            [[x * 0.5, 0.0, 0.0, x], [0.0, y * 0.75, 0.0, y * 2.0], [0.0, 0.0, 3.0, 3.0]].map(|row| row.map(|v: f64| v + 0.0));
        assert_read(&with(&[&format!("space: {space}"), directions, origin]), Some(affine));
    }
    let centimetres = with(&["space: RAS", directions, r#"space units: "cm" "cm" "cm""#]);
    assert_eq!(read_geometry(&centimetres).unwrap().spacing_mm(), [30.0, 7.5, 5.0]);
    // Nothing says where these lie in the body.
    for lines in [&["space: scanner-xyz", directions, origin][..], &["space dimension: 3", directions], &["spacings: 0.5 0.75 3"]]
    {
        let path = with(lines);
        assert_read(&path, None);
        assert_eq!(read_geometry(&path).unwrap().spacing_mm(), [3.0, 0.75, 0.5], "{lines:?}");
    }
    assert_eq!(read_geometry(&with(&[])).unwrap().spacing_mm(), [1.0; 3]);
    // A comment of another encoding, and a pair of key and value that looks like a field.
    folder.write("b.nrrd", &[b"NRRD0004\n# \xe9\nx:=sizes: 1\n", NRRD.split_once('\n').unwrap().1.as_bytes(), &voxels()]);
    assert_read(&folder.0.path().join("b.nrrd"), Some(OBLIQUE));
}

#[test]
fn what_comes_before_the_voxels() {
    let folder = Folder::new();
    let head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 3 2\nspace: RAS\nspace directions: (0.5,0,0) (0,0.75,0) (0,0,3)\nendian: little\n";
    let place = Some([[0.5, 0.0, 0.0, 0.0], [0.0, 0.75, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]);
    for (lines, before) in [
        ("encoding: raw\nbyte skip: 4", &b"zzzz"[..]),
        ("encoding: raw\nbyte skip: -1", b"anything"),
        ("encoding: raw\nline skip: 2", b"hello\n\n"),
        ("encoding: raw\nline skip: 1\nbyte skip: 3", b"hello\nabc"),
    ] {
        assert_read(&folder.write("a.nrrd", &[head.as_bytes(), lines.as_bytes(), b"\n\n", before, &voxels()]), place);
    }
    let words: Vec<String> = (0..24).map(|value| value.to_string()).collect();
    assert_read(&folder.write("t.nrrd", &[head.as_bytes(), b"encoding: ascii\n\n", words.join(" ").as_bytes()]), place);
    let text = META.replace("BinaryData = True", "BinaryData = False");
    assert_read(&folder.write("t.mha", &[text.as_bytes(), words.join("\n").as_bytes()]), Some(OBLIQUE));
    folder.write("a.raw", &[b"headhead", &voxels()]);
    for size in ["8", "-1"] {
        let header = META.replace("ElementDataFile = LOCAL", &format!("HeaderSize = {size}\nElementDataFile = a.raw"));
        assert_read(&folder.write("a.mhd", &[header.as_bytes()]), Some(OBLIQUE));
    }
    let few = folder.refused("few.nrrd", &[head.as_bytes(), b"encoding: ascii\n\n", words[..23].join(" ").as_bytes()]);
    assert!(few.contains("24 voxels, found 23"), "{few}");
}

#[test]
fn every_number_type_in_either_byte_order() {
    let folder = Folder::new();
    macro_rules! check {
        ($type:ty, $nrrd:literal, $meta:literal) => {
            let values: Vec<$type> = (0..24).map(|value| value as $type * 5 as $type).collect();
            let expected: Vec<f32> = (0..24).map(|value| value as f32 * 5.0).collect();
            for big in [false, true] {
                let bytes: Vec<u8> = values.iter().flat_map(|v| if big { v.to_be_bytes() } else { v.to_le_bytes() }).collect();
                let endian = if big { "endian: big" } else { "endian: little" };
                let nrrd = NRRD.replace("type: short", concat!("type: ", $nrrd)).replace("endian: little", endian);
                let meta =
                    META.replace("MET_SHORT", $meta).replace("MSB = False", if big { "MSB = True" } else { "MSB = False" });
                for path in
                    [folder.write("a.nrrd", &[nrrd.as_bytes(), &bytes]), folder.write("a.mha", &[meta.as_bytes(), &bytes])]
                {
                    assert_eq!(read_volume(&path).unwrap().voxels, expected, "{}", path.display());
                }
            }
        };
    }
    check!(i8, "signed char", "MET_CHAR");
    check!(u8, "unsigned char", "MET_UCHAR");
    check!(i16, "short", "MET_SHORT");
    check!(u16, "unsigned short", "MET_USHORT");
    check!(i32, "int", "MET_INT");
    check!(u32, "unsigned int", "MET_UINT");
    check!(i64, "long long int", "MET_LONG_LONG");
    check!(u64, "unsigned long long int", "MET_ULONG_LONG");
    check!(f32, "float", "MET_FLOAT");
    check!(f64, "double", "MET_DOUBLE");
    // SimpleITK reads 32 bits.
    check!(i32, "int32_t", "MET_LONG");
}

/// The header of an Analyze or NIfTI pair of 0.5 × 0.75 × 3 mm.
fn pair_header(magic: &[u8; 4]) -> Vec<u8> {
    let mut head = vec![0u8; 348];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &348i32.to_le_bytes());
    for (index, side) in [3i16, 4, 3, 2, 1, 1, 1, 1].into_iter().enumerate() {
        put(40 + 2 * index, &side.to_le_bytes());
    }
    put(70, &4i16.to_le_bytes());
    for (index, side) in [1f32, 0.5, 0.75, 3.0].into_iter().enumerate() {
        put(76 + 4 * index, &side.to_le_bytes());
    }
    // NIfTI: sform_code 1 and the first row. Analyze: an originator and a name.
    put(254, &1i16.to_le_bytes());
    put(280, &0.5f32.to_le_bytes());
    put(296 + 4, &0.75f32.to_le_bytes());
    put(312 + 8, &3f32.to_le_bytes());
    put(344, magic);
    head
}

#[test]
fn pairs_of_nifti_and_analyze() {
    let folder = Folder::new();
    let place = Some([[0.5, 0.0, 0.0, 0.0], [0.0, 0.75, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]);
    let header = folder.write("a.hdr", &[&pair_header(b"ni1\0")]);
    let missing = folder.refused("a.hdr", &[&pair_header(b"ni1\0")]);
    assert!(missing.contains(".img"), "{missing}");
    folder.write("a.img", &[&voxels()]);
    assert_read(&header, place);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    folder.write("b.img.gz", &[&gzip(&voxels())]);
    assert_read(&folder.write("b.hdr.gz", &[&gzip(&pair_header(b"ni1\0"))]), place);
    // Plain Analyze says how far apart voxels are, not where.
    folder.write("c.img", &[&voxels()]);
    let analyze = folder.write("c.hdr", &[&pair_header(&[0; 4])]);
    assert_read(&analyze, None);
    assert_eq!(read_geometry(&analyze).unwrap().spacing_mm(), [3.0, 0.75, 0.5]);
    folder.write("c.img", &[&voxels()[1..]]);
    let short = read_volume(&analyze).unwrap_err().to_string();
    assert!(short.contains("c.img: truncated: its header promises 48 bytes of voxels, found 47"), "{short}");
    assert!(read_geometry(&analyze).unwrap_err().to_string().contains("found 47"));
    // Half of a pair under the other's name.
    let single = folder.refused("d.nii", &[&pair_header(b"ni1\0"), &[0; 100]]);
    assert!(single.contains(".hdr/.img pair"), "{single}");
    folder.write("e.img", &[&voxels()]);
    assert!(folder.refused("e.hdr", &[&pair_header(b"n+1\0")]).contains("ends in .nii"));
}

#[test]
fn what_is_no_volume_of_numbers_is_refused() {
    let folder = Folder::new();
    let nrrd = |from: &str, to: &str| folder.refused("a.nrrd", &[NRRD.replace(from, to).as_bytes(), &voxels()]);
    for (from, to, part) in [
        ("kinds: domain domain domain", "kinds: domain domain vector", "of the kind \"vector\""),
        ("dimension: 3", "dimension: 4", "4 axes"),
        ("sizes: 4 3 2", "sizes: 4 3", "3 numbers"),
        ("sizes: 4 3 2", "sizes: 4 0 2", "[4, 0, 2]"),
        ("sizes: 4 3 2", "sizes: 1099511627776 1099511627776 2", "than a file can hold"),
        ("sizes: 4 3 2", "sizes: 4 3 1099511627776", "promises 26388279066624 bytes of voxels, found 48"),
        ("type: short", "type: block", "type block"),
        ("encoding: raw", "encoding: bzip2", "encoding gzip or raw"),
        ("endian: little\n", "", "lacks endian"),
        ("(0.75,0,0)", "none", "three vectors"),
        ("(0.75,0,0)", "(0,0,0)", "do not span space"),
        ("space origin: (1,2,3)", "space units: \"mm\" \"cm\" \"mm\"", "differ"),
        ("space origin: (1,2,3)", "data file: ../a.raw", "not the name of one file"),
        ("space origin: (1,2,3)", "data file: /etc/passwd", "not the name of one file"),
        ("space origin: (1,2,3)", "data file: LIST", "several files"),
        ("NRRD0004", "NRRD", "first line"),
    ] {
        let text = nrrd(from, to);
        assert!(text.contains(part), "{to}: {text}");
    }
    let meta = |from: &str, to: &str| folder.refused("a.mha", &[META.replace(from, to).as_bytes(), &voxels()]);
    for (from, to, part) in [
        ("NDims = 3", "NDims = 2", "2 axes"),
        ("NDims = 3", "NDims = 3\nElementNumberOfChannels = 3", "3 numbers per voxel"),
        ("NDims = 3", "NDims = 3\nElementToIntensityFunctionSlope = 2", "scaled"),
        ("DimSize = 4 3 2", "DimSize = 4 3 1099511627776", "promises 26388279066624 bytes of voxels, found 48"),
        ("MET_SHORT", "MET_SHORT_ARRAY", "type MET_SHORT_ARRAY"),
        ("= LOCAL", "= slices%03d.raw 1 2 1", "not the name of one file"),
        ("= LOCAL", "= LIST", "several files"),
        ("Offset = 1 2 3", "Offset = 1 2", "3 numbers"),
        ("ElementSpacing = 0.5", "ElementSpacing = 0", "do not span space"),
        ("ElementDataFile = LOCAL\n", "", "is no field of a header"),
    ] {
        let text = meta(from, to);
        assert!(text.contains(part), "{to}: {text}");
    }
    let cut = folder.refused("b.nrrd", &[NRRD.as_bytes(), &voxels()[..47]]);
    assert!(cut.contains("promises 48 bytes of voxels, found 47"), "{cut}");
    let compressed = META.replace("CompressedData = False", "CompressedData = True");
    let mut damaged = bytes_of(ZLIB);
    damaged[40] ^= 1;
    assert!(folder.refused("c.mha", &[compressed.as_bytes(), &damaged]).contains("damaged zlib data"));
    folder.write("gone.mhd", &[META.replace("LOCAL", "gone.raw").as_bytes()]);
    let gone = read_volume(&folder.0.path().join("gone.mhd")).unwrap_err().to_string();
    assert!(gone.contains("gone.raw"), "{gone}");
}
