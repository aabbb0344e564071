//! Names and shapes of the model's tensors, as each of its parts lists its own.

/// Channels of SAM's image embeddings and width of the mask decoder's tokens.
pub(super) use sam_ladder_schemas::encoder::EMBED_CHANNELS as EMBED_DIM;

/// A growing list of names and shapes.
#[derive(Default)]
pub(super) struct Names(pub(super) Vec<(String, Vec<usize>)>);

impl Names {
    pub(super) fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push((name.into(), shape.to_vec()));
    }

    /// `weight` of this shape and `bias` of its first axis.
    pub(super) fn add_affine(&mut self, prefix: &str, shape: &[usize]) {
        self.add(format!("{prefix}.weight"), shape);
        self.add(format!("{prefix}.bias"), &shape[..1]);
    }
}
