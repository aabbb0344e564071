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
    // What went wrong before is not the recording's.
    stream.synchronize().w()?;
    // Copies of other threads, on streams of their own, continue.
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
    let worked = work();
    // Ends the recording whatever became of the work. Results that are not freed when the graph is launched again are freed by the launch.
    let recorded = stream.end_capture(sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    // cudarc keeps the errors of freeing for later: memory from before the recording that was freed within it is among them.
    let freed = stream.context().check_err();
    worked?;
    let Some(graph) = recorded.w()? else { bail!("the driver recorded no CUDA graph") };
    freed.w()?;
    graph.upload().w()?;
    Ok(Recording(graph))
}

impl Recording {
    pub(crate) fn launch(&self) -> Result<()> {
        self.0.launch().w()
    }
}
