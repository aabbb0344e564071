//! The common interface of side networks: from images to embeddings of SAM's shape, and the backward pass.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{Gradients, Tape, Value};
use sam_ladder_schemas::train::SideNetworkKind;

use super::error::ModelError;
use super::names::Names;
use super::parameters::Parameters;
use super::resnet::{ResNet, ResNetKind, ResNetTape};
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
    pub(super) fn new(kind: SideNetworkKind, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(match resnet_kind(kind) {
            Some(kind) => SideNetwork::ResNet(ResNet::new(kind, parameters)?),
            None => SideNetwork::Vit(VitTiny::new(parameters)?),
        })
    }

    /// `[b, c, s, s]` → `[b, 256, s/16, s/16]`, by batch norm's running statistics.
    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        check_channels(images)?;
        match self {
            SideNetwork::ResNet(network) => network.forward(images),
            SideNetwork::Vit(network) => network.forward(images, None).map(Value::into_tensor),
        }
    }

    /// As [`Self::forward`], by the statistics of the batch; updates the running ones. Returns a tensor without graph, and the tape for
    /// [`Self::backward`].
    pub(super) fn forward_train(&self, images: &Tensor) -> Result<(Tensor, SideTape)> {
        check_channels(images)?;
        match self {
            SideNetwork::ResNet(network) => {
                let (x, tape) = network.forward_train(images)?;
                Ok((x, SideTape::ResNet(Box::new(tape))))
            }
            SideNetwork::Vit(network) => {
                let tape = Tape::default();
                let x = network.forward(images, Some(&tape))?;
                Ok((x.tensor().clone(), SideTape::Vit(tape, x)))
            }
        }
    }

    /// Adds the gradients of every variable to `grads`, given that of [`Self::forward_train`]'s output.
    pub(super) fn backward(&self, tape: SideTape, grad: Tensor, grads: &mut Gradients) -> Result<()> {
        match (self, tape) {
            (SideNetwork::ResNet(network), SideTape::ResNet(tape)) => network.backward(*tape, grad, grads),
            (SideNetwork::Vit(_), SideTape::Vit(tape, x)) => {
                grads.extend(tape.backward(&x, grad)?);
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

/// Names and shapes of the network's tensors for a grid of `grid`×`grid` embeddings.
pub(super) fn side_network_names(list: &mut Names, kind: SideNetworkKind, grid: usize) {
    match resnet_kind(kind) {
        Some(kind) => kind.names(list),
        None => vit_names(list, grid),
    }
}
