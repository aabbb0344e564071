//! Settings on the command line, with the knowledge of which were typed: the others may come from somewhere else, such as the run that `--resume`
//! continues.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use sam_ladder_schemas::json_schema;
use sam_ladder_schemas::setting::SettingError;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Options for the settings of `C`, as `C` defines them: names, types, help, and the defaults of [`Default`].
#[derive(Debug, Clone, Default)]
pub struct Typed<C> {
    config: C,
    /// Names of the settings that were typed.
    names: Vec<String>,
}

impl<C: Serialize + DeserializeOwned + JsonSchema> Typed<C> {
    /// Settings that count as typed, all of them.
    pub fn all(config: C) -> Self {
        let names = json!(config).as_object().map_or(Vec::new(), |settings| settings.keys().cloned().collect());
        Typed { config, names }
    }

    /// `base` with what was typed in place of its own settings.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn over(&self, base: C) -> Result<C, SettingError> {
        let (typed, mut settings) = (json!(self.config), json!(base));
        if let Value::Object(settings) = &mut settings {
            for name in &self.names {
                match typed.get(name) {
                    Some(value) => settings.insert(name.clone(), value.clone()),
                    // A default that is left out of the JSON.
                    None => settings.shift_remove(name),
                };
            }
        }
        json_schema::read(&settings, "")
    }

    /// Whether a setting was typed.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|typed| typed == name)
    }
}

fn options<C: Args + Default + Serialize>() -> Vec<Arg> {
    let defaults = match json!(C::default()) {
        Value::Object(defaults) => defaults,
        _ => Map::new(),
    };
    let with_default = |arg: &Arg| match defaults.get(arg.get_id().as_str()) {
        Some(Value::String(word)) => arg.clone().required(false).default_value(word.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => arg.clone().required(false).default_value(value.to_string()),
        _ => arg.clone(),
    };
    // Their order in the help is for the command that they come to.
    C::augment_args(Command::new("").next_display_order(None)).get_arguments().map(with_default).collect()
}

impl<C: Args + Default + Serialize> Args for Typed<C> {
    fn augment_args(command: Command) -> Command {
        command.args(options::<C>())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<C: Args + Default + Serialize> FromArgMatches for Typed<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let names = options::<C>().into_iter().map(|option| option.get_id().to_string());
        let typed = |name: &String| matches.value_source(name) == Some(ValueSource::CommandLine);
        Ok(Typed { config: C::from_arg_matches(matches)?, names: names.filter(typed).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use sam_ladder_schemas::precision::Precision;
    use sam_ladder_schemas::precompute::PrecomputeConfig;
    use sam_ladder_schemas::train::{OptimizerKind, TrainConfig};

    #[derive(Parser)]
    struct Line<C: Args + Default + Serialize> {
        #[command(flatten)]
        settings: Typed<C>,
    }

    fn train(words: &[&str]) -> Typed<TrainConfig> {
        Line::parse_from([&["train"][..], words].concat()).settings
    }

    #[test]
    fn nothing_typed_is_the_default_and_changes_nothing() {
        assert_eq!(train(&[]).config, TrainConfig::default());
        let precompute = Line::<PrecomputeConfig>::parse_from(["precompute"]).settings;
        assert_eq!(precompute.over(PrecomputeConfig::default()).unwrap(), PrecomputeConfig::default());
        let base = TrainConfig { lr: 0.1 + 0.2, precision: Precision::Bf16, max_steps: Some(7), ..TrainConfig::default() };
        assert_eq!(train(&[]).over(base.clone()).unwrap(), base);
    }

    #[test]
    fn all_settings_override_all() {
        let ours = TrainConfig { lr: 0.5, max_steps: Some(3), ..TrainConfig::default() };
        let base = TrainConfig { epochs: 7, lambda: 0.1, max_steps: Some(9), ..TrainConfig::default() };
        assert_eq!(Typed::all(ours.clone()).over(base).unwrap(), ours);
    }

    #[test]
    fn only_what_was_typed_overrides() {
        let base = TrainConfig { lr: 0.5, lambda: 0.25, precision: Precision::Bf16, ..TrainConfig::default() };
        let words =
            ["--lambda", "0.8", "--optimizer", "adamw", "--precision", "f32", "--train-mask-tokens", "--val-cases", "1,2"];
        let expected = TrainConfig {
            lambda: 0.8,
            optimizer: OptimizerKind::AdamW,
            precision: Precision::F32,
            train_mask_tokens: true,
            val_cases: vec!["1".into(), "2".into()],
            ..base.clone()
        };
        assert_eq!(train(&words).over(base).unwrap(), expected);
        assert!(train(&words).has("lambda") && !train(&words).has("lr"));
    }
}
