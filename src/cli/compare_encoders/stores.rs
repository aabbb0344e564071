//! The stores of a comparison: which scans they hold, and that these are the same.

use super::super::cache::Cache;
use crate::error::refusal;
use crate::print::print_note;
use sam_ladder_cache::{Store, TrainingSplit};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::differences::differences;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::store::{DECODER_WEIGHTS, StoreAttributes};
use sam_ladder_schemas::train::TrainConfig;
use sam_ladder_train::run;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What to do about stores that cannot be compared.
const SAME_COMMAND: &str = "make all stores by the same precompute command, but for the encoder's checkpoint";

/// A store of the comparison.
pub struct ComparedStore {
    /// Its name in tables, and the start of its runs' folders.
    pub name: String,
    /// Its place.
    pub path: PathBuf,
    /// Its manifest.
    pub attributes: StoreAttributes,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// Opens the stores as typed, `[NAME=]STORE.zarr`, of which there must be two or more of the same scans.
///
/// # Errors
/// Names that are no folders' names or are there twice; stores of other scans, cases, classes, data sizes; the same store twice; a store without
/// rungs, if there is a ladder.
pub fn open(typed: &[String], config: &TrainConfig, cache: &Cache) -> anyhow::Result<Vec<ComparedStore>> {
    let stores = typed.iter().map(|typed| open_one(typed, config, cache)).collect::<anyhow::Result<Vec<_>>>()?;
    let Some((first, others)) = stores.split_first().filter(|(_, others)| !others.is_empty()) else {
        return Err(refusal("a comparison needs two stores or more", "pass --store A.zarr --store B.zarr"));
    };
    for (index, store) in stores.iter().enumerate() {
        if stores[..index].iter().any(|earlier| earlier.name == store.name) {
            let hint = "give one of them another name: --store NAME=STORE.zarr";
            return Err(refusal(format!("two stores are called {:?}", store.name), hint));
        }
    }
    for other in others {
        if let Some(reason) = why_not_comparable((&first.name, &first.attributes), (&other.name, &other.attributes)) {
            return Err(refusal(reason, SAME_COMMAND));
        }
        let also = other_differences((&first.name, &first.attributes), (&other.name, &other.attributes));
        if !also.is_empty() {
            print_note!("note: the stores differ not only in the encoder: {also}");
        }
    }
    Ok(stores)
}

fn open_one(typed: &str, config: &TrainConfig, cache: &Cache) -> anyhow::Result<ComparedStore> {
    let (name, path) = match typed.split_once('=') {
        Some((name, path)) => (name.trim().to_string(), PathBuf::from(path)),
        None => (Path::new(typed).file_stem().unwrap_or_default().to_string_lossy().into_owned(), PathBuf::from(typed)),
    };
    if path.as_os_str().is_empty() || Path::new(&name).file_name().is_none_or(|file| file != name.as_str()) {
        let message = format!("--store {typed:?}: {name:?} cannot be the name of a folder for its runs");
        return Err(refusal(message, "write --store NAME=STORE.zarr"));
    }
    let store = Store::open_with(&path, Some(&cache.options()))?;
    run::check_parts(run::parts_of(config), &TrainingSplit::open_with(&path, Some(&cache.options()))?)?;
    Ok(ComparedStore { name, bytes: store.stored_bytes()?, attributes: store.attributes().clone(), path })
}

/// A store's name and manifest.
type Named<'a> = (&'a str, &'a StoreAttributes);

/// Why runs on two stores cannot be compared, in words; `None` if they hold the same scans with the same masks, at the same data size.
fn why_not_comparable((first, a): Named<'_>, (other, b): Named<'_>) -> Option<String> {
    if a.cache_id == b.cache_id {
        return Some(format!("{first} and {other} are the same store: their cache_id is {}", a.cache_id));
    }
    let (of_a, of_b) = (sources_by_case(a), sources_by_case(b));
    let all: BTreeSet<&str> = of_a.keys().chain(of_b.keys()).copied().collect();
    for case in all {
        match (of_a.get(case), of_b.get(case)) {
            (Some((split, sources)), Some((other_split, other_sources))) => {
                if split != other_split {
                    let [split, other_split] =
                        [split, other_split].map(|split| if *split == Split::Train { "training" } else { "test" });
                    return Some(format!("case {case} is a {split} case of {first} and a {other_split} case of {other}"));
                }
                if sources != other_sources {
                    return Some(format!(
                        "case {case} of {other} was made from other files than in {first}: their SHA-256 differ"
                    ));
                }
            }
            (Some(_), None) => return Some(format!("case {case} is in {first} and not in {other}")),
            (None, _) => return Some(format!("case {case} is in {other} and not in {first}")),
        }
    }
    let same = |what: &str, of: fn(&PrecomputeConfig) -> Value| {
        let [found_a, found_b] = [a, b].map(|attributes| of(&attributes.config));
        (found_a != found_b).then(|| format!("{first} and {other} differ in {what}: {found_a} and {found_b}"))
    };
    None.or_else(|| same("the classes", |config| json!(config.class_names)))
        .or_else(|| same("the regions", |config| json!(config.regions)))
        .or_else(|| same("the classes of raw labels", |config| json!(config.preprocessing.label_map)))
        .or_else(|| same("the data size", |config| json!(config.data_size)))
        .or_else(|| same("the orientation of slices", |config| json!(config.preprocessing.orientation)))
        .or_else(|| same("the stated spacing", |config| json!(config.preprocessing.spacing_mm)))
}

/// Split and the sorted hashes of the files of each case.
fn sources_by_case(attributes: &StoreAttributes) -> BTreeMap<&str, (Split, Vec<&str>)> {
    let hashes: BTreeMap<&str, &str> =
        attributes.sources.iter().map(|source| (source.path.as_str(), source.sha256.as_str())).collect();
    let mut by_case = BTreeMap::new();
    for layout in &attributes.cases {
        let mut of_files: Vec<&str> = layout.sources.iter().filter_map(|path| hashes.get(path.as_str()).copied()).collect();
        of_files.sort_unstable();
        by_case.insert(layout.case.as_str(), (layout.split, of_files));
    }
    by_case
}

/// What else differs between two stores than the encoder, in words.
fn other_differences((first, a): Named<'_>, (other, b): Named<'_>) -> String {
    let rest = |attributes: &StoreAttributes| {
        let mut config = json!(attributes.config);
        if let Some(config) = config.as_object_mut() {
            ["encoder", "weights", "decoder_weights"].iter().for_each(|name| drop(config.shift_remove(*name)));
            let decoder = attributes.files.iter().find(|file| file.path == DECODER_WEIGHTS);
            config.insert("mask decoder's SHA-256".into(), json!(decoder.map(|file| &file.sha256)));
        }
        config
    };
    differences(&rest(a), first, &rest(b), other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_cache::CaseLayout;
    use sam_ladder_schemas::encoder::EncoderArch;
    use sam_ladder_schemas::precompute::EncoderWeights;
    use sam_ladder_schemas::store::SourceFile;

    /// A store of the cases, each with an image and a label.
    fn store(change: impl FnOnce(&mut PrecomputeConfig), cases: &[(&str, Split, &str)]) -> StoreAttributes {
        let mut config = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 0 });
        change(&mut config);
        let files = |case: &str| [format!("img{case}"), format!("label{case}")];
        let sources = cases
            .iter()
            .flat_map(|(case, _, content)| files(case).map(|path| SourceFile { sha256: format!("{content} of {path}"), path }));
        let layout = |&(case, split, _): &(&str, Split, &str)| CaseLayout {
            case: case.into(),
            split,
            num_slices: 1,
            sources: files(case).to_vec(),
        };
        StoreAttributes::new(config, sources.collect()).with_cases(cases.iter().map(layout).collect())
    }

    const CASES: [(&str, Split, &str); 3] = [("1", Split::Test, "x"), ("5", Split::Train, "x"), ("6", Split::Train, "x")];

    fn dino(config: &mut PrecomputeConfig) {
        config.encoder = EncoderArch::Dinov3Vits16;
    }

    #[test]
    fn stores_of_the_same_scans_are_compared_whatever_the_order_of_their_cases() {
        let (sam, turned) = (store(|_| (), &CASES), [CASES[2], CASES[0], CASES[1]]);
        assert_eq!(why_not_comparable(("sam", &sam), ("dino", &store(dino, &turned))), None);
        assert_eq!(other_differences(("sam", &sam), ("dino", &store(dino, &turned))), "");
    }

    #[test]
    fn what_else_differs_is_said() {
        let change = |config: &mut PrecomputeConfig| {
            dino(config);
            (config.image_size, config.dtype) = (224, sam_ladder_schemas::precompute::StoreDtype::Q8);
        };
        let said = other_differences(("sam", &store(|_| (), &CASES)), ("dino", &store(change, &CASES)));
        assert_eq!(said, "image_size: sam 512, dino 224; dtype: sam \"f16\", dino \"q8\"");
    }

    #[test]
    fn other_scans_cases_classes_and_sizes_are_refused() {
        let sam = store(|_| (), &CASES);
        let why = |other: StoreAttributes| why_not_comparable(("sam", &sam), ("dino", &other)).unwrap();
        assert!(why(sam.clone()).starts_with("sam and dino are the same store"));
        assert_eq!(why(store(dino, &CASES[..2])), "case 6 is in sam and not in dino");
        let more = [&CASES[..], &[("7", Split::Train, "x")]].concat();
        assert_eq!(why(store(dino, &more)), "case 7 is in dino and not in sam");
        let moved = [CASES[0], CASES[1], ("6", Split::Test, "x")];
        assert_eq!(why(store(dino, &moved)), "case 6 is a training case of sam and a test case of dino");
        let redrawn = [CASES[0], ("5", Split::Train, "y"), CASES[2]];
        assert_eq!(why(store(dino, &redrawn)), "case 5 of dino was made from other files than in sam: their SHA-256 differ");
        let with = |change: fn(&mut PrecomputeConfig)| {
            why(store(
                |config| {
                    dino(config);
                    change(config);
                },
                &CASES,
            ))
        };
        assert_eq!(with(|config| config.data_size = 256), "sam and dino differ in the data size: 224 and 256");
        assert!(
            with(|config| config.class_names[0] = "heart".into()).starts_with("sam and dino differ in the classes: [\"spleen\"")
        );
        assert!(with(|config| config.preprocessing.label_map[1] = 0).contains("the classes of raw labels"));
        assert!(with(|config| config.preprocessing.orientation = Some("LPS".parse().unwrap())).ends_with("null and \"LPS\""));
        assert!(with(|config| config.preprocessing.spacing_mm = Some([3.0, 1.0, 1.0])).contains("the stated spacing"));
    }
}
