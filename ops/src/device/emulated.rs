//! Launches kernels on the host (see `emulation.h`).

use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::launch_args::{Arg, Grid};

unsafe extern "C" {
    fn sam_ladder_emulate(
        name: *const c_char,
        grid: *const u32,
        first: u64,
        count: u64,
        threads: u32,
        shared_bytes: u32,
        arguments: *mut *mut c_void,
    ) -> c_int;
}

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

/// If set to 1, all operations on the CPU use the emulated kernels.
const SWITCH: &str = "SAM_LADDER_EMULATE_KERNELS";

/// Whether the operations of this thread use the kernels.
pub(super) fn is_on() -> bool {
    static EVERYWHERE: OnceLock<bool> = OnceLock::new();
    ON.get() || *EVERYWHERE.get_or_init(|| std::env::var(SWITCH).is_ok_and(|value| value == "1"))
}

/// Calls `f` while the operations of this thread use the kernels.
#[cfg(test)]
pub(crate) fn with<R>(f: impl FnOnce() -> R) -> R {
    let before = ON.replace(true);
    let result = f();
    ON.set(before);
    result
}

/// Addresses of a kernel's arguments.
struct Addresses(Vec<*mut c_void>);
// SAFETY: kernels read their arguments, each thread through a copy of the list.
unsafe impl Sync for Addresses {}

/// Runs a kernel's blocks on rayon's threads.
///
/// # Safety
/// As [`super::Gpu::launch`].
pub(super) unsafe fn launch(kernel: &str, grid: Grid, args: &[Arg<'_>]) -> Result<()> {
    let Ok(name) = CString::new(kernel) else { bail!("{kernel:?} is no name of a kernel") };
    let address = |arg: &Arg<'_>| -> *const c_void {
        match arg {
            Arg::Pointer(v) | Arg::Size(v) => std::ptr::from_ref(v).cast(),
            Arg::Int(v) => std::ptr::from_ref(v).cast(),
            Arg::Unsigned(v) => std::ptr::from_ref(v).cast(),
            Arg::Float(v) => std::ptr::from_ref(v).cast(),
            Arg::Double(v) => std::ptr::from_ref(v).cast(),
            Arg::Words(v) => v.as_ptr().cast(),
            Arg::LongWords(v) => v.as_ptr().cast(),
        }
    };
    let addresses = Addresses(args.iter().map(|arg| address(arg).cast_mut()).collect());
    let blocks: u64 = grid.blocks.iter().map(|&n| u64::from(n)).product();
    let part = blocks.div_ceil(4 * rayon::current_num_threads() as u64).max(1);
    let known = (0..blocks.div_ceil(part)).into_par_iter().map(|index| {
        let addresses = &addresses;
        let mut copy = addresses.0.clone();
        let (first, count) = (index * part, part.min(blocks - index * part));
        // SAFETY: the name ends in zero, the grid has three numbers, and the arguments are the kernel's own, whose memory outlives the call;
        // blocks of one launch write disjoint memory.
        unsafe {
            sam_ladder_emulate(
                name.as_ptr(),
                grid.blocks.as_ptr(),
                first,
                count,
                grid.threads,
                grid.shared_bytes,
                copy.as_mut_ptr(),
            )
        }
    });
    match known.min() {
        Some(0) => bail!("there is no kernel {kernel}"),
        _ => Ok(()),
    }
}

/// Calls `f` while the operations of this thread use their CPU paths.
#[cfg(test)]
pub(crate) fn without<R>(f: impl FnOnce() -> R) -> R {
    let before = ON.replace(false);
    let result = f();
    ON.set(before);
    result
}
