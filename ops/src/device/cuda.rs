//! Allocates on a CUDA device and launches the compiled kernels on candle's stream.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaSlice, DevicePtr, LaunchConfig, PushKernelArg, result, sys};
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, bail};
use half::{bf16, f16};

use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::launch_args::{Arg, Grid};

mod modules;

mod ptx {
    #![allow(missing_docs)]
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Read by those who record a graph, written by who opens a device: that waits for all streams, which CUDA refuses while one records.
static RECORDINGS: RwLock<()> = RwLock::new(());

/// Keeps other threads from opening a device.
pub(super) fn while_recording() -> RwLockReadGuard<'static, ()> {
    RECORDINGS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Shared memory that a block has by default.
const SHARED_BYTES: u32 = 48 << 10;

/// The compiled code of a module.
fn code(module: &str) -> Result<&'static str> {
    Ok(match module {
        "add" => ptx::ADD,
        "attention" => ptx::ATTENTION,
        "batch_norm" => ptx::BATCH_NORM,
        "batch_norm_pool" => ptx::BATCH_NORM_POOL,
        "column_sums" => ptx::COLUMN_SUMS,
        "convert" => ptx::CONVERT,
        "dice_ce" => ptx::DICE_CE,
        "elementwise" => ptx::ELEMENTWISE,
        "gate" => ptx::GATE,
        "gather" => ptx::GATHER,
        "gelu" => ptx::GELU,
        "layer_norm" => ptx::LAYER_NORM,
        "linear" => ptx::LINEAR,
        "max_pool" => ptx::MAX_POOL,
        "optimizer" => ptx::OPTIMIZER,
        "partial_sums" => ptx::PARTIAL_SUMS,
        "rel_pos_attention" => ptx::REL_POS_ATTENTION,
        "segmentation_loss" => ptx::SEGMENTATION_LOSS,
        "strided_copy" => ptx::STRIDED_COPY,
        other => bail!("there is no module {other} of kernels"),
    })
}

/// The address of a storage's first element. Candle's work on a device and our launches are on the same stream, so nothing needs to wait.
pub(super) fn address(storage: &CudaStorage) -> Result<u64> {
    use candle_core::backend::BackendStorage;
    let stream = storage.device().cuda_stream();
    macro_rules! of {
        ($type:ty) => {
            storage.as_cuda_slice::<$type>()?.device_ptr(&stream).0
        };
    }
    Ok(match storage.dtype() {
        DType::U8 => of!(u8),
        DType::U32 => of!(u32),
        DType::I64 => of!(i64),
        DType::BF16 => of!(bf16),
        DType::F16 => of!(f16),
        DType::F32 => of!(f32),
        DType::F64 => of!(f64),
        other => bail!("a kernel was given {other:?}, which none knows"),
    })
}

/// Memory of unspecified content.
pub(super) fn empty(device: &CudaDevice, dtype: DType, len: usize) -> Result<CudaStorage> {
    macro_rules! of {
        ($type:ty) => {{
            // SAFETY: the kernel that the memory is made for writes all of it before anything reads it.
            let slice = unsafe { device.alloc::<$type>(len)? };
            CudaStorage::wrap_cuda_slice(slice, device.clone())
        }};
    }
    Ok(match dtype {
        DType::U8 => of!(u8),
        DType::BF16 => of!(bf16),
        DType::F16 => of!(f16),
        DType::F32 => of!(f32),
        DType::F64 => of!(f64),
        other => bail!("no kernel makes {other:?}"),
    })
}

/// Starts a kernel on candle's stream.
///
/// # Safety
/// As [`super::Gpu::launch`].
pub(super) unsafe fn launch(device: &CudaDevice, module: &'static str, kernel: &str, grid: Grid, args: &[Arg<'_>]) -> Result<()> {
    let stream = device.cuda_stream();
    let function = modules::loaded(stream.context(), module, code(module)?)?.load_function(kernel).w()?;
    if grid.shared_bytes > SHARED_BYTES {
        let most = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let most = stream.context().attribute(most).w()?;
        if i64::from(grid.shared_bytes) > i64::from(most) {
            let asked = grid.shared_bytes;
            bail!(
                "{kernel} needs {asked} bytes of shared memory per block, and this GPU has {most}: the image size is too large for it"
            );
        }
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, grid.shared_bytes as i32).w()?;
    }
    let mut builder = stream.launch_builder(&function);
    for arg in args {
        match arg {
            Arg::Pointer(v) | Arg::Size(v) => builder.arg(v),
            Arg::Int(v) => builder.arg(v),
            Arg::Unsigned(v) => builder.arg(v),
            Arg::Float(v) => builder.arg(v),
            Arg::Double(v) => builder.arg(v),
            // From here on the driver reads as many bytes as the kernel's parameter has.
            Arg::Words(v) => builder.arg(&v[0]),
            Arg::LongWords(v) => builder.arg(&v[0]),
        };
    }
    let [x, y, z] = grid.blocks;
    let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (grid.threads, 1, 1), shared_mem_bytes: grid.shared_bytes };
    // SAFETY: the caller's promise; what is freed after the launch is freed in the order of the stream.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

/// Copies the host's bytes to an address. They are read before this returns: the driver keeps them until the copy is done.
///
/// # Safety
/// As many bytes at `to` belong to the device's memory.
pub(super) unsafe fn write(device: &CudaDevice, to: u64, bytes: &[u8]) -> Result<()> {
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    // SAFETY: the caller's promise; of memory that is not pinned the driver takes a copy at once.
    unsafe { result::memcpy_htod_async(to, bytes, stream.cu_stream()) }.w()
}

/// Copies within the device's memory.
///
/// # Safety
/// As many bytes at `to` and `from` belong to the device's memory, and do not overlap.
pub(super) unsafe fn copy(device: &CudaDevice, to: u64, from: u64, bytes: usize) -> Result<()> {
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    // SAFETY: the caller's promise.
    unsafe { result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }.w()
}

/// As [`crate::device::open::open`].
pub(super) fn open(index: usize) -> Result<Device> {
    let _alone = RECORDINGS.write().unwrap_or_else(PoisonError::into_inner);
    let device = Device::new_cuda_with_stream(index)?;
    let Device::Cuda(cuda) = &device else { bail!("cuda:{index} did not open as a GPU") };
    // SAFETY: all of this program's work on the device is on the stream that `cuda` holds, except copies whose events it waits for itself
    // (`staging`); nothing else would look at the events that candle's memory carries.
    unsafe { cuda.disable_event_tracking() };
    keep_freed_memory(cuda)?;
    give_workspace(cuda)?;
    Ok(device)
}

/// Gives cuBLAS memory to work in, for as long as the process runs. Otherwise it allocates its own, in a recorded graph once more.
fn give_workspace(device: &CudaDevice) -> Result<()> {
    static WORKSPACES: Mutex<Vec<CudaSlice<u8>>> = Mutex::new(Vec::new());
    let stream = device.cuda_stream();
    let (major, _) = stream.context().compute_capability().w()?;
    // What NVIDIA recommends, and the size that cuBLAS would take itself.
    let bytes = if major >= 9 { 32 << 20 } else { 8 << 20 };
    // SAFETY: cuBLAS reads nothing of it that it did not write.
    let workspace = unsafe { device.alloc::<u8>(bytes)? };
    let address = workspace.device_ptr(&stream).0;
    // SAFETY: the handle is the device's, whose stream is the one that the memory was allocated on; the memory is never freed.
    unsafe { cublas::sys::cublasSetWorkspace_v2(*device.cublas_handle().handle(), address as *mut _, bytes) }
        .result()
        .map_err(|error| candle_core::Error::msg(format!("cuBLAS takes no workspace: {error:?}")))?;
    WORKSPACES.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
    Ok(())
}

/// Returns freed memory that the driver has kept, before a graph takes memory of its own.
pub(super) fn trim_kept_memory(device: &CudaDevice) -> Result<()> {
    let context = device.cuda_stream().context().clone();
    if !context.has_async_alloc() {
        return Ok(());
    }
    // SAFETY: the pool is the open device's.
    unsafe { sys::cuMemPoolTrimTo(default_pool(&context)?, 0).result().w() }
}

/// The pool that the device's memory is taken from.
fn default_pool(context: &CudaContext) -> Result<sys::CUmemoryPool> {
    context.bind_to_thread().w()?;
    let mut pool = std::mem::MaybeUninit::uninit();
    // SAFETY: the device is open and its context current; the driver writes the pool's handle before it is read.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(pool.as_mut_ptr(), context.cu_device()).result().w()?;
        Ok(pool.assume_init())
    }
}

/// Lets the driver keep freed memory, which it would otherwise return at each synchronisation and allocate again in the next step.
fn keep_freed_memory(device: &CudaDevice) -> Result<()> {
    let context = device.cuda_stream().context().clone();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the open device's; the driver reads a 64-bit threshold.
    unsafe {
        sys::cuMemPoolSetAttribute(default_pool(&context)?, attribute, std::ptr::from_mut(&mut threshold).cast()).result().w()
    }
}

/// Free bytes and total bytes.
pub(super) fn memory(device: &CudaDevice) -> Result<(u64, u64)> {
    let (free, total) = device.cuda_stream().context().mem_get_info().w()?;
    Ok((free as u64, total as u64))
}

#[cfg(test)]
mod tests {
    use candle_core::Result;

    use crate::device::overwrite::tests::check;
    use crate::testing::kernels::on_device;

    #[test]
    fn memory_is_replaced_in_place() -> Result<()> {
        on_device(check)
    }
}
