//! Times Dice and HD95, and all metrics of `eval`, for eight organs of a 512 × 512 × 150 scan. `bench/time_metrics.py` runs it and MedPy on
//! the same masks; with a folder as argument it writes them there, uint8 in C order.
//!
//! There are three predictions of the same ellipsoids: moved by a few voxels; the same with specks of every organ all over the scan, so that
//! every box is the whole scan; and with every organ somewhere else.

use sam_ladder_eval::{CaseMasks, EvalError, MaskPair, MaskView, Protocol, dice, evaluate_case, hd95};
use std::time::Instant;

const SHAPE: [usize; 3] = [150, 512, 512];
/// Centre and radii along depth, height and width, as shares of the scan: about the size of the eight organs.
const ORGANS: [([f64; 3], [f64; 3]); 8] = [
    ([0.60, 0.62, 0.76], [0.20, 0.10, 0.08]),
    ([0.40, 0.62, 0.34], [0.22, 0.06, 0.06]),
    ([0.42, 0.62, 0.66], [0.22, 0.06, 0.06]),
    ([0.45, 0.40, 0.36], [0.10, 0.04, 0.04]),
    ([0.62, 0.44, 0.28], [0.28, 0.18, 0.16]),
    ([0.66, 0.34, 0.62], [0.20, 0.10, 0.12]),
    ([0.50, 0.60, 0.51], [0.50, 0.02, 0.02]),
    ([0.50, 0.45, 0.50], [0.10, 0.04, 0.14]),
];

/// The ellipsoids, each moved by `shift` voxels.
fn organs(shift: [f64; 3], order: impl Fn(usize) -> usize) -> Vec<u8> {
    let mut voxels = vec![0u8; SHAPE.iter().product()];
    for (class, &(centre, radii)) in ORGANS.iter().enumerate() {
        let length = SHAPE.map(|length| length as f64);
        let centre: [f64; 3] = std::array::from_fn(|axis| centre[axis] * length[axis] + shift[axis]);
        let radii: [f64; 3] = std::array::from_fn(|axis| radii[axis] * length[axis]);
        let range = |axis: usize| {
            let [low, high] = [-1.0, 1.0].map(|side| (centre[axis] + side * radii[axis]).clamp(0.0, length[axis] - 1.0) as usize);
            low..=high
        };
        for (z, y, x) in range(0).flat_map(|z| range(1).flat_map(move |y| range(2).map(move |x| (z, y, x)))) {
            let position = [z, y, x].map(|index| index as f64);
            let far: f64 = (0..3).map(|axis| ((position[axis] - centre[axis]) / radii[axis]).powi(2)).sum();
            if far <= 1.0 {
                voxels[(z * SHAPE[1] + y) * SHAPE[2] + x] = order(class) as u8 + 1;
            }
        }
    }
    voxels
}

fn main() -> Result<(), EvalError> {
    let reference = organs([0.0; 3], |class| class);
    let moved = organs([1.0, 3.0, -2.0], |class| class);
    let mut specked = moved.clone();
    for index in (0..specked.len()).step_by(20011) {
        specked[index] = (index / 20011 % 8) as u8 + 1;
    }
    let elsewhere = organs([0.0; 3], |class| (class + 3) % 8);
    if let Some(folder) = std::env::args().nth(1) {
        let masks = [("reference", &reference), ("moved", &moved), ("specked", &specked), ("elsewhere", &elsewhere)];
        for (name, voxels) in masks {
            let path = std::path::Path::new(&folder).join(name);
            std::fs::write(&path, voxels).map_err(|source| sam_ladder_formats::Error::io("write", &path)(source))?;
        }
    }
    let names: Vec<String> = (1..=8).map(|class| format!("organ {class}")).collect();
    println!("{} threads", rayon::current_num_threads());
    for (name, prediction) in [("moved", &moved), ("specked", &specked), ("elsewhere", &elsewhere)] {
        let masks = CaseMasks {
            case: name,
            prediction: MaskView { voxels: prediction, shape: SHAPE },
            reference: MaskView { voxels: &reference, shape: SHAPE },
            spacing_mm: Some([3.0, 0.75, 0.75]),
        };
        let start = Instant::now();
        let pair = MaskPair::new(name, masks.prediction, masks.reference, 8)?;
        let found: Vec<Option<f64>> = (1..=8).map(|class| dice(&pair.region(class)).and(hd95(&pair, class, [1.0; 3]))).collect();
        let seconds = start.elapsed().as_secs_f64();
        let text: Vec<String> = found.iter().map(|hd95| hd95.map_or("–".into(), |hd95| format!("{hd95:.6}"))).collect();
        println!("{name}, Dice and HD95: {seconds:.3} s, HD95 {} voxels", text.join(" "));
        let start = Instant::now();
        evaluate_case(&masks, &names, Protocol::Standard)?;
        println!("{name}, every column: {:.3} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}
