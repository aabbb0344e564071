//! Scans with their reference segmentations, from the raw Synapse layout, the published preprocessed one, or nnU-Net's.

mod channels;
mod dataset_json;
mod dataset_problem;
mod dataset_regions;
mod error;
mod folder;
mod grid;
mod grid_notes;
mod inspection;
mod intensity;
mod label_check;
mod label_map;
mod nifti_case;
mod nnunet;
mod published;
mod raw_synapse;
mod settings;
mod unlabelled;
mod value_check;

pub use dataset_problem::DatasetProblem;
pub use error::ScanError;
pub use grid::{Grid, same_grid};
pub use grid_notes::grid_notes;
pub use inspection::unlike_scans;
pub use settings::{SourceOptions, configure};
pub use unlabelled::{FoundScans, NewScan, find_new_scans};

use folder::Unused;
use rayon::prelude::*;
use sam_ladder_formats::nifti::NiftiImage;
use sam_ladder_formats::{hash, placeholder, volume};
use sam_ladder_schemas::classes::{SYNAPSE_TEST_CASES, Split};
use sam_ladder_schemas::image_channels::ChannelsFrom;
use sam_ladder_schemas::observer::{Observer, Phase, Progress, Unit};
use sam_ladder_schemas::preprocessing::Preprocessing;
use sam_ladder_schemas::store::SourceFile;
use sam_ladder_schemas::tables::ScanRow;
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// A scan ready for the network: in [0, 1], transposed, labels mapped to classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// Case, as in the source file's name: `0005`.
    pub case: String,
    /// Which half of the data it belongs to.
    pub split: Split,
    /// Depth, height, width: `[axis 2, axis 1, axis 0]` of the NIfTI array, turned to the settings' orientation.
    pub shape: [usize; 3],
    /// Distance between voxel centres along depth, height and width, in millimetres; `None` if neither file nor user says
    /// it, or the affine is sheared.
    pub spacing_mm: Option<[f64; 3]>,
    /// `[d, c, h, w]`, c channels of the files or windows of one, each slice's together: what their intensities say as [0, 1].
    pub image: Vec<f32>,
    /// `[d, h, w]`, classes.
    pub label: Vec<u8>,
    /// The file that each slice's image was read from, one per slice.
    pub slice_sources: Vec<SourceFile>,
    /// Every file that was read, with the SHA-256 of the bytes that were parsed.
    pub files: Vec<ReadFile>,
    /// What the store records of the scan as a whole.
    pub row: ScanRow,
    /// What the user should know of its values, one line each.
    pub notes: Vec<String>,
}

impl Scan {
    /// The channels of a slice's image, `[c, h, w]`: those of the slice, or also its neighbours along depth, of which the ends of the scan have
    /// only one.
    ///
    /// # Panics
    /// When there is no such slice.
    pub fn planes(&self, slice: usize, channels_from: ChannelsFrom) -> Cow<'_, [f32]> {
        let depth = self.shape[0];
        let len = self.image.len() / depth;
        let planes = |slice: usize| &self.image[slice * len..][..len];
        match channels_from {
            ChannelsFrom::Slice | ChannelsFrom::Windows { .. } => Cow::Borrowed(planes(slice)),
            ChannelsFrom::Neighbours => {
                let (below, above) = (slice.saturating_sub(1), (slice + 1).min(depth - 1));
                Cow::Owned([planes(below), planes(slice), planes(above)].concat())
            }
        }
    }

    /// The labels of a slice, `[h, w]`.
    ///
    /// # Panics
    /// When there is no such slice.
    pub fn labels(&self, slice: usize) -> &[u8] {
        let len = self.label.len() / self.shape[0];
        &self.label[slice * len..][..len]
    }
}

/// A file that was read, and the SHA-256 of its bytes.
pub type ReadFile = (PathBuf, String);

/// A case that a folder holds, before its voxels are read.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseEntry {
    /// Case, as in the source file's name: `0005`.
    pub case: String,
    /// Which half of the data it belongs to.
    pub split: Split,
    /// Slices of the scan.
    pub num_slices: usize,
    /// Its files: image and label in the raw layout; one per slice (train) or one (test) in the published layout; the channels that
    /// are taken and the label in nnU-Net's.
    pub files: Vec<PathBuf>,
    /// The files of the voxels of those that are only headers (`.img` of `.hdr`, `.raw` of `.mhd`).
    pub voxel_files: Vec<PathBuf>,
    /// Where its voxels lie, by the first file's header; the published layout does not say it.
    pub grid: Option<Grid>,
}

impl CaseEntry {
    /// All of its files.
    pub fn all_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().chain(&self.voxel_files)
    }
}

/// A folder of scans in any of the layouts.
#[derive(Debug, Clone)]
pub struct ScanSource {
    root: PathBuf,
    layout: Layout,
    preprocessing: Preprocessing,
    cases: Vec<CaseEntry>,
    /// What the user should know of the folder.
    notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    RawSynapse,
    Published,
    NnUnet,
    /// Volumes in no fixed layout, without labels.
    Unlabelled,
}

impl Layout {
    /// Its name in messages.
    fn name(self) -> &'static str {
        match self {
            Layout::RawSynapse => "the raw Synapse layout",
            Layout::Published => "the published preprocessed layout",
            Layout::NnUnet => "nnU-Net's layout",
            Layout::Unlabelled => "scans without labels",
        }
    }
}

/// The layout of a folder, and the folder below it (or itself) that holds it.
fn find_layout(dir: &Path) -> Result<(Layout, PathBuf), ScanError> {
    // The system says what is wrong with a folder that cannot be read.
    std::fs::read_dir(dir).map_err(ScanError::io(dir))?;
    let found = [
        (Layout::RawSynapse, raw_synapse::find(dir)),
        (Layout::Published, published::find(dir)),
        (Layout::NnUnet, nnunet::find(dir)),
    ];
    let mut found = found.into_iter().filter_map(|(layout, root)| Some((layout, root?)));
    match (found.next(), found.next()) {
        (None, _) if folder::holds_dicom(dir) => Err(ScanError::Dicom { path: dir.into() }),
        (None, _) => Err(ScanError::NoScans { path: dir.into(), advice: layouts_near(dir) }),
        (Some(only), None) => Ok(only),
        (Some((_, first)), Some((_, second))) => Err(ScanError::Ambiguous { path: dir.into(), first, second }),
    }
}

/// Says which folders directly below `dir`, or the one above it, hold a layout.
fn layouts_near(dir: &Path) -> Option<String> {
    let holds = |dir: &Path| raw_synapse::find(dir).or_else(|| published::find(dir)).or_else(|| nnunet::find(dir)).is_some();
    let mut below: Vec<PathBuf> =
        std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).filter(|path| holds(path)).collect();
    below.sort();
    // Without the current folder `scans` has the parent ``.
    let above = std::path::absolute(dir).ok()?.parent().filter(|parent| holds(parent)).map(Path::to_path_buf);
    let found: Vec<String> = below.iter().take(3).chain(&above).map(|path| path.display().to_string()).collect();
    (!found.is_empty()).then(|| format!("pass --scans the folder that holds them: {}", found.join(" or ")))
}

impl ScanSource {
    /// Scans without labels, all of the split `test`. Reads headers, no voxels.
    ///
    /// # Errors
    /// When a header cannot be read, or the channels of a scan differ in shape.
    pub fn unlabelled(scans: &[NewScan], preprocessing: &Preprocessing) -> Result<Self, ScanError> {
        let mut cases = scans.iter().map(|scan| scan.entry(preprocessing)).collect::<Result<Vec<_>, _>>()?;
        sort(&mut cases);
        let (root, preprocessing) = (PathBuf::new(), preprocessing.clone());
        Ok(ScanSource { root, layout: Layout::Unlabelled, preprocessing, cases, notes: Vec::new() })
    }

    /// Finds out the layout of a folder and its cases. Reads names and headers, no voxels.
    ///
    /// The raw layout is `RawData/Training/{img,label}` below `dir`, `Training/{img,label}`, or `{img,label}`; the published one
    /// is `train_npz` and `test_vol_h5`, of which either may be missing, and either may have a suffix (`train_npz_new_224`); nnU-Net's is `imagesTr`, `labelsTr` and `dataset.json`, of which
    /// the channels of `preprocessing` are taken.
    ///
    /// # Errors
    /// When there are no scans, when more than one layout is there, when a name lacks its case, a case appears twice, lacks a
    /// slice, a channel, its image or its label, when the files of a case differ in shape, or when a header is not readable.
    pub fn open(dir: &Path, preprocessing: &Preprocessing) -> Result<Self, ScanError> {
        Self::open_noting(dir, preprocessing, &mut Unused::default())
    }

    /// As [`Self::open`], but what is wrong with single cases is listed, a line each, and leaves them out.
    ///
    /// # Errors
    /// What is wrong with the folder as a whole; the first case's error, if no case can be used.
    pub fn open_usable(dir: &Path, preprocessing: &Preprocessing) -> Result<(Self, Vec<String>), ScanError> {
        let mut unused = Unused::listing_errors();
        match Self::open_noting(dir, preprocessing, &mut unused) {
            Ok(source) => Ok((source, unused.take_errors())),
            Err(_) => Self::open(dir, preprocessing).map(|source| (source, Vec::new())),
        }
    }

    fn open_noting(dir: &Path, preprocessing: &Preprocessing, unused: &mut Unused) -> Result<Self, ScanError> {
        let (layout, root) = find_layout(dir)?;
        if layout == Layout::Published && preprocessing.channels_from.windows().is_some() {
            // Its images are windowed already.
            let option = "--channels-from windows";
            return Err(ScanError::NotForLayout { path: dir.into(), option, layout: layout.name() });
        }
        let mut cases = match layout {
            Layout::RawSynapse => raw_synapse::cases(&root, unused)?,
            Layout::Published => published::cases(&root, unused)?,
            Layout::NnUnet => nnunet::cases(&root, preprocessing, unused)?,
            Layout::Unlabelled => Vec::new(), // is no folder's
        };
        if cases.is_empty() {
            let none = if folder::holds_dicom(&root) {
                ScanError::Dicom { path: root }
            } else {
                ScanError::NoScans { path: dir.into(), advice: unused.other_endings() }
            };
            return Err(unused.not_fetched().unwrap_or(none));
        }
        sort(&mut cases);
        let mut notes = unused.notes();
        if layout == Layout::NnUnet {
            notes.extend(nnunet::notes(&root, &cases)?);
        }
        Ok(ScanSource { root: dir.into(), layout, preprocessing: preprocessing.clone(), cases, notes })
    }

    /// Makes the named cases `test`.
    ///
    /// # Errors
    /// When there is no such case, or when the layout itself decides the split.
    pub fn with_test_cases(mut self, test_cases: &[String]) -> Result<Self, ScanError> {
        if !test_cases.is_empty() && self.layout != Layout::NnUnet {
            return Err(ScanError::NotForLayout { path: self.root, option: "--test-cases", layout: self.layout.name() });
        }
        for named in test_cases {
            match self.cases.iter_mut().find(|case| case.case == *named) {
                Some(case) => case.split = Split::Test,
                None => {
                    let known = self.cases.iter().map(|case| case.case.clone()).collect();
                    return Err(ScanError::NoSuchCase { path: self.root, case: named.clone(), known });
                }
            }
        }
        sort(&mut self.cases);
        Ok(self)
    }

    /// The cases: train before test, each sorted by case.
    pub fn cases(&self) -> &[CaseEntry] {
        &self.cases
    }

    /// What the user should know before the scans are read: how many are turned, headers that contradict themselves, what the labels of the
    /// published layout are taken for.
    pub fn notes(&self, class_names: &[String]) -> Vec<String> {
        let mut notes = self.notes.clone();
        if self.layout == Layout::Published {
            let (count, names) = (class_names.len(), class_names.join(", "));
            notes.push(format!("labels 1 to {count} are taken as {names}; another order can be stated with --classes"));
        }
        let grids = self.cases.iter().filter_map(|case| Some((case.case.as_str(), case.files[0].as_path(), case.grid.as_ref()?)));
        if self.layout != Layout::Unlabelled && self.cases.iter().all(|case| case.split == Split::Train) {
            notes.push(self.no_test_scans());
        }
        if self.layout != Layout::Unlabelled && self.cases.iter().all(|case| case.split == Split::Test) {
            notes.push("warning: 0 training scans found: `train` has nothing to train on".into());
        }
        notes.extend(grid_notes(grids, self.preprocessing.orientation, self.layout == Layout::RawSynapse));
        notes
    }

    /// What is impossible without test scans, and what to do.
    fn no_test_scans(&self) -> String {
        let how = match self.layout {
            Layout::NnUnet => "--test-cases names some, and labelsTs holds them".into(),
            Layout::Published => "they are those in test_vol_h5".into(),
            _ => format!("they are the cases {}", SYNAPSE_TEST_CASES.map(|case| case.to_string()).join(" ")),
        };
        format!(
            "warning: 0 test scans found ({how}): `eval` has nothing to evaluate; `eval --split validation` measures a run on the training cases \
             that it held out"
        )
    }

    /// Cases whose images, or whose labels, have the same bytes, by the hashes of the `sources`: copies, or files under the wrong name.
    pub fn repeated(&self, sources: &[SourceFile]) -> Vec<String> {
        let hashes: HashMap<&str, &str> = sources.iter().map(|source| (source.path.as_str(), source.sha256.as_str())).collect();
        let hash = |file: Option<&PathBuf>| hashes.get(self.source_name(file?).as_str()).copied();
        let has_labels = matches!(self.layout, Layout::RawSynapse | Layout::NnUnet);
        let mut notes = Vec::new();
        let mut same_image = BTreeSet::new();
        for [first, second] in pairs_of_one_hash(&self.cases, |case| hash(case.files.first())) {
            same_image.insert([&first.case, &second.case]);
            notes.push(copied("the same scan", [first, second], |case| case.files.first()));
        }
        for [first, second] in pairs_of_one_hash(&self.cases, |case| hash(case.files.last().filter(|_| has_labels))) {
            if !same_image.contains(&[&first.case, &second.case]) {
                notes.push(copied("different scans with the same labels", [first, second], |case| case.files.last()));
            }
        }
        notes
    }

    /// Every file of every case with its SHA-256, sorted by path; reads them all, on all threads.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn sources(&self, observer: &dyn Observer) -> Result<Vec<SourceFile>, ScanError> {
        let files: Vec<&PathBuf> = self.cases.iter().flat_map(CaseEntry::all_files).collect();
        let bytes = files.iter().map(|file| size_of_file(file)).sum();
        let progress = observer.begin(Phase::new("hashing the scans", Unit::Bytes, bytes));
        let mut sources = files
            .par_iter()
            .map(|path| Ok(SourceFile { path: self.source_name(path), sha256: hash_file(path, &*progress)? }))
            .collect::<Result<Vec<_>, ScanError>>()?;
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(sources)
    }

    /// A file of the source as the store names it: its path below the folder, or only its name if there is no folder.
    pub(crate) fn source_name(&self, file: &Path) -> String {
        match self.layout {
            Layout::Unlabelled => relative(unlabelled::folder(file), file),
            _ => relative(&self.root, file),
        }
    }

    /// As [`Self::read`], and checks that the files that were read are those that were hashed: a store never holds what other bytes made.
    ///
    /// # Errors
    /// As [`Self::read`], and [`ScanError::Replaced`] for a file whose SHA-256 is not the one in `sources`.
    pub fn read_checked(&self, case: &CaseEntry, sources: &[SourceFile]) -> Result<Scan, ScanError> {
        let read = self.read(case);
        let files: Vec<ReadFile> = match &read {
            Ok(scan) => scan.files.clone(),
            // A file that is no scan any more has changed, too.
            Err(_) => {
                let hashed = |path: &PathBuf| Some((path.clone(), hash::sha256_hex(&std::fs::read(path).ok()?)));
                case.all_files().filter_map(hashed).collect()
            }
        };
        for (path, found) in files {
            let name = self.source_name(&path);
            // New scans of several folders may have files of voxels of one name.
            let named: Vec<&SourceFile> = sources.iter().filter(|source| source.path == name).collect();
            if let Some(first) = named.first().filter(|_| named.iter().all(|source| source.sha256 != found)) {
                return Err(ScanError::Replaced { path, found, expected: first.sha256.clone() });
            }
        }
        read
    }

    /// Reads a case of this source: clip, scale, transpose, map labels, as published.
    ///
    /// # Errors
    /// When a file is damaged or has changed its shape, when an image holds NaN or infinite values, or a label lies outside the label map.
    pub fn read(&self, case: &CaseEntry) -> Result<Scan, ScanError> {
        match self.layout {
            Layout::RawSynapse | Layout::NnUnet => nifti_case::read(&self.root, case, &self.preprocessing, self.layout),
            Layout::Published => published::read(&self.root, case, &self.preprocessing),
            Layout::Unlabelled => NewScan { case: case.case.clone(), files: case.files.clone() }.read(&self.preprocessing),
        }
    }
}

/// Each case with the first before it of the same hash.
fn pairs_of_one_hash<'a>(cases: &'a [CaseEntry], hash: impl Fn(&CaseEntry) -> Option<&'a str>) -> Vec<[&'a CaseEntry; 2]> {
    let mut first: HashMap<&str, &CaseEntry> = HashMap::new();
    let pair = |case: &'a CaseEntry| match first.entry(hash(case)?) {
        Entry::Occupied(earlier) => Some([*earlier.get(), case]),
        Entry::Vacant(place) => {
            place.insert(case);
            None
        }
    };
    cases.iter().filter_map(pair).collect()
}

/// A warning of two cases with a file of the same bytes.
fn copied(what: &str, cases: [&CaseEntry; 2], file: impl Fn(&CaseEntry) -> Option<&PathBuf>) -> String {
    let split = |case: &CaseEntry| if case.split == Split::Train { "training" } else { "test" };
    let [first, second] = cases.map(|case| format!("{} case {}", split(case), case.case));
    let [one, other] = cases.map(|case| file(case).map(|path| path.display().to_string()).unwrap_or_default());
    format!("warning: {first} and {second} are {what}, byte for byte: {one}, {other}")
}

/// Train before test, each by case.
fn sort(cases: &mut [CaseEntry]) {
    cases.sort_by(|a, b| (a.split, &a.case).cmp(&(b.split, &b.case)));
}

/// A path's last part; what is not Unicode in it is replaced.
fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A path below the root, with forward slashes.
fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// A file that was read, as the store names it.
fn source_file(root: &Path, (path, sha256): &ReadFile) -> SourceFile {
    SourceFile { path: relative(root, path), sha256: sha256.clone() }
}

/// Reads a file of a scan and notes it in `files`.
fn read_file(path: &Path, files: &mut Vec<ReadFile>) -> Result<Vec<u8>, ScanError> {
    let bytes = placeholder::read(path)?;
    files.push((path.into(), hash::sha256_hex(&bytes)));
    Ok(bytes)
}

/// Reads a volume and notes its files in `files`, the named one first.
fn read_volume(path: &Path, files: &mut Vec<ReadFile>) -> Result<NiftiImage, ScanError> {
    let parts = volume::read_files(path)?;
    files.extend(parts.iter().map(|part| (part.path.clone(), hash::sha256_hex(&part.bytes))));
    Ok(volume::decode(&parts)?)
}

/// SHA-256 of a file, in hexadecimal, without holding it in memory.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of_file(path: &Path, observer: &dyn Observer) -> Result<String, ScanError> {
    let name = format!("hashing {}", file_name(path));
    hash_file(path, &*observer.begin(Phase::new(&name, Unit::Bytes, size_of_file(path))))
}

/// Bytes of a file; 0 of one that is not there, which is reported when it is opened.
fn size_of_file(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn hash_file(path: &Path, progress: &dyn Progress) -> Result<String, ScanError> {
    placeholder::refuse(path)?;
    Ok(hash::sha256_of_file(path, |bytes| progress.advance(bytes))?)
}

#[cfg(test)]
mod geometry_tests;
#[cfg(test)]
mod tests;
