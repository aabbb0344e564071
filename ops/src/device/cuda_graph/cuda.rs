//! Records the work on candle's stream as a CUDA graph.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, sys};
use candle_core::{CudaDevice, Result, bail};

/// See [`super::Graph`].
pub(crate) struct Recording(CudaGraph);

/// As [`super::capture`].
pub(crate) fn record(device: &CudaDevice, work: impl FnOnce() -> Result<()>) -> Result<Recording> {
    let stream = device.cuda_stream();
    let _kept = device.enable_cuda_graph_htod_cache();
    // Earlier errors must not count as the recording's.
    stream.synchronize().w()?;
    crate::device::cuda::trim_kept_memory(device)?;
    // Copies of other threads, on other streams, continue.
    let _no_device_is_opened = crate::device::cuda::while_recording();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
    let worked = work();
    // cudarc keeps errors of freeing, among them those for earlier memory that was freed during the recording, and returns such an error
    // instead of the next call, which has to end the recording.
    let freed = stream.context().check_err();
    // A launch frees any result of the previous launch that is not yet freed.
    let recorded = stream.end_capture(sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    // What the failed work leaves is freed by now; its errors are the recording's too.
    if worked.is_err() || recorded.is_err() {
        let _ = stream.context().check_err();
    }
    worked?;
    freed.w()?;
    let Some(graph) = recorded.w()? else { bail!("the driver recorded no CUDA graph") };
    graph.upload().w()?;
    Ok(Recording(graph))
}

impl Recording {
    pub(crate) fn launch(&self) -> Result<()> {
        self.0.launch().w()
    }
}
