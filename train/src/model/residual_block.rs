//! torchvision's residual blocks: convolutions with batch norm on a main path with a shortcut around it. `BasicBlock` has two of 3×3 on it,
//! `Bottleneck` one of 3×3 between two of 1×1.

use candle_core::{Result, Tensor};
use sam_ladder_ops::device::has_kernels;
use sam_ladder_ops::{Conv2d, Gradients, Tail, add_relu, relu_backward_summed};

use super::batch_norm::{BatchNorm, Normalized, batch_norm_names};
use super::error::ModelError;
use super::names::Names;
use super::parameters::{Parameters, Trainable};

/// A convolution without bias, and the batch norm after it.
#[derive(Debug, Clone, Copy)]
struct ConvShape {
    /// Channels in and out.
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
}

/// A block's convolutions.
#[derive(Debug, Clone)]
pub(super) struct BlockShape {
    main: Vec<ConvShape>,
    downsample: Option<ConvShape>,
}

impl BlockShape {
    /// torchvision's `BasicBlock`.
    pub(super) fn basic(input: usize, output: usize, stride: usize) -> Self {
        let conv = |channels, stride| ConvShape { channels, kernel: 3, stride };
        Self::new(vec![conv([input, output], stride), conv([output, output], 1)])
    }

    /// torchvision's `Bottleneck`; its 3×3 convolution has the stride and a quarter of the `output` channels.
    pub(super) fn bottleneck(input: usize, output: usize, stride: usize) -> Self {
        let width = output / 4;
        let conv = |channels, kernel, stride| ConvShape { channels, kernel, stride };
        Self::new(vec![conv([input, width], 1, 1), conv([width, width], 3, stride), conv([width, output], 1, 1)])
    }

    /// The shortcut has a convolution if the block changes the shape.
    fn new(main: Vec<ConvShape>) -> Self {
        let stride = main.iter().map(|conv| conv.stride).product();
        let (input, output) = (main[0].channels[0], main[main.len() - 1].channels[1]);
        let changes = input != output || stride != 1;
        let downsample = changes.then_some(ConvShape { channels: [input, output], kernel: 1, stride });
        BlockShape { main, downsample }
    }

    /// Each convolution, with its name and its norm's name.
    fn parts(&self, prefix: &str) -> Vec<(String, String, ConvShape)> {
        let main = self.main.iter().enumerate();
        let mut parts: Vec<_> =
            main.map(|(i, &conv)| (format!("{prefix}.conv{}", i + 1), format!("{prefix}.bn{}", i + 1), conv)).collect();
        parts.extend(self.downsample.map(|conv| (format!("{prefix}.downsample.0"), format!("{prefix}.downsample.1"), conv)));
        parts
    }

    /// Names and shapes of the block's tensors.
    pub(super) fn names(&self, list: &mut Names, prefix: &str) {
        for (conv_name, norm_name, conv) in self.parts(prefix) {
            let [input, output] = conv.channels;
            list.add(format!("{conv_name}.weight"), &[output, input, conv.kernel, conv.kernel]);
            batch_norm_names(list, &norm_name, output);
        }
    }
}

/// What a block keeps of a forward pass: the outputs of its convolutions, and its own. The normalised activations in between are kept on a GPU,
/// whose memory has room for them and is slow to pass; on the CPU they are recomputed in the backward pass.
pub(super) struct BlockTape {
    x: Tensor,
    main: Vec<Convolved>,
    downsample: Option<Convolved>,
    pub(super) out: Tensor,
}

/// A convolution's output with its statistics, and the weight as the convolution took it.
struct Convolved {
    normalized: Normalized,
    weight: Tensor,
    /// The next convolution's input, if it is kept.
    activated: Option<Tensor>,
}

/// A residual block.
pub(super) struct ResidualBlock {
    main: Vec<ConvNorm>,
    downsample: Option<ConvNorm>,
}

impl ResidualBlock {
    pub(super) fn new(prefix: &str, shape: &BlockShape, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        let mut convs = Vec::new();
        for (conv_name, norm_name, conv) in shape.parts(prefix) {
            convs.push(ConvNorm {
                weight: parameters.trainable_tensor(&format!("{conv_name}.weight"))?,
                norm: BatchNorm::new(&norm_name, parameters)?,
                kernel: conv.kernel,
                conv: Conv2d::new(conv.stride, conv.kernel / 2).with_math(parameters.math()),
            });
        }
        let downsample = shape.downsample.and_then(|_| convs.pop());
        Ok(ResidualBlock { main: convs, downsample })
    }

    /// The weights of the convolutions.
    pub(super) fn weights(&self) -> impl Iterator<Item = &Trainable> {
        self.main.iter().chain(&self.downsample).map(|conv| &conv.weight)
    }

    /// `[b, ci, h, w]` → `[b, co, h/stride, w/stride]`, by the running statistics.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = x.clone();
        for (i, conv) in self.main.iter().enumerate() {
            y = conv.infer(&y, i + 1 < self.main.len())?;
        }
        match &self.downsample {
            Some(conv) => add_relu(&y, &conv.infer(x, false)?),
            None => add_relu(&y, x),
        }
    }

    /// As [`Self::forward`], by the statistics of the batch; the weights are converted to the number format of `x` before.
    pub(super) fn forward_train(&self, x: Tensor) -> Result<BlockTape> {
        let mut main: Vec<Convolved> = Vec::with_capacity(self.main.len());
        for (i, conv) in self.main.iter().enumerate() {
            let convolved = match main.last_mut() {
                None => conv.convolved(&x)?,
                Some(before) => {
                    let activated = self.main[i - 1].norm.forward(&before.normalized, Tail::Relu)?;
                    let convolved = conv.convolved(&activated)?;
                    before.activated = has_kernels(activated.device()).then_some(activated);
                    convolved
                }
            };
            main.push(convolved);
        }
        let downsample = self.downsample.as_ref().map(|conv| conv.convolved(&x)).transpose()?;
        let (Some(conv), Some(last)) = (self.main.last(), main.last()) else {
            candle_core::bail!("a residual block without convolutions")
        };
        let out = match (&self.downsample, &downsample) {
            (Some(shortcut), Some(convolved)) => {
                conv.norm.forward_with_shortcut(&last.normalized, &shortcut.norm, &convolved.normalized)?
            }
            _ => conv.norm.forward(&last.normalized, Tail::AddRelu(&x))?,
        };
        Ok(BlockTape { x, main, downsample, out })
    }

    /// The gradient of the input, given the output's. Either may come in two parts, of which the second belongs to the shortcut.
    pub(super) fn backward(
        &self,
        tape: BlockTape,
        grad: (Tensor, Option<Tensor>),
        grads: &mut Gradients,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let BlockTape { x, mut main, downsample, out } = tape;
        let Some(last) = main.last().map(|last| &last.normalized) else {
            candle_core::bail!("a residual block without convolutions")
        };
        let shortcut = downsample.as_ref().map(|shortcut| (&shortcut.normalized.x, &shortcut.normalized.statistics));
        let (sum_grad, sums) = relu_backward_summed(&out, (&grad.0, grad.1.as_ref()), (&last.x, &last.statistics), shortcut)?;
        drop((out, grad));
        let mut grad = None;
        for (i, conv) in self.main.iter().enumerate().rev() {
            let Some(Convolved { normalized, weight, .. }) = main.pop() else {
                candle_core::bail!("the tape has fewer convolutions than the block")
            };
            let of_conv = match grad.take() {
                None => conv.norm.backward_summed(normalized, &sum_grad, sums.first(), grads)?,
                Some(grad) => conv.norm.backward(normalized, true, &grad, grads)?,
            };
            grad = Some(match main.last_mut() {
                None => conv.backward(&x, &weight, of_conv, grads)?,
                Some(before) => {
                    let kept = before.activated.take();
                    let remade = || kept.map_or_else(|| self.main[i - 1].norm.forward(&before.normalized, Tail::Relu), Ok);
                    conv.backward_remade(remade, &weight, of_conv, grads)?
                }
            });
        }
        let Some(grad) = grad else { candle_core::bail!("a residual block without convolutions") };
        let shortcut = match (&self.downsample, downsample) {
            (Some(conv), Some(Convolved { normalized, weight, .. })) => {
                let of_conv = conv.norm.backward_summed(normalized, &sum_grad, sums.get(1), grads)?;
                conv.backward(&x, &weight, of_conv, grads)?
            }
            _ => sum_grad,
        };
        Ok((grad, Some(shortcut)))
    }
}

/// A convolution without bias, and the batch norm after it.
struct ConvNorm {
    /// [co, ci, k, k]
    weight: Trainable,
    norm: BatchNorm,
    kernel: usize,
    conv: Conv2d,
}

impl ConvNorm {
    /// Normalises by the running statistics, followed by ReLU if `relu`.
    fn infer(&self, x: &Tensor, relu: bool) -> Result<Tensor> {
        self.norm.infer(&self.conv.forward(x, &self.weight.tensor())?, relu)
    }

    /// The convolution's output with its statistics; updates the running ones.
    fn convolved(&self, x: &Tensor) -> Result<Convolved> {
        let weight = self.weight.converted(x.dtype())?;
        Ok(Convolved { normalized: self.norm.normalized(self.conv.forward(x, &weight)?)?, weight, activated: None })
    }

    /// The gradient of the convolution's input, given its output's; the weight's goes to `grads`.
    fn backward(&self, x: &Tensor, weight: &Tensor, grad: Tensor, grads: &mut Gradients) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        self.backward_weight(x, &grad, grads)?;
        self.conv.backward_input(&grad, weight, (h, w))
    }

    /// As [`Self::backward`], with an input that may be recomputed, and is dropped once the weight's gradient is known.
    fn backward_remade(
        &self,
        x: impl FnOnce() -> Result<Tensor>,
        weight: &Tensor,
        grad: Tensor,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let x = x()?;
        let (_, _, h, w) = x.dims4()?;
        self.backward_weight(&x, &grad, grads)?;
        drop(x);
        self.conv.backward_input(&grad, weight, (h, w))
    }

    fn backward_weight(&self, x: &Tensor, grad: &Tensor, grads: &mut Gradients) -> Result<()> {
        grads.insert(self.weight.var(), self.conv.backward_weight(x, grad, self.kernel)?);
        Ok(())
    }
}
