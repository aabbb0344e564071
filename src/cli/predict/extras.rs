//! What `predict` writes and says in addition to masks: probabilities, their entropy, how far several runs agree, and a table of these numbers.

use super::outputs::Existing;
use crate::error::refusal;
use anyhow::Context;
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::csv::{field, one_line, read_lines};
use sam_ladder_formats::hash::sha256_hex;
use sam_ladder_formats::nifti::{origin_of, write_scaled_nifti};
use sam_ladder_formats::outputs::{HASH_COMMENT, Origin, is_regular_file, is_there, may_write, origin_of_text, sealed};
use sam_ladder_formats::volume::without_ending;
use sam_ladder_precompute::scans::Grid;
use sam_ladder_schemas::tables::voxel_ml;
use sam_ladder_train::{Agreement, Segmented};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Mean Dice of the runs' masks of an organ with one another below which a warning is given.
pub const DISAGREEMENT: f64 = 0.8;
/// Columns of the table of `--statistics`.
const HEADER: &str = "case,organ,voxels,volume_ml,agreement_dice,mean_entropy";
/// A byte of a probability or of an entropy is so many of these.
const BYTE: f64 = 1.0 / 255.0;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Write probabilities.
    pub probabilities: bool,
    /// Write the entropy.
    pub entropy: bool,
    /// The table, if one is asked for.
    pub statistics: Option<PathBuf>,
    /// What to do with masks, maps and a table that are there already.
    pub existing: Existing,
}

/// A scan whose mask was made.
pub struct Made<'a> {
    pub case: &'a str,
    pub grid: &'a Grid,
    /// The mask's file.
    pub path: &'a Path,
    /// Classes, `[d, h, w]`.
    pub mask: &'a [u8],
    pub class_names: &'a [String],
    pub extras: &'a Segmented,
}

impl Extras {
    /// The entropy's file, and those of the probabilities, next to a mask.
    fn files(&self, mask: &Path, class_names: &[String]) -> Vec<PathBuf> {
        let names = ["background"].into_iter().chain(class_names.iter().map(String::as_str));
        let probabilities = names.map(|name| beside(mask, &format!("probability.{}", plain(name))));
        let entropy = self.entropy.then(|| beside(mask, "entropy"));
        entropy.into_iter().chain(probabilities.filter(|_| self.probabilities)).collect()
    }

    /// Checks that all files of these masks may be written, and makes the table's folder. If masks that are there are kept, maps whose mask is yet
    /// to be made are those of an interrupted call, and may be replaced; so may its table, whose rows are kept.
    ///
    /// # Errors
    /// Two outputs of one name; a file that is there, unless it may be replaced and is ours; a table of another kind than CSV and JSON.
    pub fn check(&self, masks: &[&Path], class_names: &[String]) -> anyhow::Result<()> {
        let may_replace = self.existing != Existing::Refuse;
        let mut names = HashSet::new();
        for mask in masks {
            let maps = self.files(mask, class_names);
            may_write(&maps, may_replace, "a map by sam-ladder", origin_of)?;
            for file in maps.into_iter().chain([mask.to_path_buf()]) {
                if let Some(twice) = names.replace(file) {
                    let message = format!("{} would be written twice", twice.display());
                    return Err(refusal(
                        message,
                        "rename a scan, or save no maps: the names of two scans or classes lead to one file",
                    ));
                }
            }
        }
        let Some(path) = &self.statistics else { return Ok(()) };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        if !is_csv(path) && !is_json(path) {
            let message = format!("{} ends neither in .csv nor in .json", path.display());
            return Err(refusal(message, "name the table of --statistics so"));
        }
        let origin = |path: &Path| if is_csv(path) { origin_of_text(path, HASH_COMMENT) } else { origin_of_json(path) };
        Ok(may_write(std::slice::from_ref(path), may_replace, "a table of statistics by sam-ladder", origin)?)
    }

    /// The rows of an earlier call's table, if the masks of such a call are kept.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub fn earlier_rows(&self) -> anyhow::Result<Vec<Value>> {
        let Some(path) = self.statistics.as_deref().filter(|path| self.existing == Existing::Skip && is_there(path)) else {
            return Ok(Vec::new());
        };
        if is_json(path) {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let mut table: Value = serde_json::from_str(&text)?;
            return Ok(serde_json::from_value(table["rows"].take())?);
        }
        let columns: Vec<&str> = HEADER.split(',').collect();
        let row = |cells: &Vec<String>| -> Value {
            columns.iter().zip(cells).map(|(name, text)| (name.to_string(), value(name, text))).collect()
        };
        let lines = read_lines(path)?;
        Ok(lines.iter().skip(1).filter(|cells| cells.len() == columns.len()).map(row).collect())
    }

    /// Removes the maps of a mask that is replaced which are not made again: they do not belong to the new mask. Only ours, as we wrote them.
    ///
    /// # Errors
    /// A file that cannot be removed.
    fn remove_other_maps(&self, mask: &Path, class_names: &[String]) -> anyhow::Result<()> {
        if self.existing != Existing::Replace {
            return Ok(());
        }
        let made = self.files(mask, class_names);
        let all = Extras { probabilities: true, entropy: true, ..Extras::default() }.files(mask, class_names);
        for other in all.into_iter().filter(|map| !made.contains(map) && origin_of(map) == Origin::Ours) {
            std::fs::remove_file(&other).with_context(|| format!("cannot remove {}", other.display()))?;
        }
        Ok(())
    }

    /// Writes the maps of a scan, on its own grid, and removes those of an earlier mask.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_maps(&self, made: &Made<'_>) -> anyhow::Result<()> {
        let entropy: Vec<u8> = made.extras.entropy.iter().map(|entropy| (entropy * 255.0).round() as u8).collect();
        let maps = self.entropy.then_some(&entropy).into_iter();
        let maps = maps.chain(made.extras.probabilities.iter().filter(|_| self.probabilities));
        for (path, map) in self.files(made.path, made.class_names).iter().zip(maps) {
            let map = made.grid.turn.inverse().voxels(map.clone(), made.grid.shape());
            write_scaled_nifti(path, &made.grid.geometry, &map, BYTE)?;
        }
        self.remove_other_maps(made.path, made.class_names)
    }

    /// The rows of a scan in the table.
    pub fn rows(made: &Made<'_>) -> Vec<Value> {
        let ml = made.grid.spacing_mm().map(voxel_ml);
        let organ = |(class, name): (u8, &String)| {
            let of_organ = |at: &usize| made.mask[*at] == class;
            let voxels = made.mask.iter().filter(|&&found| found == class).count();
            let entropy: f64 = (0..made.extras.entropy.len()).filter(of_organ).map(|at| f64::from(made.extras.entropy[at])).sum();
            let mean = (voxels > 0 && !made.extras.entropy.is_empty()).then(|| entropy / voxels as f64);
            json!({
                "case": made.case,
                "organ": name,
                "voxels": voxels,
                "volume_ml": ml.map(|ml| ml * voxels as f64),
                "agreement_dice": made.extras.agreement.mean_dice(class),
                "mean_entropy": mean,
            })
        };
        (1..=u8::MAX).zip(made.class_names).map(organ).collect()
    }

    /// Writes the table, if it is asked for.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_table(&self, rows: &[Value]) -> anyhow::Result<()> {
        let Some(path) = &self.statistics else { return Ok(()) };
        if is_json(path) {
            let table = json!({ "rows": rows, "sha256": sha256_hex(json!(rows).to_string().as_bytes()) });
            return Ok(write_atomic(path, format!("{}\n", serde_json::to_string_pretty(&table)?).as_bytes())?);
        }
        let columns: Vec<&str> = HEADER.split(',').collect();
        let lines = rows.iter().map(|row| columns.iter().map(|column| cell(&row[*column])).collect::<Vec<_>>().join(","));
        let text = format!("{HEADER}\n{}\n", lines.collect::<Vec<_>>().join("\n"));
        Ok(write_atomic(path, sealed(&text, HASH_COMMENT).as_bytes())?)
    }
}

/// A warning for the organs on which the runs disagree, if there are any.
pub fn disagreement(case: &str, class_names: &[String], agreement: &Agreement) -> Option<String> {
    let organ = |(class, name): (u8, &String)| {
        let dice = agreement.mean_dice(class).filter(|dice| *dice < DISAGREEMENT)?;
        Some(format!("{name} {dice:.2}"))
    };
    let organs: Vec<String> = (1..=u8::MAX).zip(class_names).filter_map(organ).collect();
    (!organs.is_empty()).then(|| {
        format!(
            "warning: scan {case}: the {} runs disagree, by the mean Dice of their masks with one another (below {DISAGREEMENT}): {}",
            agreement.members(),
            organs.join(", ")
        )
    })
}

/// `masks/0001.entropy.nii.gz` next to `masks/0001.nii.gz`.
fn beside(mask: &Path, what: &str) -> PathBuf {
    let name = mask.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let ending = [".nii.gz", ".nii"].into_iter().find(|ending| without_ending(&name, ending).is_some()).unwrap_or(".nii.gz");
    let stem = without_ending(&name, ending).unwrap_or(&name);
    mask.with_file_name(format!("{stem}.{what}{ending}"))
}

/// A class's name in a file's.
fn plain(name: &str) -> String {
    name.chars().map(|letter| if letter.is_alphanumeric() || "-_".contains(letter) { letter } else { '_' }).collect()
}

/// What a field of such a column says.
fn value(column: &str, text: &str) -> Value {
    match column {
        _ if text.is_empty() => Value::Null,
        "case" | "organ" => text.into(),
        "voxels" => text.parse::<u64>().map_or(Value::Null, Value::from),
        _ => text.parse::<f64>().map_or(Value::Null, Value::from),
    }
}

/// A name as it stands in a field: on one line, without spaces around it.
pub fn in_field(text: &str) -> String {
    one_line(text).trim().into()
}

/// A field of a CSV file (RFC 4180): nothing for what is unknown.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => field(&in_field(text)),
        other => other.to_string(),
    }
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
}

fn is_csv(path: &Path) -> bool {
    has_ending(path, "csv")
}

fn is_json(path: &Path) -> bool {
    has_ending(path, "json")
}

/// The origin of a table in JSON, by the hash of its rows.
fn origin_of_json(path: &Path) -> Origin {
    let text = if is_regular_file(path) { std::fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    let Ok(Value::Object(table)) = serde_json::from_str(&text) else { return Origin::Foreign };
    match (table.get("rows"), table.get("sha256").and_then(Value::as_str)) {
        (Some(rows), Some(hash)) if sha256_hex(rows.to_string().as_bytes()) == hash => Origin::Ours,
        (Some(_), Some(_)) => Origin::Changed,
        _ => Origin::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lie_next_to_their_mask() {
        let names = ["left kidney".to_string()];
        let extras = Extras { probabilities: true, entropy: true, ..Extras::default() };
        let files = extras.files(Path::new("masks/0001.nii.gz"), &names);
        let expected = ["0001.entropy.nii.gz", "0001.probability.background.nii.gz", "0001.probability.left_kidney.nii.gz"];
        assert_eq!(files, expected.map(|name| Path::new("masks").join(name)));
        assert!(Extras::default().files(Path::new("a.nii"), &names).is_empty());
        assert_eq!(beside(Path::new("a.nii"), "entropy"), Path::new("a.entropy.nii"));
    }

    #[test]
    fn a_table_is_replaced_only_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["s.csv", "s.json"] {
            let path = folder.path().join(name);
            let extras = Extras { statistics: Some(path.clone()), ..Extras::default() };
            let rows = [json!({ "case": "a,b", "organ": "liver", "voxels": 3, "volume_ml": 0.25, "agreement_dice": null })];
            extras.write_table(&rows).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(name != "s.csv" || text.contains("\n\"a,b\",liver,3,0.25,,\n"), "{text}");
            let check = |existing| Extras { existing, ..extras.clone() }.check(&[], &[]);
            assert!(check(Existing::Refuse).is_err());
            check(Existing::Replace).unwrap();
            check(Existing::Skip).unwrap();
            let kept = Extras { existing: Existing::Skip, ..extras.clone() }.earlier_rows().unwrap();
            assert_eq!(kept[0]["case"], rows[0]["case"], "{name}");
            assert_eq!([&kept[0]["voxels"], &kept[0]["volume_ml"]], [&json!(3), &json!(0.25)], "{name}");
            assert_eq!(extras.earlier_rows().unwrap().len(), 0);
            std::fs::write(&path, text.replace("liver", "kidney")).unwrap();
            assert!(check(Existing::Replace).is_err() && check(Existing::Skip).is_err(), "{name} was changed");
        }
        let wrong = Extras { statistics: Some("s.txt".into()), ..Extras::default() };
        assert!(wrong.check(&[], &[]).unwrap_err().to_string().contains("neither in .csv nor in .json"));
    }
}
