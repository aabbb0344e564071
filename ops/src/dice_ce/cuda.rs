//! Launches `dice_ce.cu`.

use candle_core::{DType, Result, Tensor};

use crate::device::{Arg, Gpu, Grid, Input, Node, args_of, suffix};

const MODULE: &str = "dice_ce";
/// Classes that a kernel takes.
pub(crate) const CLASSES: usize = 32;
/// Blocks that share the sums.
const BLOCKS: usize = 264;

/// As [`crate::dice_ce::dice_ce`]: the loss with its graph, and `[3]` of total, cross-entropy and Dice loss without one.
pub(crate) fn dice_ce(logits: &Tensor, labels: &Tensor, lambda: f64, smooth: f64) -> Result<(Tensor, Tensor)> {
    let logits = logits.contiguous()?;
    let labels = labels.to_dtype(DType::U8)?.contiguous()?;
    let (b, classes, h, w) = logits.dims4()?;
    let gpu = Gpu::of(&logits);
    let sizes = [b, classes, h * w].map(|n| Arg::Int(n as i32));
    let values = 1 + 3 * classes;
    let partial = gpu.output(DType::F64, (BLOCKS, values))?;
    let args = [&[Input::new(&logits)?.arg(), Input::new(&labels)?.arg(), partial.arg()][..], &sizes].concat();
    let grid = Grid::blocks([BLOCKS as u32, 1, 1]);
    gpu.launch(MODULE, &format!("dice_ce_sums_{}", suffix(logits.dtype())?), grid, &args)?;
    let (losses, total) = (gpu.output(DType::F32, 4 + 2 * classes)?, gpu.output(DType::F32, ())?);
    let args = [
        partial.arg(),
        losses.arg(),
        total.arg(),
        Arg::Int(BLOCKS as i32),
        Arg::Int(classes as i32),
        Arg::Double((b * h * w) as f64),
        Arg::Double(lambda),
        Arg::Double(smooth),
    ];
    let grid = Grid { blocks: [1, 1, 1], threads: 128, shared_bytes: (values * 8) as u32 };
    gpu.launch(MODULE, "dice_ce_losses", grid, &args)?;
    let losses = losses.tensor();
    let three = losses.narrow(0, 0, 3)?;
    let total = Node::tensor("ladder-loss", total, &[&logits], move |inputs, _, grad| {
        let logits = inputs[0];
        let (b, classes, h, w) = logits.dims4()?;
        let gpu = Gpu::of(logits);
        let out = gpu.output(logits.dtype(), logits.shape())?;
        let upstream = crate::device::parameters(grad)?;
        let mut args = args_of(&[logits, &labels, &losses, &upstream])?;
        args.push(out.arg());
        args.extend([b, classes, h * w].map(|n| Arg::Int(n as i32)));
        gpu.launch(MODULE, &format!("dice_ce_gradient_{}", suffix(logits.dtype())?), Grid::over(b * h * w), &args)?;
        Ok([Some(out.tensor()), None, None])
    })?;
    Ok((total, three))
}
