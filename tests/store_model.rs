//! A model of a store and the real one, in a folder and in a bucket, get the same random commands: precompute by one to three workers, kills,
//! more scans and variants, scans that change or are left out, damage, swaps, `verify`, repair, reading. After each the two agree on what is
//! whole, what is refused, and what is read. Nothing that is read is ever wrong.
//!
//! `SAM_LADDER_MODEL_SECONDS` sets the time for each place (`make soak` sets minutes), `SAM_LADDER_MODEL_SEED` repeats a run, whose seed
//! is printed.

#![cfg(unix)]

mod cli;
#[path = "common/folders.rs"]
mod folders;
#[path = "common/s3.rs"]
mod s3;
#[path = "common/stage_one.rs"]
mod stage_one;

use folders::files;
use s3::{Server, child_folder};
use sam_ladder_cache::{Batch, Error as StoreError, ReferenceMask, Store, VerifyReport, verify};
use sam_ladder_precompute::error::{Error, Result};
use sam_ladder_precompute::pipeline::{FillOptions, Plan, Summary, repair};
use sam_ladder_schemas::classes::{SYNAPSE_LABEL_MAP, Split};
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::variants::AugmentPolicy;
use stage_one::{Formula, config, fill, fill_whole, loaded};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PLACE: &str = "s3://lab/model.zarr";
/// Policies of which each contains those before it.
const POLICIES: [(AugmentPolicy, u32); 3] = [(AugmentPolicy::None, 1), (AugmentPolicy::Flips, 1), (AugmentPolicy::Reference, 20)];
/// Case 1 to 4 are test cases.
const CASES: [u32; 6] = [1, 5, 6, 7, 2, 9];

/// Content of a scan: its number of slices, and what its voxels are made of.
type Content = (usize, u32);

/// What a store must hold of a scan.
struct Expected {
    /// For each slice, each variant.
    slices: Vec<Vec<Batch>>,
    mask: ReferenceMask,
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn policy(policy: usize) -> PrecomputeConfig {
    config(POLICIES[policy].0, POLICIES[policy].1)
}

/// What a store should be.
#[derive(Debug, Clone, PartialEq)]
struct Model {
    policy: usize,
    scans: BTreeMap<u32, Content>,
    complete: bool,
    /// Scans of the finished store that an unfinished one was.
    base: Option<BTreeMap<u32, Content>>,
    /// Whether anything was harmed since it was last known to be whole.
    harmed: bool,
    /// Whether among that is a single bit, which no look at an object's end tells.
    flipped: bool,
}

/// The model, the real store, and the scans' folder.
struct Both {
    /// State of the generator of random numbers.
    random: u64,
    scans: PathBuf,
    /// The store as the program names it.
    place: PathBuf,
    /// Where its files lie.
    files: PathBuf,
    aside: PathBuf,
    /// The scans that lie in their folder.
    there: BTreeMap<u32, Content>,
    model: Option<Model>,
    /// A reader that opened the store at an earlier time, what it was then, and whether anything was harmed since.
    held: Option<(Store, Model, bool)>,
    /// What single scans give, by case, content and policy.
    expected: HashMap<(u32, Content, usize), Expected>,
    log: Vec<String>,
}

impl Both {
    fn new(folder: &Path, place: &Path, files: &Path, seed: u64) -> Self {
        let mut both = Both {
            random: seed,
            scans: folder.join("scans"),
            place: place.into(),
            files: files.into(),
            aside: folder.join("aside"),
            there: BTreeMap::new(),
            model: None,
            held: None,
            expected: HashMap::new(),
            log: vec![],
        };
        fs::create_dir_all(&both.aside).unwrap();
        for case in [1, 5, 7] {
            both.put(case, (2, case));
        }
        both
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.random >> 33) % bound as u64) as usize
    }

    fn put(&mut self, case: u32, content: Content) {
        write_content(&self.scans, case, content);
        self.there.insert(case, content);
    }

    fn remove(&mut self, case: u32) {
        for kind in ["img", "label"] {
            fs::remove_file(self.scans.join(format!("RawData/Training/{kind}/{kind}{case:04}.nii.gz"))).unwrap();
        }
        self.there.remove(&case);
    }

    /// One random command, and what must hold after it.
    fn step(&mut self) {
        let command = self.below(12);
        match command {
            0 => self.change_scans(),
            1..=4 => self.precompute(),
            5 => self.kill(),
            6 | 7 => self.harm(),
            8 => self.verify(),
            9 | 10 => self.mend(),
            _ => {}
        }
        self.read();
        if self.below(3) == 0 {
            self.read_on();
        }
    }

    /// A scan is added, left out, replaced by another, or put back.
    fn change_scans(&mut self) {
        let case = CASES[self.below(CASES.len())];
        let (depth, salt) = (1 + self.below(3), self.below(3) as u32 * 20);
        match self.there.contains_key(&case) {
            true if self.below(3) == 0 && self.there.len() > 2 => self.remove(case),
            _ => self.put(case, (depth, case + salt)),
        }
        self.log.push(format!("scans: {:?}", self.there));
    }

    /// What `precompute` must do: `None` if it is refused.
    fn after_precompute(&self, policy: usize) -> Option<Model> {
        let whole = Model { policy, scans: self.there.clone(), complete: true, base: None, harmed: false, flipped: false };
        match &self.model {
            None => Some(whole),
            Some(found) if found.complete => {
                let has_all = found.scans.iter().all(|(case, content)| self.there.get(case) == Some(content));
                (has_all && found.policy <= policy).then_some(whole)
            }
            Some(found) => {
                let some = found.scans.iter().any(|(case, content)| self.there.get(case) == Some(content));
                let base = found.base.iter().flatten().all(|(case, content)| self.there.get(case) == Some(content));
                let is_shard = |name: &PathBuf| name.file_name().is_some_and(|name| name.to_string_lossy().starts_with("c."));
                let empty = found.base.is_none() && !self.bytes().keys().any(is_shard);
                ((some || empty) && base && found.policy == policy).then_some(whole)
            }
        }
    }

    fn precompute(&mut self) {
        let found = self.model.as_ref().map_or(0, |model| model.policy);
        // Mostly what can succeed.
        let policy = match self.below(8) {
            0 => self.below(POLICIES.len()),
            1 if self.model.as_ref().is_none_or(|model| model.complete) => (found + 1).min(POLICIES.len() - 1),
            _ => found,
        };
        let workers = 1 + self.below(3);
        let fails_after = (self.below(3) == 0).then(|| self.below(20));
        self.log.push(format!("precompute, policy {policy}, {workers} workers, fails after {fails_after:?}"));
        let before = self.bytes();
        let outcomes = self.run_workers(policy, workers, fails_after);
        let harmed = self.model.as_ref().is_some_and(|model| model.harmed);
        let Some(whole) = self.after_precompute(policy) else {
            if harmed {
                let whole =
                    Model { policy, scans: self.there.clone(), complete: true, base: None, harmed, flipped: self.is_flipped() };
                return self.settle(whole, outcomes);
            }
            for outcome in outcomes {
                let error = outcome.expect_err("the model refuses it");
                assert!(matches!(error, Error::Store(StoreError::OtherConfig { .. })), "{error}");
            }
            assert!(self.bytes() == before, "what is refused is not touched");
            return;
        };
        let complete = Store::open(&self.place).is_ok();
        match fails_after {
            // A finished store's damage is not looked for, but for lost files.
            _ if harmed && self.model.as_ref().is_some_and(|model| model.complete) => self.settle(whole, outcomes),
            None => {
                for outcome in &outcomes {
                    assert!(outcome.is_ok(), "{}", outcome.as_ref().unwrap_err());
                }
                assert!(complete, "the last worker finishes the store");
                // In a bucket only the ends of objects are read again.
                let flipped = self.is_flipped();
                self.model = Some(Model { harmed: flipped, flipped, ..whole });
            }
            Some(_) => {
                let was_complete = self.model.as_ref().is_some_and(|model| model.complete && *model == whole);
                assert!(complete || !was_complete);
                let flipped = self.is_flipped();
                self.model = self.begun(Model { complete, harmed: flipped, flipped, ..whole });
            }
        }
    }

    /// The model of a store that a worker may not even have begun.
    fn begun(&self, model: Model) -> Option<Model> {
        match VerifyReport::of_unfinished(&self.place) {
            Ok(report) => {
                let policy = POLICIES.iter().position(|&(augment, step)| {
                    (report.attributes.config.augment, report.attributes.config.rotation_step) == (augment, step)
                });
                let scans = report.attributes.cases.iter().map(|case| case.case.parse().unwrap());
                let known = |case: u32| {
                    let of = |model: &Model| model.scans.get(&case).copied();
                    // The scans of the manifest are those that were there, or those of before if nothing was begun.
                    let now = scans_are(&report, &model.scans).then(|| of(&model)).flatten();
                    now.or_else(|| self.model.as_ref().and_then(of)).unwrap()
                };
                let scans = scans.map(|case| (case, known(case))).collect();
                let before = self.model.as_ref();
                let base = before.and_then(|model| model.base.clone().or_else(|| model.complete.then(|| model.scans.clone())));
                let base = base.filter(|_| self.files.join("previous/zarr.json").exists());
                Some(Model { policy: policy.unwrap(), scans, complete: report.attributes.complete, base, ..model })
            }
            Err(_) => None,
        }
    }

    /// After commands on a harmed store, whose outcome the model does not foretell: what it became.
    fn settle(&mut self, whole: Model, outcomes: Vec<Result<Summary>>) {
        for error in outcomes.into_iter().filter_map(Result::err) {
            assert!(error.hint().is_some(), "{error}");
        }
        let before = self.model.clone();
        self.model = self.begun(Model { harmed: true, flipped: self.is_flipped(), ..whole }).or(before);
    }

    fn run_workers(&self, policy_index: usize, workers: usize, fails_after: Option<usize>) -> Vec<Result<Summary>> {
        let config = policy(policy_index);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..=workers)
                .map(|index| {
                    let (scans, place, config) = (&self.scans, &self.place, &config);
                    let encoder = move || Formula { fails_after, images: None, pause: Duration::ZERO, rungs: None };
                    scope.spawn(move || {
                        let images = std::sync::atomic::AtomicUsize::new(0);
                        let encoder = Formula { images: Some(&images), ..encoder() };
                        fill(scans, place, config, &format!("{index}/{workers}"), encoder)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// A worker in another process is killed at a random moment.
    fn kill(&mut self) {
        let policy = self.model.as_ref().map_or(0, |model| model.policy);
        let Some(whole) = self.after_precompute(policy) else { return };
        let after = self.below(150) as u64;
        self.log.push(format!("killed after {after} ms"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "precompute_child", "--ignored", "--test-threads=1"])
            .env("SAM_LADDER_FOLDER", self.scans.parent().unwrap())
            .env("SAM_LADDER_PLACE", &self.place)
            .env("SAM_LADDER_POLICY", policy.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(after));
        child.kill().ok();
        child.wait().unwrap();
        let harmed = self.model.as_ref().is_some_and(|model| model.harmed);
        if harmed {
            return self.settle(whole, vec![]);
        }
        self.model = self.begun(whole);
    }

    fn harm(&mut self) {
        if self.model.is_none() {
            return;
        }
        let before = self.bytes();
        // Its copy is damaged at another time, never together with it; and it stays whole where a kill has left no copy.
        let [manifest, copy] = ["zarr.json", "manifest.json"].map(Path::new);
        let is_spared = |name: &PathBuf| name == copy || (name == manifest && !before.contains_key(copy));
        let names: Vec<PathBuf> = before.keys().filter(|name| !is_spared(name)).cloned().collect();
        if names.is_empty() {
            // Of a store that was killed as it began, only the copy is left.
            return;
        }
        let name = names[self.below(names.len())].clone();
        let mut bytes = before[&name].clone();
        let kind = self.below(5);
        self.held.iter_mut().for_each(|(.., harmed)| *harmed = true);
        let at = self.below(bytes.len().max(1));
        match kind {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 0x10,
            2 => bytes.fill(0),
            3 => {
                let others: Vec<&PathBuf> = names
                    .iter()
                    .filter(|other| other.parent() == name.parent() && other.extension() == name.extension())
                    .collect();
                bytes = before[others[self.below(others.len())]].clone();
            }
            _ => {
                fs::remove_file(self.files.join(&name)).unwrap();
                self.log.push(format!("{} removed", name.display()));
                self.model.as_mut().unwrap().harmed = true;
                return;
            }
        }
        if bytes == before[&name] {
            return;
        }
        fs::write(self.files.join(&name), bytes).unwrap();
        self.log.push(format!("{} harmed, {kind}", name.display()));
        let model = self.model.as_mut().unwrap();
        (model.harmed, model.flipped) = (true, model.flipped || kind == 1);
    }

    fn verify(&mut self) {
        self.log.push("verify".into());
        let report = verify(&self.place, &|_, _| {});
        match &self.model {
            Some(model) if model.complete => {
                let damage = report.unwrap().damage;
                // A harm may have hit what no longer belongs to the store, or made good an earlier one.
                assert!(model.harmed || damage.is_empty(), "{damage:?}");
                let right = damage.is_empty();
                let model = self.model.as_mut().unwrap();
                model.harmed = !right;
                model.flipped &= !right;
            }
            Some(model) => assert!(model.harmed || matches!(report, Err(StoreError::Incomplete { .. }))),
            None => assert!(report.is_err()),
        }
    }

    fn mend(&mut self) {
        let Some(model) = self.model.clone().filter(|model| model.complete) else { return };
        let Ok(report) = verify(&self.place, &|_, _| {}) else { return };
        self.log.push(format!("repair of {} parts", report.damage.len()));
        let before = self.bytes();
        let plan = || Plan::new(&self.scans, &report.attributes.config, &Silent);
        let mended = repair(&self.place, &report, &FillOptions::whole(4, &Silent), plan, || loaded(Formula::default()));
        let needs_scans = report.damage.iter().any(|damage| damage.part.needs_sources());
        if needs_scans && model.scans != self.there {
            let error = mended.unwrap_err();
            assert!(matches!(error, Error::OtherScans { .. }), "{error}");
            assert!(self.bytes() == before, "a repair that is refused touches nothing");
            return;
        }
        mended.unwrap();
        let damage = verify(&self.place, &|_, _| {}).unwrap().damage;
        assert!(damage.is_empty(), "{damage:?}");
        self.model = Some(Model { harmed: false, flipped: false, ..model });
    }

    /// Whatever can be read is right; if nothing was harmed, all of it can be.
    fn read(&mut self) {
        let (model, store) = match (self.model.clone(), Store::open(&self.place)) {
            (Some(model), Ok(store)) => (model, store),
            (model, Err(error)) => {
                assert!(model.is_none_or(|model| model.harmed || !model.complete), "{error}");
                return;
            }
            (None, Ok(_)) => panic!("there should be no store"),
        };
        assert!(model.complete, "an unfinished store was opened");
        let cases: Vec<String> = Split::ALL.iter().flat_map(|&split| store.cases(split)).collect();
        let wanted: Vec<String> = model.scans.keys().map(|case| format!("{case:04}")).collect();
        assert_eq!(sorted(cases), sorted(wanted));
        self.read_items(&store, &model, |_| model.harmed);
        if !model.harmed && (self.held.is_none() || self.below(4) == 0) {
            self.held = Some((store, model, false));
        }
    }

    /// A reader that opened the store before it was extended, repaired or made again reads what it was, or stops.
    fn read_on(&mut self) {
        let Some((store, model, harmed)) = self.held.take() else { return };
        self.log.push("read on".into());
        self.read_items(&store, &model, |error| harmed || matches!(error, StoreError::Changed { .. }));
        self.held = Some((store, model, harmed));
    }

    /// Reads every item and every mask; each is right, or its error is accepted.
    fn read_items(&mut self, store: &Store, model: &Model, accepted: impl Fn(&StoreError) -> bool) {
        for (&case, &content) in &model.scans {
            let split = if case <= 4 { Split::Test } else { Split::Train };
            let expected = self.expected(case, content, model.policy);
            let rows = store.case_rows(split, &format!("{case:04}")).unwrap();
            match store.mask(split, &format!("{case:04}")) {
                Ok(mask) => assert!(mask == expected.mask, "the mask of case {case} is wrong"),
                Err(error) => assert!(accepted(&error), "{error}"),
            }
            for (row, of_slice) in rows.zip(&expected.slices) {
                for (variant, batch) in of_slice.iter().enumerate() {
                    let mut found = Batch::default();
                    match store.read_batch(split, &[(row, variant as u32)], &mut found) {
                        Ok(()) => assert!(found == *batch, "case {case}, row {row}, variant {variant} is wrong"),
                        Err(error) => assert!(accepted(&error), "{error}"),
                    }
                }
            }
        }
    }

    /// What the store must hold of a scan.
    fn expected(&mut self, case: u32, content: Content, of: usize) -> &Expected {
        let aside = self.aside.join(format!("{case}-{content:?}-{of}"));
        self.expected.entry((case, content, of)).or_insert_with(|| {
            write_content(&aside.join("scans"), case, content);
            let store = aside.join("s.zarr");
            fill_whole(&aside.join("scans"), &store, &policy(of));
            let store = Store::open(store).unwrap();
            let split = if case <= 4 { Split::Test } else { Split::Train };
            let item = |row: u32, variant: u32| {
                let mut batch = Batch::default();
                store.read_batch(split, &[(row, variant)], &mut batch).unwrap();
                batch
            };
            let variants = store.variants(split).len() as u32;
            let slices = (0..content.0 as u32).map(|row| (0..variants).map(|variant| item(row, variant)).collect()).collect();
            let mask = ReferenceMask { labels: classes_of(content), shape: [content.0, 9, 8] };
            fs::remove_dir_all(&aside).unwrap();
            Expected { slices, mask }
        })
    }

    /// Whether a bit was changed in a bucket.
    fn is_flipped(&self) -> bool {
        self.place != self.files && self.model.as_ref().is_some_and(|model| model.flipped)
    }

    fn bytes(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        if self.files.is_dir() { files(&self.files) } else { BTreeMap::new() }
    }

    /// At the end everything can be made whole again, by what the messages advise.
    fn make_whole(&mut self) {
        if let Some(model) = self.model.clone() {
            for case in CASES {
                match model.scans.get(&case) {
                    Some(&content) => self.put(case, content),
                    None if self.there.contains_key(&case) => self.remove(case),
                    None => {}
                }
            }
            if model.complete {
                self.mend();
            }
        }
        let policy = self.model.as_ref().map_or(0, |model| model.policy);
        for outcome in self.run_workers(policy, 1, None) {
            assert!(outcome.unwrap().complete);
        }
        let flipped = self.is_flipped();
        self.model = Some(Model { policy, scans: self.there.clone(), complete: true, base: None, harmed: flipped, flipped });
        if flipped {
            self.mend();
        }
        let damage = verify(&self.place, &|_, _| {}).unwrap().damage;
        assert!(damage.is_empty(), "{damage:?}");
        self.read();
    }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// Whether a manifest's cases have the depths of these scans.
fn scans_are(report: &VerifyReport, scans: &BTreeMap<u32, Content>) -> bool {
    let cases = &report.attributes.cases;
    let same = |case: &sam_ladder_cache::CaseLayout| {
        scans.get(&case.case.parse().unwrap()).is_some_and(|&content| {
            let files = ["img", "label"].map(|kind| format!("RawData/Training/{kind}/{kind}{}.nii.gz", case.case));
            let hashes = content_hashes(case.case.parse().unwrap(), content);
            files.iter().zip(hashes).all(|(path, sha256)| {
                report.attributes.sources.iter().any(|source| source.path == *path && source.sha256 == sha256)
            })
        })
    };
    cases.len() == scans.len() && cases.iter().all(same)
}

fn content_hashes(case: u32, content: Content) -> [String; 2] {
    let folder = tempfile::tempdir().unwrap();
    write_content(folder.path(), case, content);
    ["img", "label"].map(|kind| {
        let path = folder.path().join(format!("RawData/Training/{kind}/{kind}{case:04}.nii.gz"));
        sam_ladder_formats::hash::sha256_hex(&fs::read(path).unwrap())
    })
}

/// The raw label of each voxel of a scan.
fn labels_of((depth, salt): Content) -> impl Iterator<Item = usize> {
    (0..72 * depth).map(move |i| (i / 5 + salt as usize) % 12)
}

/// The class of each voxel.
fn classes_of(content: Content) -> Vec<u8> {
    labels_of(content).map(|label| SYNAPSE_LABEL_MAP[label]).collect()
}

/// Writes a scan with its labels.
fn write_content(folder: &Path, case: u32, content: Content) {
    let (depth, salt) = content;
    let image: Vec<f32> = (0..72 * depth).map(|i| ((i * 37 + salt as usize * 101) % 400) as f32 - 125.0).collect();
    let label: Vec<f32> = labels_of(content).map(|label| label as f32).collect();
    let size = [8, 9, depth as i16];
    cli::write_pair(folder, case, &cli::nifti(size, &image), &cli::nifti(size, &label));
}

#[test]
#[ignore = "a child that is killed"]
fn precompute_child() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let config = policy(variable("SAM_LADDER_POLICY").parse().unwrap());
    let encoder = Formula { pause: Duration::from_millis(2), ..Formula::default() };
    fill(&child_folder().join("scans"), Path::new(&variable("SAM_LADDER_PLACE")), &config, "1/1", encoder).ok();
}

/// Random commands for a while.
fn run(place: &Path, files: &Path, folder: &Path, unless_told: u64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let first = setting("SAM_LADDER_MODEL_SEED").unwrap_or(now);
    let time = Duration::from_secs(setting("SAM_LADDER_MODEL_SECONDS").unwrap_or(unless_told));
    let start = Instant::now();
    let (mut stores, mut steps) = (0, 0);
    while stores == 0 || start.elapsed() < time {
        let seed = first.wrapping_add(stores);
        let below = folder.join(format!("{stores}"));
        fs::create_dir_all(&below).unwrap();
        let mut both = Both::new(&below, place, files, seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..30 {
                if start.elapsed() >= time {
                    break;
                }
                both.step();
                steps += 1;
            }
            both.make_whole();
        }));
        if let Err(panic) = outcome {
            println!("SAM_LADDER_MODEL_SEED={seed}; {:#?}\nmodel: {:#?}", both.log, both.model);
            std::panic::resume_unwind(panic);
        }
        fs::remove_dir_all(files).ok();
        fs::remove_dir_all(&below).ok();
        stores += 1;
    }
    println!("seed {first}: {steps} commands on {stores} stores");
}

#[test]
fn a_store_in_a_folder_does_what_its_model_does() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("s.zarr");
    run(&place, &place, folder.path(), 10);
}

#[test]
fn a_store_in_a_bucket_does_what_its_model_does() {
    let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("objects"), server.folder(PLACE).to_str().unwrap()).unwrap();
    server.run_child("in_a_bucket", folder.path());
}

#[test]
#[ignore = "a child on a server"]
fn in_a_bucket() {
    let folder = child_folder();
    let objects = fs::read_to_string(folder.join("objects")).unwrap();
    run(Path::new(PLACE), Path::new(&objects), &folder, 10);
}
