//! The compiled modules on each device: as machine code if this build has that of the GPU, otherwise as PTX, which the driver compiles when it
//! is first loaded.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaModule};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;

mod machine_code {
    include!(concat!(env!("OUT_DIR"), "/machine_code.rs"));
}

/// The loaded modules, by the device's number and their name. All threads and streams of a device share its context.
static LOADED: RwLock<Option<HashMap<(usize, &'static str), Arc<CudaModule>>>> = RwLock::new(None);

/// A module, loaded before or now.
pub(super) fn loaded(context: &Arc<CudaContext>, module: &'static str, ptx: &'static str) -> Result<Arc<CudaModule>> {
    let key = (context.ordinal(), module);
    let found = |modules: &Option<HashMap<_, Arc<CudaModule>>>| modules.as_ref().and_then(|modules| modules.get(&key)).cloned();
    context.bind_to_thread().w()?;
    if let Some(module) = found(&LOADED.read().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(module);
    }
    let mut modules = LOADED.write().unwrap_or_else(PoisonError::into_inner);
    // Another thread may have loaded it since.
    if let Some(module) = found(&modules) {
        return Ok(module);
    }
    let loaded = load(context, module, ptx)?;
    modules.get_or_insert_default().insert(key, loaded.clone());
    Ok(loaded)
}

fn load(context: &Arc<CudaContext>, module: &str, ptx: &str) -> Result<Arc<CudaModule>> {
    let all = machine_code::ALL.iter().filter(|(name, ..)| *name == module).map(|&(_, architecture, code)| (architecture, code));
    if let Some(code) = fitting(all, context.compute_capability().w()?)
        && let Ok(loaded) = context.load_module(Ptx::from_binary(code.to_vec()))
    {
        return Ok(loaded);
    }
    // A driver that refuses the machine code may still compile the module; its error, not that of the machine code, says why nothing works.
    context.load_module(Ptx::from_src(ptx)).w()
}

/// The code that a GPU of compute capability `major.minor` runs: of its major number, for the highest minor one that is not above its own.
fn fitting<'a>(all: impl Iterator<Item = (i32, &'a [u8])>, (major, minor): (i32, i32)) -> Option<&'a [u8]> {
    let runs = all.filter(|(architecture, _)| architecture / 10 == major && architecture % 10 <= minor);
    runs.max_by_key(|(architecture, _)| *architecture).map(|(_, code)| code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_gets_the_code_of_its_family_and_no_later_one() {
        let codes: [(i32, &[u8]); 5] = [(80, b"80"), (86, b"86"), (90, b"90"), (100, b"100"), (120, b"120")];
        let text = |capability| fitting(codes.into_iter(), capability).map(|code| std::str::from_utf8(code).unwrap());
        let capabilities = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 3), (11, 0), (12, 1)];
        let expected = [None, Some("80"), Some("86"), Some("86"), Some("90"), Some("100"), None, Some("120")];
        assert_eq!(capabilities.map(text), expected);
    }
}
