//! Matrix products by the device's library.

use super::memory::Output;
use candle_core::backend::BackendStorage;
use candle_core::{Result, Shape, Storage, Tensor, bail};

/// How the float32 factors of matrix products and convolutions are rounded. Those of 16-bit numbers are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum F32Math {
    /// Not at all.
    #[default]
    Exact,
    /// To 10 bits of mantissa, for a GPU's matrix units (TF32). The CPU does not round.
    Tf32,
}

/// The matrix product `[m, k]·[k, n]`, without a graph.
pub(crate) fn product(lhs: &Tensor, rhs: &Tensor, math: F32Math) -> Result<Output> {
    let ((m, k), (inner, n)) = (lhs.dims2()?, rhs.dims2()?);
    if inner != k {
        bail!("matrix product: {:?} and {:?} do not go together", lhs.dims(), rhs.dims());
    }
    let ((left, left_layout), (right, right_layout)) = (lhs.storage_and_layout(), rhs.storage_and_layout());
    let sizes = (1, m, n, k);
    let storage = with_math(math, || match (&*left, &*right) {
        (Storage::Cpu(left), Storage::Cpu(right)) => Ok(Storage::Cpu(left.matmul(right, sizes, left_layout, right_layout)?)),
        (Storage::Cuda(left), Storage::Cuda(right)) => Ok(Storage::Cuda(left.matmul(right, sizes, left_layout, right_layout)?)),
        _ => bail!("matrix product: the matrices are not on one device"),
    })?;
    Output::of_storage(storage, Shape::from((m, n)))
}

/// candle's `lhs.matmul(rhs)`.
pub(crate) fn matmul(lhs: &Tensor, rhs: &Tensor, math: F32Math) -> Result<Tensor> {
    with_math(math, || lhs.matmul(rhs))
}

/// Calls `f` while candle's products on a GPU round float32 factors as `math` says. Candle has one switch per process, which stays locked
/// during the call and is exact before and after.
#[cfg(feature = "cuda")]
fn with_math<R>(math: F32Math, f: impl FnOnce() -> R) -> R {
    static SWITCH: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _locked = SWITCH.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(math == F32Math::Tf32);
    let result = f();
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(false);
    result
}

#[cfg(not(feature = "cuda"))]
fn with_math<R>(_: F32Math, f: impl FnOnce() -> R) -> R {
    f()
}
