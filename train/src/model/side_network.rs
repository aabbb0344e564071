//! The common interface of side networks: from images to embeddings of SAM's shape and, for the decoder's skips, the stages before them; and the
//! backward pass.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{Gradients, Tape, Value};
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::train::SideNetworkKind;
use sam_ladder_schemas::train_choices::DecoderKind;

use super::error::ModelError;
use super::ladder::{Ladder, Stage};
use super::names::Names;
use super::parameters::Parameters;
use super::resnet::{ResNet, ResNetKind, ResNetTape};
use super::side_output::{SideGradients, SideOutput};
use super::vit::{LADDER_STAGE, VitTiny, vit_names};

/// `CNN_encoder`: one of the side networks.
pub(super) enum SideNetwork {
    ResNet(ResNet),
    Vit(VitTiny),
}

/// What [`SideNetwork::backward`] needs of a forward pass.
pub(super) enum SideTape {
    ResNet(Box<ResNetTape>),
    /// The recorded operations, and their output.
    Vit(Tape, Value),
}

impl SideNetwork {
    /// For a decoder with skips, [`SideOutput::stages`] are there; only for those of which [`stage_channels`] are known. With `rungs` it takes these.
    pub(super) fn new(
        kind: SideNetworkKind,
        decoder: DecoderKind,
        rungs: Option<Rungs>,
        parameters: &mut Parameters,
    ) -> std::result::Result<Self, ModelError> {
        let ladder = rungs.map(|rungs| Ladder::new(rungs, ladder_stage(kind), parameters)).transpose()?;
        Ok(match resnet_kind(kind) {
            Some(kind) => SideNetwork::ResNet(ResNet::new(kind, decoder, ladder, parameters)?),
            None => SideNetwork::Vit(VitTiny::new(ladder, parameters)?),
        })
    }

    /// The rungs' part of it.
    pub(super) fn ladder(&self) -> Option<&Ladder> {
        match self {
            SideNetwork::ResNet(network) => network.ladder(),
            SideNetwork::Vit(network) => network.ladder(),
        }
    }

    /// Checks that images have one to three channels, and that rungs are there exactly if it takes them.
    fn check(&self, images: &Tensor, rungs: Option<&Tensor>) -> Result<()> {
        match images.dims4()?.1 {
            1..=3 => {}
            channels => candle_core::bail!("images have {channels} channels, expected 1 to 3"),
        }
        match (self.ladder(), rungs) {
            (None, None) => Ok(()),
            (Some(ladder), Some(rungs)) => ladder.check(rungs),
            (Some(_), None) => candle_core::bail!("the model takes rungs, and there are none"),
            (None, Some(_)) => candle_core::bail!("the model takes no rungs"),
        }
    }

    /// Of images `[b, c, s, s]`, and rungs `[b, rung, c, s/16, s/16]` if it takes them; by batch norm's running statistics.
    pub(super) fn forward(&self, images: &Tensor, rungs: Option<&Tensor>) -> Result<SideOutput> {
        self.check(images, rungs)?;
        match self {
            SideNetwork::ResNet(network) => network.forward(images, rungs),
            SideNetwork::Vit(network) => Ok(SideOutput { x: network.forward(images, rungs, None)?.into_tensor(), stages: None }),
        }
    }

    /// As [`Self::forward`], by the statistics of the batch; updates the running ones. Also returns the tape for [`Self::backward`].
    pub(super) fn forward_train(&self, images: &Tensor, rungs: Option<&Tensor>) -> Result<(SideOutput, SideTape)> {
        self.check(images, rungs)?;
        match self {
            SideNetwork::ResNet(network) => {
                let (output, tape) = network.forward_train(images, rungs)?;
                Ok((output, SideTape::ResNet(Box::new(tape))))
            }
            SideNetwork::Vit(network) => {
                let tape = Tape::default();
                let x = network.forward(images, rungs, Some(&tape))?;
                Ok((SideOutput { x: x.tensor().clone(), stages: None }, SideTape::Vit(tape, x)))
            }
        }
    }

    /// Adds the gradients of every variable to `grads`, given those of [`Self::forward_train`]'s output.
    pub(super) fn backward(&self, tape: SideTape, grad: SideGradients, grads: &mut Gradients) -> Result<()> {
        match (self, tape) {
            (SideNetwork::ResNet(network), SideTape::ResNet(tape)) => network.backward(*tape, grad, grads),
            (SideNetwork::Vit(_), SideTape::Vit(tape, x)) => {
                grads.extend(tape.backward(&x, grad.x)?);
                Ok(())
            }
            _ => candle_core::bail!("the tape is another network's"),
        }
    }
}

fn resnet_kind(kind: SideNetworkKind) -> Option<ResNetKind> {
    match kind {
        SideNetworkKind::Resnet18 => Some(ResNetKind::ResNet18),
        SideNetworkKind::Resnet34 => Some(ResNetKind::ResNet34),
        SideNetworkKind::Resnet50 => Some(ResNetKind::ResNet50),
        SideNetworkKind::VitTiny => None,
    }
}

/// Channels of layer1 and layer2, at a quarter and an eighth of the images' side; `None` for a network without such stages.
pub(super) fn stage_channels(kind: SideNetworkKind) -> Option<[usize; 2]> {
    resnet_kind(kind).map(ResNetKind::stage_channels)
}

/// The part of a network that takes rungs.
pub(super) fn ladder_stage(kind: SideNetworkKind) -> Stage {
    resnet_kind(kind).map_or(LADDER_STAGE, ResNetKind::ladder_stage)
}

/// Names and shapes of the network's tensors for a grid of `grid`×`grid` embeddings.
pub(super) fn side_network_names(list: &mut Names, kind: SideNetworkKind, grid: usize) {
    match resnet_kind(kind) {
        Some(kind) => kind.names(list),
        None => vit_names(list, grid),
    }
}
