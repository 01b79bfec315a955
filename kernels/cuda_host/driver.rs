//! What cust does not wrap, through `cust::sys`: memory by address, copies and fills on a stream, launches with
//! more than 48 KiB of shared memory, graphs.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

use cust::context::{Context, CurrentContext};
use cust::error::CudaError;
use cust::event::{Event, EventFlags};
use cust::sys::{self, CUresult};

use super::{Error, Gpu, lock};

/// cust's Display of an error asks the driver; its Debug is the error's name.
pub(super) fn describe(error: CudaError) -> String {
    format!("{error:?}")
}

/// Says what was done when the driver refused.
pub(super) fn check<T>(what: &str, result: Result<T, CudaError>) -> Result<T, Error> {
    result.map_err(|error| Error::Driver { what: what.into(), result: describe(error) })
}

pub(super) fn check_raw(what: &str, result: CUresult) -> Result<(), Error> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(Error::Driver { what: what.into(), result: format!("{result:?}") })
}

/// Makes `context` that of this thread, unless it is.
pub(super) fn enter(context: &Context) -> Result<(), Error> {
    thread_local! {
        static CURRENT: Cell<usize> = const { Cell::new(0) };
    }
    let this = context.as_raw() as usize;
    if CURRENT.get() != this {
        check("entering a context", CurrentContext::set_current(context))?;
        CURRENT.set(this);
    }
    Ok(())
}

/// A loaded kernel.
#[derive(Clone, Copy)]
pub(super) struct Function(sys::CUfunction);

// SAFETY: a CUfunction is a handle that any thread may use.
unsafe impl Send for Function {}

impl Function {
    pub(super) fn new(function: &cust::function::Function<'_>) -> Function {
        Function(function.to_raw())
    }

    /// Lets the kernel have so much dynamic shared memory.
    pub(super) fn allow_shared(self, symbol: &str, bytes: usize) -> Result<(), Error> {
        let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function's module is loaded as long as its Gpu lives.
        let result = unsafe { sys::cuFuncSetAttribute(self.0, which, bytes as i32) };
        check_raw(symbol, result)
    }

    /// # Safety
    /// `params` point to as many values as the kernel has parameters, of their types; the addresses among
    /// them are valid for what the kernel does with them.
    pub(super) unsafe fn launch(
        self,
        symbol: &str,
        grid: [u32; 3],
        block: u32,
        shared_bytes: usize,
        stream: sys::CUstream,
        params: &mut [*mut c_void],
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise, passed on.
        let result = unsafe {
            sys::cuLaunchKernel(
                self.0,
                grid[0],
                grid[1],
                grid[2],
                block,
                1,
                1,
                shared_bytes as u32,
                stream,
                params.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        check_raw(symbol, result)
    }
}

/// Device memory of so many bytes; `None` where there is no room.
pub(super) fn allocate(bytes: usize) -> Result<Option<u64>, Error> {
    let mut address = 0;
    // SAFETY: writes an address to a place that lives.
    match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
        result => check_raw("allocating device memory", result).map(|()| Some(address)),
    }
}

/// # Safety
/// `address` is of [`allocate`], and nothing uses it any more.
pub(super) unsafe fn free(address: u64) {
    // SAFETY: the caller's promise. Where the driver refuses, the memory stays until the context goes.
    let _ = unsafe { sys::cuMemFree_v2(address) };
}

/// # Safety
/// `to` has `bytes` bytes of device memory, `from` of host memory that stays as it is until the copy has run.
pub(super) unsafe fn copy_in(
    gpu: &Gpu,
    to: u64,
    from: *const c_void,
    bytes: usize,
) -> Result<(), Error> {
    let stream = gpu.0.stream.as_inner();
    // SAFETY: the caller's promise, passed on.
    check_raw("copying to the device", unsafe {
        sys::cuMemcpyHtoDAsync_v2(to, from, bytes, stream)
    })
}

/// # Safety
/// As for [`copy_in`], the other way.
pub(super) unsafe fn copy_out(
    gpu: &Gpu,
    to: *mut c_void,
    from: u64,
    bytes: usize,
) -> Result<(), Error> {
    let stream = gpu.0.stream.as_inner();
    // SAFETY: the caller's promise, passed on.
    check_raw("copying to the host", unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes, stream) })
}

/// # Safety
/// Both have `bytes` bytes of device memory and do not overlap.
pub(super) unsafe fn copy_within(gpu: &Gpu, to: u64, from: u64, bytes: usize) -> Result<(), Error> {
    let stream = gpu.0.stream.as_inner();
    // SAFETY: the caller's promise, passed on.
    let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream) };
    check_raw("copying on the device", result)
}

/// # Safety
/// `to` has `bytes` bytes of device memory.
pub(super) unsafe fn zero(gpu: &Gpu, to: u64, bytes: usize) -> Result<(), Error> {
    let stream = gpu.0.stream.as_inner();
    // SAFETY: the caller's promise, passed on.
    check_raw("zeroing device memory", unsafe { sys::cuMemsetD8Async(to, 0, bytes, stream) })
}

/// Host memory the device copies from at full speed, in two halves that take turns.
pub(super) struct Staging {
    memory: *mut u8,
    /// Recorded when a half's copy is queued.
    busy: [Event; 2],
    half: usize,
}

// SAFETY: the memory is this value's alone.
unsafe impl Send for Staging {}

impl Staging {
    /// Bytes of a half: enough that a copy hides the cost of starting it.
    pub(super) const HALF: usize = 4 << 20;

    pub(super) fn new() -> Result<Staging, Error> {
        let mut memory = ptr::null_mut();
        // SAFETY: writes an address to a place that lives.
        let result = unsafe { sys::cuMemAllocHost_v2(&mut memory, 2 * Staging::HALF) };
        check_raw("allocating pinned memory", result)?;
        let event = || check("making an event", Event::new(EventFlags::DISABLE_TIMING));
        Ok(Staging { memory: memory.cast(), busy: [event()?, event()?], half: 0 })
    }

    /// Copies `bytes` to the device through the memory. They may change when this returns.
    ///
    /// # Safety
    /// `to` has that many bytes of device memory.
    pub(super) unsafe fn copy_in(&mut self, gpu: &Gpu, to: u64, bytes: &[u8]) -> Result<(), Error> {
        for (index, part) in bytes.chunks(Staging::HALF).enumerate() {
            let busy = &self.busy[self.half];
            check("waiting for a copy", busy.synchronize())?;
            // SAFETY: the memory has two halves, and no copy from this one is under way.
            let from = unsafe { self.memory.add(self.half * Staging::HALF) };
            // SAFETY: as above, and a part is at most a half.
            unsafe { ptr::copy_nonoverlapping(part.as_ptr(), from, part.len()) };
            // SAFETY: the caller's promise; the half is not written before its event.
            unsafe {
                copy_in(gpu, to + (index * Staging::HALF) as u64, from.cast(), part.len())?;
            }
            check("recording an event", busy.record(&gpu.0.stream))?;
            self.half = 1 - self.half;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for busy in &self.busy {
            let _ = busy.synchronize();
        }
        // SAFETY: of cuMemAllocHost, and no copy is under way.
        let _ = unsafe { sys::cuMemFreeHost(self.memory.cast()) };
    }
}

/// Work that was recorded once and is launched as a whole: a decoding step then costs one launch.
///
/// It runs on the addresses it was recorded with: what it reads and writes must be kept. While a graph lives
/// the pool gives no memory back to the driver, so that buffers which were taken and dropped within the
/// recording stay valid as scratch.
pub struct Graph {
    executable: sys::CUgraphExec,
    gpu: Gpu,
}

// SAFETY: a CUgraphExec is a handle that any one thread at a time may use; launching borrows it mutably.
unsafe impl Send for Graph {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a graph on {:?}", self.gpu)
    }
}

impl Gpu {
    /// Records what `work` queues instead of running it. `work` must not wait for results, and no other thread may
    /// use this Gpu meanwhile.
    pub fn record<E: From<Error>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        self.0.enter()?;
        let stream = self.0.stream.as_inner();
        // Relaxed: the pool may have to allocate meanwhile.
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as self.
        check_raw("recording", unsafe { sys::cuStreamBeginCapture_v2(stream, mode) })?;
        lock(&self.0.pool).graphs += 1;
        let outcome = work();
        let mut graph = ptr::null_mut();
        // SAFETY: the stream is recording; writes a handle to a place that lives.
        let ended = unsafe { sys::cuStreamEndCapture(stream, &mut graph) };
        let instantiated = outcome.and_then(|()| {
            check_raw("recording", ended)?;
            let mut executable = ptr::null_mut();
            // SAFETY: the graph was just made.
            let result = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) };
            check_raw("making a graph", result)?;
            Ok(Graph { executable, gpu: self.clone() })
        });
        if !graph.is_null() {
            // SAFETY: an executable graph does not need it.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        }
        if instantiated.is_err() {
            lock(&self.0.pool).graphs -= 1;
        }
        instantiated
    }

    /// Starts to measure time on the device.
    pub fn timer(&self) -> Result<Timer, Error> {
        self.0.enter()?;
        let event = || check("making an event", Event::new(EventFlags::DEFAULT));
        let (start, end) = (event()?, event()?);
        check("recording an event", start.record(&self.0.stream))?;
        Ok(Timer { start, end, gpu: self.clone() })
    }
}

impl Graph {
    /// Queues what was recorded.
    pub fn launch(&mut self) -> Result<(), Error> {
        let inner = &self.gpu.0;
        inner.enter()?;
        *lock(&inner.last) = "a graph";
        // SAFETY: both live as long as self.
        check_raw("a graph", unsafe {
            sys::cuGraphLaunch(self.executable, inner.stream.as_inner())
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.gpu.synchronize();
        // SAFETY: its last launch has run.
        let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
        lock(&self.gpu.0.pool).graphs -= 1;
    }
}

/// Time between two points of the stream.
#[derive(Debug)]
pub struct Timer {
    start: Event,
    end: Event,
    gpu: Gpu,
}

impl Timer {
    /// Waits for what is queued and returns the seconds since the start.
    pub fn stop(self) -> Result<f64, Error> {
        self.gpu.0.enter()?;
        check("recording an event", self.end.record(&self.gpu.0.stream))?;
        self.gpu.0.finish("timing")?;
        let time_ms = check("reading a timer", self.end.elapsed_time_f32(&self.start))?;
        Ok(f64::from(time_ms) / 1e3)
    }
}
