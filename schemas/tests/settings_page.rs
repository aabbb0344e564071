//! `docs/reference/settings.md` is what the definitions of the settings say.
//!
//! `make settings-page` writes it again, by this test with `SAM_LADDER_WRITE_DOCS` set, and the defaults that the Python package fills in.

use sam_ladder_schemas::eval::EvalSettings;
use sam_ladder_schemas::json_schema::{schema_of, words};
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::slurm::SlurmConfig;
use sam_ladder_schemas::sweep::SweepFile;
use sam_ladder_schemas::train::TrainConfig;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

const BEGINNING: &str = "\
# Settings

<!-- Written by `make settings-page` from the definitions in `schemas/src`; a test compares the two. -->

Every setting with its values, default and meaning, as `--help` and the JSON Schemas have them.
`sam-ladder schema sweep` (or `slurm`, `config`) prints a schema. Editors that use Taplo complete and
check a TOML file whose first line names the file with its schema: `#:schema sweep.schema.json`.

## `train`

The option of a setting is its name with dashes: `--batch-size` for `batch_size`. A run's
`config.json` and the `[settings]` of a sweep's file use the name.
";
const PRECOMPUTE: &str = "
## `precompute`

The settings that shape a store. Those without a default come from the scans and the checkpoint.
";
const EVAL: &str = "
## `eval`

The settings that change scores or pictures. `--unit` also takes `mm` for `millimetres`.
";
const SWEEP: &str = "
## A sweep's file

`sweep --config FILE.toml`. `[settings]` takes every setting of `train` except `seed`, `val_cases`, `group_by`,
`max_steps` and `early_stopping`: as a value, as a list of values, or as a table with these keys (the values are those of `lr`).
";
const SLURM: &str = "
## The file of `--slurm`

`[job]` holds the options of every job; `[precompute]`, `[finish]`, `[sweep]` and `[final]` hold those
of one kind of job, which override them. All take the same keys.
";

/// `config.json` leaves out settings that the paper lacks where they have their defaults; the Python package fills them in from this file.
#[test]
fn the_python_package_knows_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python/sam_ladder/train_defaults.json");
    let schema = schema_of::<TrainConfig>();
    let left_out = schema["properties"].as_object().unwrap().iter().filter_map(|(name, property)| {
        let default = property.get("default").filter(|_| json!(TrainConfig::default()).get(name).is_none())?;
        Some((name.clone(), default.clone()))
    });
    let text = format!("{:#}\n", Value::Object(left_out.collect()));
    if std::env::var_os("SAM_LADDER_WRITE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), text, "run `make settings-page`");
}

#[test]
fn the_page_is_up_to_date() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/settings.md");
    let text = settings_page();
    if std::env::var_os("SAM_LADDER_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(page.parent().unwrap()).unwrap();
        std::fs::write(&page, &text).unwrap();
    }
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert_eq!(written, text, "docs/reference/settings.md is out of date: run `make settings-page`");
}

fn settings_page() -> String {
    let mut page = BEGINNING.to_string();
    table(&mut page, &schema_of::<TrainConfig>());
    page += PRECOMPUTE;
    table(&mut page, &with_defaults(schema_of::<PrecomputeConfig>(), &json!(PrecomputeConfig::default())));
    page += EVAL;
    table(&mut page, &schema_of::<EvalSettings>());
    page += SWEEP;
    let sweep = schema_of::<SweepFile>();
    table(&mut page, setting_table(&sweep));
    for name in ["search", "pruning", "objective", "validation", "budget", "failures"] {
        let inner = &sweep["properties"][name];
        let _ = write!(page, "\n### `[{name}]`\n\n{}.\n", inner["description"].as_str().unwrap());
        table(&mut page, inner);
    }
    page += SLURM;
    table(&mut page, &schema_of::<SlurmConfig>()["properties"]["job"]);
    page
}

/// A store's record must have every setting, so that its schema has no defaults; `precompute` has them.
fn with_defaults(mut schema: Value, defaults: &Value) -> Value {
    for (name, setting) in schema["properties"].as_object_mut().unwrap() {
        if let Some(default) = defaults.get(name).filter(|default| !default.is_object() && !default.is_array()) {
            setting["default"] = default.clone();
        }
    }
    schema
}

/// The table form of a number in `[settings]`.
fn setting_table(sweep: &Value) -> &Value {
    let forms = sweep["properties"]["settings"]["properties"]["lr"]["anyOf"].as_array().unwrap();
    forms.iter().find(|form| form["type"] == "object").unwrap()
}

fn table(page: &mut String, schema: &Value) {
    page.push_str("\n| setting | values | default | meaning |\n| --- | --- | --- | --- |\n");
    let settings = schema["properties"].as_object().unwrap();
    for (name, setting) in settings {
        let default = match &setting["default"] {
            Value::Null => String::new(),
            Value::Array(values) if values.is_empty() => String::new(),
            default => format!("`{default}`"),
        };
        let meaning = cell(setting["description"].as_str().unwrap_or_default());
        let _ = writeln!(page, "| `{name}` | {} | {default} | {meaning} |", cell(&words(setting)));
    }
    for (name, setting) in settings {
        let mut choices = String::new();
        list_choices(setting, &mut choices);
        if !choices.is_empty() {
            let _ = write!(page, "\n`{name}`:\n\n{choices}");
        }
    }
}

/// What each word of a setting means that takes one of several.
fn list_choices(schema: &Value, lines: &mut String) {
    if let (Some(word), Some(meaning)) = (schema["const"].as_str(), schema["description"].as_str()) {
        let _ = writeln!(lines, "- `{word}`: {}", cell(meaning));
    }
    for key in ["oneOf", "anyOf"] {
        schema[key].as_array().into_iter().flatten().for_each(|inner| list_choices(inner, lines));
    }
}

fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}
