//! `--ladder gated`: tokens of SAM's encoder after some of its blocks, the rungs, are mixed into the side network, as in ladder side-tuning
//! (Sung et al., "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", 2022):
//!
//! ```text
//! h = μ·P(rung) + (1 - μ)·h      μ = sigmoid(α)
//! ```
//!
//! All rungs have the resolution of the embeddings. So h are outputs of blocks of a ResNet's layer3, or the patches' tokens after blocks of
//! `vit-tiny`. The rungs, in the order of the encoder's depth, are spread over these blocks, so that as many as possible follow each
//! ([`place`]). P is a 1×1 convolution where rung and stage differ in width, otherwise nothing.
//!
//! Names are ours: `CNN_encoder.ladder.<block of the encoder>.alpha` `[1]`, which starts at 0 (μ = ½), and `….projection.{weight,bias}`,
//! which start at random values.

use candle_core::{Result, Tensor, bail};
use sam_ladder_ops::{Gradients, Tape, Value, add, contiguous, mix, sigmoid};
use sam_ladder_schemas::rungs::Rungs;

use super::error::ModelError;
use super::names::Names;
use super::parameters::{Parameters, Trainable};
use super::projection::{Projection, projection_names};

/// The part of a side network that takes rungs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stage {
    /// Its channels.
    pub(super) width: usize,
    /// Its blocks.
    pub(super) depth: usize,
}

/// The block after which rung `rung` of `count` is mixed in: of a stage of twelve blocks and four rungs 0, 3, 6 and 9, of one of two blocks
/// 0, 0, 1 and 1.
fn place(rung: usize, count: usize, depth: usize) -> usize {
    rung * depth / count
}

fn prefix(block: usize) -> String {
    format!("CNN_encoder.ladder.{block}")
}

/// The rungs of a side network.
pub(super) struct Ladder {
    rungs: Vec<Rung>,
    /// Channels of each.
    channels: usize,
}

struct Rung {
    /// Block of the stage.
    place: usize,
    /// [1]
    alpha: Trainable,
    projection: Option<Projection>,
}

impl Ladder {
    pub(super) fn new(rungs: Rungs, stage: Stage, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        let rung = |(at, block): (usize, usize)| -> std::result::Result<Rung, ModelError> {
            let prefix = prefix(block);
            let projection = match rungs.channels() == stage.width {
                true => None,
                false => Some(Projection::new(&format!("{prefix}.projection"), parameters)?),
            };
            let alpha = parameters.trainable_tensor(&format!("{prefix}.alpha"))?;
            Ok(Rung { place: place(at, rungs.count(), stage.depth), alpha, projection })
        };
        Ok(Ladder {
            rungs: rungs.blocks().enumerate().map(rung).collect::<std::result::Result<_, _>>()?,
            channels: rungs.channels(),
        })
    }

    /// Checks that there are as many rungs, and as wide, `[b, rung, c, g, g]`.
    pub(super) fn check(&self, rungs: &Tensor) -> Result<()> {
        let (_, count, channels, _, _) = rungs.dims5()?;
        if (count, channels) != (self.rungs.len(), self.channels) {
            bail!("expected {} rungs of {} channels, found {:?}", self.rungs.len(), self.channels, rungs.dims());
        }
        Ok(())
    }

    /// Whether rungs are mixed in after a block of the stage.
    pub(super) fn is_at(&self, block: usize) -> bool {
        self.rungs.iter().any(|rung| rung.place == block)
    }

    /// The output `[b, width, g, g]` of a block of the stage with its rungs, of `rungs` `[b, rung, c, g, g]`.
    pub(super) fn mix(&self, block: usize, x: &Value, rungs: &Tensor, tape: Option<&Tape>) -> Result<Value> {
        self.mix_shaped(block, x, rungs, tape, |rung| Ok(rung.clone()))
    }

    /// As [`Self::mix`], for tokens `[b, g·g, width]`.
    pub(super) fn mix_tokens(&self, block: usize, x: &Value, rungs: &Tensor, tape: Option<&Tape>) -> Result<Value> {
        let (b, tokens, width) = x.tensor().dims3()?;
        self.mix_shaped(block, x, rungs, tape, |rung| rung.reshape((b, width, tokens))?.permute(&[0, 2, 1]))
    }

    fn mix_shaped(
        &self,
        block: usize,
        x: &Value,
        rungs: &Tensor,
        tape: Option<&Tape>,
        shaped: impl Fn(&Value) -> Result<Value>,
    ) -> Result<Value> {
        let mut x = x.clone();
        for (at, rung) in self.rungs.iter().enumerate().filter(|(_, rung)| rung.place == block) {
            let stored: Value = contiguous(&rungs.narrow(1, at, 1)?.squeeze(1)?)?.into();
            let projected = match &rung.projection {
                Some(projection) => projection.forward_on(&stored, tape)?,
                None => stored,
            };
            x = mix(&shaped(&projected)?, &x, &rung.alpha.on(tape))?;
        }
        Ok(x)
    }

    /// α of each rung, `[1]` on the device, without waiting for it.
    pub(super) fn alphas(&self) -> impl Iterator<Item = Tensor> {
        self.rungs.iter().map(|rung| rung.alpha.tensor())
    }

    /// μ of each rung.
    pub(super) fn gates(&self) -> Result<Vec<f32>> {
        sigmoid(&Tensor::cat(&self.alphas().collect::<Vec<_>>(), 0)?)?.to_vec1()
    }
}

/// A recorded mixture, for networks that have no tape of [`Value`]s.
pub(super) struct Mixed {
    /// What rungs were mixed into.
    input: Tensor,
    tape: Tape,
    output: Value,
}

impl Mixed {
    /// Records [`Ladder::mix`].
    pub(super) fn new(ladder: &Ladder, block: usize, input: &Tensor, rungs: &Tensor) -> Result<Self> {
        let tape = Tape::default();
        let output = ladder.mix(block, &tape.leaf(input), rungs, Some(&tape))?;
        Ok(Mixed { input: input.clone(), tape, output })
    }

    pub(super) fn output(&self) -> &Tensor {
        self.output.tensor()
    }

    /// The input's gradient, given the output's in one or two parts; those of gates and projections go to `gradients`.
    pub(super) fn backward(self, gradient: (Tensor, Option<Tensor>), gradients: &mut Gradients) -> Result<Tensor> {
        let sum = match gradient {
            (one, None) => one,
            (one, Some(other)) => add(&one, &other)?,
        };
        let mut found = self.tape.backward(&self.output, sum)?;
        let Some(of_input) = found.remove(&self.input) else { bail!("a mixture's input has no gradient") };
        gradients.extend(found);
        Ok(of_input)
    }
}

/// Names and shapes of the rungs' gates and projections.
pub(super) fn ladder_names(list: &mut Names, rungs: Rungs, stage: Stage) {
    for block in rungs.blocks() {
        let prefix = prefix(block);
        if rungs.channels() != stage.width {
            projection_names(list, &format!("{prefix}.projection"), [rungs.channels(), stage.width]);
        }
        list.add(format!("{prefix}.alpha"), &[1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_are_spread_over_the_blocks_in_order() {
        let places = |count: usize, depth: usize| (0..count).map(|rung| place(rung, count, depth)).collect::<Vec<_>>();
        assert_eq!(places(4, 2), [0, 0, 1, 1]);
        assert_eq!(places(4, 6), [0, 1, 3, 4]);
        assert_eq!(places(4, 12), [0, 3, 6, 9]);
        assert_eq!(places(1, 2), [0]);
        assert_eq!(places(3, 2), [0, 0, 1]);
        assert_eq!(places(12, 12), (0..12).collect::<Vec<_>>());
    }
}
