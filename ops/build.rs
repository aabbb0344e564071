//! Compiles the kernels to PTX by nvcc under the feature `cuda`.

use std::error::Error;
use std::path::PathBuf;

/// The operations with kernels, in `src/<operation>/kernel.cu`; each is a module.
const OPERATIONS: [&str; 16] = [
    "attention",
    "batch_norm",
    "batch_norm_pool",
    "column_sums",
    "dice_ce",
    "elementwise",
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
        Ok(file)
    };
    OPERATIONS.iter().map(name).collect()
}

/// PTX of compute capability 8.0, which the driver compiles for every GPU since Ampere.
#[cfg(feature = "cuda")]
fn ptx() -> Result<(), Box<dyn Error>> {
    cudaforge::KernelBuilder::new()
        .source_files(named_sources("cu")?)
        .watch(sources())
        .compute_cap_arch("80")
        .args(["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Isrc"])
        .build_ptx()?
        .write(PathBuf::from(std::env::var("OUT_DIR")?).join("kernels.rs"))?;
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn ptx() -> Result<(), Box<dyn Error>> {
    Ok(())
}
