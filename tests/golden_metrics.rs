//! Dice to 1e-12 and HD95 to 1e-6, in voxels and millimetres and in the published convention, against MedPy on 40 pairs of masks
//! (`golden/metrics.safetensors`, `golden/metrics.json`).

use safetensors::SafeTensors;
use sam_ladder_eval::{CaseMasks, MaskPair, MaskView, Protocol, dice, evaluate_case, hd95};
use serde::Deserialize;
use std::path::Path;

const DICE_TOLERANCE: f64 = 1e-12;
const HD95_TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct Expected {
    case: usize,
    shape: [usize; 3],
    spacing_mm: [f64; 3],
    pred_voxels: u64,
    ref_voxels: u64,
    dice: Option<f64>,
    hd95_voxel: Option<f64>,
    hd95_mm: Option<f64>,
    paper_dice: f64,
    paper_hd95: f64,
}

fn assert_close(what: &str, case: usize, found: Option<f64>, expected: Option<f64>, tolerance: f64) {
    let close = match (found, expected) {
        (Some(found), Some(expected)) => (found - expected).abs() <= tolerance,
        (found, expected) => found == expected,
    };
    assert!(close, "pair {case}: {what} is {found:?}, MedPy says {expected:?}");
}

#[test]
fn metrics_equal_medpy() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let pairs: Vec<Expected> = serde_json::from_slice(&std::fs::read(golden.join("metrics.json")).unwrap()).unwrap();
    let bytes = std::fs::read(golden.join("metrics.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(pairs.len(), 40);
    let (mut undefined, mut anisotropic) = (0, 0);
    for expected in &pairs {
        let &Expected { case, shape, spacing_mm, .. } = expected;
        let view = |name: &str| tensors.tensor(&format!("{case}/{name}")).unwrap();
        let (prediction, reference) = (view("pred"), view("ref"));
        assert_eq!(reference.shape(), shape);
        let masks = CaseMasks {
            case: "golden",
            prediction: MaskView { voxels: prediction.data(), shape },
            reference: MaskView { voxels: reference.data(), shape },
            spacing_mm: Some(spacing_mm),
        };

        let pair = MaskPair::new("golden", masks.prediction, masks.reference, 1).unwrap();
        let region = pair.region(1);
        assert_eq!(
            (region.predicted_voxels, region.reference_voxels),
            (expected.pred_voxels, expected.ref_voxels),
            "pair {case}"
        );
        assert_close("dice", case, dice(&region), expected.dice, DICE_TOLERANCE);
        assert_close("hd95 in voxels", case, hd95(&pair, 1, [1.0; 3]), expected.hd95_voxel, HD95_TOLERANCE);
        assert_close("hd95 in mm", case, hd95(&pair, 1, spacing_mm), expected.hd95_mm, HD95_TOLERANCE);

        let score = |protocol| {
            let rows = evaluate_case(&masks, &["organ".to_string()], protocol).unwrap();
            (rows[0].dice, rows[0].hd95)
        };
        let (published, standard) = (score(Protocol::Published), score(Protocol::Standard));
        assert_close("published dice", case, published.0, Some(expected.paper_dice), DICE_TOLERANCE);
        assert_close("published hd95", case, published.1, Some(expected.paper_hd95), HD95_TOLERANCE);
        assert_close("standard dice", case, standard.0, expected.dice, DICE_TOLERANCE);
        assert_close("standard hd95", case, standard.1, expected.hd95_mm, HD95_TOLERANCE);
        let row = &evaluate_case(&masks, &["organ".to_string()], Protocol::Published).unwrap()[0];
        assert_close("column hd95_voxels", case, row.hd95_voxels, expected.hd95_voxel, HD95_TOLERANCE);
        assert_close("column hd95_mm", case, row.hd95_mm, expected.hd95_mm, HD95_TOLERANCE);
        undefined += usize::from(expected.hd95_mm.is_none());
        anisotropic += usize::from(spacing_mm[0] != spacing_mm[1]);
    }
    assert!(undefined > 0 && anisotropic > 0, "the golden pairs no longer cover empty masks and anisotropic spacing");
}
