//! Which weights a model needs.

use std::collections::HashSet;

use sam_ladder_schemas::sam_names::{mask_decoder_tensors, prompt_encoder_tensors};

use super::depth_mix::depth_mix_names;
use super::error::ModelError;
use super::gate::gate_names;
use super::ladder::ladder_names;
use super::names::{EMBED_DIM, Names};
use super::projection::{EMBEDDING_PROJECTION, projection_names};
use super::side_network::{ladder_stage, side_network_names};
use super::skips::skip_names;
use super::weights::ModelWeights;
use super::{ModelConfig, PATCH_SIZE};

impl ModelWeights {
    /// Every tensor that [`LadderSam`](super::LadderSam) needs, by name and shape, in the published model's order. A choice that is
    /// not the published one has names of its own for what the published model lacks.
    ///
    /// Names that end in `num_batches_tracked` are i64 scalars, everything else is f32.
    pub fn expected(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let mut list = Names::default();
        gate_names(&mut list, config.gate);
        if config.neighbours {
            depth_mix_names(&mut list, config.embed_channels);
        }
        if config.projects_embeddings() {
            projection_names(&mut list, EMBEDDING_PROJECTION, [config.embed_channels, EMBED_DIM]);
        }
        let sam = prompt_encoder_tensors().into_iter().chain(mask_decoder_tensors(config.num_classes));
        list.0.extend(sam.map(|(name, shape)| (format!("sam.{name}"), shape)));
        skip_names(&mut list, config.decoder, config.side_network);
        side_network_names(&mut list, config.side_network, config.image_size / PATCH_SIZE);
        if let Some(rungs) = config.ladder {
            ladder_names(&mut list, rungs, ladder_stage(config.side_network));
        }
        list.0
    }

    /// Checks that the names and shapes are exactly those of [`Self::expected`].
    ///
    /// # Errors
    /// The first name that is missing, superfluous or of another shape.
    pub fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let expected = Self::expected(config);
        for (name, shape) in &expected {
            let tensor = self.0.get(name).ok_or_else(|| ModelError::Missing(name.clone()))?;
            if tensor.dims() != shape.as_slice() {
                return Err(ModelError::Shape { name: name.clone(), expected: shape.clone(), found: tensor.dims().to_vec() });
            }
        }
        if self.0.len() != expected.len() {
            let known: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
            if let Some(extra) = self.0.keys().find(|name| !known.contains(name.as_str())) {
                return Err(ModelError::Extra(extra.clone()));
            }
        }
        Ok(())
    }
}
