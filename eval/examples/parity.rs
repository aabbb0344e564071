//! This crate's part of `make parity`: `parity metrics PAIRS.safetensors OUT.json` measures pairs of masks; `parity statistics SAMPLES.json
//! OUT.json` tests and resamples numbers. `bench/parity/check_metrics.py` and `check_statistics.py` make the input and compare the output
//! with MedPy, MONAI and SciPy.

use safetensors::SafeTensors;
use sam_ladder_eval::statistics::{Resampling, mean, permutation_test, wilcoxon_signed_rank};
use sam_ladder_eval::{CaseMasks, EmptyRule, MaskPair, MaskView, Protocol, Scoring, evaluate_case};
use serde_json::{Value, json};
use std::error::Error;

/// Pairs `<n>/pred`, `<n>/ref`, uint8 `[d, h, w]` of classes 0 and 1, and `<n>/spacing`, three float64 (mm); `tolerance_mm`, one float64.
fn metrics(input: &str) -> Result<Value, Box<dyn Error>> {
    let bytes = std::fs::read(input)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let floats = |name: &str| -> Result<Vec<f64>, Box<dyn Error>> {
        let data = tensors.tensor(name)?;
        Ok(data.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap_or_default())).collect())
    };
    let tolerance_mm = floats("tolerance_mm")?[0];
    let pairs = tensors.names().iter().filter(|name| name.ends_with("/pred")).count();
    let mut found = Vec::new();
    for index in 0..pairs {
        let (prediction, reference) = (tensors.tensor(&format!("{index}/pred"))?, tensors.tensor(&format!("{index}/ref"))?);
        let shape: [usize; 3] = reference.shape().try_into()?;
        let spacing = floats(&format!("{index}/spacing"))?;
        let masks = CaseMasks {
            case: "pair",
            prediction: MaskView { voxels: prediction.data(), shape },
            reference: MaskView { voxels: reference.data(), shape },
            spacing_mm: Some([spacing[0], spacing[1], spacing[2]]),
        };
        MaskPair::new("pair", masks.prediction, masks.reference, 1)?;
        let mut rules = serde_json::Map::new();
        for empty in EmptyRule::ALL {
            let scoring = Scoring { empty, tolerance_mm, ..Scoring::of(Protocol::Standard) };
            let rows = evaluate_case(&masks, &["organ".to_string()], scoring)?;
            rules.insert(empty.name().into(), serde_json::to_value(&rows[0])?);
        }
        found.push(Value::Object(rules));
    }
    Ok(Value::Array(found))
}

/// A list of lists of paired differences.
fn statistics(input: &str) -> Result<Value, Box<dyn Error>> {
    let samples: Vec<Vec<f64>> = serde_json::from_slice(&std::fs::read(input)?)?;
    let result = |differences: &Vec<f64>| {
        let wilcoxon = wilcoxon_signed_rank(differences);
        let of = |draw: &[u32]| mean(draw.iter().map(|&case| differences[case as usize]));
        let interval = Resampling::new(differences.len()).interval(of);
        json!({
            "statistic": wilcoxon.map(|test| test.statistic),
            "wilcoxon_p": wilcoxon.map(|test| test.p),
            "permutation_p": permutation_test(differences),
            "low": interval.map(|interval| interval.low),
            "high": interval.map(|interval| interval.high),
        })
    };
    Ok(Value::Array(samples.iter().map(result).collect()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, input, output] = &arguments[..] else { return Err("usage: parity metrics|statistics INPUT OUTPUT".into()) };
    let found = match what.as_str() {
        "metrics" => metrics(input)?,
        "statistics" => statistics(input)?,
        other => return Err(format!("{other:?} is neither metrics nor statistics").into()),
    };
    std::fs::write(output, serde_json::to_vec(&found)?)?;
    Ok(())
}
