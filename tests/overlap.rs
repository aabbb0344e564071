//! Stage one's stages overlap, and what waits between them is bounded. Spans of the program's own trace (`precompute --profile`) show it; the
//! encoder waits until they do.

mod cli;
#[path = "common/stage_one.rs"]
mod stage_one;

use sam_ladder_precompute::error::Result;
use sam_ladder_precompute::pipeline::{Encode, FillOptions, Loaded, Plan, Summary, fill_part};
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::variants::AugmentPolicy;
use stage_one::{Formula, config, write_scan};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use tracing::span::{Attributes, Id};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// How long a stage may take to do what it is waited for.
const LONGEST: Duration = Duration::from_secs(60);
/// How long a stage that does too much has time for it.
const A_WHILE: Duration = Duration::from_millis(300);

/// Spans of each name that were opened, and closed.
static SPANS: Mutex<Option<HashMap<&str, [usize; 2]>>> = Mutex::new(None);

struct Counting;

impl<S: tracing::Subscriber> Layer<S> for Counting
where
    S: for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        count(attributes.metadata().name(), 0);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        count(context.metadata(&id).expect("a span that closes is known").name(), 1);
    }
}

fn count(name: &'static str, which: usize) {
    SPANS.lock().unwrap().get_or_insert_default().entry(name).or_default()[which] += 1;
}

fn opened(name: &str) -> usize {
    SPANS.lock().unwrap().get_or_insert_default().get(name).map_or(0, |counts| counts[0])
}

fn closed(name: &str) -> usize {
    SPANS.lock().unwrap().get_or_insert_default().get(name).map_or(0, |counts| counts[1])
}

fn wait_for(what: &str, happened: impl Fn() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < LONGEST, "{what}: it does not happen while the encoder works");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Counts from 0; one test at a time.
fn counting() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    static ONCE: OnceLock<()> = OnceLock::new();
    let guard = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    ONCE.get_or_init(|| {
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Counting)).expect("no other subscriber");
    });
    *SPANS.lock().unwrap() = None;
    guard
}

/// The formula, which looks around in one of its calls.
struct Looking<F> {
    call: usize,
    look: F,
    calls: AtomicUsize,
}

impl<F: Fn()> Encode for Looking<F> {
    fn encode(&self, images: &[f32], batch: usize, size: usize) -> Result<Vec<f32>> {
        if self.calls.fetch_add(1, Ordering::SeqCst) + 1 == self.call {
            (self.look)();
        }
        Formula::default().encode(images, batch, size)
    }
}

/// Fills a store; the encoder calls `look` in its call number `call`.
fn fill_looking(scans: &Path, store: &Path, augment: AugmentPolicy, call: usize, look: impl Fn()) -> Summary {
    let encoder = Looking { call, look, calls: AtomicUsize::new(0) };
    let options = FillOptions::whole(4, &Silent);
    let plan = Plan::new(scans, &config(augment, 1), &Silent).unwrap();
    let load = || Ok(Loaded { encoder, decoder: b"the decoder's weights".to_vec() });
    fill_part(&plan, store, &options, load).unwrap()
}

/// While the first image is encoded, the next scan is read, and images are made ahead; but not the third scan, and not all images.
#[test]
fn scans_and_images_are_prepared_while_the_encoder_works() {
    let folder = tempfile::tempdir().unwrap();
    let scans = folder.path().join("scans");
    let threads = std::thread::available_parallelism().unwrap().get();
    // A slice has five variants, so with batches of four it is a group; test slices are encoded four at a time.
    let (at_once, queue) = (threads.div_ceil(5), threads.div_ceil(4));
    let made_ahead = 1 + queue + 2 * at_once;
    for case in [5, 6, 7] {
        write_scan(&scans, case, made_ahead + 4);
    }
    write_scan(&scans, 1, 2);
    let _one = counting();
    let summary = fill_looking(&scans, &folder.path().join("s.zarr"), AugmentPolicy::Flips, 1, || {
        wait_for("the second scan is read", || closed("read scan") == 2);
        wait_for("the next images are made", || closed("make variants") >= 2);
        std::thread::sleep(A_WHILE);
        assert_eq!(opened("read scan"), 2, "two scans are in memory at most");
        assert!(closed("make variants") <= made_ahead, "{} groups were made ahead", closed("make variants"));
    });
    assert!(summary.complete && summary.seconds_waiting < summary.seconds);
    assert_eq!(closed("read scan"), 4);
}

/// While a group is encoded, those before it are written.
#[test]
fn slices_are_written_while_the_encoder_works() {
    let folder = tempfile::tempdir().unwrap();
    let scans = folder.path().join("scans");
    write_scan(&scans, 5, 12);
    let _one = counting();
    // Without variants, a group is four slices and a batch.
    fill_looking(&scans, &folder.path().join("s.zarr"), AugmentPolicy::None, 3, || {
        wait_for("two groups are written", || closed("write slice") == 8);
    });
    assert_eq!(closed("write slice"), 12);
}
