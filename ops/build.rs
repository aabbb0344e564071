//! Compiles the kernels: to PTX by nvcc under the feature `cuda`, for the host by a C++ compiler under `emulate-kernels`.

use std::error::Error;

/// The sources of the kernels, each a module of its own.
const KERNELS: [&str; 10] = [
    "src/attention/attention.cu",
    "src/attention/rel_pos.cu",
    "src/batch_norm.cu",
    "src/conv_transpose.cu",
    "src/dice_ce.cu",
    "src/elementwise.cu",
    "src/gather.cu",
    "src/norm.cu",
    "src/optimizer.cu",
    "src/pool.cu",
];
/// What they include.
const SHARED: [&str; 3] = ["src/device/common.cuh", "src/device/emulation.h", "src/device/emulation.cpp"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in KERNELS.iter().chain(&SHARED) {
        println!("cargo::rerun-if-changed={file}");
    }
    ptx()?;
    emulated();
    Ok(())
}

/// PTX of compute capability 8.0, which the driver of every GPU from Ampere on compiles for its own.
#[cfg(feature = "cuda")]
fn ptx() -> Result<(), Box<dyn Error>> {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("kernels.rs");
    let options = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Isrc"];
    cudaforge::KernelBuilder::new()
        .source_files(KERNELS)
        .watch([SHARED[0]])
        .compute_cap_arch("80")
        .args(options)
        .build_ptx()?
        .write(out)?;
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn ptx() -> Result<(), Box<dyn Error>> {
    Ok(())
}

#[cfg(feature = "emulate-kernels")]
fn emulated() {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .include("src")
        .opt_level(2)
        .flag("-fno-strict-aliasing")
        .flag("-ffp-contract=off")
        .warnings(false);
    build.file(SHARED[2]);
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    for kernel in KERNELS {
        // A compiler knows C++ by the file's name.
        let path = format!("{out}/{}.cpp", kernel.replace('/', "_").replace(".cu", ""));
        let folder = kernel.rsplit_once('/').map_or("", |(folder, _)| folder);
        let source = format!("#include \"{}/{kernel}\"\n", std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
        if std::fs::write(&path, source).is_ok() {
            build.include(folder).file(path);
        }
    }
    // Kernels register themselves when the program starts: none of them may be left out by the linker.
    build.link_lib_modifier("+whole-archive");
    build.compile("sam_ladder_emulated_kernels");
}

#[cfg(not(feature = "emulate-kernels"))]
fn emulated() {}
