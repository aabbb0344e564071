//! The training slices that the rungs' projection is made of: chosen once, when a store is begun, and named in its manifest.

use sam_ladder_formats::hash::sha256_hex;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::rungs::SAMPLED_SLICES;
use sam_ladder_schemas::store::{CaseLayout, SampledSlice, StoreAttributes};
use serde_json::json;

/// The slices of a new store of these cases: those with the least hashes of seed, case and slice, in the order of the cases. None if the config needs
/// none.
pub(crate) fn choose(config: &PrecomputeConfig, cases: &[CaseLayout]) -> Vec<SampledSlice> {
    if !config.samples_rungs() {
        return Vec::new();
    }
    let training = cases.iter().filter(|case| case.split == Split::Train);
    let slices = training.flat_map(|case| (0..case.num_slices).map(move |slice| SampledSlice { case: case.case.clone(), slice }));
    let hash = |sampled: &SampledSlice| sha256_hex(json!([config.rung_seed, sampled.case, sampled.slice]).to_string().as_bytes());
    let mut chosen: Vec<(usize, String, SampledSlice)> =
        slices.enumerate().map(|(place, sampled)| (place, hash(&sampled), sampled)).collect();
    chosen.sort_by(|a, b| a.1.cmp(&b.1));
    chosen.truncate(SAMPLED_SLICES);
    chosen.sort_by_key(|(place, ..)| *place);
    chosen.into_iter().map(|(.., sampled)| sampled).collect()
}

/// Whether the cases that a store's sample is of are still there, with the same bytes.
pub(crate) fn is_still_there(found: &StoreAttributes, wanted: &StoreAttributes) -> bool {
    let is_same = |sampled: &SampledSlice| {
        let Some(case) = case_of(found, sampled) else { return false };
        let hash = |attributes: &StoreAttributes, path: &String| {
            attributes.sources.iter().find(|source| source.path == *path).map(|source| source.sha256.clone())
        };
        wanted.cases.contains(case) && case.sources.iter().all(|path| hash(found, path) == hash(wanted, path))
    };
    !found.rung_sample.is_empty() && found.rung_sample.iter().all(is_same)
}

/// The first sampled slice that the store's cases lack.
pub(crate) fn lost(attributes: &StoreAttributes) -> Option<&SampledSlice> {
    let is_there = |sampled: &SampledSlice| case_of(attributes, sampled).is_some_and(|case| sampled.slice < case.num_slices);
    attributes.rung_sample.iter().find(|sampled| !is_there(sampled))
}

/// A name for all that determines the rungs' projection: the config, the slices, and the files that they are of.
pub(crate) fn key(attributes: &StoreAttributes) -> String {
    let cases: Vec<&CaseLayout> = attributes.rung_sample.iter().filter_map(|sampled| case_of(attributes, sampled)).collect();
    let is_of_sample = |path: &String| cases.iter().any(|case| case.sources.contains(path));
    let sources: Vec<_> = attributes.sources.iter().filter(|source| is_of_sample(&source.path)).collect();
    // What variants are stored does not matter to it.
    let PrecomputeConfig { rungs, rung_channels, rung_projection, rung_seed, .. } = &attributes.config;
    let settings = json!([rungs, rung_channels, rung_projection, rung_seed]);
    sha256_hex(json!([settings, attributes.rung_sample, sources]).to_string().as_bytes())
}

fn case_of<'a>(attributes: &'a StoreAttributes, sampled: &SampledSlice) -> Option<&'a CaseLayout> {
    attributes.cases.iter().find(|case| case.split == Split::Train && case.case == sampled.case)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::encoder::EncoderArch;
    use sam_ladder_schemas::precompute::EncoderWeights;
    use sam_ladder_schemas::store::SourceFile;

    fn config(rung_seed: u64) -> PrecomputeConfig {
        let published = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 });
        PrecomputeConfig { rungs: vec![2], rung_seed, ..published }
    }

    fn cases() -> Vec<CaseLayout> {
        let case =
            |case: &str, split, num_slices| CaseLayout { case: case.into(), split, num_slices, sources: vec![case.into()] };
        vec![case("a", Split::Train, 50), case("b", Split::Train, 70), case("c", Split::Test, 90)]
    }

    #[test]
    fn slices_are_training_slices_chosen_by_the_seed() {
        let chosen = choose(&config(0), &cases());
        assert_eq!(chosen.len(), SAMPLED_SLICES);
        assert!(chosen.iter().all(|s| (s.case == "a" && s.slice < 50) || (s.case == "b" && s.slice < 70)), "{chosen:?}");
        assert!(chosen.is_sorted_by(|a, b| (&a.case, a.slice) < (&b.case, b.slice)), "each once, in order");
        assert_eq!(choose(&config(0), &cases()), chosen);
        assert_ne!(choose(&config(1), &cases()), chosen);
        let few = &cases()[..1];
        assert_eq!(choose(&config(0), few).len(), 50, "all there are");
        assert_eq!(choose(&config(0).without_rungs(), &cases()), []);
    }

    #[test]
    fn a_sample_is_of_the_bytes_of_its_cases() {
        let source = |path: &str, sha256: &str| SourceFile { path: path.into(), sha256: sha256.into() };
        let attributes = |hashes: [&str; 3], cases: Vec<CaseLayout>| {
            let sources = ["a", "b", "c"].iter().zip(hashes).map(|(path, hash)| source(path, hash)).collect();
            StoreAttributes::new(config(0), sources).with_cases(cases)
        };
        let sample = vec![SampledSlice { case: "a".into(), slice: 3 }];
        let found = attributes(["1", "2", "3"], cases()).with_rung_sample(sample.clone());
        assert!(is_still_there(&found, &attributes(["1", "2", "3"], cases())));
        assert!(is_still_there(&found, &attributes(["1", "9", "9"], cases())), "others may change");
        assert!(is_still_there(&found, &attributes(["1", "2", "3"], cases()[..1].to_vec())));
        assert!(!is_still_there(&found, &attributes(["9", "2", "3"], cases())));
        assert!(!is_still_there(&found, &attributes(["1", "2", "3"], cases()[1..].to_vec())));
        let other = attributes(["9", "2", "3"], cases()).with_rung_sample(sample);
        assert_ne!(key(&found), key(&other));
        assert_eq!(lost(&found), None);
        let beyond = SampledSlice { case: "a".into(), slice: 50 };
        let test_case = SampledSlice { case: "c".into(), slice: 0 };
        for sampled in [beyond, test_case] {
            let wrong = found.clone().with_rung_sample(vec![sampled.clone()]);
            assert_eq!(lost(&wrong), Some(&sampled));
            assert!(crate::layout::StoreLayout::of(&wrong).is_err());
        }
        assert_eq!(key(&found), key(&attributes(["1", "9", "3"], cases()).with_rung_sample(found.rung_sample.clone())));
    }
}
