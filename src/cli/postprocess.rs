//! A run's postprocessing: read for the masks of `eval` and `predict`, and written where `eval` chooses it on the cases that the run held out.

use crate::error::refusal;
use crate::print::print_note;
use anyhow::Context;
use sam_ladder_cache::Store;
use sam_ladder_eval::{MaskView, PostprocessingChoice};
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::hash::sha256_of_file;
use sam_ladder_formats::outputs::is_there;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::postprocessing::{OrganRule, POSTPROCESSING, Postprocessing};
use std::path::{Path, PathBuf};

/// The rules for the masks of these runs, of the classes from 1; none if they have none, or several runs are averaged: what was chosen on the masks of
/// one is not meant for their mean. A file that was chosen for another model than `model_of` the run, such as an earlier one, is not applied, with a
/// warning.
///
/// # Errors
/// A file that is none, or of other organs.
pub fn rules_of(runs: &[PathBuf], model_of: impl Fn(&Path) -> PathBuf, class_names: &[String]) -> anyhow::Result<Vec<OrganRule>> {
    let has = |run: &&PathBuf| is_there(&run.join(POSTPROCESSING));
    match runs {
        [run] if has(&run) => {
            let path = run.join(POSTPROCESSING);
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let hint =
                "choose it again with `sam-ladder eval --split validation --choose-postprocessing`, or pass --no-postprocessing";
            let found: Postprocessing = serde_json::from_str(&text)
                .map_err(|error| refusal(format!("{} is no postprocessing: {error}", path.display()), hint))?;
            if !found.organs.iter().map(|rule| &rule.organ).eq(class_names) {
                return Err(refusal(format!("{} is of other organs than the store", path.display()), hint));
            }
            let model = model_of(run);
            if sha256_of_file(&model, |_| ()).ok().as_ref() != Some(&found.model_sha256) {
                let (path, model) = (path.display(), model.display());
                print_note!("warning: {path} was chosen for another model than {model}, and is not applied; {hint}");
                return Ok(Vec::new());
            }
            print_note!("masks are postprocessed as {} says: {}", path.display(), words(&found.organs));
            Ok(found.organs)
        }
        [_] | [] => Ok(Vec::new()),
        several => {
            if several.iter().any(|run| has(&run)) {
                print_note!("the mean of several runs is not postprocessed: what was chosen is for the masks of one");
            }
            Ok(Vec::new())
        }
    }
}

/// `liver: the largest component; spleen: at least 120 voxels, no holes`.
fn words(rules: &[OrganRule]) -> String {
    let of_organ = |rule: &OrganRule| {
        let parts = [
            rule.largest_component.then(|| "the largest component".to_string()),
            (rule.smallest_voxels > 0).then(|| format!("components of at least {} voxels", rule.smallest_voxels)),
            rule.fill_holes.then(|| "no holes".to_string()),
        ];
        format!("{}: {}", rule.organ, parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    };
    let changed: Vec<String> = rules.iter().filter(|rule| !rule.is_nothing()).map(of_organ).collect();
    if changed.is_empty() { "nothing is done".into() } else { changed.join("; ") }
}

/// A choice in progress.
pub struct Choosing {
    path: PathBuf,
    model: PathBuf,
    cases: Vec<String>,
    choice: PostprocessingChoice,
}

impl Choosing {
    /// For the masks of a run's model on these training cases of a store.
    ///
    /// # Errors
    /// A run that has a postprocessing, unless `force` is set; a mask that cannot be read.
    pub fn begin(run: &Path, model: PathBuf, store: &Store, cases: &[String], force: bool) -> anyhow::Result<Self> {
        let path = run.join(POSTPROCESSING);
        if is_there(&path) && !force {
            return Err(refusal(format!("{} exists", path.display()), "replace it with --force"));
        }
        if !store.config().regions.is_empty() {
            let message = "a postprocessing works on classes, and this dataset's are parts of regions: what is removed of an inner region \
                           would leave a hole in the region around it";
            return Err(refusal(message, "leave out --choose-postprocessing"));
        }
        let organs = store.config().class_names.len();
        let mut smallest = vec![u64::MAX; organs];
        for case in cases {
            let mut voxels = vec![0u64; organs];
            for slice in store.case_slices(Split::Train, case)? {
                voxels.iter_mut().zip(&slice.voxels).for_each(|(sum, voxels)| *sum += voxels);
            }
            let least = smallest.iter_mut().zip(voxels).filter(|(_, voxels)| *voxels > 0);
            least.for_each(|(least, voxels)| *least = (*least).min(voxels));
        }
        let smallest: Vec<u64> = smallest.into_iter().map(|least| if least == u64::MAX { 0 } else { least }).collect();
        let choice = PostprocessingChoice::new(&store.config().class_names, &smallest, store.config().ignored_class());
        Ok(Choosing { path, model, cases: cases.to_vec(), choice })
    }

    /// Adds a case's mask, not postprocessed, and its reference.
    pub fn add(&mut self, mask: MaskView<'_>, reference: &[u8]) {
        self.choice.add(mask, reference);
    }

    /// Chooses, writes the run's file and says what is in it.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn finish(self) -> anyhow::Result<()> {
        let organs = self.choice.choose();
        let model_sha256 = sha256_of_file(&self.model, |_| ())?;
        let said = words(&organs);
        let found = Postprocessing { program: super::program(), model_sha256, cases: self.cases, organs };
        write_atomic(&self.path, format!("{}\n", serde_json::to_string_pretty(&found)?).as_bytes())?;
        print_note!("postprocessing, chosen on {}: {said}", found.cases.join(", "));
        print_note!("eval and predict of this run apply it: {}", self.path.display());
        Ok(())
    }
}
