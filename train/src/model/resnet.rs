//! The side network: torchvision's ResNet-18 up to layer3, 13 convolutions on the main path, sixteen pixels to one.
//!
//! In training it keeps a tape of its own instead of candle's graph: the results of the convolutions and of the blocks, and nothing else.
//! The normalised activations between a block's convolutions are made again on the way back, each tensor is dropped as soon as the way
//! back is past it, and no gradient is summed into zeros first.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use sam_ladder_ops::batch_norm::{
    BatchNormGradients, BatchNormParams, BatchStatistics, Tail, batch_norm_inference, batch_statistics, normalize,
    normalize_backward,
};
use sam_ladder_ops::batch_norm_pool::{normalize_relu_max_pool, normalize_relu_max_pool_backward};
use sam_ladder_ops::conv2d::{conv2d, conv2d_backward_input, conv2d_backward_weight};
use sam_ladder_ops::elementwise::{add_relu, relu_backward, relu_backward_sum};
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

    /// `[b, c, s, s]` → `[b, 256, s/16, s/16]`, by the running statistics.
    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let x = conv2d(images, &self.stem_weight(images)?, 2, 3)?;
        let mut x = max_pool2d_3x3_s2_p1(&self.stem_norm.infer(&x, true)?)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        Ok(x)
    }

    /// As [`Self::forward`] by the statistics of the batch, which the running ones follow; with the way back.
    pub(super) fn forward_train(&self, images: &Tensor) -> Result<(Tensor, Tape)> {
        let stem = self.stem_norm.normalized(conv2d(images, &self.stem_weight(images)?, 2, 3)?)?; // [b, 64, s/2, s/2]
        let (weight, bias) = self.stem_norm.parameters();
        let mut x = normalize_relu_max_pool(&stem.x, &stem.statistics, &weight, &bias)?; // [b, 64, s/4, s/4]
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let tape = block.forward_train(x)?;
            x = tape.out.clone();
            blocks.push(tape);
        }
        Ok((x, Tape { images: images.clone(), stem, blocks }))
    }

    /// Adds the gradients of every variable to `grads`, from that of [`Self::forward_train`]'s result.
    pub(super) fn backward(&self, tape: Tape, grad: Tensor, grads: &mut GradStore) -> Result<()> {
        let Tape { images, stem, mut blocks } = tape;
        let mut grad = (grad, None);
        for block in self.blocks.iter().rev() {
            let Some(tape) = blocks.pop() else { candle_core::bail!("the tape has fewer blocks than the network") };
            grad = block.backward(tape, grad, grads)?;
        }
        let grad = match grad {
            (grad, Some(shortcut)) => (grad + shortcut)?,
            (grad, None) => grad,
        };
        let (weight, bias) = self.stem_norm.parameters();
        let found = normalize_relu_max_pool_backward(&stem.x, &stem.statistics, &weight, &bias, &grad)?;
        drop((stem, grad));
        let grad = self.stem_norm.keep(found, grads);
        let grad = conv2d_backward_weight(&images, &grad, 7, 2, 3)?;
        grads.insert(self.stem.var(), self.stem_gradient(grad)?);
        Ok(())
    }

    /// `[64, c, 7, 7]`: the published model repeats the grey image to three channels; convolving one channel with the sum of the weight's
    /// three is the same, and so is the gradient, which each of the three then shares. Beside two channels the third would be zero: it
    /// is left out, with its part of the weight.
    fn stem_weight(&self, images: &Tensor) -> Result<Tensor> {
        let weight = self.stem.get(Mode::Eval);
        match images.dim(1)? {
            1 => weight.sum_keepdim(1),
            channels => weight.narrow(1, 0, channels),
        }
    }

    /// The gradient of the stem's weight from that of [`Self::stem_weight`].
    fn stem_gradient(&self, grad: Tensor) -> Result<Tensor> {
        let shape = self.stem.var().shape();
        match grad.dim(1)? {
            1 => grad.broadcast_as(shape)?.contiguous(),
            channels => grad.pad_with_zeros(1, 0, shape.dims()[1] - channels),
        }
    }
}

/// What [`ResNet::backward`] needs of a forward pass.
pub(super) struct Tape {
    /// [b, c, s, s]
    images: Tensor,
    stem: Normalized,
    blocks: Vec<BlockTape>,
}

/// What batch norm takes in, with its statistics.
struct Normalized {
    x: Tensor,
    statistics: BatchStatistics,
}

/// What a block keeps.
struct BlockTape {
    x: Tensor,
    conv1: Normalized,
    conv2: Normalized,
    downsample: Option<Normalized>,
    out: Tensor,
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

    /// `[b, ci, h, w]` → `[b, co, h/stride, w/stride]`, by the running statistics.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.bn1.infer(&conv2d(x, &self.conv1.get(Mode::Eval), self.stride, 1)?, true)?;
        let y = self.bn2.infer(&conv2d(&y, &self.conv2.get(Mode::Eval), 1, 1)?, false)?;
        match &self.downsample {
            Some((weight, norm)) => add_relu(&y, &norm.infer(&conv2d(x, &weight.get(Mode::Eval), self.stride, 0)?, false)?),
            None => add_relu(&y, x),
        }
    }

    /// As [`Self::forward`] by the statistics of the batch.
    fn forward_train(&self, x: Tensor) -> Result<BlockTape> {
        let conv1 = self.bn1.normalized(conv2d(&x, &self.conv1.get(Mode::Eval), self.stride, 1)?)?;
        let y = self.bn1.forward(&conv1, Tail::Relu)?;
        let conv2 = self.bn2.normalized(conv2d(&y, &self.conv2.get(Mode::Eval), 1, 1)?)?;
        drop(y);
        let mut downsample = None;
        let shortcut = match &self.downsample {
            Some((weight, norm)) => {
                let conv = downsample.insert(norm.normalized(conv2d(&x, &weight.get(Mode::Eval), self.stride, 0)?)?);
                norm.forward(conv, Tail::None)?
            }
            None => x.clone(),
        };
        let out = self.bn2.forward(&conv2, Tail::AddRelu(&shortcut))?;
        Ok(BlockTape { x, conv1, conv2, downsample, out })
    }

    /// The gradient of the input from that of the result; each is the sum of two where there is a second, that of the shortcut.
    fn backward(
        &self,
        tape: BlockTape,
        grad: (Tensor, Option<Tensor>),
        grads: &mut GradStore,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let BlockTape { x, conv1, conv2, downsample, out } = tape;
        let (_, _, h, w) = x.dims4()?;
        let sum_grad = match grad {
            (a, Some(b)) => relu_backward_sum(&out, &a, &b)?,
            (a, None) => relu_backward(&out, &a)?,
        };
        drop(out);
        let grad = self.bn2.backward(conv2, false, &sum_grad, grads)?;
        let y = self.bn1.forward(&conv1, Tail::Relu)?;
        let (_, _, yh, yw) = y.dims4()?;
        grads.insert(self.conv2.var(), conv2d_backward_weight(&y, &grad, 3, 1, 1)?);
        drop(y);
        let grad = conv2d_backward_input(&grad, &self.conv2.get(Mode::Eval), (yh, yw), 1, 1)?;
        let grad = self.bn1.backward(conv1, true, &grad, grads)?;
        grads.insert(self.conv1.var(), conv2d_backward_weight(&x, &grad, 3, self.stride, 1)?);
        let main = conv2d_backward_input(&grad, &self.conv1.get(Mode::Eval), (h, w), self.stride, 1)?;
        drop(grad);
        let shortcut = match (&self.downsample, downsample) {
            (Some((weight, norm)), Some(conv)) => {
                let grad = norm.backward(conv, false, &sum_grad, grads)?;
                grads.insert(weight.var(), conv2d_backward_weight(&x, &grad, 1, self.stride, 0)?);
                conv2d_backward_input(&grad, &weight.get(Mode::Eval), (h, w), self.stride, 0)?
            }
            _ => sum_grad,
        };
        Ok((main, Some(shortcut)))
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

    fn parameters(&self) -> (Tensor, Tensor) {
        (self.weight.get(Mode::Eval), self.bias.get(Mode::Eval))
    }

    /// `[b, c, h, w]` → the same by the running statistics, through ReLU if `relu`.
    fn infer(&self, x: &Tensor, relu: bool) -> Result<Tensor> {
        let (weight, bias) = self.parameters();
        let params = BatchNormParams {
            weight: &weight,
            bias: &bias,
            running_mean: &self.running_mean.as_detached_tensor(),
            running_var: &self.running_var.as_detached_tensor(),
            eps: EPS,
        };
        batch_norm_inference(x, &params, relu)
    }

    /// Takes the statistics of a batch, which the running ones follow.
    fn normalized(&self, x: Tensor) -> Result<Normalized> {
        let statistics = batch_statistics(&x, EPS)?;
        self.follow(&statistics.mean, &statistics.var_unbiased)?;
        Ok(Normalized { x, statistics })
    }

    /// By the statistics of the batch.
    fn forward(&self, input: &Normalized, tail: Tail<'_>) -> Result<Tensor> {
        let (weight, bias) = self.parameters();
        normalize(&input.x, &input.statistics, &weight, &bias, tail)
    }

    /// The gradient of the input; those of weight and bias go to `grads`.
    fn backward(&self, input: Normalized, relu: bool, grad: &Tensor, grads: &mut GradStore) -> Result<Tensor> {
        let (weight, bias) = self.parameters();
        let found = normalize_backward(&input.x, &input.statistics, &weight, &bias, relu, grad)?;
        Ok(self.keep(found, grads))
    }

    fn keep(&self, found: BatchNormGradients, grads: &mut GradStore) -> Tensor {
        grads.insert(self.weight.var(), found.weight);
        grads.insert(self.bias.var(), found.bias);
        found.x
    }

    /// running ← (1 - momentum)·running + momentum·batch
    fn follow(&self, mean: &Tensor, var_unbiased: &Tensor) -> Result<()> {
        for (running, batch) in [(&self.running_mean, mean), (&self.running_var, var_unbiased)] {
            let kept = running.as_detached_tensor().affine(1.0 - MOMENTUM, 0.0)?;
            running.set(&(kept + batch.affine(MOMENTUM, 0.0)?)?)?;
        }
        self.num_batches_tracked.set(&(self.num_batches_tracked.as_detached_tensor() + 1.0)?)
    }
}
