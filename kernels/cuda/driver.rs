//! Driver functions that cust does not wrap, through `cust::sys`: memory by address, copies and fills on a stream, launches with
//! more than 48 KiB of shared memory, graphs.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

use cust::context::{Context, CurrentContext};
use cust::error::CudaError;
use cust::event::{Event, EventFlags};
use cust::sys::{self, CUresult};

use super::{Error, Gpu, Opened};

/// cust's Display of an error asks the driver; its Debug is the error's name.
pub(super) fn describe(error: CudaError) -> String {
    format!("{error:?}")
}

/// Turns a refusal of the driver into an error that says what was being done.
pub(super) fn check<T>(what: &str, result: Result<T, CudaError>) -> Result<T, Error> {
    result.map_err(|error| Error::Driver { what: what.into(), result: describe(error) })
}

pub(super) fn check_raw(what: &str, result: CUresult) -> Result<(), Error> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(Error::Driver { what: what.into(), result: format!("{result:?}") })
}

/// Makes `context` current on this thread, unless it is.
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

    /// Allows the kernel this much dynamic shared memory.
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

/// `bytes` bytes of device memory; `None` where there is no room.
pub(super) fn allocate(gpu: &Gpu, bytes: usize) -> Result<Option<u64>, Error> {
    if gpu.counts() {
        // Nobody reads there; 0 would be no address.
        return Ok(Some(1));
    }
    let mut address = 0;
    // SAFETY: writes an address to a place that lives.
    match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
        result => check_raw("allocating device memory", result).map(|()| Some(address)),
    }
}

/// # Safety
/// `address` is of [`allocate`] by a device that `opened` is of, and nothing uses it any more.
pub(super) unsafe fn free(opened: Option<&Opened>, address: u64) {
    if opened.is_some() {
        // SAFETY: the caller's promise. Where the driver refuses, the memory stays until the context goes.
        let _ = unsafe { sys::cuMemFree_v2(address) };
    }
}

/// Bytes that are free, and bytes of the device.
pub(super) fn memory(gpu: &Gpu) -> Result<(usize, usize), Error> {
    match gpu.counts() {
        true => Ok((usize::MAX / 2, usize::MAX / 2)),
        false => check("asking for free memory", cust::memory::mem_get_info()),
    }
}

/// # Safety
/// `to` has `bytes` bytes of device memory, `from` of host memory that stays as it is until the copy has run.
pub(super) unsafe fn copy_in(
    gpu: &Gpu,
    to: u64,
    from: *const c_void,
    bytes: usize,
) -> Result<(), Error> {
    let Some(opened) = &gpu.0.opened else { return Ok(()) };
    let stream = opened.stream.as_inner();
    gpu.0.count(|queued| queued.copies += 1);
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
    let Some(opened) = &gpu.0.opened else { return Ok(()) };
    let stream = opened.stream.as_inner();
    gpu.0.count(|queued| queued.copies += 1);
    // SAFETY: the caller's promise, passed on.
    check_raw("copying to the host", unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes, stream) })
}

/// # Safety
/// Both have `bytes` bytes of device memory and do not overlap.
pub(super) unsafe fn copy_within(gpu: &Gpu, to: u64, from: u64, bytes: usize) -> Result<(), Error> {
    let Some(opened) = &gpu.0.opened else { return Ok(()) };
    let stream = opened.stream.as_inner();
    gpu.0.count(|queued| queued.copies += 1);
    // SAFETY: the caller's promise, passed on.
    let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream) };
    check_raw("copying on the device", result)
}

/// # Safety
/// `to` has `bytes` bytes of device memory.
pub(super) unsafe fn zero(gpu: &Gpu, to: u64, bytes: usize) -> Result<(), Error> {
    let Some(opened) = &gpu.0.opened else { return Ok(()) };
    let stream = opened.stream.as_inner();
    gpu.0.count(|queued| queued.copies += 1);
    // SAFETY: the caller's promise, passed on.
    check_raw("zeroing device memory", unsafe { sys::cuMemsetD8Async(to, 0, bytes, stream) })
}

/// Host memory the device copies from at full speed, in two halves that take turns. What is copied lies side by
/// side in a half, so that small copies do not wait for each other.
///
/// It may be dropped only when the stream is idle.
pub(super) struct Staging {
    memory: *mut u8,
    /// Recorded when a half is full.
    full: [Event; 2],
    half: usize,
    /// Bytes of the half that copies read.
    used: usize,
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
        Ok(Staging { memory: memory.cast(), full: [event()?, event()?], half: 0, used: 0 })
    }

    /// Copies `bytes` to the device through the memory. They may change when this returns.
    ///
    /// # Safety
    /// `to` has that many bytes of device memory.
    pub(super) unsafe fn copy_in(&mut self, gpu: &Gpu, to: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < bytes.len() {
            if self.used == Staging::HALF {
                self.turn(gpu)?;
            }
            let len = (bytes.len() - done).min(Staging::HALF - self.used);
            let part = &bytes[done..done + len];
            // SAFETY: a half has HALF bytes, and no copy reads those from `used` on.
            let from = unsafe { self.memory.add(self.half * Staging::HALF + self.used) };
            // SAFETY: as above, and the part ends with the half at the latest.
            unsafe { ptr::copy_nonoverlapping(part.as_ptr(), from, len) };
            // SAFETY: the caller's promise; the bytes are not written before the half's next turn.
            unsafe { copy_in(gpu, to + done as u64, from.cast(), len)? };
            self.used = (self.used + len).next_multiple_of(256).min(Staging::HALF);
            done += len;
        }
        Ok(())
    }

    /// Switches to the other half, once its copies have run.
    fn turn(&mut self, gpu: &Gpu) -> Result<(), Error> {
        check("recording an event", self.full[self.half].record(&gpu.0.opened("copying")?.stream))?;
        let other = 1 - self.half;
        check("waiting for a copy", self.full[other].synchronize())?;
        (self.half, self.used) = (other, 0);
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: of cuMemAllocHost, and no copy is under way.
        let _ = unsafe { sys::cuMemFreeHost(self.memory.cast()) };
    }
}

/// A stream in capture mode; null on a counting device. The capture ends when this is dropped.
pub(super) struct Capture(sys::CUstream);

impl Capture {
    /// # Safety
    /// The stream outlives the value.
    pub(super) unsafe fn begin(gpu: &Gpu, what: &str) -> Result<Capture, Error> {
        let Some(opened) = &gpu.0.opened else { return Ok(Capture(ptr::null_mut())) };
        let stream = opened.stream.as_inner();
        // Relaxed: the pool may have to allocate meanwhile.
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the caller's promise.
        check_raw(what, unsafe { sys::cuStreamBeginCapture_v2(stream, mode) })?;
        Ok(Capture(stream))
    }

    /// The captured graph, ready to be launched.
    pub(super) fn end(self, what: &str) -> Result<Executable, Error> {
        if self.0.is_null() {
            return Ok(Executable(ptr::null_mut()));
        }
        let mut graph = ptr::null_mut();
        // SAFETY: the stream lives and captures; writes a handle to a place that lives.
        let ended = unsafe { sys::cuStreamEndCapture(self.0, &mut graph) };
        std::mem::forget(self);
        let mut executable = ptr::null_mut();
        let outcome = check_raw(what, ended).and_then(|()| {
            // SAFETY: the graph was just made; writes a handle to a place that lives.
            check_raw(what, unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) })
        });
        if !graph.is_null() {
            // SAFETY: an executable graph does not need it.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        }
        outcome.map(|()| Executable(executable))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.0.is_null() {
            return;
        }
        let mut graph = ptr::null_mut();
        // SAFETY: as in `end`.
        unsafe {
            let _ = sys::cuStreamEndCapture(self.0, &mut graph);
            if !graph.is_null() {
                let _ = sys::cuGraphDestroy(graph);
            }
        }
    }
}

/// A captured graph as the driver keeps it; null on a counting device.
pub(super) struct Executable(sys::CUgraphExec);

// SAFETY: a CUgraphExec is a handle that any one thread at a time may use; launching borrows it mutably.
unsafe impl Send for Executable {}
// SAFETY: nothing is done with a shared reference to it.
unsafe impl Sync for Executable {}

impl Executable {
    pub(super) fn launch(&mut self, gpu: &Gpu, what: &str) -> Result<(), Error> {
        let Some(opened) = &gpu.0.opened else { return Ok(()) };
        let stream = opened.stream.as_inner();
        // SAFETY: both handles live.
        check_raw(what, unsafe { sys::cuGraphLaunch(self.0, stream) })
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: nobody has the handle any more. The driver lets a launch that is under way end.
            let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
        }
    }
}

impl Gpu {
    /// Starts a timer on the device.
    pub fn timer(&self) -> Result<Timer, Error> {
        let _entered = self.0.enter()?;
        let event = || check("making an event", Event::new(EventFlags::DEFAULT));
        let (start, end) = (event()?, event()?);
        check("recording an event", start.record(&self.0.opened("timing")?.stream))?;
        Ok(Timer { start, end, gpu: self.clone() })
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
        let _entered = self.gpu.0.enter()?;
        check("recording an event", self.end.record(&self.gpu.0.opened("timing")?.stream))?;
        self.gpu.0.finish("timing")?;
        let time_ms = check("reading a timer", self.end.elapsed_time_f32(&self.start))?;
        Ok(f64::from(time_ms) / 1e3)
    }
}
