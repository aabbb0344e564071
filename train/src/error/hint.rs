//! What to do about each error.

use super::TrainError;
use sam_ladder_schemas::classes::Split;
use std::path::Path;

impl TrainError {
    /// What to do about it, if there is anything to say.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            TrainError::File(error) => return error.hint(),
            TrainError::Model(error) => return error.hint(),
            TrainError::Setting(error) => return error.hint(),
            TrainError::SweepFile(error) => return error.hint(),
            TrainError::Store(error) => return error.hint(),
            TrainError::NeedsGpu { instead, .. } => {
                format!("{instead}, or pass --device cuda:0 in a build with the feature `cuda`")
            }
            TrainError::NeedsBf16 => "pass --precision f32, or --device cuda:0 in a build with the feature `cuda`".into(),
            TrainError::EncoderPrecision => "train with bf16, tf32 or f32".into(),
            TrainError::NetworkPrecision => "train vit-tiny with f32 or tf32".into(),
            TrainError::TestCase { training, .. } | TrainError::TrainsOnTestCase { training, .. } => format!("choose among the training cases {}", training.join(", ")),
            TrainError::NoSuchCase { training, .. } => format!("the training cases are {}", training.join(", ")),
            TrainError::NotMatched { .. } => "change the expression so that it matches every training case".into(),
            TrainError::NotInTable { .. } => "add a line for every training case: a column `case` and one of the patient".into(),
            TrainError::TwoWays { .. } => "write each patient in one way in all lines".into(),
            TrainError::TooFewGroups { groups, .. } if *groups >= 2 => format!("take at most {groups} folds"),
            TrainError::GroupDivided { .. } => "hold out all cases of the patient, or none; --fold does so".into(),
            TrainError::NoTrainingCases => "run precompute on scans that have some".into(),
            TrainError::NoHeldOut(_) => {
                "train with --fold 1/5 or --val-cases to hold some out; or leave --split out, which scores the test scans".into()
            }
            TrainError::OtherHeldOut { .. } => {
                "evaluate each by itself; `sam-ladder table --row NAME=DIR,DIR` puts the folds of a cross-validation together"
                    .into()
            }
            TrainError::OtherScan { .. } => "pass --store the store that the run was trained on".into(),
            TrainError::AllHeldOut(_) | TrainError::NothingTrained => "leave some to train on".into(),
            TrainError::NoForeground(_) => "leave --sampling out, or check the labels of the training scans".into(),
            TrainError::ClassWeights { classes, .. } => format!("give {classes} numbers, that of the background first"),
            TrainError::NoVariant { .. } => "run precompute with more variants (--augment), or train with fewer".into(),
            TrainError::NeighboursApart(_) => "leave --neighbours out, or pass --augment none".into(),
            TrainError::NoIdentity(_) | TrainError::Probabilities(_) => "run precompute again".into(),
            TrainError::UnknownKey { advice, .. } => (*advice).into(),
            TrainError::RunExists(_) => "continue it with --resume, or choose another --run".into(),
            TrainError::RunBusy(_) => "wait until it has ended, or choose another --run".into(),
            TrainError::WorkerBusy { .. } => "wait until it has ended, or join it as another worker, such as --worker 2/2".into(),
            TrainError::NotARun(_) => "start one with `sam-ladder train --run` and without --resume".into(),
            TrainError::ResumeMismatch { advice, .. } => (*advice).into(),
            TrainError::RunDamaged { .. } | TrainError::AverageMissing(_) => "put the file back from a copy, or start the run or the sweep again".into(),
            TrainError::Stopped { run, .. } => format!("continue with `sam-ladder train --resume --run {}`", typed(run)),
            TrainError::SweepStopped { out, more } => {
                format!("continue with `sam-ladder sweep --resume --out {}{more}`", typed(out))
            }
            TrainError::Diverged { .. } => "start again with a lower --lr".into(),
            TrainError::OtherImages { .. } => "use a store of that kind".into(),
            TrainError::OtherEncoder { store, .. } => format!(
                "pass --store a store with the run's settings, or run `sam-ladder train --store {} --run ANOTHER` and evaluate that run",
                store.display()
            ),
            TrainError::NoRungs(_) => {
                "make a store with rungs, such as `sam-ladder precompute --rungs 2,5,8,11`, or leave --ladder at none".into()
            }
            TrainError::NoHalfLabels(_) => {
                "run the store's precompute command again with --half-labels, which encodes nothing again, or take --decoder skips".into()
            }
            TrainError::OtherRungs { .. } => {
                "pass --store the store that the run was trained on, also after it has grown; predict makes the rungs of new scans".into()
            }
            TrainError::NoReflections { split: Split::Train, .. } => {
                "run precompute again with --augment flips, or leave --average-reflections out".into()
            }
            TrainError::NoReflections { .. } => {
                "run precompute again with --test-augment flips, which encodes only them, or leave \
                                                 --average-reflections out"
                    .into()
            }
            TrainError::NoPublishedNames { checkpoint, .. } => {
                format!("export it to .onnx, or take {}, which holds the model under its own names", checkpoint.display())
            }
            TrainError::EncoderOfNeighbours(_) | TrainError::OnnxOfEncoder { .. } => "leave --with-encoder out: the model then takes embeddings".into(),
            TrainError::NoSpacing { .. } => "search by dice, or state the spacing with precompute --spacing (published layout); resample a scan whose affine is sheared".into(),
            TrainError::NoSweepFile => "pass --config sweep.toml, or --resume with --out".into(),
            TrainError::GridTooLarge(_) => "give the ranges fewer points, or set [budget] trials".into(),
            TrainError::SweepExists(_) => "continue it with --resume, or choose another --out".into(),
            TrainError::SweepFolderTaken(_) => "choose another --out".into(),
            TrainError::NotASweep(_) => "start one with --config and without --resume".into(),
            TrainError::SweepMismatch { .. } => "leave --config out to resume as before, or choose another --out".into(),
            TrainError::FinalMismatch { begun, .. } => {
                format!("pass --trial {begun} to resume it, or remove final/run and final.json")
            }
            TrainError::SeveralBestTrials { .. } => "choose one with --trial".into(),
            _ => return None,
        })
    }
}

/// A path as it is typed in a shell.
fn typed(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "-_./=,:+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_for_resuming_is_one_that_a_shell_takes() {
        let stopped = TrainError::Stopped { run: "my runs/it's".into(), steps: 3 };
        assert_eq!(stopped.hint().unwrap(), r"continue with `sam-ladder train --resume --run 'my runs/it'\''s'`");
        let stopped = TrainError::SweepStopped { out: "s".into(), more: " --worker 2/8".into() };
        assert_eq!(stopped.hint().unwrap(), "continue with `sam-ladder sweep --resume --out s --worker 2/8`");
    }
}
