//! The output folder of an evaluation: made aside, then put in place as a whole; what is not an evaluation's is never touched.
//!
//! Files are made in a hidden folder. When it is complete, one rename turns it into one whose moves (`moves.rs`) are finished whatever happens.

use crate::error::{EvalError, Result};
use crate::folder::{
    CASE_PAGES, CASES_TABLE, EVALUATION_JSON, EvaluationInfo, MASKS, OVERLAYS, REPORT, SUMMARY_TABLE, TABLE_MARKDOWN, create_dir,
    read_json,
};
use crate::moves::{MOVES, Moves, PUBLISHING, WHAT, finish_moves};
use sam_ladder_formats::Error;
use sam_ladder_formats::atomic::{is_temporary_of, sync_folder, write_atomic};
use sam_ladder_formats::hash::sha256_of_file;
use sam_ladder_formats::outputs::{FolderLock, Origin, is_real_folder, is_regular_file, is_there, lock_folder};
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::tables::CaseRow;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Everything that an evaluation writes, in the order in which it comes to its place; the cases' table is last.
const PARTS: [&str; 8] = [MASKS, OVERLAYS, CASE_PAGES, TABLE_MARKDOWN, REPORT, EVALUATION_JSON, SUMMARY_TABLE, CASES_TABLE];
/// Folder of an evaluation in progress, within the output folder.
pub(crate) const UNFINISHED: &str = ".sam-ladder-eval";

/// Content of `evaluation.json` as written: the info, and which files belong to the evaluation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Recorded {
    #[serde(flatten)]
    pub(crate) info: EvaluationInfo,
    /// SHA-256 of the evaluation's files, by their paths below its folder; empty for this one, which cannot hold its own.
    #[serde(default)]
    pub(crate) files: BTreeMap<String, String>,
}

/// An output folder that only this process writes.
#[derive(Debug)]
pub(crate) struct OutputFolder {
    path: PathBuf,
    overwrite: bool,
    _lock: FolderLock,
}

impl OutputFolder {
    /// Makes and locks the folder, finishes what an interrupted evaluation had begun to put in place, and makes the folder for the new one.
    ///
    /// # Errors
    /// [`EvalError::Exists`] for an evaluation that is not to be replaced; [`Error::Foreign`] for anything of another origin that has the name
    /// of one of its files; [`Error::Changed`] for a file of it that someone has changed; [`Error::InUse`] if another process evaluates into the folder.
    pub(crate) fn begin(path: &Path, overwrite: bool) -> Result<Self> {
        create_dir(path)?;
        let folder = OutputFolder { path: path.into(), overwrite, _lock: lock_folder(path)? };
        finish_moves(path)?;
        folder.parts_to_replace()?;
        folder.remove_unfinished()?;
        create_dir(&folder.unfinished())?;
        Ok(folder)
    }

    /// Where the files are made.
    pub(crate) fn unfinished(&self) -> PathBuf {
        self.path.join(UNFINISHED)
    }

    /// Removes what an interrupted evaluation left.
    pub(crate) fn remove_unfinished(&self) -> Result<()> {
        let unfinished = self.unfinished();
        if !is_there(&unfinished) {
            return Ok(());
        }
        let foreign = |path: PathBuf| Err(Error::Foreign { path, what: WHAT }.into());
        if !is_real_folder(&unfinished) {
            return foreign(unfinished);
        }
        let ours = |name: &str| PARTS.iter().chain([&MOVES]).any(|part| name == *part || is_temporary_of(name, part));
        if let Some(name) = names_in(&unfinished)?.into_iter().find(|name| !ours(name)) {
            return foreign(unfinished.join(name));
        }
        Ok(fs::remove_dir_all(&unfinished).map_err(Error::io("remove", &unfinished))?)
    }

    /// The parts of an earlier evaluation that is there and may be replaced.
    fn parts_to_replace(&self) -> Result<Vec<String>> {
        let there: Vec<&str> = PARTS.into_iter().filter(|part| is_there(&self.path.join(part))).collect();
        let Some(first) = there.first() else { return Ok(Vec::new()) };
        let Some(files) = files_of_evaluation(&self.path) else {
            return Err(Error::Foreign { path: self.path.join(first), what: WHAT }.into());
        };
        if !self.overwrite {
            return Err(EvalError::Exists { path: self.path.clone() });
        }
        for part in &there {
            let place = self.path.join(part);
            if is_real_folder(&place) {
                for name in names_in(&place)? {
                    let path = place.join(&name);
                    origin_of(&path, files.get(&format!("{part}/{name}"))).may_replace(&path, WHAT)?;
                }
            } else {
                origin_of(&place, files.get(*part)).may_replace(&place, WHAT)?;
            }
        }
        Ok(there.into_iter().map(String::from).collect())
    }

    /// Puts the complete files in place of an earlier evaluation.
    ///
    /// # Errors
    /// What has come into the way since the beginning; a file that cannot be moved.
    pub(crate) fn publish(&self) -> Result<()> {
        let (unfinished, publishing) = (self.unfinished(), self.path.join(PUBLISHING));
        let brings = PARTS.into_iter().filter(|part| is_there(&unfinished.join(part))).map(String::from).collect();
        let moves = Moves { replaces: self.parts_to_replace()?, brings };
        let path = unfinished.join(MOVES);
        let json = serde_json::to_vec(&moves).map_err(|source| EvalError::Json { path: path.clone(), source })?;
        write_atomic(&path, &json)?;
        fs::rename(&unfinished, &publishing).map_err(Error::io("rename", &unfinished))?;
        sync_folder(&self.path)?;
        finish_moves(&self.path)
    }
}

/// Whose a file is, by the hash that the evaluation recorded of it.
fn origin_of(path: &Path, recorded: Option<&String>) -> Origin {
    let Some(recorded) = recorded.filter(|_| is_regular_file(path)) else { return Origin::Foreign };
    let same = recorded.is_empty() || sha256_of_file(path, |_| ()).is_ok_and(|found| found == *recorded);
    if same { Origin::Ours } else { Origin::Changed }
}

/// The files of a finished evaluation with their hashes, by their paths below its folder; `None` if there is none.
fn files_of_evaluation(folder: &Path) -> Option<BTreeMap<String, String>> {
    let recorded: Recorded = read_json(&folder.join(EVALUATION_JSON)).ok()?;
    let _: Vec<CaseRow> = read_rows(&folder.join(CASES_TABLE)).ok()?;
    (!recorded.files.is_empty()).then_some(recorded.files)
}

/// Names of a folder's entries. One that is not UTF-8 is spelled otherwise, and so is none of ours.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let entries = entries.map_err(Error::io("list", folder))?;
    Ok(entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// The files below a folder of an evaluation in progress, by their paths below it.
pub(crate) fn files_below(folder: &Path) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for name in names_in(folder)? {
        let path = folder.join(&name);
        if is_real_folder(&path) {
            files.extend(names_in(&path)?.into_iter().map(|below| format!("{name}/{below}")));
        } else {
            files.insert(name);
        }
    }
    Ok(files)
}

/// The hashes of these files, and the place of the evaluation's record among them.
pub(crate) fn hashes_below(folder: &Path) -> Result<BTreeMap<String, String>> {
    let hash = |name: String| Ok((name.clone(), sha256_of_file(&folder.join(name), |_| ())?));
    let mut hashes: BTreeMap<String, String> = files_below(folder)?.into_iter().map(hash).collect::<Result<_>>()?;
    hashes.insert(EVALUATION_JSON.into(), String::new());
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moves::REPLACED;
    use crate::protocol::Scoring;
    use crate::scored::Scored;
    use sam_ladder_formats::rows::write_rows;
    use sam_ladder_schemas::eval::Protocol;

    /// Makes a complete evaluation of one case in `folder`; `text` marks its files.
    fn fill(folder: &Path, text: &str, masks: bool) {
        for below in [Some(OVERLAYS), masks.then_some(MASKS)].into_iter().flatten() {
            create_dir(&folder.join(below)).unwrap();
        }
        fs::write(folder.join(OVERLAYS).join("0001_slice001.png"), text).unwrap();
        if masks {
            fs::write(folder.join(MASKS).join("0001.nii.gz"), text).unwrap();
        }
        for name in [TABLE_MARKDOWN, REPORT, SUMMARY_TABLE] {
            fs::write(folder.join(name), text).unwrap();
        }
        write_rows(&folder.join(CASES_TABLE), &[CaseRow { case: "0001".into(), organ: text.into(), ..CaseRow::default() }])
            .unwrap();
        let files = hashes_below(folder).unwrap();
        let scoring = Scoring::of(Protocol::Standard);
        let (class_names, scored) = (vec!["liver".into()], Scored::default());
        let info = EvaluationInfo { method: text.into(), class_names, scoring, scored, run_info: vec![] };
        fs::write(folder.join(EVALUATION_JSON), serde_json::to_vec(&Recorded { info, files }).unwrap()).unwrap();
    }

    fn evaluate(out: &Path, text: &str, masks: bool, overwrite: bool) -> Result<()> {
        let folder = OutputFolder::begin(out, overwrite)?;
        fill(&folder.unfinished(), text, masks);
        folder.publish()
    }

    /// Every file with its text; the tables' are not compared.
    fn content(out: &Path) -> Vec<(String, Vec<u8>)> {
        let text = |name: String| {
            let bytes = if name.ends_with(".json") || name == CASES_TABLE { vec![] } else { fs::read(out.join(&name)).unwrap() };
            (name, bytes)
        };
        files_below(out).unwrap().into_iter().map(text).collect()
    }

    fn method(out: &Path) -> String {
        crate::folder::EvaluationFolder::open(out).unwrap().info.method
    }

    /// Every move may be the last one: the next start finishes, with all of the new evaluation and nothing of the old one.
    #[test]
    fn a_swap_that_was_interrupted_anywhere_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let expected = dir.path().join("expected");
        evaluate(&expected, "new", false, false).unwrap();
        for interrupted_after in 0..16 {
            let out = dir.path().join(format!("{interrupted_after}"));
            evaluate(&out, "old", true, false).unwrap();
            fs::write(out.join("notes.txt"), "mine").unwrap();
            // As `publish`, up to the rename.
            let folder = OutputFolder::begin(&out, true).unwrap();
            fill(&folder.unfinished(), "new", false);
            let brings = PARTS.into_iter().filter(|part| is_there(&folder.unfinished().join(part))).map(String::from).collect();
            let moves = Moves { replaces: folder.parts_to_replace().unwrap(), brings };
            fs::write(folder.unfinished().join(MOVES), serde_json::to_vec(&moves).unwrap()).unwrap();
            assert_eq!(method(&out), "old", "the old evaluation is whole until then");
            let publishing = out.join(PUBLISHING);
            fs::rename(folder.unfinished(), &publishing).unwrap();
            fs::create_dir(publishing.join(REPLACED)).unwrap();
            let old = moves.replaces.iter().rev().map(|name| (out.join(name), publishing.join(REPLACED).join(name)));
            let new = moves.brings.iter().map(|name| (publishing.join(name), out.join(name)));
            for (from, to) in old.chain(new).take(interrupted_after) {
                fs::rename(from, to).unwrap();
            }
            drop(folder);
            assert_eq!(method(&out), "new", "after {interrupted_after} moves");
            assert!(!is_there(&publishing));
            assert_eq!(fs::read(out.join("notes.txt")).unwrap(), b"mine");
            fs::remove_file(out.join("notes.txt")).unwrap();
            assert_eq!(content(&out), content(&expected), "after {interrupted_after} moves");
        }
    }

    #[test]
    fn what_is_not_an_evaluations_is_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        // Masks of `predict`, in a folder without an evaluation.
        for part in [MASKS, OVERLAYS] {
            let out = dir.path().join(part);
            create_dir(&out.join(part)).unwrap();
            fs::write(out.join(part).join("0001.nii.gz"), "mine").unwrap();
            for overwrite in [false, true] {
                let error = evaluate(&out, "new", true, overwrite).unwrap_err().to_string();
                assert!(
                    error.ends_with(&format!("{part} is not part of an evaluation by sam-ladder, and is not replaced")),
                    "{error}"
                );
            }
            assert_eq!(fs::read(out.join(part).join("0001.nii.gz")).unwrap(), b"mine");
            assert_eq!(names_in(&out).unwrap(), [part], "nothing is left behind");
        }
        let out = dir.path().join("report");
        create_dir(&out).unwrap();
        fs::write(out.join(REPORT), "mine").unwrap();
        assert!(evaluate(&out, "new", true, true).is_err());
        // An evaluation without masks, and masks of `predict`.
        let out = dir.path().join("e");
        evaluate(&out, "old", false, false).unwrap();
        assert!(matches!(evaluate(&out, "new", false, false).unwrap_err(), EvalError::Exists { .. }));
        evaluate(&out, "again", false, true).unwrap();
        for (below, file) in [(MASKS, "9999.nii.gz"), (OVERLAYS, "mine.png")] {
            create_dir(&out.join(below)).unwrap();
            fs::write(out.join(below).join(file), "mine").unwrap();
            let error = evaluate(&out, "new", true, true).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
            assert_eq!((fs::read(out.join(below).join(file)).unwrap(), method(&out)), (b"mine".to_vec(), "again".into()));
            fs::remove_file(out.join(below).join(file)).unwrap();
        }
        // What someone has corrected since.
        let edited = dir.path().join("edited");
        evaluate(&edited, "old", true, false).unwrap();
        for file in ["masks/0001.nii.gz", TABLE_MARKDOWN] {
            fs::write(edited.join(file), "corrected").unwrap();
            let error = evaluate(&edited, "new", true, true).unwrap_err().to_string();
            assert!(
                error.ends_with(&format!("{file} has been changed since sam-ladder wrote it, and is not replaced")),
                "{error}"
            );
            assert_eq!((fs::read(edited.join(file)).unwrap(), method(&edited)), (b"corrected".to_vec(), "old".into()));
            fs::write(edited.join(file), "old").unwrap();
        }
        evaluate(&edited, "new", true, true).unwrap();
        // A link is not followed.
        let elsewhere = dir.path().join("elsewhere");
        create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("0001.nii.gz"), "mine").unwrap();
        fs::remove_dir(out.join(MASKS)).unwrap();
        std::os::unix::fs::symlink(&elsewhere, out.join(MASKS)).unwrap();
        assert!(evaluate(&out, "new", true, true).is_err());
        assert_eq!(fs::read(elsewhere.join("0001.nii.gz")).unwrap(), b"mine");
    }

    #[test]
    fn a_second_evaluation_into_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = OutputFolder::begin(dir.path(), false).unwrap();
        let error = OutputFolder::begin(dir.path(), true).unwrap_err();
        assert!(error.to_string().contains("is being written by another process"), "{error}");
        fill(&first.unfinished(), "first", false);
        first.publish().unwrap();
        drop(first);
        assert_eq!(method(dir.path()), "first");
        // What a killed one left is removed; a folder of that name with other content is not.
        create_dir(&dir.path().join(UNFINISHED).join(OVERLAYS)).unwrap();
        evaluate(dir.path(), "second", false, true).unwrap();
        create_dir(&dir.path().join(UNFINISHED).join("thesis")).unwrap();
        assert!(evaluate(dir.path(), "third", false, true).unwrap_err().to_string().contains("thesis"));
    }
}
