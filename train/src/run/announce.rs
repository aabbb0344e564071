//! What a run says before its first step: what it will do, on what, and from which weights.

use super::TrainArgs;
use super::training_run::Run;
use crate::groups::warning;
use crate::loss::class_weights;
use candle_core::DeviceLocation;
use sam_ladder_cache::TrainingSplit;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::observer::Observer;
use sam_ladder_schemas::tables::SliceRow;
use sam_ladder_schemas::train::Arm;
use sam_ladder_schemas::train_choices::ClassWeights;
use std::path::Path;

/// Says what the run will do.
pub(super) fn announce(observer: &dyn Observer, args: &TrainArgs, store: &TrainingSplit, run: &Run) {
    observer.message(&cases(args, store, run));
    let device = match args.device.location() {
        DeviceLocation::Cpu => "the CPU".to_string(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    };
    let (precision, steps) = (args.config.precision.name(), run.last_step());
    observer.message(&format!("on {device} in {precision}, {}, up to step {steps}", counted(args.config.epochs, "epoch")));
    if args.resume {
        let position = run.position();
        observer.message(&format!("resumes after step {}, {} done", position.steps, counted(position.epoch, "epoch")));
        return;
    }
    observer.message(&weights(args));
    for [setting, by] in args.config.unused() {
        observer.message(&format!("warning: {setting} changes nothing without {by}"));
    }
    if let Some(text) = class_weight_text(args, store, run) {
        observer.message(&text);
    }
    if args.config.group_by.is_none()
        && let Some(warning) =
            warning(&store.cases(), std::slice::from_ref(&args.config.val_cases), |by| format!("--group-by {by}"))
    {
        observer.message(&warning);
    }
    if args.init.is_none() && args.cnn_checkpoint.is_none() && args.config.arm != Arm::SamOnly {
        observer.message(
            "warning: the side network starts from random weights; the published model starts from ImageNet's: pass --cnn-checkpoint",
        );
    }
}

/// `trains on 17 cases (2051 slices); holds out 1 case (160 slices) for validation: 0005`.
fn cases(args: &TrainArgs, store: &TrainingSplit, run: &Run) -> String {
    let (held_out, trained_on) = (&args.config.val_cases, &run.setup().trained_cases);
    let slices = |of: &[String]| counted(store.slices().iter().filter(|slice| of.contains(&slice.case)).count(), "slice");
    let all = store.cases().len() - held_out.len();
    let trained = match trained_on.len() {
        count if count == all => counted(count, "case"),
        count => format!("{count} of {}", counted(all, "case")),
    };
    let listed = if trained_on.len() == all { String::new() } else { format!(": {}", trained_on.join(", ")) };
    let validation = match held_out.len() {
        0 => "; holds out none, so there is no validation (--fold 1/5 holds out a fifth)".to_string(),
        cases => format!("; holds out {} ({}) for validation: {}", counted(cases, "case"), slices(held_out), held_out.join(", ")),
    };
    format!("trains on {trained} ({}){listed}{validation}", slices(trained_on))
}

/// `class weights: background 0.37, spleen 12.1`, where they come from the slices.
fn class_weight_text(args: &TrainArgs, store: &TrainingSplit, run: &Run) -> Option<String> {
    if args.config.class_weights != ClassWeights::InverseFrequency {
        return None;
    }
    let trained_on = &run.setup().trained_cases;
    let slices: Vec<&SliceRow> = store.slices().iter().filter(|slice| trained_on.contains(&slice.case)).collect();
    let weights = class_weights(&args.config.class_weights, &slices)?;
    let names = ["background"].into_iter().chain(store.config().class_names.iter().map(String::as_str));
    let weighed: Vec<String> = names.zip(&weights).map(|(name, weight)| format!("{name} {weight:.3}")).collect();
    Some(format!("class weights: {}", weighed.join(", ")))
}

fn weights(args: &TrainArgs) -> String {
    let name = |path: &Path| path.display().to_string();
    match (&args.init, &args.cnn_checkpoint) {
        (Some(init), _) => format!("initial weights: {}", name(init)),
        (None, Some(cnn)) => format!("initial weights: SAM's decoder from the store, the side network from {}", name(cnn)),
        (None, None) => {
            format!("initial weights: SAM's decoder from the store, the rest random by the seed {}", args.config.seed)
        }
    }
}
