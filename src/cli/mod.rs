//! What can be typed: one module per command, each with clap's arguments and how they become a validated config.

mod audit;
mod cache;
mod checkpoint_names;
mod compare_encoders;
mod completions;
mod device;
mod doctor;
mod eval;
mod export;
mod image_channels;
mod inspect;
mod learning_curve;
mod lines;
mod machine;
mod phantom;
mod postprocess;
mod precompute;
mod predict;
mod profile;
mod progress;
mod run_facts;
mod sam_checkpoint;
mod schema;
mod scored_cases;
mod several_runs;
mod slurm;
mod status;
mod sweep;
mod sweep_slurm;
mod table;
mod train;
mod typed;
mod verify;
mod weights;

use clap::{Parser, Subcommand};

/// Fine-tune Segment Anything for CT organ segmentation by ladder side-tuning, from a store of the encoder's embeddings.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process has one")]
enum Command {
    /// Write synthetic CT scans with organs, in the layout of the Synapse multi-organ set
    Phantom(phantom::Args),
    /// Look at a folder of scans before anything is computed: layout, geometry, values, organs, and what precompute would cost
    Inspect(inspect::Args),
    /// Stage one: encode every slice once with SAM's frozen image encoder, into a store
    Precompute(precompute::Args),
    /// Check every chunk and table of a store, and repair what is damaged
    Verify(verify::Args),
    /// Stage two: train the side network (a small CNN), the gate (which mixes it with SAM) and the decoder's output upscaling on a store
    Train(train::Args),
    /// Search for the best settings: many training runs on one store, in one process
    Sweep(sweep::Args),
    /// Train on growing numbers of cases, and say what further cases are likely to bring
    // What the curve varies is refused, and not offered.
    #[command(mut_args(|arg| match arg.get_id().as_str() {
        "seed" | "train_fraction" | "train_cases" => arg.hide(true),
        _ => arg,
    }))]
    LearningCurve(learning_curve::Args),
    /// Train the same on stores of several encoders, and show the scores beside what they cost
    // The seed is refused, since there are seeds, and not offered.
    #[command(mut_args(|arg| if arg.get_id() == "seed" { arg.hide(true) } else { arg }))]
    CompareEncoders(compare_encoders::Args),
    /// Find labels that are likely wrong: slices in which several runs agree with one another, and not with the label
    Audit(audit::Args),
    /// Segment the test scans of a store and measure Dice and HD95
    Eval(eval::Args),
    /// Segment new scans: volumes in, NIfTI masks on the scans' own grids out
    Predict(predict::Args),
    /// Make a results table of evaluations, with published rows and tests between the rows
    Table(table::Args),
    /// Report the progress of stores and sweeps, and of their jobs in Slurm's queue
    Status(status::Args),
    /// Say what this machine has for sam-ladder, what will be used, and what is missing
    Doctor(doctor::Args),
    /// Write a run's model in the published code's state-dict names, or as ONNX
    Export(export::Args),
    /// Print the JSON Schema of a settings file, for editors
    Schema(schema::Args),
    /// Print completions for a shell
    Completions(completions::Args),
    /// Write the manual pages
    #[command(hide = true)]
    Man(completions::ManArgs),
}

impl Cli {
    /// Runs the command that was typed.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Phantom(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Precompute(args) => args.run(),
            Command::Verify(args) => args.run(),
            Command::Train(args) => args.run(),
            Command::LearningCurve(args) => args.run(),
            Command::CompareEncoders(args) => args.run(),
            Command::Audit(args) => args.run(),
            Command::Sweep(args) => args.run(),
            Command::Eval(args) => args.run(),
            Command::Predict(args) => args.run(),
            Command::Table(args) => args.run(),
            Command::Status(args) => args.run(),
            Command::Doctor(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Schema(args) => args.run(),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(),
        }
    }
}

/// Name and version of the program, for the records of what it makes.
fn program() -> String {
    concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        super::Cli::command().debug_assert();
    }
}
