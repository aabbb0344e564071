//! The whole pipeline through the command line, at a small size: phantom → precompute → train → eval → export, with asserted scores.

mod cli;

use arrow::array::{Array, Float64Array, StringArray};
use cli::{assert_refused, on, succeed};
use std::path::Path;

/// Mean Dice of an evaluation, from its `summary.parquet`.
fn mean_dice(evaluation: &Path) -> f64 {
    let file = std::fs::File::open(evaluation.join("summary.parquet")).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    for batch in reader.map(Result::unwrap) {
        let organs = batch.column_by_name("organ").unwrap().as_any().downcast_ref::<StringArray>().unwrap();
        let dice = batch.column_by_name("dice").unwrap().as_any().downcast_ref::<Float64Array>().unwrap();
        for row in 0..batch.num_rows() {
            if organs.value(row) == "mean" {
                assert!(dice.is_valid(row), "the mean Dice is defined");
                return dice.value(row);
            }
        }
    }
    panic!("{} has no row `mean`", evaluation.display());
}

#[test]
fn training_learns_and_everything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 5 --size 64 --depth 8 --seed 3"));
    succeed(on(at, "precompute --scans @scans --store @s.zarr --random-encoder 3 --image-size 64 --data-size 64 --augment none"));
    succeed(on(at, "eval --store @s.zarr --zero-shot --out @untrained"));
    succeed(on(at, "train --store @s.zarr --run @run --epochs 40 --batch-size 8 --warmup 10 --seed 3 --val-cases 0005"));
    succeed(on(at, "eval --store @s.zarr --run @run --out @trained --protocol standard --save-nifti --baseline @untrained"));
    for name in ["cases.parquet", "summary.parquet", "table.md", "report.html"] {
        assert!(at.join("trained").join(name).is_file(), "eval writes {name}");
    }
    for name in ["config.json", "steps.parquet", "epochs.parquet", "checkpoint.safetensors", "best.safetensors"] {
        assert!(at.join("run").join(name).is_file(), "train writes {name}");
    }

    let (untrained, trained) = (mean_dice(&at.join("untrained")), mean_dice(&at.join("trained")));
    println!("mean Dice: untrained {untrained:.3}, trained {trained:.3}");
    assert!(trained > untrained + 0.2, "untrained {untrained}, trained {trained}");

    // The exported file, a whole model in the published names, evaluates to the same numbers.
    for name in ["model.safetensors", "model.pth"] {
        succeed(on(at, &format!("export --run @run --out @{name}")));
        let evaluation = format!("eval-{name}");
        succeed(on(at, &format!("eval --store @s.zarr --checkpoint @{name} --out @{evaluation} --protocol standard")));
        assert_eq!(mean_dice(&at.join(&evaluation)), trained);
    }

    // Existing outputs are refused and not changed.
    for words in [
        "phantom --out @scans",
        "train --store @s.zarr --run @run",
        "eval --store @s.zarr --run @run --out @trained",
        "export --run @run --out @model.pth",
    ] {
        assert_refused(on(at, words));
    }
    assert_eq!(mean_dice(&at.join("trained")), trained);

    // A gain that is not reached is an error, after the evaluation is written.
    let error = assert_refused(on(at, "eval --store @s.zarr --zero-shot --out @again --baseline @trained --min-gain 0.1"));
    assert!(error.contains("gain"), "{error}");
    assert_eq!(mean_dice(&at.join("again")), untrained);

    // Compared, and in a table with the published rows.
    succeed(on(at, "eval --store @s.zarr --run @run --out @run/eval --empty leave-out --unit mm"));
    let compared = succeed(on(at, "eval --compare @trained @run --out @compared"));
    assert!(compared.contains("| mean |"), "{compared}");
    assert!(at.join("compared/comparison.parquet").is_file());
    let error = assert_refused(on(at, "eval --compare @untrained @trained"));
    assert!(error.contains("published") && error.contains("leave-out"), "{error}");
    let rows = format!("table --row seeds={0}/trained,{0}/run --row again={0}/model.pth-none --out @tables", at.display());
    let error = assert_refused(on(at, &rows));
    assert!(error.contains("model.pth-none") && error.contains("no evaluation"), "{error}");
    let rows = format!(
        "table --row seeds={0}/trained,{0}/run --row pth={0}/eval-model.pth --published --against pth --out @tables",
        at.display()
    );
    let table = succeed(on(at, &rows));
    assert!(table.contains("| TransUNet | 77.48 | 31.69 |") && table.contains("| pth over seeds |"), "{table}");
    for name in ["table.md", "table.tex", "table.parquet"] {
        assert!(at.join("tables").join(name).is_file(), "table writes {name}");
    }
    assert_refused(on(at, &rows));

    // A store made for another size: the error gives the size at which the run was trained.
    succeed(on(
        at,
        "precompute --scans @scans --store @s32.zarr --random-encoder 3 --image-size 32 --data-size 32 --augment none",
    ));
    let error = assert_refused(on(at, "eval --store @s32.zarr --run @run --out @mixed"));
    assert!(error.contains("64") && error.contains("32"), "{error}");
    let error = assert_refused(on(at, "train --store @s32.zarr --run @run --resume"));
    assert!(error.contains("cache_id"), "{error}");
}

/// Names of the spans of a Chrome trace, each of which must be closed.
fn spans(trace: &Path) -> Vec<String> {
    let events: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    let of = |phase: &str| -> Vec<String> {
        let names = events.iter().filter(|event| event["ph"] == phase).map(|event| event["name"].as_str().unwrap().to_string());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    let begun = of("B");
    assert_eq!(begun, of("E"));
    begun
}

#[test]
fn a_profile_holds_the_operations_as_spans() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 2 --size 32 --depth 2 --seed 3"));
    succeed(on(
        at,
        "precompute --scans @scans --store @s.zarr --random-encoder 3 --image-size 32 --data-size 32 --augment none \
         --profile @precompute.json",
    ));
    let found = spans(&at.join("precompute.json"));
    for name in ["read scan", "make variants", "encode", "block", "norm, qkv", "attention", "neck", "write slice"] {
        assert!(found.iter().any(|span| span == name), "{name} is not among {found:?}");
    }
    succeed(on(at, "train --store @s.zarr --run @run --epochs 2 --batch-size 2 --profile @train.json"));
    let found = spans(&at.join("train.json"));
    for name in ["read batch", "step", "forward", "loss", "backward", "optimizer", "conv2d", "conv2d backward weight"] {
        assert!(found.iter().any(|span| span == name), "{name} is not among {found:?}");
    }
    assert_eq!(found.iter().filter(|span| *span == "step").count(), 2);
    let error = assert_refused(on(at, "train --store @s.zarr --run @run2 --profile @train.json"));
    assert!(error.contains("train.json"), "{error}");
    assert!(!at.join("run2").exists());
}
