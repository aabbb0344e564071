//! Products by AMX: a tile of sixteen rows of 32 terms times a tile of sixteen columns, added to a tile of float32 sums.
//!
//! Rust has no stable intrinsics for it, so the instructions are written out. The compiler never uses the tile registers.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

use super::{Line, Operand, Target};

/// Whether the processor has tiles for bfloat16 and the system lets this process use them.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES && permitted()
    })
}

/// Asks Linux to save the tile registers of this process when it switches tasks; without that their use is a fault.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    // SAFETY: the call takes two numbers and changes nothing in this process's memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The shapes of the tile registers, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's tile registers while they are configured: eight tiles of sixteen rows of 64 bytes.
pub(crate) struct Tiles(());

impl Tiles {
    /// # Panics
    /// Where there are none.
    pub(super) fn configure() -> Self {
        assert!(available(), "the processor has no tiles");
        let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.row_bytes[..8].fill(size_of::<Line>() as u16);
        shapes.rows[..8].fill(16);
        // SAFETY: tiles are available, and these shapes are the largest of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, preserves_flags, readonly)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they were configured.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

macro_rules! load {
    ($tile:literal, $from:expr, $stride:expr) => {
        asm!(concat!("tileloadd ", $tile, ", [{from} + {stride}]"), from = in(reg) $from, stride = in(reg) $stride,
             options(nostack, preserves_flags, readonly))
    };
}

macro_rules! store {
    ($tile:literal, $to:expr, $stride:expr) => {
        asm!(concat!("tilestored [{to} + {stride}], ", $tile), to = in(reg) $to, stride = in(reg) $stride,
             options(nostack, preserves_flags))
    };
}

macro_rules! zero {
    ($tile:literal) => {
        asm!(concat!("tilezero ", $tile), options(nostack, preserves_flags, nomem))
    };
}

macro_rules! multiply {
    ($sum:literal, $a:literal, $b:literal) => {
        asm!(concat!("tdpbf16ps ", $sum, ", ", $a, ", ", $b), options(nostack, preserves_flags, nomem))
    };
}

/// As [`super::block`].
///
/// # Safety
/// As there.
pub(super) unsafe fn block(steps: usize, operands: [Operand<'_>; 2], target: Target, (groups, panels): (usize, usize)) {
    // SAFETY: the caller's promise.
    unsafe {
        match (groups, panels) {
            (1, 1) => block_of::<false, false>(steps, operands, target),
            (1, _) => block_of::<false, true>(steps, operands, target),
            (_, 1) => block_of::<true, false>(steps, operands, target),
            _ => block_of::<true, true>(steps, operands, target),
        }
    }
}

/// Tiles 0 to 3 are the sums, row by row; 4 and 5 are the left factor's, 6 and 7 the right one's.
///
/// # Safety
/// As for [`super::block`].
#[inline]
unsafe fn block_of<const ROWS: bool, const PANELS: bool>(steps: usize, [a, b]: [Operand<'_>; 2], target: Target) {
    let stride = 4 * target.stride;
    let [left, right] = target.columns;
    let [below, below_right] = target.columns.map(|column| column.wrapping_add(16 * target.stride));
    // SAFETY: the caller's promise.
    unsafe {
        zero!("tmm0");
        zero!("tmm1");
        zero!("tmm2");
        zero!("tmm3");
        if target.accumulate {
            load!("tmm0", left, stride);
            if PANELS {
                load!("tmm1", right, stride);
            }
            if ROWS {
                load!("tmm2", below, stride);
            }
            if ROWS && PANELS {
                load!("tmm3", below_right, stride);
            }
        }
        for step in 0..steps {
            load!("tmm4", a.at(0, step), a.line);
            load!("tmm6", b.at(0, step), b.line);
            multiply!("tmm0", "tmm4", "tmm6");
            if PANELS {
                load!("tmm7", b.at(1, step), b.line);
                multiply!("tmm1", "tmm4", "tmm7");
            }
            if ROWS {
                load!("tmm5", a.at(1, step), a.line);
                multiply!("tmm2", "tmm5", "tmm6");
            }
            if ROWS && PANELS {
                multiply!("tmm3", "tmm5", "tmm7");
            }
        }
        store!("tmm0", left, stride);
        if PANELS {
            store!("tmm1", right, stride);
        }
        if ROWS {
            store!("tmm2", below, stride);
        }
        if ROWS && PANELS {
            store!("tmm3", below_right, stride);
        }
    }
}
