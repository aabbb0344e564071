//! cuDNN's convolutions. Handles, descriptors, algorithms and the size of scratch memory are determined once per shape.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, DeviceId};
use candle_core::{CudaDevice, DType, Device, Error, Result, Storage, Tensor, bail};
use cudarc::cudnn::safe::{
    ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, Cudnn, CudnnDataType, FilterDescriptor, TensorDescriptor,
};
use cudarc::cudnn::{CudnnError, sys};
use half::{bf16, f16};
use sys::cudnnTensorFormat_t as Format;

use super::shape::ConvShape;
use crate::device::{F32Math, Output};

/// Memory format of a convolution's tensors. The program uses [`MemoryFormat::Nchw`]; cuDNN also supports the other one, with weights
/// `[co, k, k, ci]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum MemoryFormat {
    Nchw,
    #[expect(dead_code, reason = "the sizes at which it wins are to be measured on a GPU")]
    Nhwc,
}

impl MemoryFormat {
    fn format(self) -> Format {
        match self {
            MemoryFormat::Nchw => Format::CUDNN_TENSOR_NCHW,
            MemoryFormat::Nhwc => Format::CUDNN_TENSOR_NHWC,
        }
    }
}

/// The program's memory format.
const MEMORY_FORMAT: MemoryFormat = MemoryFormat::Nchw;

/// Key of a plan: everything that it depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    shape: ConvShape,
    dtype: DType2,
    math: F32Math,
    format: MemoryFormat,
}

/// The number formats of convolutions, hashable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum DType2 {
    F32,
    Bf16,
    F16,
}

/// cuDNN's descriptors of a convolution, and the algorithms chosen for it.
struct Plan<T> {
    conv: ConvDescriptor<f32>,
    x: TensorDescriptor<T>,
    w: FilterDescriptor<T>,
    y: TensorDescriptor<T>,
    forward: RefCell<Option<(sys::cudnnConvolutionFwdAlgo_t, usize)>>,
    data: RefCell<Option<(sys::cudnnConvolutionBwdDataAlgo_t, usize)>>,
    filter: RefCell<Option<(sys::cudnnConvolutionBwdFilterAlgo_t, usize)>>,
}

/// A thread's state for a device, since cuDNN's handles belong to a thread.
struct Library {
    handle: Arc<Cudnn>,
    f32: HashMap<Key, Rc<Plan<f32>>>,
    bf16: HashMap<Key, Rc<Plan<bf16>>>,
    f16: HashMap<Key, Rc<Plan<f16>>>,
}

thread_local! {
    static LIBRARIES: RefCell<HashMap<DeviceId, Library>> = RefCell::new(HashMap::new());
}

/// A number format that cuDNN supports.
trait Element: CudnnDataType + DeviceRepr + CudaDType + 'static {
    const DTYPE: DType2;
    const ONE: Self;
    const ZERO: Self;
    fn plans(library: &mut Library) -> &mut HashMap<Key, Rc<Plan<Self>>>;
}

macro_rules! element {
    ($type:ty, $dtype:ident, $field:ident, $one:expr, $zero:expr) => {
        impl Element for $type {
            const DTYPE: DType2 = DType2::$dtype;
            const ONE: Self = $one;
            const ZERO: Self = $zero;

            fn plans(library: &mut Library) -> &mut HashMap<Key, Rc<Plan<Self>>> {
                &mut library.$field
            }
        }
    };
}
element!(f32, F32, f32, 1.0, 0.0);
element!(bf16, Bf16, bf16, bf16::ONE, bf16::ZERO);
element!(f16, F16, f16, f16::ONE, f16::ZERO);

fn failed(what: &'static str, g: ConvShape) -> impl Fn(CudnnError) -> Error {
    move |error| Error::Msg(format!("cuDNN, {what} of {g:?}: {error:?}"))
}

/// The plan of a convolution, made on its first call.
fn plan<T: Element>(device: &CudaDevice, g: &ConvShape, math: F32Math) -> Result<Rc<Plan<T>>> {
    let key = Key { shape: *g, dtype: T::DTYPE, math, format: MEMORY_FORMAT };
    LIBRARIES.with_borrow_mut(|libraries| {
        if !libraries.contains_key(&device.id()) {
            let handle = Cudnn::new(device.cuda_stream()).map_err(failed("opening", *g))?;
            libraries.insert(device.id(), Library { handle, f32: HashMap::new(), bf16: HashMap::new(), f16: HashMap::new() });
        }
        let Some(library) = libraries.get_mut(&device.id()) else { bail!("cuDNN did not open") };
        if let Some(plan) = T::plans(library).get(&key) {
            return Ok(plan.clone());
        }
        let plan = Rc::new(make_plan::<T>(&library.handle, &key).map_err(failed("describing", *g))?);
        T::plans(library).insert(key, plan.clone());
        Ok(plan)
    })
}

fn make_plan<T: Element>(handle: &Arc<Cudnn>, key: &Key) -> std::result::Result<Plan<T>, CudnnError> {
    let (g, format) = (key.shape, key.format.format());
    let four = |dims: [usize; 4]| dims.map(|n| n as i32);
    let mut conv = handle.create_conv2d::<f32>(
        [g.padding as i32; 2],
        [g.stride as i32; 2],
        [1, 1],
        sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
    )?;
    conv.set_math_type(match (T::DTYPE, key.math) {
        // The default would round float32.
        (DType2::F32, F32Math::Exact) => sys::cudnnMathType_t::CUDNN_FMA_MATH,
        (DType2::F32, F32Math::Tf32) => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
        (DType2::Bf16 | DType2::F16, _) => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
    })?;
    Ok(Plan {
        conv,
        x: handle.create_4d_tensor::<T>(format, four([g.b, g.ci, g.h, g.w]))?,
        w: handle.create_4d_filter::<T>(format, four([g.co, g.ci, g.k, g.k]))?,
        y: handle.create_4d_tensor::<T>(format, four([g.b, g.co, g.oh, g.ow]))?,
        forward: RefCell::new(None),
        data: RefCell::new(None),
        filter: RefCell::new(None),
    })
}

/// The result of `find`, which is called only once.
fn once<A: Copy>(
    cell: &RefCell<Option<(A, usize)>>,
    find: impl FnOnce() -> std::result::Result<(A, usize), CudnnError>,
) -> std::result::Result<(A, usize), CudnnError> {
    if let Some(known) = *cell.borrow() {
        return Ok(known);
    }
    let found = find()?;
    *cell.borrow_mut() = Some(found);
    Ok(found)
}

/// Calls `f` with both tensors' memory.
fn with_views<T: Element, R>(
    a: &Tensor,
    b: &Tensor,
    f: impl FnOnce(&CudaDevice, CudaView<'_, T>, CudaView<'_, T>) -> Result<R>,
) -> Result<R> {
    let Device::Cuda(device) = a.device() else { bail!("cuDNN: expected tensors on a GPU") };
    let ((a_storage, a_layout), (b_storage, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    let (Storage::Cuda(a), Storage::Cuda(b)) = (&*a_storage, &*b_storage) else { bail!("cuDNN: expected tensors on a GPU") };
    let view = |slice: &CudaSlice<T>, layout: &candle_core::Layout| {
        layout.start_offset()..layout.start_offset() + layout.shape().elem_count().min(slice.len())
    };
    let (a, b) = (a.as_cuda_slice::<T>()?, b.as_cuda_slice::<T>()?);
    f(device, a.slice(view(a, a_layout)), b.slice(view(b, b_layout)))
}

/// Fresh memory for the result, and scratch memory.
fn memory<T: Element>(device: &CudaDevice, len: usize, scratch: usize) -> Result<(CudaSlice<T>, CudaSlice<u8>)> {
    // SAFETY: cuDNN writes the whole result, and reads nothing of its scratch memory that it did not write.
    unsafe { Ok((device.alloc::<T>(len)?, device.alloc::<u8>(scratch.max(1))?)) }
}

fn output<T: Element>(device: &CudaDevice, slice: CudaSlice<T>, shape: [usize; 4]) -> Result<Output> {
    let storage = candle_core::CudaStorage::wrap_cuda_slice(slice, device.clone());
    Output::of_storage(Storage::Cuda(storage), candle_core::Shape::from(shape.to_vec()))
}

macro_rules! by_dtype {
    ($name:ident, $tensor:expr, $($arg:expr),*) => {
        match $tensor.dtype() {
            DType::F32 => $name::<f32>($($arg),*),
            DType::BF16 => $name::<bf16>($($arg),*),
            DType::F16 => $name::<f16>($($arg),*),
            other => bail!("cuDNN: expected float32, bfloat16 or float16, found {other:?}"),
        }
    };
}

/// x `[b, ci, h, w]`, weight `[co, ci, k, k]` → `[b, co, oh, ow]`
pub(super) fn forward(x: &Tensor, weight: &Tensor, g: &ConvShape, math: F32Math) -> Result<Output> {
    by_dtype!(forward_of, x, x, weight, g, math)
}

fn forward_of<T: Element>(x: &Tensor, weight: &Tensor, g: &ConvShape, math: F32Math) -> Result<Output> {
    with_views::<T, _>(x, weight, |device, x, weight| {
        let plan = plan::<T>(device, g, math)?;
        let op = ConvForward { conv: &plan.conv, x: &plan.x, w: &plan.w, y: &plan.y };
        let find = || {
            let algorithm = op.pick_algorithm()?;
            Ok((algorithm, op.get_workspace_size(algorithm)?))
        };
        let (algorithm, scratch) = once(&plan.forward, find).map_err(failed("choosing the forward algorithm", *g))?;
        let (mut y, mut workspace) = memory::<T>(device, g.output_len(), scratch)?;
        // SAFETY: the memory is of the plan's shapes and number format.
        unsafe { op.launch::<CudaSlice<u8>, _, _, _>(algorithm, Some(&mut workspace), (T::ONE, T::ZERO), &x, &weight, &mut y) }
            .map_err(failed("the forward convolution", *g))?;
        output(device, y, [g.b, g.co, g.oh, g.ow])
    })
}

/// grad `[b, co, oh, ow]`, weight → `[b, ci, h, w]`
pub(super) fn backward_input(grad: &Tensor, weight: &Tensor, g: &ConvShape, math: F32Math) -> Result<Output> {
    by_dtype!(backward_input_of, grad, grad, weight, g, math)
}

fn backward_input_of<T: Element>(grad: &Tensor, weight: &Tensor, g: &ConvShape, math: F32Math) -> Result<Output> {
    with_views::<T, _>(grad, weight, |device, grad, weight| {
        let plan = plan::<T>(device, g, math)?;
        let op = ConvBackwardData { conv: &plan.conv, dx: &plan.x, w: &plan.w, dy: &plan.y };
        let find = || {
            let algorithm = op.pick_algorithm()?;
            Ok((algorithm, op.get_workspace_size(algorithm)?))
        };
        let (algorithm, scratch) =
            once(&plan.data, find).map_err(failed("choosing the algorithm of the input's gradient", *g))?;
        let (mut dx, mut workspace) = memory::<T>(device, g.input_len(), scratch)?;
        // SAFETY: the memory is of the plan's shapes and number format.
        unsafe {
            op.launch::<CudaSlice<u8>, _, _, _>(algorithm, Some(&mut workspace), (T::ONE, T::ZERO), &mut dx, &weight, &grad)
        }
        .map_err(failed("the input's gradient", *g))?;
        output(device, dx, [g.b, g.ci, g.h, g.w])
    })
}

/// x, grad → `[co, ci, k, k]`
pub(super) fn backward_weight(x: &Tensor, grad: &Tensor, g: &ConvShape, math: F32Math) -> Result<Output> {
    by_dtype!(backward_weight_of, x, x, grad, g, math)
}

fn backward_weight_of<T: Element>(x: &Tensor, grad: &Tensor, g: &ConvShape, math: F32Math) -> Result<Output> {
    with_views::<T, _>(x, grad, |device, x, grad| {
        let plan = plan::<T>(device, g, math)?;
        let op = ConvBackwardFilter { conv: &plan.conv, x: &plan.x, dw: &plan.w, dy: &plan.y };
        let find = || {
            let algorithm = op.pick_algorithm()?;
            Ok((algorithm, op.get_workspace_size(algorithm)?))
        };
        let (algorithm, scratch) =
            once(&plan.filter, find).map_err(failed("choosing the algorithm of the weight's gradient", *g))?;
        let (mut dw, mut workspace) = memory::<T>(device, g.weight_len(), scratch)?;
        // SAFETY: the memory is of the plan's shapes and number format.
        unsafe { op.launch::<CudaSlice<u8>, _, _, _>(algorithm, Some(&mut workspace), (T::ONE, T::ZERO), &x, &mut dw, &grad) }
            .map_err(failed("the weight's gradient", *g))?;
        output(device, dw, [g.co, g.ci, g.k, g.k])
    })
}
