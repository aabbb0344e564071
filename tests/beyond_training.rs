//! Choices of training that the paper does not have: how slices are drawn, the schedule, the averaged model, early stopping, fewer cases, other losses.

mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/run.rs"]
mod run;
#[path = "common/store.rs"]
mod store;
#[path = "common/train_args.rs"]
mod train_args;

use candle_core::safetensors::load;
use candle_core::{DType, Device};
use run::{predict, words, workplace};
use sam_ladder_cache::TrainingSplit;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::tables::{EpochRow, StepRow, VolumeRange};
use sam_ladder_schemas::train::{CHECKPOINT, EPOCHS_TABLE, RESUME_STATE, RUN_CONFIG, RUN_LOG, STEPS_TABLE, TrainConfig};
use sam_ladder_schemas::train_choices::{ClassWeights, LossKind, LrSchedule, Sampling};
use sam_ladder_train::run::{TrainArgs, read_info, read_record, train};
use sam_ladder_train::{RunCheckpoint, WeightSource};
use std::collections::HashMap;
use std::path::Path;
use store::TEST_CASE;

/// Every choice, in as few runs as possible.
fn choices(base: &TrainConfig) -> [(&'static str, TrainConfig); 3] {
    let weights = ClassWeights::Numbers(vec![0.5, 1.0, 2.0]);
    [
        (
            "organs",
            TrainConfig {
                sampling: Sampling::Organs,
                lr_schedule: LrSchedule::Cosine,
                ema: 0.9,
                loss: LossKind::Focal,
                class_weights: ClassWeights::InverseFrequency,
                ..base.clone()
            },
        ),
        (
            "foreground",
            TrainConfig {
                sampling: Sampling::Foreground,
                ema: 0.5,
                loss: LossKind::Tversky,
                train_fraction: 0.6,
                val_cases: vec!["0006".into()],
                ..base.clone()
            },
        ),
        ("generalised", TrainConfig { loss: LossKind::GeneralisedDice, class_weights: weights, ..base.clone() }),
    ]
}

#[test]
fn every_choice_trains_and_resumes_in_the_same_bits() {
    let (folder, base) = workplace();
    let published = TrainArgs { run: folder.path().join("published"), ..base.clone() };
    train(&published).unwrap();
    let losses =
        |run: &Path| -> Vec<f32> { read_rows::<StepRow>(&run.join(STEPS_TABLE)).unwrap().iter().map(|row| row.loss).collect() };
    for (name, config) in choices(&base.config) {
        let straight = TrainArgs { run: folder.path().join(name), config, ..base.clone() };
        let summary = train(&straight).unwrap();
        let mut stopped = TrainArgs { run: folder.path().join(format!("{name}-stopped")), ..straight.clone() };
        stopped.config.max_steps = Some(summary.steps as usize - 1);
        train(&stopped).unwrap();
        (stopped.config.max_steps, stopped.resume) = (None, true);
        train(&stopped).unwrap();
        for file in [RESUME_STATE, CHECKPOINT, STEPS_TABLE] {
            let [left, right] = [&straight.run, &stopped.run].map(|run| std::fs::read(run.join(file)).unwrap());
            assert!(left == right, "{name}: {file} differs");
        }
        assert_eq!(read_record(&straight.run).unwrap().config, straight.config);
        let found = losses(&straight.run);
        assert!(found.iter().all(|loss| loss.is_finite()) && found != losses(&published.run), "{name}: {found:?}");
        let mut other = TrainArgs { resume: true, ..straight.clone() };
        other.config.ema = 0.25;
        let error = words(&train(&other).unwrap_err());
        assert!(error.contains("ema differs") && error.contains("0.25"), "{error}");
    }
    // A run by default settings names none of them.
    let text = std::fs::read_to_string(published.run.join(RUN_CONFIG)).unwrap();
    for name in [
        "sampling",
        "ema",
        "loss",
        "class_weights",
        "train_fraction",
        "trained_cases",
        "stopped_early",
        "\"decoder\":",
        "neighbours",
    ] {
        assert!(!text.contains(name), "{name}");
    }
    let checkpoint = std::fs::read(published.run.join(CHECKPOINT)).unwrap();
    let holds = |text: &[u8]| checkpoint.windows(text.len()).any(|part| part == text);
    assert!(holds(br#"\"gate\":"#) && !holds(br#"\"decoder\":"#) && !holds(b"neighbours"));
}

/// Float32 tensors by name, those of `prefix` without it.
fn tensors_of(path: &Path, prefix: &str) -> HashMap<String, Vec<f64>> {
    let tensors = load(path, &Device::Cpu).unwrap().into_iter().filter(|(_, tensor)| tensor.dtype() == DType::F32);
    let named = tensors.filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor)));
    let values = |tensor: candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    named.map(|(name, tensor)| (name, values(tensor).into_iter().map(f64::from).collect())).collect()
}

/// timm's `ModelEmaV2`: every weight and running statistic follows the model after each step, from the initial one.
#[test]
fn the_averaged_model_is_the_recursion_over_the_steps_and_is_what_segments() {
    let (folder, base) = workplace();
    let after = |steps: usize| {
        let mut args = TrainArgs { run: folder.path().join(format!("after-{steps}")), ..base.clone() };
        (args.config.ema, args.config.max_steps) = (0.75, Some(steps));
        train(&args).unwrap();
        args.run
    };
    let runs = [0, 1, 2, 3].map(after);
    let models = [0, 1, 2, 3].map(|steps| tensors_of(&runs[steps].join(RESUME_STATE), "model/"));
    let mut expected = models[0].clone();
    for model in &models[1..] {
        for (name, values) in &mut expected {
            values.iter_mut().zip(&model[name]).for_each(|(average, now)| *average = 0.75 * *average + 0.25 * now);
        }
    }
    let found = tensors_of(&runs[3].join(CHECKPOINT), "");
    assert_eq!(found.len(), expected.len());
    let mut moved = 0;
    for (name, expected) in &expected {
        let largest = expected.iter().fold(1e-3, |most: f64, value| most.max(value.abs()));
        let off = found[name].iter().zip(expected).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-6 * largest, "{name}: {off} of {largest}");
        moved += usize::from(found[name] != models[3][name]);
    }
    // Weights and running statistics of every norm of the side network.
    assert!(moved > 60, "{moved} tensors differ from the model's");
    let info = read_info(&runs[3].join(CHECKPOINT)).unwrap().unwrap();
    assert_eq!((info.ema, info.steps), (Some(0.75), 3));
    let of_run = WeightSource::Run { folder: runs[3].clone(), checkpoint: RunCheckpoint::Last };
    let by_file = WeightSource::Checkpoint(runs[3].join(CHECKPOINT));
    let [run, file] = [of_run, by_file].map(|weights| predict(&base.store, weights, 2).unwrap()[0].mask.clone());
    assert_eq!(run, file);
}

/// With a learning rate of next to nothing the first epoch stays the best.
#[test]
fn a_run_stops_when_its_validation_gets_no_better_and_says_so() {
    let (folder, mut args) = workplace();
    args.config = TrainConfig {
        epochs: 9,
        lr: 1e-30,
        weight_decay: 0.0,
        early_stopping: 2,
        lambda: 1.0,
        val_cases: vec!["0005".into()],
        ..args.config
    };
    let epochs = |run: &Path| read_rows::<EpochRow>(&run.join(EPOCHS_TABLE)).unwrap();
    // Running statistics move even so; the scores say which epoch was the best.
    let whole = TrainArgs { run: folder.path().join("whole"), ..args.clone() };
    let mut never = whole.clone();
    never.config.early_stopping = 0;
    assert!(!train(&never).unwrap().stopped_early);
    let dice: Vec<f64> = epochs(&never.run).iter().map(|row| row.val_dice.unwrap()).collect();
    let ends = (1..=dice.len()).find(|&end| {
        let best = dice[..end].iter().position(|value| dice[..end].iter().all(|other| other <= value)).unwrap();
        end - 1 - best >= 2
    });
    let ends = ends.unwrap_or_else(|| panic!("{dice:?} never gets worse for two epochs"));

    let summary = train(&args).unwrap();
    assert!(summary.stopped_early && summary.epochs as usize == ends, "{summary:?}, {dice:?}");
    assert_eq!(epochs(&args.run).len(), ends);
    assert_eq!(read_record(&args.run).unwrap().stopped_early, Some(ends as u32));
    assert!(std::fs::read_to_string(args.run.join(RUN_LOG)).unwrap().contains("stopped early, after epoch"));
    let mut stopped = TrainArgs { run: folder.path().join("stopped"), ..args.clone() };
    stopped.config.max_steps = Some(summary.steps as usize - 1);
    train(&stopped).unwrap();
    (stopped.config.max_steps, stopped.resume) = (None, true);
    assert_eq!(train(&stopped).unwrap().steps, summary.steps);
    for file in [RESUME_STATE, CHECKPOINT, STEPS_TABLE] {
        let [left, right] = [&args.run, &stopped.run].map(|run| std::fs::read(run.join(file)).unwrap());
        assert!(left == right, "{file} differs");
    }
    assert_eq!(read_record(&stopped.run).unwrap().stopped_early, Some(ends as u32));
    // Resumed once more it is still over.
    let again = train(&stopped).unwrap();
    assert!(again.stopped_early && again.steps == summary.steps);

    let mut alone = TrainArgs { run: folder.path().join("alone"), ..args };
    alone.config.val_cases.clear();
    let error = words(&train(&alone).unwrap_err());
    assert!(error.contains("early_stopping: no case is held out") && error.contains("--fold 1/5"), "{error}");
}

#[test]
fn fewer_cases_are_trained_on_and_recorded() {
    let (folder, base) = workplace();
    let attempt = |name: &str, change: &dyn Fn(&mut TrainConfig)| {
        let mut args = TrainArgs { run: folder.path().join(name), ..base.clone() };
        args.config.epochs = 1;
        change(&mut args.config);
        train(&args).map(|summary| (summary.steps, read_record(&args.run).unwrap()))
    };
    // The cases have 3, 3 and 2 slices; batches are of three.
    let (steps, record) = attempt("listed", &|config| config.train_cases = vec!["0007".into(), "0005".into()]).unwrap();
    assert_eq!((steps, &record.trained_cases[..]), (2, &["0005".to_string(), "0007".into()][..]));
    let store = TrainingSplit::open(&base.store).unwrap();
    let volumes = VolumeRange::of(store.slices(), 2, |case| case != "0006");
    assert_eq!(record.training_volumes, volumes);
    // A held-out case is not trained on, even if it is listed.
    let (steps, record) = attempt("held-out", &|config| {
        config.train_cases = vec!["0006".into(), "0007".into()];
        config.val_cases = vec!["0006".into()];
    })
    .unwrap();
    assert_eq!((steps, &record.trained_cases[..]), (1, &["0007".to_string()][..]));
    let (_, record) = attempt("third", &|config| config.train_fraction = 0.34).unwrap();
    assert_eq!(record.trained_cases.len(), 1);
    let (_, more) = attempt("most", &|config| config.train_fraction = 0.67).unwrap();
    assert!(more.trained_cases.len() == 2 && more.trained_cases.contains(&record.trained_cases[0]));
    let (_, all) = attempt("all", &|_| ()).unwrap();
    assert!(all.trained_cases.is_empty(), "nothing limits them");

    let refused = |change: &dyn Fn(&mut TrainConfig)| words(&attempt("refused", change).unwrap_err());
    let error = refused(&|config| config.train_cases = vec![TEST_CASE.0.into()]);
    assert!(error.contains("is a test case and cannot be trained on") && error.contains("0005"), "{error}");
    let error = refused(&|config| config.train_cases = vec!["0009".into()]);
    assert!(error.contains("no training case 0009"), "{error}");
    let error = refused(&|config| (config.train_cases, config.val_cases) = (vec!["0005".into()], vec!["0005".into()]));
    assert!(error.contains("every case of --train-cases is held out"), "{error}");
    let error = refused(&|config| config.class_weights = ClassWeights::Numbers(vec![1.0, 2.0]));
    assert!(error.contains("2 weights, expected 3: one for the background and one for each class"), "{error}");
    assert!(!folder.path().join("refused").exists());
}
