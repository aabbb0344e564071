//! Our check of settings against their JSON Schema agrees with an independent validator, and the files that we ship are valid.

use sam_ladder_schemas::json_schema::{check, schema_of};
use sam_ladder_schemas::slurm::SlurmConfig;
use sam_ladder_schemas::sweep::{SweepFile, parse_sweep};
use sam_ladder_schemas::toml_file::TomlFile;
use sam_ladder_schemas::train::{RunRecord, TrainConfig};
use serde_json::{Value, json};

const SWEEP: &str = include_str!("../../docs/sweep.toml");
const SLURM: &str = r#"
[job]
partition = "gpu"
gpus = 1
cpus-per-task = 8
time = "08:00:00"
setup = ["module load cuda"]
[sweep]
gpus = "a100:1"
tasks = 8
[final]
options = ["--mail-type=END"]
"#;

/// Whether both validators accept the value; they must agree.
fn is_valid(value: &Value, schema: &Value) -> bool {
    let ours = check(value, schema, "").is_ok();
    assert_eq!(ours, jsonschema::is_valid(schema, value), "{value}: {:?}", check(value, schema, ""));
    ours
}

fn toml(text: &str) -> Value {
    TomlFile::parse("file.toml", text).unwrap().values().clone()
}

#[test]
fn schemas_are_of_the_draft_that_they_name() {
    for schema in [schema_of::<SweepFile>(), schema_of::<SlurmConfig>(), schema_of::<RunRecord>()] {
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert!(jsonschema::meta::is_valid(&schema));
    }
}

#[test]
fn the_files_that_we_ship_are_valid() {
    parse_sweep("sweep.toml", SWEEP).unwrap();
    assert!(is_valid(&toml(SWEEP), &schema_of::<SweepFile>()));
    assert!(is_valid(&toml(SLURM), &schema_of::<SlurmConfig>()));
    assert!(is_valid(&json!(TrainConfig::default()), &schema_of::<TrainConfig>()));
}

/// Every value of the files is replaced by others in turn, and every key by a misspelt one.
#[test]
fn both_validators_refuse_the_same() {
    let others =
        [json!(0), json!(-1), json!(1.5), json!(true), json!("word"), json!([]), json!([1, "x"]), json!({}), json!({ "min": 1 })];
    let (mut valid, mut invalid) = (0, 0);
    for (text, schema) in [(SWEEP, schema_of::<SweepFile>()), (SLURM, schema_of::<SlurmConfig>())] {
        let whole = toml(text);
        for (table, entries) in whole.as_object().unwrap() {
            for key in entries.as_object().unwrap().keys() {
                for other in &others {
                    let mut changed = whole.clone();
                    changed[table][key] = other.clone();
                    *if is_valid(&changed, &schema) { &mut valid } else { &mut invalid } += 1;
                }
                let mut misspelt = whole.clone();
                let entries = misspelt[table].as_object_mut().unwrap();
                let value = entries.shift_remove(key).unwrap();
                entries.insert(format!("{key}s"), value);
                assert!(!is_valid(&misspelt, &schema), "{table}.{key}s");
            }
        }
    }
    assert!(valid > 20 && invalid > 100, "{valid} {invalid}");
}
