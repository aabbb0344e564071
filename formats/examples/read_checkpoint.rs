//! Reads a checkpoint: `cargo run -p sam-ladder-formats --example read_checkpoint -- weights.pth` lists its tensors and their shapes.
//! Without an argument it writes a small checkpoint first.

use candle_core::{DType, Device, Tensor};
use sam_ladder_formats::state_dict::{StateDict, save_pth};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1) {
        Some(path) => show(Path::new(&path)),
        None => show_small(),
    }
}

fn show(path: &Path) -> Result<(), Box<dyn Error>> {
    // Names and shapes are read now, a tensor's data only by `tensor`.
    let state = StateDict::open(path)?;
    for name in state.names() {
        println!("{name}: {:?}", state.shape(name).unwrap_or_default());
    }
    if let Some(name) = state.names().next() {
        let mean = state.tensor(name, &Device::Cpu)?.mean_all()?.to_scalar::<f32>()?;
        println!("mean of {name}: {mean}");
    }
    Ok(())
}

fn show_small() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("small.pth");
    let weight = Tensor::arange(0f32, 6.0, &Device::Cpu)?.reshape((2, 3))?;
    save_pth(&path, &[("layer.weight".into(), weight), ("layer.bias".into(), Tensor::zeros(2, DType::F32, &Device::Cpu)?)])?;
    show(&path)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_checkpoint_is_shown() {
        super::show_small().unwrap();
    }
}
