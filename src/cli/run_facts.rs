//! What `eval`'s report says of the run: what another lab asks before it trusts a score.

use crate::error::refusal;
use sam_ladder_cache::Store;
use sam_ladder_eval::{RunFact, Scoring};
use sam_ladder_formats::hash::sha256_of_file;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::eval::Resample;
use sam_ladder_schemas::image_channels::ChannelsFrom;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
use sam_ladder_schemas::preprocessing::Intensity;
use sam_ladder_schemas::train::{BEST_CHECKPOINT, CHECKPOINT, RunRecord};
use sam_ladder_train::WeightSource;
use sam_ladder_train::run::read_record;
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// An error for a run that is named twice, since its model would count twice in the mean.
///
/// # Errors
/// Names the run.
pub fn ensure_each_once(runs: &[PathBuf]) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    match runs.iter().find(|run| !seen.insert(run.canonicalize().unwrap_or_else(|_| run.to_path_buf()))) {
        Some(twice) => Err(refusal(format!("--run names {} twice", twice.display()), "name each run once")),
        None => Ok(()),
    }
}

/// What is evaluated.
pub struct Evaluated<'a> {
    /// The models; more than one are averaged.
    pub weights: &'a [WeightSource],
    /// Whether a run's last model scores, even if validation chose an earlier one.
    pub last: bool,
    /// Whether logits are averaged over reflections.
    pub average_reflections: bool,
    /// How masks come to the scans' resolution.
    pub resample: Resample,
    /// Whether the run's postprocessing is applied.
    pub postprocessed: bool,
    /// The rules of the scores.
    pub scoring: &'a Scoring,
    /// The split that is scored.
    pub split: Split,
    /// The cases that are scored.
    pub cases: &'a [String],
}

/// Date, program, models with their settings and weights, the store, and the cases by split.
pub fn run_facts(store: &Store, evaluated: &Evaluated) -> Vec<RunFact> {
    let mut facts = of_evaluation(evaluated);
    let several = evaluated.weights.len() > 1;
    for (index, weights) in evaluated.weights.iter().enumerate() {
        let group = if several { format!("Model {}", index + 1) } else { "Model".into() };
        facts.extend(of_model(&group, weights, evaluated.last));
    }
    facts.extend(of_encoder(store.config()));
    facts.extend(of_store(store));
    facts.extend(of_cases(store, evaluated));
    facts
}

fn of_evaluation(evaluated: &Evaluated) -> Vec<RunFact> {
    let fact = |name: &str, value: String| RunFact::new("Evaluation", name, value);
    let mut facts = vec![
        fact("date", humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace('T', " ").replace('Z', " UTC")),
        fact("program", super::program()),
        fact("scores", evaluated.scoring.describe()),
    ];
    if evaluated.weights.len() > 1 {
        facts.push(fact("models", format!("{}, whose logits are averaged", evaluated.weights.len())));
    }
    if !evaluated.resample.is_published() {
        facts.push(fact("masks", "probabilities are brought to the scan's resolution before the class is chosen".into()));
    }
    if evaluated.postprocessed {
        facts.push(fact("postprocessing", "as the run's postprocessing.json says, chosen on held-out cases".into()));
    }
    if evaluated.average_reflections {
        facts.push(fact("reflections", "logits are averaged over a slice and its four reflections".into()));
    }
    facts
}

fn of_model(group: &str, weights: &WeightSource, last: bool) -> Vec<RunFact> {
    match weights {
        WeightSource::Run { folder, .. } => of_run(group, folder, last),
        WeightSource::Checkpoint(path) => {
            let fact = |name: &str, value: String| RunFact::new(group, name, value);
            vec![fact("file", path.display().to_string()), fact("SHA-256", hash_of(path))]
        }
        WeightSource::ZeroShot { seed, arm } => vec![
            RunFact::caution(group, "model", format!("untrained; random weights of seed {seed} where SAM has none")),
            RunFact::new(group, "arm", text_of(&serde_json::json!(arm))),
        ],
    }
}

fn of_run(group: &str, folder: &Path, last: bool) -> Vec<RunFact> {
    let fact = |name: &str, value: String| RunFact::new(group, name, value);
    let best = folder.join(BEST_CHECKPOINT);
    let (file, which) = if !last && best.exists() {
        (best, "the epoch with the best validation Dice")
    } else {
        (folder.join(CHECKPOINT), "the last epoch")
    };
    let mut facts =
        vec![fact("run", folder.display().to_string()), fact("model of", which.into()), fact("SHA-256", hash_of(&file))];
    // A run whose record cannot be read was refused before.
    let Ok(record) = read_record(folder) else { return facts };
    facts.push(fact("trained by", record.program.clone()));
    facts.push(initial_weights(group, &record));
    let held_out = &record.config.val_cases;
    if !held_out.is_empty() {
        facts.push(fact("held out", format!("{}: {}", counted(held_out.len(), "case"), held_out.join(", "))));
    }
    if !record.trained_cases.is_empty() {
        let cases = &record.trained_cases;
        facts.push(fact("trained on", format!("{}: {}", counted(cases.len(), "case"), cases.join(", "))));
    }
    if let Some(epochs) = record.stopped_early {
        let patience = record.config.early_stopping;
        facts.push(fact(
            "ended",
            format!("early, after {}: {patience} without a better validation Dice", counted(epochs, "epoch")),
        ));
    }
    if record.config.ema > 0.0 {
        facts.push(fact("weights", format!("an exponential moving average, decay {}", record.config.ema)));
    }
    let settings = serde_json::to_value(&record.config).unwrap_or_default();
    // The cases have their own line; what is null is not set.
    let told = |(name, value): &(&String, &Value)| !["val_cases", "train_cases"].contains(&name.as_str()) && !value.is_null();
    for (name, value) in settings.as_object().into_iter().flatten().filter(told) {
        facts.push(fact(&name.replace('_', " "), text_of(value)));
    }
    facts
}

/// Where the weights come from that are trained.
fn initial_weights(group: &str, record: &RunRecord) -> RunFact {
    let name = "initial weights";
    let file = |file: &sam_ladder_schemas::train::InputFile| format!("{} (SHA-256 {})", file.name, file.sha256);
    match (&record.inputs.init, &record.inputs.cnn_checkpoint) {
        (Some(init), _) => RunFact::new(group, name, file(init)),
        (None, Some(cnn)) => RunFact::new(group, name, format!("side network: {}", file(cnn))),
        (None, None) => {
            RunFact::caution(group, name, format!("the side network's are random (seed {}), not ImageNet's", record.config.seed))
        }
    }
}

fn of_encoder(config: &PrecomputeConfig) -> Vec<RunFact> {
    let (group, own) = match config.encoder.is_sam() {
        true => ("SAM's image encoder", "SAM's"),
        false => ("Image encoder", "pretrained ones"),
    };
    let architecture = RunFact::new(group, "architecture", config.encoder.name());
    let weights = match &config.weights {
        EncoderWeights::Checkpoint { sha256 } => RunFact::new(group, "weights", format!("SHA-256 {sha256}")),
        EncoderWeights::Random { seed } => RunFact::caution(group, "weights", format!("random (seed {seed}), not {own}")),
    };
    let decoder = match &config.decoder_weights {
        Some(EncoderWeights::Checkpoint { sha256 }) => Some(RunFact::new(group, "SAM's decoder", format!("SHA-256 {sha256}"))),
        Some(EncoderWeights::Random { seed }) => {
            Some(RunFact::caution(group, "SAM's decoder", format!("random (seed {seed}), not SAM's")))
        }
        None => None,
    };
    [architecture, weights].into_iter().chain(decoder).collect()
}

fn of_store(store: &Store) -> Vec<RunFact> {
    let config = store.config();
    let fact = |name: &str, value: String| RunFact::new("Store", name, value);
    let word = |value: Value| text_of(&value);
    let mut facts = vec![
        fact("place", store.path().display().to_string()),
        fact("cache_id", store.attributes().cache_id.clone()),
        fact("image size", format!("{} pixels, from data of {}", config.image_size, config.data_size)),
        fact("intensities", greys(config)),
        fact("number format", word(serde_json::json!(config.dtype))),
        fact(
            "augmentation",
            format!(
                "{}, {} of a training slice",
                word(serde_json::json!(config.augment)),
                counted(store.variants(Split::Train).len(), "variant")
            ),
        ),
    ];
    if config.preprocessing.channels_from == ChannelsFrom::Neighbours {
        facts.push(fact("channels", "the slices below, at and above".into()));
    }
    if !config.rungs.is_empty() {
        let (blocks, channels) = (text_of(&serde_json::json!(config.rungs)), config.stored_rung_channels());
        facts.push(fact("rungs", format!("after the encoder's blocks {blocks}, {channels} channels each")));
    }
    if let Some(orientation) = config.preprocessing.orientation {
        facts.push(fact("orientation", orientation.to_string()));
    }
    facts
}

/// How values become grey: `window -125 to 275 HU`.
pub fn greys(config: &PrecomputeConfig) -> String {
    let [low, high] = config.preprocessing.window_hu;
    if let Some(windows) = config.preprocessing.channels_from.windows() {
        let shown = windows.map(|[low, high]| format!("{low} to {high}"));
        return format!("windows {} HU, of which pictures show the first", shown.join(", "));
    }
    let of_channel = |intensity: Intensity| match intensity {
        Intensity::Window => format!("window {low} to {high} HU"),
        Intensity::Percentiles { low, high } => format!("percentiles {low} to {high} of each scan"),
    };
    match &config.preprocessing.channels[..] {
        [only] => of_channel(only.intensity),
        several => several
            .iter()
            .map(|channel| format!("{}: {}", channel.name, of_channel(channel.intensity)))
            .collect::<Vec<_>>()
            .join("; "),
    }
}

fn of_cases(store: &Store, evaluated: &Evaluated) -> Vec<RunFact> {
    let list = |cases: &[String]| format!("{}: {}", cases.len(), cases.join(", "));
    let scored = if evaluated.split == Split::Test { "scored, test" } else { "scored, held out" };
    let mut facts = vec![RunFact::new("Cases", scored, list(evaluated.cases))];
    for (split, name) in [(Split::Train, "training, in the store"), (Split::Test, "test, in the store")] {
        let cases = store.cases(split);
        if split != evaluated.split || cases != evaluated.cases {
            facts.push(RunFact::new("Cases", name, list(&cases)));
        }
    }
    facts
}

fn hash_of(path: &Path) -> String {
    sha256_of_file(path, |_| ()).unwrap_or_else(|error| error.to_string())
}

/// A setting's value as a person writes it.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text_of).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
