//! Compiles the kernels to PTX by nvcc, and that to machine code by ptxas, under the feature `cuda`.

use std::error::Error;
use std::path::PathBuf;

/// The operations with kernels, in `src/<operation>/kernel.cu`; each is a module.
const OPERATIONS: [&str; 19] = [
    "add",
    "attention",
    "batch_norm",
    "batch_norm_pool",
    "column_sums",
    "convert",
    "dice_ce",
    "elementwise",
    "gate",
    "gather",
    "gelu",
    "layer_norm",
    "linear",
    "max_pool",
    "optimizer",
    "partial_sums",
    "rel_pos_attention",
    "segmentation_loss",
    "strided_copy",
];
/// Headers of the kernels.
const HEADERS: [&str; 6] = [
    "src/device/common.cuh",
    "src/device/map.cuh",
    "src/device/matrix.cuh",
    "src/gelu/gelu.cuh",
    "src/max_pool/windows.cuh",
    "src/rel_pos_attention/matrix_units.cuh",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in sources() {
        println!("cargo::rerun-if-changed={file}");
    }
    ptx()
}

fn sources() -> impl Iterator<Item = String> {
    OPERATIONS.iter().map(|operation| format!("src/{operation}/kernel.cu")).chain(HEADERS.map(str::to_owned))
}

/// A source file per operation with its name, since compiled modules are named after their files.
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a build for the CPU compiles none"))]
fn named_sources(extension: &str) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let folder = PathBuf::from(std::env::var("OUT_DIR")?).join("kernels");
    std::fs::create_dir_all(&folder)?;
    let name = |operation: &&str| {
        let file = folder.join(operation).with_extension(extension);
        std::fs::write(&file, format!("#include \"{operation}/kernel.cu\"\n"))?;
        // Cargo watches it. A file newer than the run of this script that wrote it would make every later call compile all again.
        let source = std::fs::metadata(format!("src/{operation}/kernel.cu"))?.modified()?;
        std::fs::File::options().write(true).open(&file)?.set_modified(source)?;
        Ok(file)
    };
    OPERATIONS.iter().map(name).collect()
}

/// PTX of compute capability 8.0, which the driver compiles for every GPU since Ampere, and the machine code of some GPUs.
#[cfg(feature = "cuda")]
fn ptx() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    cudaforge::KernelBuilder::new()
        .source_files(named_sources("cu")?)
        .watch(sources())
        .compute_cap_arch("80")
        .args(["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Isrc"])
        .build_ptx()?
        .write(out.join("kernels.rs"))?;
    machine_code(&out)
}

/// Assembles every module for each of [`architectures`], and writes `machine_code.rs`: module, architecture, code.
#[cfg(feature = "cuda")]
fn machine_code(out: &std::path::Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=SAM_LADDER_CUDA_ARCHITECTURES");
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    let mut jobs = Vec::new();
    let mut table = String::new();
    for architecture in architectures() {
        for operation in OPERATIONS {
            let cubin = format!("{operation}-{architecture}.cubin");
            table +=
                &format!("    (\"{operation}\", {architecture}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{cubin}\"))),\n");
            jobs.push((out.join(operation).with_extension("ptx"), architecture, out.join(cubin)));
        }
    }
    let next = std::sync::Mutex::new(jobs.into_iter());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let take = || next.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let work = || -> Result<(), String> {
        while let Some((ptx, architecture, cubin)) = take() {
            assemble(&ptx, architecture, &cubin)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a worker stopped".into())))
    })?;
    std::fs::write(out.join("machine_code.rs"), format!("pub const ALL: &[(&str, i32, &[u8])] = &[\n{table}];\n"))?;
    Ok(())
}

/// The architectures whose machine code travels with the program, as 80 for compute capability 8.0: those of `SAM_LADDER_CUDA_ARCHITECTURES`
/// (`80,90,120`; empty for none), otherwise that of `CUDA_COMPUTE_CAP`.
#[cfg(feature = "cuda")]
fn architectures() -> Vec<u32> {
    let named = std::env::var("SAM_LADDER_CUDA_ARCHITECTURES").or_else(|_| std::env::var("CUDA_COMPUTE_CAP")).unwrap_or_default();
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>().parse().ok();
    let mut found: Vec<u32> = named.split(',').filter_map(digits).filter(|architecture| *architecture >= 80).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Assembles PTX, unless the machine code is newer.
#[cfg(feature = "cuda")]
fn assemble(ptx: &std::path::Path, architecture: u32, cubin: &std::path::Path) -> Result<(), String> {
    let written = |path: &std::path::Path| std::fs::metadata(path).and_then(|data| data.modified()).ok();
    if written(cubin) > written(ptx) {
        return Ok(());
    }
    let homes = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(|name| std::env::var_os(name));
    let inside = homes.map(|home| PathBuf::from(home).join("bin/ptxas")).find(|program| program.exists());
    let program = inside.unwrap_or_else(|| "ptxas".into());
    // In its place only when it is whole: a build may be interrupted.
    let aside = cubin.with_extension("part");
    let command =
        std::process::Command::new(&program).arg(format!("-arch=sm_{architecture}")).arg("-o").arg(&aside).arg(ptx).output();
    let output = command.map_err(|error| format!("{}: {error}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("ptxas, {} for compute capability {architecture}: {said}", ptx.display()));
    }
    std::fs::rename(&aside, cubin).map_err(|error| format!("{}: {error}", cubin.display()))
}

#[cfg(not(feature = "cuda"))]
fn ptx() -> Result<(), Box<dyn Error>> {
    Ok(())
}
