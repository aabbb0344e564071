//! `sam-ladder doctor`: what this machine has, what will be used, and what is missing.

use super::device::DeviceChoice;
use crate::print::print_line;
use candle_core::{Device, Tensor};
use sam_ladder_formats::hash::sha256_of_file;
use sam_ladder_formats::placeholder;
use sam_ladder_ops::{F32Math, bf16_instructions, device as gpu, linear, vector_instructions};
use sam_ladder_precompute::disk::{free_bytes, in_words};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Names, sizes and hashes of the published weights, as `make weights` checks them.
const WEIGHTS: &str = include_str!("../../bench/weights.tsv");
/// The weights of the published model; the others are larger encoders.
const NEEDED: [&str; 2] = ["vit_b", "resnet18"];
/// Largest difference between a product on a GPU and on the CPU, of numbers in [-1, 1] and 64 terms.
const TOLERANCE: f32 = 1e-4;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder doctor
  sam-ladder doctor --weights /data/weights --disk /scratch
")]
pub struct Args {
    /// The device to try: auto, cpu or cuda:INDEX
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Folder of the published weights
    #[arg(long, value_name = "DIR", default_value = "weights")]
    weights: PathBuf,
    /// Folder in which stores and runs will be
    #[arg(long, value_name = "DIR", default_value = ".")]
    disk: PathBuf,
}

impl Args {
    /// Looks, and prints.
    pub fn run(self) -> anyhow::Result<()> {
        let (cores, name) = (std::thread::available_parallelism().map_or(1, usize::from), processor().unwrap_or_default());
        say(
            "program",
            &format!(
                "{}, {}",
                super::program(),
                if cfg!(feature = "cuda") { "for the CPU and NVIDIA GPUs" } else { "for the CPU only" }
            ),
        );
        say(
            "processor",
            &format!("{name}{}{}", if name.is_empty() { "" } else { ", " }, sam_ladder_schemas::counted::counted(cores, "core")),
        );
        say("", &format!("vector instructions used: {}", vector_instructions()));
        say(
            "",
            &format!("--precision bf16: {}", bf16_instructions().map_or("not on this processor".into(), |by| format!("by {by}"))),
        );
        let memory = |field| memory(&meminfo(), field).map_or("unknown".into(), in_words);
        say("memory", &format!("{}, {} available", memory("MemTotal:"), memory("MemAvailable:")));
        say(
            "disk",
            &format!("{} free in {}", free_bytes(&self.disk).map_or("an unknown size is".into(), in_words), self.disk.display()),
        );
        self.gpu()?;
        for (i, library) in libraries(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default()).iter().enumerate() {
            say(if i == 0 { "libraries" } else { "" }, library);
        }
        for line in WEIGHTS.lines().filter_map(Weights::parse) {
            let (found, advice) = line.look(&self.weights);
            say("weights", &found);
            if let Some(advice) = advice {
                say("", &advice);
            }
        }
        Ok(())
    }

    /// The GPUs that the driver shows, the device that will be used, and whether it computes what the CPU does.
    fn gpu(&self) -> anyhow::Result<()> {
        let shown = nvidia_gpus(Path::new("/proc/driver/nvidia/gpus"));
        match &*shown {
            [] => say("GPU", "none that an NVIDIA driver shows"),
            all => all.iter().for_each(|name| say("GPU", name)),
        }
        if !shown.is_empty() && !cfg!(feature = "cuda") {
            say("", "not used: this program is for the CPU only; `make build FEATURES=cuda` makes one for the GPU");
        }
        let device = self.device.open()?;
        let Some(memory) = gpu::memory(&device)? else {
            say(
                "device",
                if bf16_instructions().is_some() {
                    "the CPU, with --precision f32 or bf16"
                } else {
                    "the CPU, with --precision f32"
                },
            );
            return Ok(());
        };
        say("device", &format!("a GPU with {}, {} free", in_words(memory.total), in_words(memory.free)));
        if !agrees(&device)? {
            anyhow::bail!("a matrix product on the GPU is not the CPU's, within {TOLERANCE}");
        }
        say("", "a matrix product on it agrees with the CPU's");
        Ok(())
    }
}

/// A line of the report; lines without a name belong to the one above.
fn say(name: &str, text: &str) {
    print_line!("{name:<10} {text}");
}

/// Whether a product on the device is the CPU's, within [`TOLERANCE`]; NaN is not.
fn agrees(device: &Device) -> candle_core::Result<bool> {
    let [x, weight] = [1.0, 2.0].map(|seed: f32| {
        let values = (0..64 * 64).map(|i| (seed * i as f32).sin()).collect::<Vec<_>>();
        Tensor::from_vec(values, (64, 64), &Device::Cpu)
    });
    let (x, weight) = (x?, weight?);
    let product = |device: &Device| {
        let y = linear(&x.to_device(device)?.into(), &weight.to_device(device)?.into(), None, F32Math::Exact)?;
        y.tensor().to_device(&Device::Cpu)
    };
    let differences = (product(&Device::Cpu)? - product(device)?)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(differences.iter().all(|difference| difference.abs() <= TOLERANCE))
}

/// The processor's name, where Linux says it.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

fn meminfo() -> String {
    std::fs::read_to_string("/proc/meminfo").unwrap_or_default()
}

/// Bytes of a field of `/proc/meminfo`.
fn memory(meminfo: &str, field: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Names of the GPUs that NVIDIA's driver lists in this folder.
fn nvidia_gpus(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = (std::fs::read_dir(folder).into_iter().flatten().flatten())
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("information")).ok())
        .filter_map(|text| Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_string()))
        .collect();
    names.sort();
    names
}

/// NVIDIA's libraries that a process has loaded, by its `/proc/self/maps`: it says which of several installations is used.
fn libraries(maps: &str) -> BTreeSet<&str> {
    const OF_NVIDIA: [&str; 7] = ["libcuda.", "libcudart.", "libcublas.", "libcublasLt.", "libcudnn.", "libcurand.", "libnvrtc."];
    let name = |path: &str| path.rsplit('/').next().is_some_and(|name| OF_NVIDIA.iter().any(|start| name.starts_with(start)));
    maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).filter(|path| name(path)).collect()
}

/// A file of published weights.
struct Weights<'a> {
    name: &'a str,
    bytes: u64,
    sha256: &'a str,
    file: &'a str,
}

impl<'a> Weights<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut columns = line.split('\t').filter(|_| !line.starts_with('#'));
        let (name, bytes, sha256, url) = (columns.next()?, columns.next()?, columns.next()?, columns.next()?);
        Some(Self { name, bytes: bytes.parse().ok()?, sha256, file: url.rsplit('/').next()? })
    }

    /// What is found in a folder, and what to do about it.
    fn look(&self, folder: &Path) -> (String, Option<String>) {
        let path = folder.join(self.file);
        let make = match self.name.strip_prefix("vit_") {
            Some(_) => format!("`make weights MODEL={}` downloads it", self.name),
            None => "`make weights` downloads it".to_string(),
        };
        if let Err(error) = placeholder::refuse(&path) {
            return (error.to_string(), error.hint());
        }
        let bytes = match std::fs::metadata(&path) {
            Ok(found) => found.len(),
            Err(_) if NEEDED.contains(&self.name) => return (format!("{} is missing", path.display()), Some(make)),
            Err(_) => return (format!("{} is not there, which only the larger encoder needs", path.display()), None),
        };
        if bytes != self.bytes {
            let text = format!("{} has {bytes} bytes, the published file has {}", path.display(), self.bytes);
            return (text, Some(make));
        }
        match sha256_of_file(&path, |_| ()) {
            Ok(found) if found == self.sha256 => (format!("{} is the published file", path.display()), None),
            Ok(found) => {
                (format!("{} has the SHA-256 {found}, the published file has {}", path.display(), self.sha256), Some(make))
            }
            Err(error) => (error.to_string(), error.hint()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_compared_with_what_was_published() {
        let all: Vec<Weights> = WEIGHTS.lines().filter_map(Weights::parse).collect();
        assert_eq!(all.iter().map(|weights| weights.name).collect::<Vec<_>>(), ["vit_b", "vit_l", "vit_h", "resnet18"]);
        let folder = tempfile::tempdir().unwrap();
        let (missing, advice) = all[0].look(folder.path());
        assert!(missing.ends_with("sam_vit_b_01ec64.pth is missing") && advice.unwrap().contains("MODEL=vit_b"), "{missing}");
        assert!(all[2].look(folder.path()).0.ends_with("which only the larger encoder needs"));
        // FIPS 180-2, appendix B.1.
        let abc = Weights {
            name: "abc",
            bytes: 3,
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            file: "abc.pth",
        };
        let write = |text| std::fs::write(folder.path().join("abc.pth"), text).unwrap();
        write("abc");
        assert!(abc.look(folder.path()).0.ends_with("is the published file"));
        write("abd");
        assert!(abc.look(folder.path()).0.contains("has the SHA-256"));
        write("abcd");
        assert!(abc.look(folder.path()).0.ends_with("has 4 bytes, the published file has 3"));
    }

    #[test]
    fn libraries_are_those_that_are_loaded() {
        let maps = "\
7f01-7f02 r--p 00000000 fe:00 12 /opt/nvidia/cu13/lib/libcublas.so.13
7f02-7f03 r-xp 00001000 fe:00 12 /opt/nvidia/cu13/lib/libcublas.so.13
7f03-7f04 r--p 00000000 fe:00 13 /opt/a folder/libcudnn.so.9
7f04-7f05 r--p 00000000 fe:00 14 /lib/x86_64-linux-gnu/libc.so.6
7f05-7f06 rw-p 00000000 00:00 0
7f06-7f07 rw-p 00000000 00:00 0  [stack]
";
        let found: Vec<_> = libraries(maps).into_iter().collect();
        assert_eq!(found, ["/opt/a folder/libcudnn.so.9", "/opt/nvidia/cu13/lib/libcublas.so.13"]);
    }

    #[test]
    fn linuxs_files_are_read() {
        assert_eq!(memory("MemTotal:       1000 kB\nMemAvailable:    200 kB\n", "MemAvailable:"), Some(204_800));
        assert_eq!(memory("", "MemTotal:"), None);
        let folder = tempfile::tempdir().unwrap();
        assert!(nvidia_gpus(&folder.path().join("nowhere")).is_empty());
        let gpu = folder.path().join("0000:17:00.0");
        std::fs::create_dir(&gpu).unwrap();
        std::fs::write(gpu.join("information"), "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 16\n").unwrap();
        assert_eq!(nvidia_gpus(folder.path()), ["NVIDIA H100 80GB HBM3"]);
    }
}
