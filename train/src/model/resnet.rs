//! The side network: torchvision's ResNet-18 up to layer3, 13 convolutions on the main path, sixteen pixels to one.

use candle_core::{Result, Tensor, Var};
use sam_ladder_ops::batch_norm::{BatchNormParams, batch_norm_inference, batch_norm_train};
use sam_ladder_ops::batch_norm_pool::batch_norm_relu_max_pool;
use sam_ladder_ops::conv2d::conv2d;
use sam_ladder_ops::elementwise::add_relu;
use sam_ladder_ops::pool::max_pool2d_3x3_s2_p1;

use super::parameters::{Parameters, Trainable};
use super::{Mode, ModelError};

/// Layer number, channels in, channels out. Layer 1 keeps the resolution, the others halve it.
pub(super) const LAYERS: [(usize, usize, usize); 3] = [(1, 64, 64), (2, 64, 128), (3, 128, 256)];

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// `CNN_encoder` of the published model.
pub(super) struct ResNet {
    /// [64, 3, 7, 7]
    stem: Trainable,
    stem_norm: BatchNorm,
    blocks: Vec<BasicBlock>,
}

impl ResNet {
    pub(super) fn new(parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        let stem = parameters.trainable_tensor("CNN_encoder.conv1.weight")?;
        let stem_norm = BatchNorm::new("CNN_encoder.bn1", parameters)?;
        let mut blocks = Vec::new();
        for (layer, input, output) in LAYERS {
            for block in 0..2 {
                let prefix = format!("CNN_encoder.layer{layer}.{block}");
                let first = block == 0;
                let stride = if first && layer > 1 { 2 } else { 1 };
                blocks.push(BasicBlock::new(&prefix, stride, first && input != output, parameters)?);
            }
        }
        Ok(ResNet { stem, stem_norm, blocks })
    }

    /// `[b, c, s, s]` → `[b, 256, s/16, s/16]`
    ///
    /// The published model repeats the grey image to three channels; convolving one channel with the sum of the weight's three is
    /// the same, and so is the gradient, which each of the three then shares. Beside two channels the third would be zero: it is
    /// left out, with its part of the weight.
    pub(super) fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let weight = match images.dim(1)? {
            1 => self.stem.get(mode).sum_keepdim(1)?,
            channels => self.stem.get(mode).narrow(1, 0, channels)?,
        }; // [64, c, 7, 7]
        let x = conv2d(images, &weight, 2, 3)?; // [b, 64, s/2, s/2]
        let mut x = self.stem_norm.forward_and_pool(&x, mode)?; // [b, 64, s/4, s/4]
        for block in &self.blocks {
            x = block.forward(&x, mode)?;
        }
        Ok(x)
    }
}

/// Two 3×3 convolutions beside a shortcut.
struct BasicBlock {
    conv1: Trainable,
    bn1: BatchNorm,
    conv2: Trainable,
    bn2: BatchNorm,
    downsample: Option<(Trainable, BatchNorm)>,
    stride: usize,
}

impl BasicBlock {
    fn new(prefix: &str, stride: usize, downsample: bool, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(BasicBlock {
            conv1: parameters.trainable_tensor(&format!("{prefix}.conv1.weight"))?,
            bn1: BatchNorm::new(&format!("{prefix}.bn1"), parameters)?,
            conv2: parameters.trainable_tensor(&format!("{prefix}.conv2.weight"))?,
            bn2: BatchNorm::new(&format!("{prefix}.bn2"), parameters)?,
            downsample: if downsample {
                let weight = parameters.trainable_tensor(&format!("{prefix}.downsample.0.weight"))?;
                Some((weight, BatchNorm::new(&format!("{prefix}.downsample.1"), parameters)?))
            } else {
                None
            },
            stride,
        })
    }

    /// `[b, ci, h, w]` → `[b, co, h/stride, w/stride]`
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let y = conv2d(x, &self.conv1.get(mode), self.stride, 1)?;
        let y = self.bn1.forward(&y, mode, true)?;
        let y = conv2d(&y, &self.conv2.get(mode), 1, 1)?;
        let y = self.bn2.forward(&y, mode, false)?;
        let shortcut = match &self.downsample {
            Some((weight, norm)) => norm.forward(&conv2d(x, &weight.get(mode), self.stride, 0)?, mode, false)?,
            None => x.clone(),
        };
        add_relu(&y, &shortcut)
    }
}

/// Batch norm with running statistics.
struct BatchNorm {
    weight: Trainable,
    bias: Trainable,
    running_mean: Var,
    running_var: Var,
    num_batches_tracked: Var,
}

impl BatchNorm {
    fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(BatchNorm {
            weight: parameters.trainable_tensor(&format!("{prefix}.weight"))?,
            bias: parameters.trainable_tensor(&format!("{prefix}.bias"))?,
            running_mean: parameters.buffer(&format!("{prefix}.running_mean"))?,
            running_var: parameters.buffer(&format!("{prefix}.running_var"))?,
            num_batches_tracked: parameters.counter(&format!("{prefix}.num_batches_tracked"))?,
        })
    }

    /// `[b, c, h, w]` → the same, through ReLU if `relu`.
    fn forward(&self, x: &Tensor, mode: Mode, relu: bool) -> Result<Tensor> {
        match mode {
            Mode::Train => {
                let (y, statistics) = batch_norm_train(x, &self.weight.get(mode), &self.bias.get(mode), EPS, relu)?;
                self.follow(&statistics.mean, &statistics.var_unbiased)?;
                Ok(y)
            }
            Mode::Eval => {
                let params = BatchNormParams {
                    weight: &self.weight.get(mode),
                    bias: &self.bias.get(mode),
                    running_mean: &self.running_mean.as_detached_tensor(),
                    running_var: &self.running_var.as_detached_tensor(),
                    eps: EPS,
                };
                batch_norm_inference(x, &params, relu)
            }
        }
    }

    /// Through ReLU and max-pooling: `[b, c, h, w]` → `[b, c, h/2, w/2]`.
    fn forward_and_pool(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match mode {
            Mode::Train => {
                let (y, statistics) = batch_norm_relu_max_pool(x, &self.weight.get(mode), &self.bias.get(mode), EPS)?;
                self.follow(&statistics.mean, &statistics.var_unbiased)?;
                Ok(y)
            }
            Mode::Eval => max_pool2d_3x3_s2_p1(&self.forward(x, mode, true)?),
        }
    }

    /// running ← (1 - momentum)·running + momentum·batch
    fn follow(&self, mean: &Tensor, var_unbiased: &Tensor) -> Result<()> {
        for (running, batch) in [(&self.running_mean, mean), (&self.running_var, var_unbiased)] {
            let kept = running.as_detached_tensor().affine(1.0 - MOMENTUM, 0.0)?;
            running.set(&(kept + batch.detach().affine(MOMENTUM, 0.0)?)?)?;
        }
        self.num_batches_tracked.set(&(self.num_batches_tracked.as_detached_tensor() + 1.0)?)
    }
}
