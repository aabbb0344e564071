//! Convolutions by cuDNN's legacy interface, of contiguous NCHW tensors.
//!
//! A device has one handle and one plan per direction, shape, number format and rounding. They are made once, shared by all threads, and
//! kept until the process ends, so that nothing of cuDNN's is destroyed while a thread ends.

use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::cuda_backend::{DeviceId, cudarc};
use candle_core::{CudaDevice, DType, Device, Error, Result, Tensor, bail};
use cudarc::cudnn::{CudnnError, result, sys};
use cudarc::driver::CudaStream;
use sys::{cudnnDataType_t as DataType, cudnnMathType_t as Math, cudnnTensorFormat_t as Format};

use super::algorithm::{Candidate, MOST_SCRATCH, choose};
use super::shape::ConvShape;
use crate::device::{F32Math, Gpu, Input, Output};

/// Algorithms that cuDNN is asked to name; it has at most ten per direction.
const NAMED: usize = 10;

/// What is computed from what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Direction {
    /// Input and weight → output.
    Forward,
    /// Weight and the output's gradient → the input's gradient.
    ToInput,
    /// Input and the output's gradient → the weight's gradient.
    ToWeight,
}

/// Everything that a plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    direction: Direction,
    shape: ConvShape,
    dtype: DType,
    math: F32Math,
}

/// An algorithm of one direction.
#[derive(Debug, Clone, Copy)]
enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    ToInput(sys::cudnnConvolutionBwdDataAlgo_t),
    ToWeight(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// cuDNN's descriptors, which are never changed once the plan is made.
#[derive(Debug, Clone, Copy)]
struct Descriptors {
    conv: sys::cudnnConvolutionDescriptor_t,
    x: sys::cudnnTensorDescriptor_t,
    w: sys::cudnnFilterDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    descriptors: Descriptors,
    algorithm: Algorithm,
    /// Bytes.
    scratch: usize,
}

struct Library {
    handle: sys::cudnnHandle_t,
    /// The handle's stream, which must live as long.
    _stream: Arc<CudaStream>,
    plans: HashMap<Key, Plan>,
}

// SAFETY: a handle and its descriptors may be used by any thread, one at a time: they stand behind a lock.
unsafe impl Send for Library {}

static LIBRARIES: LazyLock<Mutex<HashMap<DeviceId, Arc<Mutex<Library>>>>> = LazyLock::new(Mutex::default);

/// The device's handle, made on the first call.
fn library(device: &CudaDevice) -> std::result::Result<Arc<Mutex<Library>>, CudnnError> {
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = libraries.get(&device.id()) {
        return Ok(library.clone());
    }
    let stream = device.cuda_stream();
    let handle = result::create_handle()?;
    // SAFETY: the stream lives as long as the handle.
    unsafe { result::set_stream(handle, stream.cu_stream() as *mut _)? };
    let library = Arc::new(Mutex::new(Library { handle, _stream: stream, plans: HashMap::new() }));
    libraries.insert(device.id(), library.clone());
    Ok(library)
}

impl Library {
    /// The plan of a convolution, made on the first call.
    fn plan(&mut self, key: Key) -> Result<Plan> {
        if let Some(plan) = self.plans.get(&key) {
            return Ok(*plan);
        }
        let failed = |error: CudnnError| Error::Msg(format!("cuDNN, planning {key:?}: {error:?}"));
        let descriptors = Descriptors::new(&key).map_err(failed)?;
        // SAFETY: handle and descriptors are made and not destroyed.
        let named = unsafe { descriptors.algorithms(self.handle, &key) }.map_err(failed)?;
        let Some((algorithm, math, scratch)) = choose(named.iter().copied()) else {
            bail!("cuDNN names no algorithm with at most {MOST_SCRATCH} bytes of scratch memory for {key:?}: {named:?}");
        };
        // SAFETY: as before. The algorithm has its speed, and its rounding, only with its own math type.
        unsafe { result::set_convolution_math_type(descriptors.conv, math) }.map_err(failed)?;
        let plan = Plan { descriptors, algorithm, scratch };
        self.plans.insert(key, plan);
        Ok(plan)
    }
}

/// The math type that the heuristics are asked for; the default would round float32.
fn asked_math(key: &Key) -> Math {
    match (key.dtype, key.math) {
        (DType::F32, F32Math::Exact) => Math::CUDNN_FMA_MATH,
        (DType::F32, F32Math::Tf32) => Math::CUDNN_DEFAULT_MATH,
        _ => Math::CUDNN_TENSOR_OP_MATH,
    }
}

type Named = (Candidate, (Algorithm, Math, usize));

impl Descriptors {
    fn new(key: &Key) -> std::result::Result<Self, CudnnError> {
        let g = &key.shape;
        let dtype = match key.dtype {
            DType::BF16 => DataType::CUDNN_DATA_BFLOAT16,
            DType::F16 => DataType::CUDNN_DATA_HALF,
            _ => DataType::CUDNN_DATA_FLOAT,
        };
        let four = |dims: [usize; 4]| dims.map(|n| n as c_int);
        let nchw = Format::CUDNN_TENSOR_NCHW;
        let conv = result::create_convolution_descriptor()?;
        let (x, y) = (result::create_tensor_descriptor()?, result::create_tensor_descriptor()?);
        let w = result::create_filter_descriptor()?;
        let (padding, stride) = (g.padding as c_int, g.stride as c_int);
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        // SAFETY: the descriptors were made above. Sums are float32's in every number format.
        unsafe {
            result::set_convolution2d_descriptor(conv, padding, padding, stride, stride, 1, 1, mode, DataType::CUDNN_DATA_FLOAT)?;
            result::set_convolution_math_type(conv, asked_math(key))?;
            result::set_tensor4d_descriptor(x, nchw, dtype, four([g.b, g.ci, g.h, g.w]))?;
            result::set_filter4d_descriptor(w, dtype, nchw, four([g.co, g.ci, g.k, g.k]))?;
            result::set_tensor4d_descriptor(y, nchw, dtype, four([g.b, g.co, g.oh, g.ow]))?;
        }
        Ok(Self { conv, x, w, y })
    }

    /// What cuDNN names for a direction, the fastest first by its own estimate.
    ///
    /// # Safety
    /// The handle is live.
    unsafe fn algorithms(self, handle: sys::cudnnHandle_t, key: &Key) -> std::result::Result<Vec<Named>, CudnnError> {
        let Self { conv, x, w, y } = self;
        let exact = key.dtype == DType::F32 && key.math != F32Math::Tf32;
        macro_rules! named {
            ($find:ident, $kind:ident, $($descriptor:expr),*) => {{
                // SAFETY: the struct has no value that is invalid, and cuDNN writes as many as it counts.
                let mut results = unsafe { [std::mem::zeroed(); NAMED] };
                let mut count = 0;
                // SAFETY: the caller's promise; the array has as many places as are asked for.
                unsafe { result::$find(handle, $($descriptor),*, NAMED as c_int, &mut count, results.as_mut_ptr())? };
                let mut named = Vec::new();
                for found in results.iter().take(count as usize) {
                    let candidate = Candidate {
                        supported: found.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS,
                        scratch: found.memory,
                        deterministic: found.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC,
                        rounds_as_asked: !exact || found.mathType == Math::CUDNN_FMA_MATH,
                    };
                    named.push((candidate, (Algorithm::$kind(found.algo), found.mathType, found.memory)));
                }
                named
            }};
        }
        Ok(match key.direction {
            Direction::Forward => named!(get_convolution_forward_algorithm, Forward, x, w, conv, y),
            Direction::ToInput => named!(get_convolution_backward_data_algorithm, ToInput, w, y, conv, x),
            Direction::ToWeight => named!(get_convolution_backward_filter_algorithm, ToWeight, x, y, conv, w),
        })
    }
}

impl Plan {
    /// Queues the convolution.
    ///
    /// # Safety
    /// The addresses are of the device's memory, as long as the plan's shapes say, in its number format, and live until this is queued.
    unsafe fn queue(
        &self,
        handle: sys::cudnnHandle_t,
        a: u64,
        b: u64,
        out: u64,
        scratch: u64,
    ) -> std::result::Result<(), CudnnError> {
        let Descriptors { conv, x, w, y } = self.descriptors;
        let (one, zero) = (1.0f32, 0.0f32);
        let (alpha, beta) = ((&raw const one).cast(), (&raw const zero).cast());
        let (a, b, out, scratch) = (a as *const _, b as *const _, out as *mut _, scratch as *mut _);
        // SAFETY: the caller's promise.
        unsafe {
            match self.algorithm {
                Algorithm::Forward(algorithm) => {
                    result::convolution_forward(handle, alpha, x, a, w, b, conv, algorithm, scratch, self.scratch, beta, y, out)
                }
                Algorithm::ToInput(algorithm) => result::convolution_backward_data(
                    handle,
                    alpha,
                    w,
                    a,
                    y,
                    b,
                    conv,
                    algorithm,
                    scratch,
                    self.scratch,
                    beta,
                    x,
                    out,
                ),
                Algorithm::ToWeight(algorithm) => result::convolution_backward_filter(
                    handle,
                    alpha,
                    x,
                    a,
                    y,
                    b,
                    conv,
                    algorithm,
                    scratch,
                    self.scratch,
                    beta,
                    w,
                    out,
                ),
            }
        }
    }
}

/// Computes `direction` from contiguous tensors `a` and `b` of one number format.
fn run(direction: Direction, [a, b]: [&Tensor; 2], out: [usize; 4], g: &ConvShape, math: F32Math) -> Result<Output> {
    let Device::Cuda(device) = a.device() else { bail!("cuDNN: expected tensors on a GPU") };
    if a.dtype() != b.dtype() {
        bail!("cuDNN: expected one number format, found {:?} and {:?}", a.dtype(), b.dtype());
    }
    let key = Key { direction, shape: *g, dtype: a.dtype(), math };
    let failed = |error: CudnnError| Error::Msg(format!("cuDNN, {key:?}: {error:?}"));
    let library = library(device).map_err(failed)?;
    let mut library = library.lock().unwrap_or_else(PoisonError::into_inner);
    let plan = library.plan(key)?;
    let gpu = Gpu::of(a);
    let out = gpu.output(a.dtype(), out.to_vec())?;
    let scratch = (plan.scratch > 0).then(|| gpu.output(DType::U8, plan.scratch)).transpose()?;
    let (a, b) = (Input::new(a)?, Input::new(b)?);
    let scratch_pointer = scratch.as_ref().map_or(0, Output::pointer);
    // SAFETY: the tensors have the shapes of `g`, which the callers check; scratch memory is freed in the order of the stream.
    unsafe { plan.queue(library.handle, a.pointer(), b.pointer(), out.pointer(), scratch_pointer) }.map_err(failed)?;
    Ok(out)
}

/// x `[b, ci, h, w]`, weight `[co, ci, k, k]` → `[b, co, oh, ow]`
pub(super) fn forward(x: &Tensor, weight: &Tensor, g: &ConvShape, math: F32Math) -> Result<Output> {
    run(Direction::Forward, [x, weight], [g.b, g.co, g.oh, g.ow], g, math)
}

/// grad `[b, co, oh, ow]`, weight → `[b, ci, h, w]`
pub(super) fn backward_input(grad: &Tensor, weight: &Tensor, g: &ConvShape, math: F32Math) -> Result<Output> {
    run(Direction::ToInput, [weight, grad], [g.b, g.ci, g.h, g.w], g, math)
}

/// x, grad → `[co, ci, k, k]`
pub(super) fn backward_weight(x: &Tensor, grad: &Tensor, g: &ConvShape, math: F32Math) -> Result<Output> {
    run(Direction::ToWeight, [x, grad], [g.co, g.ci, g.k, g.k], g, math)
}
