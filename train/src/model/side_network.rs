//! The common interface of side networks: from images to embeddings of SAM's shape and, for the decoder's skips, the stages before them; and the
//! backward pass.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{Gradients, Tape, Value};
use sam_ladder_schemas::train::SideNetworkKind;

use super::error::ModelError;
use super::names::Names;
use super::parameters::Parameters;
use super::resnet::{ResNet, ResNetKind, ResNetTape};
use super::side_output::{SideGradients, SideOutput};
use super::vit::{VitTiny, vit_names};

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
    /// With `stages`, [`SideOutput::stages`] are there; only for those of which [`stage_channels`] are known.
    pub(super) fn new(kind: SideNetworkKind, stages: bool, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(match resnet_kind(kind) {
            Some(kind) => SideNetwork::ResNet(ResNet::new(kind, stages, parameters)?),
            None => SideNetwork::Vit(VitTiny::new(parameters)?),
        })
    }

    /// Of images `[b, c, s, s]`, by batch norm's running statistics.
    pub(super) fn forward(&self, images: &Tensor) -> Result<SideOutput> {
        check_channels(images)?;
        match self {
            SideNetwork::ResNet(network) => network.forward(images),
            SideNetwork::Vit(network) => Ok(SideOutput { x: network.forward(images, None)?.into_tensor(), stages: None }),
        }
    }

    /// As [`Self::forward`], by the statistics of the batch; updates the running ones. Also returns the tape for [`Self::backward`].
    pub(super) fn forward_train(&self, images: &Tensor) -> Result<(SideOutput, SideTape)> {
        check_channels(images)?;
        match self {
            SideNetwork::ResNet(network) => {
                let (output, tape) = network.forward_train(images)?;
                Ok((output, SideTape::ResNet(Box::new(tape))))
            }
            SideNetwork::Vit(network) => {
                let tape = Tape::default();
                let x = network.forward(images, Some(&tape))?;
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

fn check_channels(images: &Tensor) -> Result<()> {
    match images.dims4()?.1 {
        1..=3 => Ok(()),
        channels => candle_core::bail!("images have {channels} channels, expected 1 to 3"),
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

/// Names and shapes of the network's tensors for a grid of `grid`×`grid` embeddings.
pub(super) fn side_network_names(list: &mut Names, kind: SideNetworkKind, grid: usize) {
    match resnet_kind(kind) {
        Some(kind) => kind.names(list),
        None => vit_names(list, grid),
    }
}
