//! `sweep.html` in headless Chromium: it has no errors, and every trial is in its charts and its table. `make test-pages` runs these tests and
//! keeps the pictures in `target/pages/`.

mod browser;

use browser::{Browser, View};
use sam_ladder_eval::write_sweep_page;
use sam_ladder_formats::rows::write_rows;
use sam_ladder_schemas::sweep::{
    Budget, CURVES_TABLE, Condition, CurveRow, Domain, Objective, Pruning, SWEEP_CONFIG, Scale, Search, SearchMethod, Setting,
    SweepConfig, SweepRecord, TRIALS_TABLE, TrialRow, TrialStatus, Validation, trial_id,
};
use sam_ladder_schemas::train::{InputFile, RunInputs};
use serde_json::{Map, Value, json};
use std::path::Path;

const TRIALS: u32 = 27;
const EPOCHS: u32 = 9;

fn setting(name: &str, domain: Domain, when: Vec<Condition>) -> Setting {
    Setting { name: name.into(), domain, when }
}

fn record(objectives: &[Objective]) -> SweepRecord {
    let range = |min, max, scale, integer| Domain::Range { min, max, scale, integer, points: None };
    let sgd = Condition { setting: "optimizer".into(), values: vec![json!("adamw")] };
    let config = SweepConfig {
        settings: vec![
            setting("lr", range(1e-5, 1e-1, Scale::Log, false), vec![]),
            setting("lambda", range(0.2, 1.0, Scale::Linear, false), vec![]),
            setting("optimizer", Domain::List(vec![json!("adamw"), json!("sgd")]), vec![]),
            setting("weight_decay", range(1e-4, 0.3, Scale::Log, false), vec![sgd]),
            setting("epochs", Domain::Fixed(json!(EPOCHS)), vec![]),
        ],
        search: Search { method: SearchMethod::Tpe, seed: 7, startup: 10 },
        pruning: Pruning::Asha { min_epochs: 1, reduction: 3 },
        objectives: objectives.to_vec(),
        validation: Validation::Folds(2),
        group_by: None,
        seeds: vec![1234],
        budget: Budget { trials: Some(TRIALS), epochs: None, hours: None },
        retries: 1,
    };
    SweepRecord {
        program: "sam-ladder 0.1.0".into(),
        cache_id: "3f9a".repeat(16),
        config,
        jobs: 2,
        folds: vec![vec!["0005".into(), "0006".into()], vec!["0007".into()]],
        groups: Default::default(),
        inputs: RunInputs {
            sam_decoder: InputFile { name: "sam_decoder.safetensors".into(), sha256: "0".repeat(64), path: None },
            cnn_checkpoint: None,
            init: None,
            rung_projection: None,
        },
        store_path: None,
    }
}

/// A reproducible number in [0, 1).
fn rule(index: u32, salt: u32) -> f64 {
    let mut mixed = index.wrapping_mul(2_654_435_761) ^ salt.wrapping_mul(0x9e37_79b9);
    for factor in [0x85eb_ca6b, 0xc2b2_ae35] {
        mixed = (mixed ^ mixed >> 15).wrapping_mul(factor);
    }
    f64::from((mixed ^ mixed >> 16) >> 8) / f64::from(1u32 << 24)
}

/// Trials and their epochs, made up: Dice is best at lr 3e-3 and λ 0.8, and every third trial reaches the next rung.
fn records(two_objectives: bool) -> (Vec<TrialRow>, Vec<CurveRow>) {
    let (mut trials, mut curves) = (Vec::new(), Vec::new());
    for number in 0..TRIALS {
        let (lr, lambda) = (10f64.powf(-5.0 + 4.0 * rule(number, 1)), 0.2 + 0.8 * rule(number, 2));
        let mut settings: Map<String, Value> = json!({"lr": lr, "lambda": lambda}).as_object().cloned().unwrap();
        if number % 4 == 0 {
            settings.insert("optimizer".into(), json!("sgd"));
        } else {
            settings.insert("optimizer".into(), json!("adamw"));
            settings.insert("weight_decay".into(), json!(1e-4 * 3000f64.powf(rule(number, 3))));
        }
        let id = trial_id(&settings);
        let (status, epochs, reason) = match number {
            5 => (TrialStatus::Diverged, 0, Some("step 12: the loss is NaN at a learning rate of 0.05".to_string())),
            11 => (TrialStatus::Failed, 1, Some("no space left on device".into())),
            26 => (TrialStatus::Running, 1, None),
            _ if number % 9 == 4 || number == 13 => (TrialStatus::Finished, EPOCHS, None),
            _ if number % 3 == 0 => (TrialStatus::Pruned, 3, Some("rung 1 (3 epochs): not among the best third".into())),
            _ => (TrialStatus::Pruned, 1, Some("rung 0 (1 epoch): not among the best third".into())),
        };
        let best = 0.93 - 0.08 * (lr / 3e-3).log10().abs() - 0.3 * (lambda - 0.8).powi(2);
        let at =
            |epoch: u32, run: u32| best * (1.0 - (-0.6 * f64::from(epoch + 1)).exp()) + 0.01 * (rule(number, 10 + run) - 0.5);
        let hd95 = |epoch: u32, run: u32| 10.0 + 30.0 * at(epoch, run);
        for epoch in 0..epochs {
            for run in 0..2 {
                curves.push(CurveRow {
                    trial: id.clone(),
                    seed: 1234,
                    fold: run + 1,
                    epoch,
                    loss: 1.1 - at(epoch, run),
                    val_dice: Some(at(epoch, run)),
                    val_hd95: two_objectives.then(|| hd95(epoch, run)),
                    gate: (0.5 - 0.02 * f64::from(epoch) * rule(number, 5)) as f32,
                    seconds: 2.0,
                });
            }
        }
        let measured = epochs > 0 && !matches!(status, TrialStatus::Failed | TrialStatus::Diverged);
        let mean = |value: &dyn Fn(u32, u32) -> f64| measured.then(|| (value(epochs - 1, 0) + value(epochs - 1, 1)) / 2.0);
        trials.push(TrialRow {
            trial: id,
            number,
            settings: json!(settings).to_string(),
            status,
            reason,
            rank: None,
            dice: mean(&at),
            dice_std: measured.then_some(0.004),
            hd95: if two_objectives { mean(&hd95) } else { None },
            hd95_std: (two_objectives && measured).then_some(0.8),
            runs: 2,
            epochs,
            max_epochs: EPOCHS,
            rung: measured.then_some([1, 3, 9].iter().position(|&rung| rung == epochs).unwrap_or(0) as u32),
            failures: u32::from(number == 11),
            seconds: 4.0 * f64::from(epochs),
        });
    }
    rank(&mut trials);
    (trials, curves)
}

/// Trials trained further rank first; among equals, those that fewer others beat in both objectives.
fn rank(trials: &mut [TrialRow]) {
    let key = |row: &TrialRow| (row.epochs, row.dice.unwrap_or(f64::NAN), -row.hd95.unwrap_or(0.0));
    let keys: Vec<_> = trials.iter().map(key).collect();
    for index in 0..trials.len() {
        let (epochs, dice, hd95) = keys[index];
        let beats = |other: &&(u32, f64, f64)| {
            other.0 > epochs || (other.0 == epochs && other.1 >= dice && other.2 >= hd95 && (other.1, other.2) != (dice, hd95))
        };
        trials[index].rank =
            trials[index].dice.map(|_| 1 + keys.iter().filter(|key| key.1.is_finite()).filter(beats).count() as u32);
    }
}

fn write(folder: &Path, objectives: &[Objective]) -> std::path::PathBuf {
    let (trials, curves) = records(objectives.len() > 1);
    std::fs::write(folder.join(SWEEP_CONFIG), serde_json::to_vec(&record(objectives)).unwrap()).unwrap();
    write_rows(&folder.join(TRIALS_TABLE), &trials).unwrap();
    write_rows(&folder.join(CURVES_TABLE), &curves).unwrap();
    write_sweep_page(folder).unwrap()
}

fn keep(png: &[u8], name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pages");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), png).unwrap();
}

#[test]
#[ignore = "needs Chromium: make test-pages"]
fn a_sweeps_page_shows_every_trial_in_light_and_dark() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &[Objective::Dice]);
    let with_epochs = (TRIALS - 1) as usize;
    let measured = (TRIALS - 2) as usize;
    let mut browser = Browser::start();
    for (dark, width) in [(false, 1280), (true, 1280), (false, 480)] {
        let mut page = browser.open(&path, View { width, dark });
        // Dice, loss and gate of each trial with an epoch; lines for those with two.
        assert_eq!(page.count(".curves"), 3);
        assert_eq!(page.count(".curves .mark-point"), 3 * with_epochs);
        let (trials, _) = records(false);
        let long = trials.iter().filter(|row| row.epochs > 1).count();
        assert_eq!(page.count(".curves .mark-line"), 3 * long);
        assert_eq!(page.count(".parallel .mark-line"), measured);
        assert_eq!(
            (page.count(".scatter .mark-point"), page.count(".scatter .ground rect"), page.count(".heat-map")),
            (measured, 36 * 24, 0)
        );
        // Epochs 1 to 9.
        assert_eq!(
            page.texts(".curves .tick").iter().filter(|text| ["1", "2", "4", "6", "8"].contains(&text.as_str())).count(),
            3 * 5
        );
        assert_eq!(page.count(".importance .mark-bar"), 4);
        assert_eq!(page.texts("#importance-definition").len(), 1);
        assert_eq!(page.count("#trials-table tbody tr"), TRIALS as usize);
        assert_eq!(page.count(".pareto"), 0);
        assert!(page.texts("td.reason").contains(&"no space left on device".to_string()));
        let outside = "[...document.querySelectorAll('[class^=mark]')].filter(m => { const a = m.getBoundingClientRect(), \
                       b = m.ownerSVGElement.getBoundingClientRect(); return a.x < b.x - 1 || a.y < b.y - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1 }).length";
        assert_eq!(page.evaluate(outside), 0);
        // The table has room on a screen; a narrow page scrolls it within its frame.
        let hidden = page.evaluate("(s => s.scrollWidth - s.clientWidth)(document.querySelector('.scroll'))").as_i64().unwrap();
        assert!(hidden <= 0 || width < 1280, "{hidden} px of the table are out of sight");
        keep(&page.screenshot(), &format!("sweep-{}{width}.png", if dark { "dark-" } else { "" }));
    }

    // The script: headings sort, a click shows a trial everywhere.
    let mut page = browser.open(&path, View::default());
    let column =
        |name: &str| format!("[...document.querySelectorAll('#trials-table th')].findIndex(h => h.textContent === '{name}')");
    let index = page.evaluate(&column("Dice, %")).as_u64().unwrap();
    for direction in ["ascending", "descending"] {
        page.evaluate(&format!("document.querySelectorAll('#trials-table th button')[{index}].click()"));
        let keys = page.evaluate(&format!(
            "[...document.querySelectorAll('#trials-table tbody tr')].map(r => r.cells[{index}].dataset.key)"
        ));
        let keys: Vec<&str> = keys.as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
        let numbers: Vec<f64> = keys.iter().filter(|key| !key.is_empty()).map(|key| key.parse().unwrap()).collect();
        assert_eq!(numbers.len(), measured);
        assert!(keys[numbers.len()..].iter().all(|key| key.is_empty()), "empty cells are last: {keys:?}");
        let mut sorted = numbers.clone();
        sorted.sort_by(f64::total_cmp);
        if direction == "descending" {
            sorted.reverse();
        }
        assert_eq!(numbers, sorted, "{direction}");
    }
    page.evaluate("document.querySelector('#trials-table tbody tr[data-trial=\"4\"]').click()");
    assert_eq!(
        page.count(".plot .on"),
        3 + 3 + 1 + 1,
        "three curves with their ends, a line of coordinates, a point over two settings"
    );
    assert_eq!(page.count("tr.on"), 1);
    page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }))");
    assert_eq!(page.count(".on, .picked"), 0);
    page.assert_sound();
}

#[test]
#[ignore = "needs Chromium: make test-pages"]
fn two_objectives_have_a_front() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &[Objective::Dice, Objective::Hd95]);
    let mut browser = Browser::start();
    let mut page = browser.open(&path, View { width: 1280, dark: false });
    assert_eq!(page.count(".curves"), 4);
    assert_eq!(page.count(".pareto .mark-point"), (TRIALS - 2) as usize);
    assert_eq!(page.count(".pareto .front"), 1);
    keep(&page.screenshot(), "sweep-pareto.png");
}
