//! Published rows on the twelve Synapse test scans, each with its source.
//!
//! The paper is Chai et al. (2023), arXiv 2306.12737. Where another source prints other numbers for a method, both rows are here. The paper's
//! rows of R50 U-Net and R50 Att-UNet have means that do not agree with their organs; they are here as printed, with a note.

use crate::organ_columns::organ_columns;
use crate::summary::MEAN;
use sam_ladder_schemas::eval::PublishedRows;
use sam_ladder_schemas::tables::ResultRow;

/// One published row, in percent and in the source's unit of distance.
#[derive(Debug, Clone, Copy, PartialEq)]
struct PublishedRow {
    /// The method's name in tables.
    method: &'static str,
    /// Mean Dice, in percent.
    dice: f64,
    /// Mean HD95, if one was given.
    hd95: Option<f64>,
    /// Dice of aorta, gallbladder, left kidney, right kidney, liver, pancreas, spleen and stomach, in percent, if given.
    organs: Option<[f64; 8]>,
    /// Source of the row.
    source: &'static str,
}

/// The paper's Table I, which quotes all rows but its last from the methods' papers.
const PAPER: &str = "Table I of Chai et al. (2023), HD95 printed as mm";
/// The same, where the mean is not that of the organs.
const PAPER_AS_PRINTED: &str =
    "Table I of Chai et al. (2023), HD95 printed as mm; the mean is as printed and does not agree with the organs";
/// The paper's Table II.
const ABLATION: &str = "Table II of Chai et al. (2023), HD95 printed as mm";
/// README of github.com/rezazad68/transdeeplab at 0cfb183, whose table repeats Swin-Unet's (arXiv 2105.05537).
const TRANSDEEPLAB: &str = "table in the README of github.com/rezazad68/transdeeplab at commit 0cfb183";
/// README of the repository DB-TransCNN.
const DB_TRANSCNN: &str = "table in the README of the repository DB-TransCNN, which quotes the method's paper";
/// README of github.com/hitachinsk/SAMed.
const SAMED: &str = "table in the README of github.com/hitachinsk/SAMed";

const fn row(method: &'static str, dice: f64, hd95: f64, organs: [f64; 8], source: &'static str) -> PublishedRow {
    PublishedRow { method, dice, hd95: Some(hd95), organs: Some(organs), source }
}

const fn without_hd95(method: &'static str, dice: f64, organs: [f64; 8], source: &'static str) -> PublishedRow {
    PublishedRow { method, dice, hd95: None, organs: Some(organs), source }
}

const fn arm(method: &'static str, dice: f64, hd95: f64) -> PublishedRow {
    PublishedRow { method, dice, hd95: Some(hd95), organs: None, source: ABLATION }
}

/// Methods, oldest first; the paper's own last.
const METHODS: [PublishedRow; 16] = [
    without_hd95("V-Net", 68.81, [75.34, 51.87, 77.10, 80.75, 87.84, 40.05, 80.56, 56.98], PAPER),
    without_hd95("DARR", 69.77, [74.74, 53.77, 72.31, 73.24, 94.08, 54.18, 89.90, 45.96], PAPER),
    row("R50 U-Net", 74.68, 36.87, [87.74, 63.66, 80.60, 78.19, 93.74, 56.90, 85.87, 74.16], PAPER_AS_PRINTED),
    row("U-Net", 76.85, 39.70, [89.07, 69.72, 77.77, 68.60, 93.43, 53.98, 86.67, 75.58], PAPER),
    row("R50 Att-UNet", 75.57, 36.97, [55.92, 63.91, 79.20, 72.71, 93.56, 49.37, 87.19, 74.95], PAPER_AS_PRINTED),
    row("Att-UNet", 77.77, 36.02, [89.55, 68.88, 77.98, 71.11, 93.57, 58.04, 87.30, 75.75], TRANSDEEPLAB),
    row("R50 ViT", 71.29, 32.87, [73.73, 55.13, 75.80, 72.20, 91.51, 45.99, 81.99, 73.95], PAPER),
    row("TransUNet", 77.48, 31.69, [87.23, 63.13, 81.87, 77.02, 94.08, 55.86, 85.08, 75.62], PAPER),
    row("MTM", 78.59, 26.56, [87.92, 64.99, 81.47, 77.29, 93.06, 59.46, 87.75, 76.81], PAPER),
    row("SwinUNet", 79.12, 21.55, [85.47, 66.53, 83.28, 79.61, 94.29, 56.58, 90.66, 76.60], PAPER),
    row("SwinUNet (TransDeepLab)", 79.13, 21.55, [85.47, 66.53, 83.28, 79.61, 94.29, 56.58, 90.66, 76.60], TRANSDEEPLAB),
    row("MISSFormer", 81.96, 18.20, [86.99, 68.65, 85.21, 82.00, 94.41, 65.67, 91.92, 80.81], PAPER),
    row("HiFormer", 80.39, 14.70, [86.21, 65.69, 85.23, 79.77, 94.61, 59.52, 90.99, 81.08], DB_TRANSCNN),
    row("SAMed", 81.88, 20.64, [87.77, 69.11, 80.45, 79.95, 94.80, 72.17, 88.72, 82.06], PAPER),
    row("SAMed_h", 84.30, 16.02, [87.81, 74.72, 85.76, 81.52, 95.76, 70.63, 90.46, 87.77], SAMED),
    row("Ladder fine-tuning (paper)", 79.45, 35.35, [88.05, 66.53, 81.45, 75.69, 94.56, 63.08, 87.71, 78.51], PAPER),
];

/// The paper's ablation.
const ARMS: [PublishedRow; 4] = [
    arm("SAM, not fine-tuned, no prompts (paper)", 1.73, 260.98),
    arm("CNN only (paper)", 78.05, 29.11),
    arm("SAM only (paper)", 58.97, 101.60),
    arm("full (paper)", 79.45, 35.35),
];

/// The rows of a results table, with each method's organs and their mean; empty unless the organs are the eight of Synapse.
pub(crate) fn rows(which: PublishedRows, class_names: &[String]) -> Vec<ResultRow> {
    let columns = organ_columns(class_names);
    let paper = ["Aorta", "Gallbladder", "Kidney(L)", "Kidney(R)", "Liver", "Pancreas", "Spleen", "Stomach"];
    if columns.iter().map(|column| &*column.heading).ne(paper) {
        return Vec::new();
    }
    let of_method = |published: &PublishedRow| {
        let organs = published.organs.into_iter().flatten();
        let organs = columns.iter().zip(organs).map(|(column, dice)| (column.organ.clone(), dice, None));
        let all = organs.chain([(MEAN.to_string(), published.dice, published.hd95)]);
        let row = |(organ, dice, hd95): (String, f64, Option<f64>)| ResultRow {
            method: published.method.into(),
            organ,
            source: Some(published.source.into()),
            dice: Some(dice / 100.0),
            hd95,
            ..ResultRow::default()
        };
        all.map(row).collect::<Vec<_>>()
    };
    let published: &[PublishedRow] = match which {
        PublishedRows::Methods => &METHODS,
        PublishedRows::Ablation => &ARMS,
    };
    published.iter().flat_map(of_method).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::classes::SYNAPSE_ORGANS;

    #[test]
    fn means_are_those_of_the_organs() {
        // Finds typing errors: each mean is that of its eight organs, up to rounding, but for the two that the paper prints otherwise.
        for row in METHODS {
            let mean = row.organs.unwrap().iter().sum::<f64>() / 8.0;
            let agrees = (mean - row.dice).abs() < 0.01;
            assert_eq!(agrees, row.source != PAPER_AS_PRINTED, "{}: {mean} for {}", row.method, row.dice);
        }
    }

    #[test]
    fn only_synapses_organs_have_rows() {
        let names = SYNAPSE_ORGANS.map(String::from);
        let methods = rows(PublishedRows::Methods, &names);
        assert_eq!(methods.len(), 9 * METHODS.len());
        let aorta = methods.iter().find(|row| row.method == "TransUNet" && row.organ == "aorta").unwrap();
        assert!((aorta.dice.unwrap() - 0.8723).abs() < 1e-12 && aorta.hd95.is_none(), "{aorta:?}");
        let arms = rows(PublishedRows::Ablation, &names);
        assert!(arms.len() == ARMS.len() && arms.iter().all(|row| row.organ == MEAN), "{arms:?}");
        assert!(rows(PublishedRows::Methods, &["tumour".into()]).is_empty());
    }
}
