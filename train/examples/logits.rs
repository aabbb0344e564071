//! Computes the logits of a store's test slices with a checkpoint in the published names, for cross-checks:
//! `logits CHECKPOINT STORE OUT.safetensors` writes `low_res_logits` `[slices, classes, s/4, s/4]`.

use candle_core::{Device, Tensor};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_formats::state_dict::save_safetensors;
use sam_ladder_schemas::classes::Split;
use sam_ladder_train::model::OfSam;
use sam_ladder_train::run::{BatchShape, input_tensors, rung_tensor};
use sam_ladder_train::{WeightSource, identity_variant, load_model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, store, out] = &arguments[..] else { return Err("usage: logits CHECKPOINT STORE OUT.safetensors".into()) };
    let store = Store::open(store)?;
    let model = load_model(&WeightSource::Checkpoint(checkpoint.into()), &store, &Device::Cpu)?;
    let identity = identity_variant(&store, Split::Test)?;
    let mut batch = if model.config().ladder.is_some() { Batch::with_rungs() } else { Batch::default() };
    let mut logits = Vec::new();
    for row in 0..store.slices(Split::Test).len() as u32 {
        store.read_batch_around(Split::Test, &[(row, identity)], &mut batch)?;
        let (neighbours, rungs) = (model.config().neighbours, model.config().ladder);
        let shape = BatchShape { neighbours, rungs, ..BatchShape::of(store.config()) };
        let (images, embeddings) = input_tensors(&batch, 1, shape, &Device::Cpu)?;
        let rungs = rung_tensor(&batch, 1, shape, &Device::Cpu)?;
        logits.push(model.forward(&images, OfSam { embeddings: &embeddings, rungs: rungs.as_ref() })?);
    }
    save_safetensors(out, &[("low_res_logits".into(), Tensor::cat(&logits, 0)?)])?;
    Ok(())
}
