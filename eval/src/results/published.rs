//! Rows of other methods on the twelve Synapse test scans, as published.
//!
//! Each row names the source from which it was read. Rows of Chai et al. (2023) are missing because the paper's tables were not available
//! when this list was made. R50 U-Net and R50 Att-UNet are left out because their means in the sources do not match their organs.

use crate::organ_columns::organ_columns;
use crate::summary::MEAN;
use sam_ladder_schemas::tables::ResultRow;

/// One published row, in percent and voxels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PublishedRow {
    /// The method's name in tables.
    pub method: &'static str,
    /// Mean Dice, in percent.
    pub dice: f64,
    /// Mean HD95, if one was given.
    pub hd95: Option<f64>,
    /// Dice of aorta, gallbladder, left kidney, right kidney, liver, pancreas, spleen and stomach, in percent.
    pub organs: [f64; 8],
    /// Source of the row.
    pub source: &'static str,
}

/// README of github.com/rezazad68/transdeeplab at 0cfb183, whose table repeats TransUNet's (arXiv 2102.04306) and Swin-Unet's (arXiv 2105.05537).
const TRANSDEEPLAB: &str = "table in the README of github.com/rezazad68/transdeeplab at commit 0cfb183";
/// README of the repository DB-TransCNN.
const DB_TRANSCNN: &str = "table in the README of the repository DB-TransCNN, which quotes the method's paper";
/// README of github.com/tljxyys/Perspective-Unet.
const PERSPECTIVE: &str = "table in the README of github.com/tljxyys/Perspective-Unet, which quotes the method's paper";
/// README of github.com/hitachinsk/SAMed.
const SAMED: &str = "table in the README of github.com/hitachinsk/SAMed";

const fn row(method: &'static str, dice: f64, hd95: Option<f64>, organs: [f64; 8], source: &'static str) -> PublishedRow {
    PublishedRow { method, dice, hd95, organs, source }
}

/// The rows, oldest first.
pub(crate) const ROWS: [PublishedRow; 11] = [
    row("V-Net", 68.81, None, [75.34, 51.87, 77.10, 80.75, 87.84, 40.05, 80.56, 56.98], TRANSDEEPLAB),
    row("DARR", 69.77, None, [74.74, 53.77, 72.31, 73.24, 94.08, 54.18, 89.90, 45.96], DB_TRANSCNN),
    row("U-Net", 76.85, Some(39.70), [89.07, 69.72, 77.77, 68.60, 93.43, 53.98, 86.67, 75.58], TRANSDEEPLAB),
    row("Att-UNet", 77.77, Some(36.02), [89.55, 68.88, 77.98, 71.11, 93.57, 58.04, 87.30, 75.75], TRANSDEEPLAB),
    row("R50 ViT", 71.29, Some(32.87), [73.73, 55.13, 75.80, 72.20, 91.51, 45.99, 81.99, 73.95], TRANSDEEPLAB),
    row("TransUNet", 77.48, Some(31.69), [87.23, 63.13, 81.87, 77.02, 94.08, 55.86, 85.08, 75.62], TRANSDEEPLAB),
    row("SwinUNet", 79.13, Some(21.55), [85.47, 66.53, 83.28, 79.61, 94.29, 56.58, 90.66, 76.60], TRANSDEEPLAB),
    row("MISSFormer", 81.96, Some(18.20), [86.99, 68.65, 85.21, 82.00, 94.41, 65.67, 91.92, 80.81], PERSPECTIVE),
    row("HiFormer", 80.39, Some(14.70), [86.21, 65.69, 85.23, 79.77, 94.61, 59.52, 90.99, 81.08], DB_TRANSCNN),
    row("SAMed", 81.88, Some(20.64), [87.77, 69.11, 80.45, 79.95, 94.80, 72.17, 88.72, 82.06], SAMED),
    row("SAMed_h", 84.30, Some(16.02), [87.81, 74.72, 85.76, 81.52, 95.76, 70.63, 90.46, 87.77], SAMED),
];

/// The rows of a results table, with each method's organs and their mean; empty unless the organs are the eight of Synapse.
pub(crate) fn rows(class_names: &[String]) -> Vec<ResultRow> {
    let columns = organ_columns(class_names);
    let paper = ["Aorta", "Gallbladder", "Kidney(L)", "Kidney(R)", "Liver", "Pancreas", "Spleen", "Stomach"];
    if columns.iter().map(|column| &*column.heading).ne(paper) {
        return Vec::new();
    }
    let of_method = |published: &PublishedRow| {
        let organs = columns.iter().zip(published.organs).map(|(column, dice)| (column.organ.clone(), dice, None));
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
    ROWS.iter().flat_map(of_method).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::classes::SYNAPSE_ORGANS;

    #[test]
    fn means_are_those_of_the_organs() {
        // Finds typing errors: each mean is that of its eight organs, up to rounding.
        for row in ROWS {
            let mean = row.organs.iter().sum::<f64>() / 8.0;
            assert!((mean - row.dice).abs() < 0.01, "{}: {mean} for {}", row.method, row.dice);
        }
    }

    #[test]
    fn only_synapses_organs_have_rows() {
        let names = SYNAPSE_ORGANS.map(String::from);
        let rows = rows(&names);
        assert_eq!(rows.len(), 9 * ROWS.len());
        let aorta = rows.iter().find(|row| row.method == "TransUNet" && row.organ == "aorta").unwrap();
        assert!((aorta.dice.unwrap() - 0.8723).abs() < 1e-12 && aorta.hd95.is_none(), "{aorta:?}");
        assert!(super::rows(&["tumour".into()]).is_empty());
    }
}
