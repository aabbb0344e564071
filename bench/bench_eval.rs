//! Times the evaluation of a store's test scans: `bench_eval STORE RUN [ROUNDS]`. A round is network, arg-max, the mask at the scan's
//! resolution, and Dice and HD95 of every organ by the published protocol. Prints the rows, the seconds of each part, and the median over the
//! rounds (3 by default) in seconds per slice.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::Device;
use sam_ladder_cache::Store;
use sam_ladder_eval::{CaseMasks, MaskView, Protocol, evaluate_case};
use sam_ladder_schemas::classes::Split;
use sam_ladder_train::{CaseRequest, Ensemble, RunCheckpoint, WeightSource};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, run, rounds @ ..] = arguments.as_slice() else { anyhow::bail!("usage: bench_eval STORE RUN [ROUNDS]") };
    let rounds: usize = rounds.first().map_or(Ok(3), |rounds| rounds.parse())?;
    let store = Store::open(PathBuf::from(store))?;
    let weights = WeightSource::Run { folder: run.into(), checkpoint: RunCheckpoint::Last };
    let ensemble = Ensemble::load(&[weights], None, &store, &Device::Cpu)?;
    let cases = store.cases(Split::Test);
    let slices: usize = cases.iter().map(|case| Ok(store.case_rows(Split::Test, case)?.len())).sum::<anyhow::Result<usize>>()?;
    let mut seconds = Vec::with_capacity(rounds);
    for round in 0..rounds.max(1) {
        let (mut network, mut metrics) = (0.0, 0.0);
        for case in &cases {
            let start = Instant::now();
            let request = CaseRequest { split: Split::Test, case, batch_size: 8 };
            let predicted = ensemble.predict_case(&store, request, |_| ())?;
            let reference = store.mask(Split::Test, case)?;
            let middle = Instant::now();
            let masks = CaseMasks {
                case,
                prediction: MaskView { voxels: &predicted.mask, shape: predicted.shape },
                reference: MaskView { voxels: &reference.labels, shape: reference.shape },
                spacing_mm: predicted.spacing_mm,
            };
            let rows = evaluate_case(&masks, &store.config().class_names, Protocol::Published)?;
            network += (middle - start).as_secs_f64();
            metrics += middle.elapsed().as_secs_f64();
            for row in rows.iter().filter(|_| round == 0) {
                println!("{case} {}: dice {:.6}, hd95 {:.4}", row.organ, row.dice.unwrap_or(-1.0), row.hd95.unwrap_or(-1.0));
            }
        }
        println!("network and arg-max {network:.3} s, Dice and HD95 {metrics:.3} s");
        seconds.push(network + metrics);
    }
    seconds.sort_by(f64::total_cmp);
    println!("{:.6} s/image", seconds[seconds.len() / 2] / slices as f64);
    Ok(())
}
