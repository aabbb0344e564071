//! Feeds damaged files to a parser until the time is up, and checks what every parser here promises: no panic, memory proportional to the
//! file's size, and an error that names the file.

use crate::meter::peak_growth;
use crate::mutate::{Random, mutate};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Default number of seconds per parser.
const SECONDS: &str = "SAM_LADDER_FUZZ_SECONDS";
/// Number of the first input; the same number makes the same input.
const FIRST: &str = "SAM_LADDER_FUZZ_FIRST";

/// Memory is measured over the whole process: one test at a time, from its first allocation to its last.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A good file, or the part of one that is damaged before the rest is put around it.
pub struct Seed {
    pub bytes: Vec<u8>,
    pub pack: Box<dyn Fn(Vec<u8>) -> Vec<u8>>,
}

impl Seed {
    /// A whole file.
    pub fn file(bytes: Vec<u8>) -> Self {
        Self::inside(bytes, |bytes| bytes)
    }

    /// Content from which `pack` makes a file, so that damage reaches behind compression and checksums.
    pub fn inside(bytes: Vec<u8>, pack: impl Fn(Vec<u8>) -> Vec<u8> + 'static) -> Self {
        Seed { bytes, pack: Box::new(pack) }
    }
}

/// A parser under test.
pub struct Target<'a> {
    pub name: &'a str,
    /// The file that the parser reads; its name must be in every error.
    pub path: PathBuf,
    /// Bytes of memory that reading takes whatever the file's size: for buffers and other files.
    pub floor: usize,
    /// Bytes of memory allowed per byte of the file.
    pub per_byte: usize,
    /// Reads the file at `path`, and all that it holds.
    pub parse: &'a dyn Fn() -> Result<(), String>,
}

impl Target<'_> {
    /// Damages the seeds until the time is up.
    pub fn fuzz(&self, seeds: &[Seed]) {
        for (number, seed) in seeds.iter().enumerate() {
            let whole = (seed.pack)(seed.bytes.clone());
            if let Err(error) = self.bounded(&format!("seed {number}"), &whole, self.floor + self.per_byte * whole.len()) {
                panic!("{}: seed {number} is a good file, and was refused: {error}", self.name);
            }
        }
        let variable = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a whole number"));
        let end = Instant::now() + Duration::from_secs(variable(SECONDS).unwrap_or(3));
        let first = variable(FIRST).unwrap_or(0);
        let (mut number, mut refused) = (first, 0);
        while Instant::now() < end {
            let mut random = Random::new(self.name, number);
            let seed = &seeds[random.below(seeds.len())];
            let input = (seed.pack)(mutate(&seed.bytes, &mut random));
            let most = self.floor + self.per_byte * input.len();
            refused += u64::from(self.bounded(&format!("{FIRST}={number}"), &input, most).is_err());
            number += 1;
        }
        println!("{}: {} damaged files, {refused} refused", self.name, number - first);
        assert!(refused > 0, "{}: nothing was refused in {} inputs", self.name, number - first);
    }

    /// A hostile file, which must be refused within `most` bytes of memory in addition to the floor. Returns the error.
    pub fn refuses(&self, what: &str, input: &[u8], most: usize) -> String {
        self.bounded(what, input, self.floor + most).expect_err(what)
    }

    fn bounded(&self, what: &str, input: &[u8], most: usize) -> Result<(), String> {
        // Truncating a file in place makes some file systems wait for the disk.
        let _ = std::fs::remove_file(&self.path);
        std::fs::write(&self.path, input).expect("the input can be written");
        let keep = || {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", self.name));
            std::fs::write(&kept, input).expect("the input can be kept");
            format!("{}: {what}, {} bytes, kept as {}", self.name, input.len(), kept.display())
        };
        let (outcome, growth) = peak_growth(|| catch_unwind(AssertUnwindSafe(self.parse)));
        let Ok(outcome) = outcome else { panic!("{}: the parser panicked", keep()) };
        assert!(growth <= most, "{}: took {growth} bytes of memory, at most {most} are allowed", keep());
        if let Err(error) = &outcome {
            let name = self.path.file_name().expect("a file").to_string_lossy();
            assert!(error.contains(&*name), "{}: the error does not name {name}: {error}", keep());
        }
        outcome
    }
}

/// A folder for a test's files, in the build's `tmp`, and the turn to run. If the process dies, the input that caused it is there.
pub struct Scratch {
    folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Scratch {
    /// Waits for the turn.
    pub fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("fuzz-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        Scratch { folder: folder.expect("a folder can be made"), _turn: turn }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}
