//! The allocator of the programs: mimalloc, set to keep the pages that it has.

use std::ffi::{c_int, c_long};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` in mimalloc's `mimalloc.h`, the same in its versions 2 and 3.
const PURGE_DELAY: c_int = 15;
/// Never, as a delay.
const NEVER: c_long = -1;

unsafe extern "C" {
    fn mi_option_set(option: c_int, value: c_long);
}

/// Freed memory stays with the process. A step of training frees and takes the same gigabytes again; were they given back to the
/// system in between, a third of the step would go into clearing their pages.
pub fn keep_freed_pages() {
    // SAFETY: a plain setter of mimalloc, which is linked in as the allocator; both arguments are values that it documents.
    unsafe { mi_option_set(PURGE_DELAY, NEVER) };
}
