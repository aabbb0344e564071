//! What real folders hold: files that look like scans and are not used are listed with the reason, other formats are read, what was not fetched is
//! named with the command that fetches it, and what is missing is said before any work.
#![cfg(unix)]

mod cli;
#[path = "common/stage_one.rs"]
mod stage_one;

use cli::{assert_refused, nifti, on, succeed, write_pair};
use sam_ladder_formats::nifti::{Geometry, NiftiImage, read_image};
use sam_ladder_formats::placeholder;
use sam_ladder_precompute::pipeline::{Plan, Space};
use sam_ladder_precompute::scans::{NewScan, ScanSource, SourceOptions, configure, find_new_scans};
use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
use sam_ladder_schemas::preprocessing::Preprocessing;
use sam_ladder_schemas::variants::AugmentPolicy;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

const ANNEX: &str = ".git/annex/objects/Wz/9k/SHA256E-s7--8b39a6b9.nii.gz/SHA256E-s7--8b39a6b9.nii.gz";
const LFS: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Standard error of a command that must succeed.
fn said(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{command:?}:\n{said}");
    said
}

/// An image of 4 × 3 × 2 voxels in Hounsfield units, and labels of two classes.
fn image() -> Vec<u8> {
    nifti([4, 3, 2], &(0..24).map(|i| i as f32 * 10.0 - 100.0).collect::<Vec<_>>())
}

fn label() -> Vec<u8> {
    nifti([4, 3, 2], &(0..24).map(|i| (i % 2) as f32).collect::<Vec<_>>())
}

/// Writes files below a folder.
fn write(folder: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn dataset(folder: &Path, ending: &str) {
    let json =
        format!(r#"{{"channel_names": {{"0": "CT"}}, "labels": {{"background": 0, "liver": 1}}, "file_ending": "{ending}"}}"#);
    write(folder, &[("dataset.json", json.as_bytes())]);
}

/// The cases of a folder, and what is said of it.
fn opened(folder: &Path) -> Result<(Vec<String>, Vec<String>), String> {
    let config = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 0 });
    let words = |error: sam_ladder_precompute::scans::ScanError| format!("{error}; {}", error.hint().unwrap_or_default());
    let config = configure(folder, &SourceOptions::default(), config).map_err(words)?;
    let source = ScanSource::open(folder, &config.preprocessing).map_err(words)?;
    source.cases().iter().try_for_each(|case| source.read(case).map(drop)).map_err(words)?;
    Ok((source.cases().iter().map(|case| case.case.clone()).collect(), source.notes(&config.class_names)))
}

/// Asserts that a line says that a file is not used, for a reason.
#[track_caller]
fn assert_listed(notes: &[String], file: &str, reason: &str) {
    let is_it = |note: &&String| {
        note.contains("not used") && note.split_once("): ").is_some_and(|(_, names)| names.split(", ").any(|name| name == file))
    };
    let found: Vec<&String> = notes.iter().filter(is_it).collect();
    assert!(found.len() == 1 && found[0].contains(reason), "{file}, {reason}: {notes:#?}");
}

#[test]
fn what_nnunets_folder_holds_and_is_not_used_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    dataset(at, ".nii.gz");
    let (image, label) = (gzip(&image()), gzip(&label()));
    write(
        at,
        &[
            ("imagesTr/a_0000.nii.gz", &image),
            ("labelsTr/a.nii.gz", &label),
            // Another system's case of letters is read.
            ("imagesTr/b_0000.NII.GZ", &image),
            ("labelsTr/b.Nii.gz", &label),
            ("imagesTr/c_0000.nrrd", b"NRRD0004\n"),
            ("imagesTr/d_0000.mha", b""),
            ("imagesTr/a_0000.nii", b""),
            ("imagesTr/e_0000.mgz", b""),
            ("imagesTr/._a_0000.nii.gz", b"\0\x05\x16\x07"),
            ("imagesTr/f_0000.nii.gz.part", b""),
            ("imagesTr/lonely.img", b""),
            ("imagesTr/IM000001", &[&[0; 128][..], b"DICM"].concat()),
            ("labelsTr/g.nrrd", b""),
            ("imagesTr/a_0000.nii.gz~", &image),
            ("imagesTr/k_0000.nii.gz.gz", &gzip(&image)),
            ("imagesTr/.l_0000.nii.gz.X1y2Z3", &image),
            ("imagesTr/scan17", &image),
            ("imagesTr/site2/m_0000.nii.gz", &image),
            ("imagesTr/logs/readme.txt", b""),
            ("imagesTr/readme.txt", b""),
            ("imagesTr/.DS_Store", b""),
        ],
    );
    symlink(ANNEX, at.join("imagesTr/h_0000.nii.gz")).unwrap();
    let (cases, notes) = opened(at).unwrap();
    assert_eq!(cases, ["a", "b"]);
    for name in ["c_0000.nrrd", "d_0000.mha", "a_0000.nii", "e_0000.mgz", "g.nrrd", "k_0000.nii.gz.gz", "scan17"] {
        assert_listed(&notes, name, "expected the ending .nii.gz");
    }
    assert_listed(&notes, "._a_0000.nii.gz", "macOS");
    assert_listed(&notes, "f_0000.nii.gz.part", "unfinished downloads");
    assert_listed(&notes, "a_0000.nii.gz~", "backups");
    assert_listed(&notes, ".l_0000.nii.gz.X1y2Z3", "begin with a dot");
    assert_listed(&notes, "site2", "1 folder is not used (a folder with scans");
    assert_listed(&notes, "lonely.img", "without the header");
    assert_listed(&notes, "IM000001", "dcm2niix");
    assert_listed(&notes, "h_0000.nii.gz", "annex get h_0000.nii.gz");
    assert!(!notes.iter().any(|note| note.contains("readme") || note.contains("logs") || note.contains("DS_Store")), "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("0 test scans found")
        && note.contains("--test-cases")
        && note.contains("eval --split validation")));

    // A scan whose image was not fetched is no scan without an image.
    write(at, &[("labelsTr/h.nii.gz", &label)]);
    let refused = opened(at).unwrap_err();
    assert!(
        refused.contains("h_0000.nii.gz: only git-annex's pointer is here") && refused.contains("annex get h_0000.nii.gz"),
        "{refused}"
    );
    // Two of one case.
    write(at, &[("imagesTr/h_0000.NII.gz", &image), ("imagesTr/a_0000.nii.GZ", &image)]);
    assert!(opened(at).unwrap_err().contains("same channel as"));
    // A name without its channel.
    fs::remove_file(at.join("imagesTr/a_0000.nii.GZ")).unwrap();
    write(at, &[("imagesTr/pancreas_0001.nii.gz", &image), ("labelsTr/pancreas_0001.nii.gz", &label)]);
    let refused = opened(at).unwrap_err();
    assert!(refused.contains("lacks the number of its channel") && refused.contains("pancreas_0001_0000.nii.gz"), "{refused}");
}

/// Names of files and their bytes.
type Files = Vec<(&'static str, Vec<u8>)>;

/// The NIfTI file's voxels and place in other formats, by its affine in RAS+.
fn other_formats(image: &NiftiImage) -> Vec<(&'static str, Files)> {
    let [depth, height, width] = image.geometry.shape;
    let affine = image.geometry.world_affine().unwrap();
    let column =
        |axis: usize, signs: [f64; 3]| (0..3).map(|row| (affine[row][axis] * signs[row] + 0.0).to_string()).collect::<Vec<_>>();
    let floats: Vec<u8> = image.voxels.iter().flat_map(|value| value.to_le_bytes()).collect();
    let ras = [1.0; 3];
    let nrrd = format!(
        "NRRD0004\ntype: float\ndimension: 3\nspace: right-anterior-superior\nsizes: {width} {height} {depth}\nspace directions: ({}) ({}) ({})\n\
         endian: little\nencoding: gzip\nspace origin: ({})\n\n",
        column(0, ras).join(","),
        column(1, ras).join(","),
        column(2, ras).join(","),
        column(3, ras).join(",")
    );
    let lps = [-1.0, -1.0, 1.0];
    // The matrix times the spacing is what counts.
    let meta = format!(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = {} {} {}\nOffset = {}\nElementSpacing = 1 1 1\n\
         DimSize = {width} {height} {depth}\nElementType = MET_FLOAT\nElementDataFile = voxels.raw\n",
        column(0, lps).join(" "),
        column(1, lps).join(" "),
        column(2, lps).join(" "),
        column(3, lps).join(" ")
    );
    vec![
        (".nrrd", vec![(".nrrd", [nrrd.into_bytes(), gzip(&floats)].concat())]),
        (".mhd", vec![(".mhd", meta.into_bytes()), ("voxels.raw", floats)]),
    ]
}

#[test]
fn a_scan_in_another_format_has_the_same_mask() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @p --cases 3 --size 32 --depth 4 --seed 3"));
    succeed(on(at, "precompute --scans @p --store @s.zarr --random-encoder 3 --image-size 32 --data-size 32 --augment none"));
    succeed(on(at, "train --store @s.zarr --run @run --epochs 60 --max-steps 60 --batch-size 4 --warmup 5 --lr 2e-3"));
    let scan = at.join("p/RawData/Training/img/img0001.nii.gz");
    let original = read_image(&scan).unwrap();
    for (ending, files) in other_formats(&original) {
        for (name, bytes) in files {
            let name = if name.starts_with('.') { format!("new/scan_0000{name}") } else { format!("new/{name}") };
            write(at, &[(&name, &bytes)]);
        }
        let told = said(on(at, &format!("predict --scan @new --run @run --out @masks-{}", &ending[1..])));
        assert!(!told.contains("not used"), "{told}");
        fs::remove_dir_all(at.join("new")).unwrap();
    }
    succeed(on(at, "predict --scan @p/RawData/Training/img/img0001.nii.gz --run @run --out @mask.nii.gz"));
    let expected = read_image(&at.join("mask.nii.gz")).unwrap();
    assert!(expected.voxels.iter().any(|&class| class > 0.0), "the mask has organs");
    for ending in [".nrrd", ".mhd"] {
        let mask = read_image(&at.join(format!("masks-{}/scan.nii.gz", &ending[1..]))).unwrap();
        assert_eq!(mask.voxels, expected.voxels, "{ending}");
        assert_eq!(mask.geometry.corner_distance_mm(&original.geometry).map(|mm| mm < 1e-4), Some(true), "{ending}");
    }
    // A mask's name in another format is refused before anything is read: there is no such run.
    for out in ["x.nrrd", "x.mha", "x.img", "x.png", "x.nii.npz"] {
        let refused = assert_refused(on(at, &format!("predict --scan @p --run @nowhere --out @{out}")));
        assert!(
            refused.contains("is not the name of a NIfTI file") && refused.contains("x") && refused.contains(".nii.gz"),
            "{refused}"
        );
    }
}

#[test]
fn a_store_of_pairs_holds_what_one_of_nifti_files_holds() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write_pair(&at.join("n"), 5, &image(), &label());
    write_pair(&at.join("n"), 1, &image(), &label());
    let half = |bytes: &[u8]| {
        let mut header = bytes[..348].to_vec();
        header[108..112].fill(0);
        header[344..348].copy_from_slice(b"ni1\0");
        (header, bytes[352..].to_vec())
    };
    for case in ["0005", "0001"] {
        for (kind, bytes) in [("img", image()), ("label", label())] {
            let (header, voxels) = half(&bytes);
            let name = format!("p/{kind}/{kind}{case}");
            write(at, &[(&format!("{name}.hdr"), &header), (&format!("{name}.img"), &voxels)]);
        }
    }
    let read = |folder: &str| {
        let source = ScanSource::open(&at.join(folder), &Preprocessing::default()).unwrap();
        let scans: Vec<_> = source.cases().iter().map(|case| source.read(case).unwrap()).collect();
        (scans.iter().map(|scan| (scan.image.clone(), scan.label.clone(), scan.spacing_mm)).collect::<Vec<_>>(), source)
    };
    let ((pairs, source), (nifti, _)) = (read("p"), read("n"));
    assert_eq!(pairs, nifti);
    let sources = source.sources(&Silent).unwrap();
    let names: Vec<&str> = sources.iter().map(|source| source.path.as_str()).collect();
    assert!(names.contains(&"img/img0005.hdr") && names.contains(&"img/img0005.img") && names.len() == 8, "{names:?}");
    // What is encoded is what was hashed, in either file.
    let voxels = at.join("p/img/img0005.img");
    let mut bytes = fs::read(&voxels).unwrap();
    bytes[0] ^= 1;
    fs::write(&voxels, bytes).unwrap();
    let error = source.read_checked(&source.cases()[0], &sources).unwrap_err().to_string();
    assert!(error.contains("img0005.img: has changed"), "{error}");
    fs::remove_file(&voxels).unwrap();
    let refused = opened(&at.join("p")).unwrap_err();
    assert!(refused.contains("img0005.hdr") && refused.contains(".img"), "{refused}");
}

/// The files of a golden folder of the published layout.
fn published(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/synapse_mini/Synapse").join(name);
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn the_published_folders_may_have_a_suffix() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let copy = |from: &str, to: &str| {
        for path in published(from) {
            write(at, &[(&format!("{to}/{}", path.file_name().unwrap().to_string_lossy()), &fs::read(&path).unwrap())]);
        }
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/synapse_mini/Synapse");
    let (expected, _) = opened(&golden).unwrap();
    copy("train_npz", "train_npz_new_224");
    copy("test_vol_h5", "test_vol_h5_224");
    write(at, &[("test_vol_h5_224/case0099.npz", b""), ("train_npz_new_224/case0001_slice000.npz.crdownload", b"")]);
    let (cases, notes) = opened(at).unwrap();
    assert_eq!(cases, expected);
    assert_listed(&notes, "case0099.npz", "expected the ending .npy.h5");
    assert_listed(&notes, "case0001_slice000.npz.crdownload", "unfinished downloads");
    // The plain name goes before the others; of two others none does.
    copy("train_npz", "train_npz");
    assert_listed(&opened(at).unwrap().1, "train_npz_new_224", "train_npz is taken");
    fs::rename(at.join("train_npz"), at.join("train_npz_other")).unwrap();
    let refused = opened(at).unwrap_err();
    assert!(refused.contains("train_npz_new_224") && refused.contains("train_npz_other"), "{refused}");
}

#[test]
fn dicom_is_refused_with_the_command_that_converts_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, &[("study/series/1.2.840.113619.2", &[&[0; 128][..], b"DICM"].concat()), ("flat/a.dcm", b"")]);
    for command in [
        "precompute --scans @study --store @s.zarr --random-encoder 0",
        "precompute --scans @flat --store @s.zarr --random-encoder 0",
    ] {
        let refused = assert_refused(on(at, command));
        assert!(refused.contains("holds DICOM files") && refused.contains("dcm2niix -z y -o"), "{refused}");
    }
    for path in ["study", "flat", "flat/a.dcm"] {
        let error = find_new_scans(&[at.join(path)], &Preprocessing::default()).unwrap_err();
        assert!(error.to_string().contains("DICOM") && error.hint().unwrap().contains("dcm2niix"), "{error}");
    }
}

#[test]
fn what_was_not_fetched_is_named_wherever_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write_pair(at, 5, &image(), &label());
    let scan = at.join("RawData/Training/img/img0005.nii.gz");
    fs::write(&scan, LFS).unwrap();
    fs::write(at.join("sam.pth"), LFS).unwrap();
    let precompute = "precompute --scans @. --store @s.zarr --image-size 16 --data-size 16";
    let refused = assert_refused(on(at, &format!("{precompute} --random-encoder 0")));
    assert!(
        refused.contains("only Git LFS's pointer is here") && refused.contains("lfs pull --include img0005.nii.gz"),
        "{refused}"
    );
    let refused = assert_refused(on(at, &format!("{precompute} --sam-checkpoint @sam.pth")));
    assert!(refused.contains("sam.pth: only Git LFS's pointer") && refused.contains("lfs pull --include sam.pth"), "{refused}");
    let new = NewScan { case: "a".into(), files: vec![scan.clone()] };
    assert!(new.read(&Preprocessing::default()).unwrap_err().to_string().contains("Git LFS"));
    // Only links that lead nowhere: the first is named, not "no scans".
    fs::create_dir(at.join("links")).unwrap();
    symlink(ANNEX, at.join("links/a.nii.gz")).unwrap();
    for path in ["links", "links/a.nii.gz"] {
        let error = find_new_scans(&[at.join(path)], &Preprocessing::default()).unwrap_err();
        assert!(error.hint().unwrap().contains("annex get a.nii.gz"), "{error}");
    }
    assert!(placeholder::is_dangling(&at.join("links/a.nii.gz")));
}

#[test]
fn what_is_left_to_write_is_compared_with_what_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    // Slices of one pixel whose variants at 1024 pixels take some 90 TB.
    let depth = i16::MAX;
    let file = |value: f32| gzip(&nifti([1, 1, depth], &vec![value; depth as usize]));
    let (image, label) = (file(50.0), file(1.0));
    for case in 5..21 {
        write(at, &[(&format!("d/img/img{case:04}.nii.gz"), &image), (&format!("d/label/label{case:04}.nii.gz"), &label)]);
    }
    let refused =
        assert_refused(on(at, "precompute --scans @d --store @new/s.zarr --random-encoder 0 --image-size 1024 --data-size 224"));
    assert!(refused.contains("TB are left to write, but only") && refused.contains("are free there"), "{refused}");
    assert!(!at.join("new").exists(), "nothing is begun");

    // Of a store that is begun, grows or is complete, only what it lacks.
    let (scans, store, config) = (at.join("scans"), at.join("s.zarr"), stage_one::config(AugmentPolicy::Flips, 1));
    stage_one::write_scans(&scans);
    let plan = || Plan::new(&scans, &config, &Silent).unwrap();
    let needed = || Space::of(&plan(), &store).unwrap().needed;
    let of = |bytes: u64| (bytes as f64 * 1.01) as u64;
    let all = plan().layout().num_bytes();
    assert!(needed().abs_diff(of(all)) <= 1);
    stage_one::fill_failing(&scans, &store, &config, 8);
    let begun = needed();
    assert!(begun < of(all) && begun > 0, "{begun} of {all}");
    stage_one::fill_whole(&scans, &store, &config);
    assert_eq!(needed(), 0);
    stage_one::write_scan(&scans, 6, 4);
    let grown = plan().layout().num_bytes() - all;
    assert!(needed().abs_diff(of(grown)) <= 1 && grown > 0);
    assert!(Space::of(&plan(), Path::new("s3://lab/s.zarr")).is_none());
}

#[test]
fn missing_weights_are_said_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    // No folder of scans: the weights come first.
    let refused = assert_refused(on(at, "precompute --scans @nowhere --store @s.zarr --sam-checkpoint @weights/sam.pth"));
    assert!(refused.contains("weights/sam.pth are not there"), "{refused}");
    assert!(refused.contains("`make weights`") && refused.contains("--random-encoder 0"), "{refused}");
    let refused = assert_refused(on(at, "precompute --scans @nowhere --store @s.zarr"));
    assert!(
        refused.contains("--sam-checkpoint FILE") && refused.contains("`make weights`") && refused.contains("--random-encoder"),
        "{refused}"
    );
    let refused = assert_refused(on(at, "train --store @s.zarr --run @run --cnn-checkpoint @weights/resnet18.pth"));
    assert!(refused.contains("resnet18.pth are not there") && refused.contains("`make weights`"), "{refused}");
}

#[test]
fn a_dry_run_says_what_the_encoding_would() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let shifted = nifti([4, 3, 2], &(0..24).map(|i| i as f32 * 10.0 + 924.0).collect::<Vec<_>>());
    write_pair(at, 5, &shifted, &label());
    write_pair(at, 6, &nifti([4, 3, 2], &[f32::NAN; 24]), &label());
    write_pair(at, 7, &image(), &label());
    let dry = "precompute --scans @. --store @s.zarr --random-encoder 0 --image-size 16 --data-size 16 --augment none --dry-run";
    let told = said(on(at, dry));
    assert!(
        told.contains("img0005.nii.gz: these do not look like Hounsfield units")
            && told.contains("Values from 924 to 1154; 0.0 % of the voxels"),
        "{told}"
    );
    assert!(told.contains("case 0006 cannot be used") && told.contains("NaN in slice 0"), "{told}");
    assert!(!told.contains("img0007"), "{told}");
    assert!(told.contains("0 test scans found (they are the cases 1 2 3 4 8"), "{told}");
    assert!(succeed(on(at, dry)).contains(" free\n"));
    assert!(!at.join("s.zarr").exists());
    // A label without a class stops it.
    write_pair(at, 8, &image(), &nifti([4, 3, 2], &[77.0; 24]));
    assert!(assert_refused(on(at, dry)).contains("label0008.nii.gz: label 77"));
}

#[test]
fn masks_are_called_as_their_cases() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    dataset(at, ".nii.gz");
    let json = r#"{"channel_names": {"0": "CT", "1": "ADC"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}"#;
    write(at, &[("dataset.json", json.as_bytes())]);
    let (zero, one, label) = (gzip(&nifti([4, 3, 2], &[0.0; 24])), gzip(&image()), gzip(&label()));
    for case in ["a", "b"] {
        for (name, bytes) in [(format!("imagesTr/{case}_0000.nii.gz"), &zero), (format!("imagesTr/{case}_0001.nii.gz"), &one)] {
            write(at, &[(&name, bytes)]);
        }
        write(at, &[(&format!("labelsTr/{case}.nii.gz"), &label)]);
    }
    succeed(on(
        at,
        "precompute --scans @. --store @s.zarr --random-encoder 0 --image-size 32 --data-size 32 --augment none --channels 1",
    ));
    succeed(on(at, "train --store @s.zarr --run @run --epochs 1 --batch-size 4"));
    let told = said(on(at, "predict --scan @imagesTr --run @run --out @masks"));
    assert!(told.contains("2 files are not used (other channels than 0001 (ADC)): a_0000.nii.gz, b_0000.nii.gz"), "{told}");
    let mut masks: Vec<_> = fs::read_dir(at.join("masks")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    masks.sort();
    assert_eq!(masks, ["a.nii.gz", "b.nii.gz", "labels.ctbl", "labels.label", "volumes.csv"]);
    // The other channel is never taken for it.
    let refused = assert_refused(on(at, "predict --scan @imagesTr/a_0000.nii.gz --run @run --out @m.nii.gz"));
    assert!(
        refused.contains("takes channel 0001 (ADC)") && refused.contains("a_0001.nii.gz is not among the scans"),
        "{refused}"
    );
    assert_eq!(
        read_image(&at.join("masks/a.nii.gz")).unwrap().geometry.shape,
        Geometry::aligned([2, 3, 4], [3.0, 1.0, 1.0]).shape
    );
}
