//! Adds a kernel's result as a node to candle's graph.

use std::sync::Mutex;

use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

use super::memory::Output;

/// A computed result and its backward function: `backward(inputs, result, gradient)` gives the inputs' gradients.
pub(crate) struct Node<F> {
    name: &'static str,
    result: Mutex<Option<(Storage, Shape)>>,
    backward: F,
}

/// Gradients of up to three inputs.
pub(crate) type Gradients = [Option<Tensor>; 3];

impl<F> Node<F>
where
    F: Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Gradients> + Send + Sync + 'static,
{
    /// The tensor of `output`, with a graph to the tracked ones of one to three `inputs`.
    pub(crate) fn tensor(name: &'static str, output: Output, inputs: &[&Tensor], backward: F) -> Result<Tensor> {
        if !inputs.iter().any(|t| t.track_op()) {
            return Ok(output.tensor());
        }
        let node = Node { name, result: Mutex::new(Some(output.into_parts())), backward };
        match inputs {
            [a] => a.apply_op1(node),
            [a, b] => a.apply_op2(b, node),
            [a, b, c] => a.apply_op3(b, c, node),
            _ => bail!("{name}: a node has one to three inputs, got {}", inputs.len()),
        }
    }
}

impl<F> Node<F> {
    fn take(&self) -> Result<(Storage, Shape)> {
        let taken = self.result.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        taken.ok_or_else(|| candle_core::Error::msg(format!("{}: its result was taken twice", self.name)))
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("{}: expected a result on the CPU", self.name),
        }
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!("{}: expected a result on the GPU", self.name),
        }
    }
}

impl<F> CustomOp1 for Node<F>
where
    F: Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Gradients>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, a: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [of_a, _, _] = (self.backward)(&[a], res, grad)?;
        Ok(of_a)
    }
}

impl<F> CustomOp2 for Node<F>
where
    F: Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Gradients>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, res: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [of_a, of_b, _] = (self.backward)(&[a, b], res, grad)?;
        Ok((of_a, of_b))
    }
}

impl<F> CustomOp3 for Node<F>
where
    F: Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Gradients>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [of_a, of_b, of_c] = (self.backward)(&[a, b, c], res, grad)?;
        Ok((of_a, of_b, of_c))
    }
}
