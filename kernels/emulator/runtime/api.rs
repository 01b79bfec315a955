//! The driver's functions, under their own names; what they do is in the CUDA driver API reference.
//! They are the ones that the crate cust uses, and those for graphs.

#![allow(non_snake_case, missing_docs)] // the driver's names, documented by it
#![allow(clippy::missing_safety_doc)] // pointers must be good for what the driver's reference says

use std::ffi::{CStr, c_char, c_void};
use std::time::Instant;

use super::queue::{Stream, Work};
use super::{Event, Function, Runtime, code, with};
use crate::checks::limits;
use crate::device::Shape;
use crate::fault::FaultKind;

/// Calls a macro with every function's name, parameters and types.
#[macro_export]
macro_rules! driver_functions {
    ($callback:ident) => {
        $callback! {
            cuInit(flags: u32);
            cuDriverGetVersion(version: *mut i32);
            cuGetErrorString(error: u32, text: *mut *const c_char);
            cuGetErrorName(error: u32, text: *mut *const c_char);
            cuDeviceGet(device: *mut i32, ordinal: i32);
            cuDeviceGetCount(count: *mut i32);
            cuDeviceGetName(name: *mut c_char, length: i32, device: i32);
            cuDeviceTotalMem_v2(bytes: *mut usize, device: i32);
            cuDeviceGetAttribute(value: *mut i32, attribute: u32, device: i32);
            cuDevicePrimaryCtxRetain(context: *mut u64, device: i32);
            cuDevicePrimaryCtxRelease_v2(device: i32);
            cuDevicePrimaryCtxReset_v2(device: i32);
            cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32);
            cuCtxSetCurrent(context: u64);
            cuCtxGetCurrent(context: *mut u64);
            cuCtxGetDevice(device: *mut i32);
            cuCtxSynchronize();
            cuModuleLoadData(module: *mut u64, image: *const c_char);
            cuModuleLoadDataEx(
                module: *mut u64, image: *const c_char, options: u32, keys: *mut c_void,
                values: *mut c_void
            );
            cuModuleUnload(module: u64);
            cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char);
            cuModuleGetGlobal_v2(
                address: *mut u64, bytes: *mut usize, module: u64, name: *const c_char
            );
            cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
            cuMemAlloc_v2(address: *mut u64, bytes: usize);
            cuMemFree_v2(address: u64);
            cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize);
            cuMemFreeHost(pointer: *mut c_void);
            cuMemAllocManaged(address: *mut u64, bytes: usize, flags: u32);
            cuMemAllocAsync(address: *mut u64, bytes: usize, stream: u64);
            cuMemFreeAsync(address: u64, stream: u64);
            cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize);
            cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize);
            cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize);
            cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: u64);
            cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: u64);
            cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64);
            cuMemsetD8_v2(to: u64, value: u8, count: usize);
            cuMemsetD16_v2(to: u64, value: u16, count: usize);
            cuMemsetD32_v2(to: u64, value: u32, count: usize);
            cuMemsetD8Async(to: u64, value: u8, count: usize, stream: u64);
            cuMemsetD16Async(to: u64, value: u16, count: usize, stream: u64);
            cuMemsetD32Async(to: u64, value: u32, count: usize, stream: u64);
            cuStreamCreate(stream: *mut u64, flags: u32);
            cuStreamCreateWithPriority(stream: *mut u64, flags: u32, priority: i32);
            cuStreamDestroy_v2(stream: u64);
            cuStreamQuery(stream: u64);
            cuStreamSynchronize(stream: u64);
            cuStreamWaitEvent(stream: u64, event: u64, flags: u32);
            cuStreamBeginCapture_v2(stream: u64, mode: u32);
            cuStreamEndCapture(stream: u64, graph: *mut u64);
            cuEventCreate(event: *mut u64, flags: u32);
            cuEventDestroy_v2(event: u64);
            cuEventRecord(event: u64, stream: u64);
            cuEventQuery(event: u64);
            cuEventSynchronize(event: u64);
            cuEventElapsedTime(milliseconds: *mut f32, start: u64, end: u64);
            cuFuncGetAttribute(value: *mut i32, attribute: u32, function: u64);
            cuFuncSetAttribute(function: u64, attribute: u32, value: i32);
            cuFuncSetCacheConfig(function: u64, config: u32);
            cuLaunchKernel(
                function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32,
                block_y: u32, block_z: u32, shared_bytes: u32, stream: u64,
                parameters: *mut *mut c_void, extra: *mut *mut c_void
            );
            cuLaunchHostFunc(stream: u64, function: *mut c_void, data: *mut c_void);
            cuGraphInstantiateWithFlags(executable: *mut u64, graph: u64, flags: u64);
            cuGraphLaunch(executable: u64, stream: u64);
            cuGraphExecDestroy(executable: u64);
            cuGraphDestroy(graph: u64);
            cuGraphGetNodes(graph: u64, nodes: *mut c_void, count: *mut usize);
            cuOccupancyMaxActiveBlocksPerMultiprocessor(
                blocks: *mut i32, function: u64, block_size: i32, shared_bytes: usize
            );
            cuOccupancyMaxPotentialBlockSize(
                grid: *mut i32, block: *mut i32, function: u64, shared_of_block: *mut c_void,
                shared_bytes: usize, limit: i32
            );
            cuOccupancyAvailableDynamicSMemPerBlock(
                bytes: *mut usize, function: u64, blocks: i32, block_size: i32
            );
        }
    };
}

macro_rules! table {
    ($($name:ident($($parameter:ident: $kind:ty),* $(,)?);)*) => {
        /// The function of this name; null if there is none.
        pub(super) fn table(name: &CStr) -> *const c_void {
            match name.to_bytes() {
                $(bytes if bytes == stringify!($name).as_bytes() => {
                    let function: unsafe extern "C" fn($($kind),*) -> u32 = $name;
                    function as *const c_void
                })*
                _ => std::ptr::null(),
            }
        }
    };
}
driver_functions!(table);

/// Runs a call that needs a working device; its result as the driver's code.
fn call(f: impl FnOnce(&mut Runtime) -> Result<(), u32>) -> u32 {
    with(|runtime| match runtime.ready().and_then(|()| f(runtime)) {
        Ok(()) => code::SUCCESS,
        Err(code) => code,
    })
}

/// Writes a result.
///
/// # Safety
/// The pointer is null or good for a `T`.
unsafe fn put<T>(pointer: *mut T, value: T) -> Result<(), u32> {
    if pointer.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: the caller's, and it is not null.
    unsafe { pointer.write(value) };
    Ok(())
}

/// The legacy and the per-thread default stream are both the legacy one here.
fn stream_of(runtime: &Runtime, stream: u64) -> Result<u64, u32> {
    let stream = if stream <= 2 { 0 } else { stream };
    if runtime.streams.contains_key(&stream) { Ok(stream) } else { Err(code::INVALID_HANDLE) }
}

/// A name, if it is one.
///
/// # Safety
/// The pointer is null or a C string.
unsafe fn text<'a>(pointer: *const c_char) -> Result<&'a str, u32> {
    if pointer.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: the caller's, and it is not null.
    unsafe { CStr::from_ptr(pointer) }.to_str().map_err(|_| code::INVALID_VALUE)
}

pub unsafe extern "C" fn cuInit(_flags: u32) -> u32 {
    with(|runtime| runtime.initialized = true);
    code::SUCCESS
}

pub unsafe extern "C" fn cuDriverGetVersion(version: *mut i32) -> u32 {
    // SAFETY: the caller's.
    unsafe { put(version, 13_000) }.err().unwrap_or(code::SUCCESS)
}

/// Name and meaning of the codes that this driver returns.
fn describe(error: u32) -> (&'static CStr, &'static CStr) {
    match error {
        0 => (c"CUDA_SUCCESS", c"no error"),
        1 => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        2 => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        3 => (c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
        101 => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        200 => (c"CUDA_ERROR_INVALID_IMAGE", c"device kernel image is invalid"),
        209 => (c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"the emulator runs PTX only"),
        218 => (c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed (see stderr)"),
        400 => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        500 => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        600 => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        700 => (c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access (see stderr)"),
        702 => (c"CUDA_ERROR_LAUNCH_TIMEOUT", c"the launch timed out (see stderr)"),
        715 => (c"CUDA_ERROR_ILLEGAL_INSTRUCTION", c"an illegal instruction (see stderr)"),
        716 => (c"CUDA_ERROR_MISALIGNED_ADDRESS", c"a misaligned address (see stderr)"),
        719 => (c"CUDA_ERROR_LAUNCH_FAILED", c"a check of the emulator failed (see stderr)"),
        801 => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported by the emulator"),
        900 => (c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", c"not permitted while capturing"),
        901 => (c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", c"the stream is not capturing"),
        _ => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
    }
}

pub unsafe extern "C" fn cuGetErrorString(error: u32, text: *mut *const c_char) -> u32 {
    // SAFETY: the caller's.
    unsafe { put(text, describe(error).1.as_ptr()) }.err().unwrap_or(code::SUCCESS)
}

pub unsafe extern "C" fn cuGetErrorName(error: u32, text: *mut *const c_char) -> u32 {
    // SAFETY: the caller's.
    unsafe { put(text, describe(error).0.as_ptr()) }.err().unwrap_or(code::SUCCESS)
}

pub unsafe extern "C" fn cuDeviceGet(device: *mut i32, ordinal: i32) -> u32 {
    call(|_| {
        if ordinal != 0 {
            return Err(code::INVALID_DEVICE);
        }
        // SAFETY: the caller's.
        unsafe { put(device, 0) }
    })
}

pub unsafe extern "C" fn cuDeviceGetCount(count: *mut i32) -> u32 {
    // SAFETY: the caller's.
    call(|_| unsafe { put(count, 1) })
}

pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: i32, device: i32) -> u32 {
    const NAME: &[u8] = b"Emulated A100-SXM4-80GB\0";
    if device != 0 {
        return code::INVALID_DEVICE;
    }
    if name.is_null() || length < 1 {
        return code::INVALID_VALUE;
    }
    let count = NAME.len().min(length as usize);
    // SAFETY: the caller's `length` bytes, of which at most that many are written.
    unsafe {
        std::ptr::copy_nonoverlapping(NAME.as_ptr().cast(), name, count);
        *name.add(count - 1) = 0;
    }
    code::SUCCESS
}

pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) -> u32 {
    if device != 0 {
        return code::INVALID_DEVICE;
    }
    // SAFETY: the caller's.
    unsafe { put(bytes, limits::DEVICE_MEMORY as usize) }.err().unwrap_or(code::SUCCESS)
}

pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: u32, device: i32) -> u32 {
    if device != 0 {
        return code::INVALID_DEVICE;
    }
    // Numbers of CUdevice_attribute; an A100's values, as `cudaGetDeviceProperties` reports them.
    let answer = match attribute {
        1 => limits::THREADS_PER_BLOCK as i32,
        2..=4 => limits::BLOCK[attribute as usize - 2] as i32,
        5..=7 => limits::GRID[attribute as usize - 5] as i32,
        8 => limits::SHARED_PER_BLOCK as i32,
        9 => 65_536,
        10 => 32,
        11 => i32::MAX,
        12 | 82 => 65_536,
        13 => 1_410_000,
        16 => 108,
        31 | 35 | 40 | 41 => 1,
        36 => 1_593_000,
        37 => 5120,
        38 => 41_943_040,
        39 => 2048,
        75 => 8,
        76 => 0,
        81 => limits::SHARED_PER_SM as i32,
        97 => limits::SHARED_PER_BLOCK_OPT_IN as i32,
        106 => 32,
        111 => 1024,
        _ => 0,
    };
    // SAFETY: the caller's.
    unsafe { put(value, answer) }.err().unwrap_or(code::SUCCESS)
}

/// The only context.
const CONTEXT: u64 = 0x00c0_0000_0000_0010;

pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut u64, _device: i32) -> u32 {
    // SAFETY: the caller's.
    call(|_| unsafe { put(context, CONTEXT) })
}

pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: i32) -> u32 {
    code::SUCCESS
}

pub unsafe extern "C" fn cuDevicePrimaryCtxReset_v2(_device: i32) -> u32 {
    super::reset();
    with(|runtime| runtime.initialized = true);
    code::SUCCESS
}

pub unsafe extern "C" fn cuDevicePrimaryCtxSetFlags_v2(_device: i32, _flags: u32) -> u32 {
    code::SUCCESS
}

pub unsafe extern "C" fn cuCtxSetCurrent(context: u64) -> u32 {
    if context == CONTEXT || context == 0 { code::SUCCESS } else { code::INVALID_HANDLE }
}

pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut u64) -> u32 {
    // SAFETY: the caller's.
    call(|_| unsafe { put(context, CONTEXT) })
}

pub unsafe extern "C" fn cuCtxGetDevice(device: *mut i32) -> u32 {
    // SAFETY: the caller's.
    call(|_| unsafe { put(device, 0) })
}

pub unsafe extern "C" fn cuCtxSynchronize() -> u32 {
    call(|runtime| {
        runtime.drain_all();
        runtime.ready()
    })
}

pub unsafe extern "C" fn cuModuleLoadData(module: *mut u64, image: *const c_char) -> u32 {
    // SAFETY: the caller's.
    unsafe { cuModuleLoadDataEx(module, image, 0, std::ptr::null_mut(), std::ptr::null_mut()) }
}

pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut u64,
    image: *const c_char,
    _options: u32,
    _keys: *mut c_void,
    _values: *mut c_void,
) -> u32 {
    call(|runtime| {
        if image.is_null() {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: an image has at least four bytes; PTX is a C string.
        let source = unsafe {
            let start: [u8; 4] =
                [0, 1, 2, 3].map(|at| if at > 0 && *image == 0 { 0 } else { *image.add(at) as u8 });
            if start == *b"\x7fELF" || u32::from_le_bytes(start) == 0xba55_ed50 {
                return Err(code::NO_BINARY);
            }
            text(image).map_err(|_| code::INVALID_IMAGE)?
        };
        match runtime.device.load(source) {
            Ok(loaded) => {
                let handle = runtime.handle();
                runtime.modules.insert(handle, loaded);
                // SAFETY: the caller's.
                unsafe { put(module, handle) }
            }
            Err(error) => {
                runtime.complain(FaultKind::InvalidModule, error.to_string());
                Err(code::INVALID_PTX)
            }
        }
    })
}

pub unsafe extern "C" fn cuModuleUnload(module: u64) -> u32 {
    call(|runtime| {
        if !runtime.modules.contains_key(&module) {
            return Err(code::INVALID_HANDLE);
        }
        runtime.drain_all();
        if let Some(module) = runtime.modules.remove(&module) {
            runtime.device.unload(&module);
        }
        runtime.functions.retain(|_, function| function.module != module);
        Ok(())
    })
}

pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut u64,
    module: u64,
    name: *const c_char,
) -> u32 {
    call(|runtime| {
        // SAFETY: the caller's.
        let name = unsafe { text(name)? };
        let loaded = runtime.modules.get(&module).ok_or(code::INVALID_HANDLE)?;
        let kernel = loaded.kernel(name).ok_or(code::NOT_FOUND)?;
        // The same kernel has the same handle, and what was set for it stays set.
        let known = runtime
            .functions
            .iter()
            .find(|(_, function)| function.module == module && function.kernel.name() == name);
        let handle = match known.map(|(&handle, _)| handle) {
            Some(handle) => handle,
            None => {
                let handle = runtime.handle();
                runtime.functions.insert(handle, Function { kernel, module, opted_in: 0 });
                handle
            }
        };
        // SAFETY: the caller's.
        unsafe { put(function, handle) }
    })
}

pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: *mut u64,
    bytes: *mut usize,
    module: u64,
    name: *const c_char,
) -> u32 {
    call(|runtime| {
        // SAFETY: the caller's.
        let name = unsafe { text(name)? };
        let module = runtime.modules.get(&module).ok_or(code::INVALID_HANDLE)?;
        let (start, size) = module.variable(name).ok_or(code::NOT_FOUND)?;
        // SAFETY: the caller's; either may be null here.
        unsafe {
            if !address.is_null() {
                put(address, start)?;
            }
            if !bytes.is_null() {
                put(bytes, size as usize)?;
            }
        }
        Ok(())
    })
}

pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    call(|runtime| {
        let left = limits::DEVICE_MEMORY - runtime.device.memory.used();
        // SAFETY: the caller's.
        unsafe {
            put(free, left as usize)?;
            put(total, limits::DEVICE_MEMORY as usize)
        }
    })
}

pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32 {
    call(|runtime| {
        if bytes == 0 {
            return Err(code::INVALID_VALUE);
        }
        let new = runtime.device.allocate(bytes as u64).ok_or(code::OUT_OF_MEMORY)?;
        // SAFETY: the caller's.
        unsafe { put(address, new) }
    })
}

pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    call(|runtime| {
        if address == 0 {
            return Ok(());
        }
        // Freeing waits for all work.
        runtime.drain_all();
        runtime.ready()?;
        if runtime.device.free(address) { Ok(()) } else { Err(code::INVALID_VALUE) }
    })
}

pub unsafe extern "C" fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) -> u32 {
    call(|runtime| {
        let mut memory = vec![u128::MAX; bytes.div_ceil(16).max(1)];
        let address = memory.as_mut_ptr();
        runtime.pinned.insert(address as usize, (memory, bytes));
        // SAFETY: the caller's.
        unsafe { put(pointer, address.cast()) }
    })
}

pub unsafe extern "C" fn cuMemFreeHost(pointer: *mut c_void) -> u32 {
    with(|runtime| {
        let Some((_, (_, bytes))) = runtime.pinned.get_key_value(&(pointer as usize)) else {
            return code::INVALID_VALUE;
        };
        let bytes = *bytes;
        runtime.check_host(pointer as usize, bytes, None);
        // Queued copies must not reach freed memory.
        runtime.drain_all();
        runtime.pinned.remove(&(pointer as usize));
        code::SUCCESS
    })
}

pub unsafe extern "C" fn cuMemAllocManaged(_address: *mut u64, _bytes: usize, _flags: u32) -> u32 {
    // The host would follow the pointer, and device addresses are none of the host's.
    code::NOT_SUPPORTED
}

pub unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: u64) -> u32 {
    if let Err(code) = with(|runtime| stream_of(runtime, stream)) {
        return code;
    }
    // SAFETY: the caller's.
    unsafe { cuMemAlloc_v2(address, bytes) }
}

pub unsafe extern "C" fn cuMemFreeAsync(address: u64, stream: u64) -> u32 {
    call(|runtime| {
        let stream = stream_of(runtime, stream)?;
        if runtime.device.memory.allocation_of(address) != Some(address) {
            return Err(code::INVALID_VALUE);
        }
        runtime.submit(stream, Work::Free { address }).map(|_| ())
    })
}

/// Whether a copy's range is within device memory.
fn check_range(runtime: &mut Runtime, address: u64, bytes: usize) -> Result<(), u32> {
    match runtime.device.memory.check(address, bytes as u64) {
        Ok(()) => Ok(()),
        Err(refused) => {
            let freed = refused == crate::memory::Refused::Freed;
            let kind = if freed { FaultKind::UseAfterFree } else { FaultKind::OutOfBounds };
            runtime.complain(kind, format!("a copy of {bytes} bytes at {address:#x}"));
            Err(code::INVALID_VALUE)
        }
    }
}

/// A synchronous call on the legacy default stream.
fn now(
    runtime: &mut Runtime,
    places: &[(u64, usize)],
    action: &str,
    work: impl FnOnce(&mut Runtime) -> Result<(), crate::fault::Report>,
) -> Result<(), u32> {
    for &(address, bytes) in places {
        check_range(runtime, address, bytes)?;
    }
    runtime.drain_default();
    runtime.ready()?;
    for &(address, _) in places {
        runtime.check_queued(address, action);
    }
    work(runtime).map_err(|report| runtime.fail(report))
}

pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> u32 {
    call(|runtime| {
        if bytes == 0 {
            return Ok(());
        }
        if from.is_null() {
            return Err(code::INVALID_VALUE);
        }
        runtime.check_host(from as usize, bytes, None);
        now(runtime, &[(to, bytes)], "a copy from the host", |runtime| {
            // SAFETY: the caller's bytes; not null.
            let source = unsafe { std::slice::from_raw_parts(from.cast(), bytes) };
            runtime.device.write(to, source)
        })
    })
}

pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> u32 {
    call(|runtime| {
        if bytes == 0 {
            return Ok(());
        }
        if to.is_null() {
            return Err(code::INVALID_VALUE);
        }
        now(runtime, &[(from, bytes)], "a copy to the host", |runtime| {
            runtime.download(to as usize, from, bytes)
        })
    })
}

pub unsafe extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> u32 {
    call(|runtime| {
        if bytes == 0 {
            return Ok(());
        }
        now(runtime, &[(to, bytes), (from, bytes)], "a copy", |runtime| {
            runtime.device.copy(to, from, bytes)
        })
    })
}

/// Queues work on device ranges.
fn later(
    runtime: &mut Runtime,
    stream: u64,
    places: &[(u64, usize)],
    work: Work,
) -> Result<(), u32> {
    let stream = stream_of(runtime, stream)?;
    for &(address, bytes) in places {
        check_range(runtime, address, bytes)?;
    }
    runtime.submit(stream, work).map(|_| ())
}

pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: u64,
) -> u32 {
    call(|runtime| {
        if bytes == 0 {
            return Ok(());
        }
        if from.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let queue = stream_of(runtime, stream)?;
        runtime.check_host(from as usize, bytes, Some(queue));
        let work = if runtime.is_pinned(from as usize, bytes) {
            Work::UploadPinned { to, from: from as usize, length: bytes }
        } else {
            // SAFETY: the caller's bytes; not null.
            let source = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) };
            Work::Upload { to, bytes: source.to_vec() }
        };
        later(runtime, stream, &[(to, bytes)], work)
    })
}

pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: u64,
) -> u32 {
    call(|runtime| {
        if bytes == 0 {
            return Ok(());
        }
        if to.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let queue = stream_of(runtime, stream)?;
        let work = Work::Download { to: to as usize, from, length: bytes };
        later(runtime, stream, &[(from, bytes)], work)?;
        let capturing = runtime.streams.get(&queue).is_some_and(|stream| stream.capture.is_some());
        // A copy to pageable memory returns when it is done.
        if !capturing && !runtime.is_pinned(to as usize, bytes) {
            runtime.drain(queue, u64::MAX);
            runtime.ready()?;
        }
        Ok(())
    })
}

pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(
    to: u64,
    from: u64,
    bytes: usize,
    stream: u64,
) -> u32 {
    call(|runtime| {
        let work = Work::Copy { to, from, length: bytes };
        later(runtime, stream, &[(to, bytes), (from, bytes)], work)
    })
}

fn fill_now(to: u64, pattern: &[u8], count: usize) -> u32 {
    call(|runtime| {
        let bytes = pattern.len().checked_mul(count).ok_or(code::INVALID_VALUE)?;
        if !to.is_multiple_of(pattern.len() as u64) {
            return Err(code::INVALID_VALUE);
        }
        now(runtime, &[(to, bytes)], "a fill", |runtime| runtime.device.fill(to, pattern, count))
    })
}

fn fill_later(to: u64, pattern: &[u8], count: usize, stream: u64) -> u32 {
    call(|runtime| {
        let bytes = pattern.len().checked_mul(count).ok_or(code::INVALID_VALUE)?;
        if !to.is_multiple_of(pattern.len() as u64) {
            return Err(code::INVALID_VALUE);
        }
        let work = Work::Fill { to, pattern: pattern.to_vec(), count };
        later(runtime, stream, &[(to, bytes)], work)
    })
}

pub unsafe extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> u32 {
    fill_now(to, &[value], count)
}

pub unsafe extern "C" fn cuMemsetD16_v2(to: u64, value: u16, count: usize) -> u32 {
    fill_now(to, &value.to_le_bytes(), count)
}

pub unsafe extern "C" fn cuMemsetD32_v2(to: u64, value: u32, count: usize) -> u32 {
    fill_now(to, &value.to_le_bytes(), count)
}

pub unsafe extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: u64) -> u32 {
    fill_later(to, &[value], count, stream)
}

pub unsafe extern "C" fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: u64) -> u32 {
    fill_later(to, &value.to_le_bytes(), count, stream)
}

pub unsafe extern "C" fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: u64) -> u32 {
    fill_later(to, &value.to_le_bytes(), count, stream)
}

pub unsafe extern "C" fn cuStreamCreate(stream: *mut u64, flags: u32) -> u32 {
    // SAFETY: the caller's.
    unsafe { cuStreamCreateWithPriority(stream, flags, 0) }
}

pub unsafe extern "C" fn cuStreamCreateWithPriority(
    stream: *mut u64,
    flags: u32,
    _priority: i32,
) -> u32 {
    call(|runtime| {
        let handle = runtime.handle();
        runtime.streams.insert(handle, Stream::new(flags & 1 == 0));
        // SAFETY: the caller's.
        unsafe { put(stream, handle) }
    })
}

pub unsafe extern "C" fn cuStreamDestroy_v2(stream: u64) -> u32 {
    with(|runtime| {
        if stream <= 2 || !runtime.streams.contains_key(&stream) {
            return code::INVALID_HANDLE;
        }
        // The work goes on without its stream; here it is done at once.
        runtime.drain(stream, u64::MAX);
        runtime.streams.remove(&stream);
        runtime.sticky
    })
}

/// Runs a stream up to a ticket for someone who only asks: done before, or not yet.
fn query(runtime: &mut Runtime, stream: u64, until: u64, idle: bool) -> Result<(), u32> {
    if idle {
        return Ok(());
    }
    // Not ready now, but ready when asked again: a loop of queries ends.
    runtime.drain(stream, until);
    runtime.ready()?;
    Err(code::NOT_READY)
}

pub unsafe extern "C" fn cuStreamQuery(stream: u64) -> u32 {
    call(|runtime| {
        let stream = stream_of(runtime, stream)?;
        let idle = runtime.streams.get(&stream).is_none_or(Stream::is_idle);
        query(runtime, stream, u64::MAX, idle)
    })
}

pub unsafe extern "C" fn cuStreamSynchronize(stream: u64) -> u32 {
    call(|runtime| {
        let stream = stream_of(runtime, stream)?;
        if runtime.streams.get(&stream).is_some_and(|stream| stream.capture.is_some()) {
            return Err(code::CAPTURE_UNSUPPORTED);
        }
        if stream == 0 {
            runtime.drain_default();
        } else {
            runtime.drain(stream, u64::MAX);
        }
        runtime.ready()
    })
}

pub unsafe extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, _flags: u32) -> u32 {
    call(|runtime| {
        let stream = stream_of(runtime, stream)?;
        let event = runtime.events.get(&event).ok_or(code::INVALID_HANDLE)?;
        // An event that was never recorded is waited for by nobody.
        let Some((other, ticket)) = event.recorded else { return Ok(()) };
        runtime.submit(stream, Work::Wait { stream: other, ticket }).map(|_| ())
    })
}

pub unsafe extern "C" fn cuStreamBeginCapture_v2(stream: u64, _mode: u32) -> u32 {
    call(|runtime| {
        let stream = stream_of(runtime, stream)?;
        let state = runtime.streams.get_mut(&stream).ok_or(code::INVALID_HANDLE)?;
        if stream == 0 || state.capture.is_some() {
            return Err(code::CAPTURE_UNSUPPORTED);
        }
        state.capture = Some(Vec::new());
        Ok(())
    })
}

pub unsafe extern "C" fn cuStreamEndCapture(stream: u64, graph: *mut u64) -> u32 {
    call(|runtime| {
        let stream = stream_of(runtime, stream)?;
        let state = runtime.streams.get_mut(&stream).ok_or(code::INVALID_HANDLE)?;
        let captured = state.capture.take().ok_or(code::CAPTURE_INVALIDATED)?;
        let handle = runtime.handle();
        runtime.graphs.insert(handle, captured);
        // SAFETY: the caller's.
        unsafe { put(graph, handle) }
    })
}

pub unsafe extern "C" fn cuEventCreate(event: *mut u64, flags: u32) -> u32 {
    call(|runtime| {
        let handle = runtime.handle();
        let new = Event { recorded: None, completed: None, timed: flags & 2 == 0 };
        runtime.events.insert(handle, new);
        // SAFETY: the caller's.
        unsafe { put(event, handle) }
    })
}

pub unsafe extern "C" fn cuEventDestroy_v2(event: u64) -> u32 {
    let removed = with(|runtime| runtime.events.remove(&event).is_some());
    if removed { code::SUCCESS } else { code::INVALID_HANDLE }
}

pub unsafe extern "C" fn cuEventRecord(event: u64, stream: u64) -> u32 {
    call(|runtime| {
        let stream = stream_of(runtime, stream)?;
        if !runtime.events.contains_key(&event) {
            return Err(code::INVALID_HANDLE);
        }
        let ticket = runtime.submit(stream, Work::Record { event })?;
        if let Some(event) = runtime.events.get_mut(&event) {
            event.completed = None;
            event.recorded = Some((stream, ticket));
        }
        Ok(())
    })
}

pub unsafe extern "C" fn cuEventQuery(event: u64) -> u32 {
    call(|runtime| {
        let event = runtime.events.get(&event).ok_or(code::INVALID_HANDLE)?;
        let Some((stream, ticket)) = event.recorded else { return Ok(()) };
        let done = event.completed.is_some();
        query(runtime, stream, ticket, done)
    })
}

pub unsafe extern "C" fn cuEventSynchronize(event: u64) -> u32 {
    call(|runtime| {
        let event = runtime.events.get(&event).ok_or(code::INVALID_HANDLE)?;
        if let Some((stream, ticket)) = event.recorded {
            runtime.drain(stream, ticket);
        }
        runtime.ready()
    })
}

pub unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: u64, end: u64) -> u32 {
    call(|runtime| {
        let time = |event: u64| -> Result<Instant, u32> {
            let event = runtime.events.get(&event).ok_or(code::INVALID_HANDLE)?;
            if !event.timed || event.recorded.is_none() {
                return Err(code::INVALID_HANDLE);
            }
            event.completed.ok_or(code::NOT_READY)
        };
        let elapsed = time(end)?.saturating_duration_since(time(start)?);
        // SAFETY: the caller's.
        unsafe { put(milliseconds, elapsed.as_secs_f32() * 1e3) }
    })
}

pub unsafe extern "C" fn cuFuncGetAttribute(value: *mut i32, attribute: u32, function: u64) -> u32 {
    call(|runtime| {
        let function = runtime.functions.get(&function).ok_or(code::INVALID_HANDLE)?;
        let program = &function.kernel.program;
        let most = program.max_threads.unwrap_or(limits::THREADS_PER_BLOCK);
        let left = limits::SHARED_PER_BLOCK - program.static_shared;
        // Numbers of CUfunction_attribute. Registers are what the emulator uses, not what ptxas would.
        let answer = match attribute {
            0 => most.min(limits::THREADS_PER_BLOCK) as i32,
            1 => program.static_shared as i32,
            3 => program.local_bytes as i32,
            4 => function.kernel.registers().1.min(255) as i32,
            5 | 6 => 80,
            8 => function.opted_in.max(left) as i32,
            _ => 0,
        };
        // SAFETY: the caller's.
        unsafe { put(value, answer) }
    })
}

pub unsafe extern "C" fn cuFuncSetAttribute(function: u64, attribute: u32, value: i32) -> u32 {
    call(|runtime| {
        let function = runtime.functions.get_mut(&function).ok_or(code::INVALID_HANDLE)?;
        if attribute == 8 {
            let most = limits::SHARED_PER_BLOCK_OPT_IN - function.kernel.program.static_shared;
            let bytes = usize::try_from(value).map_err(|_| code::INVALID_VALUE)?;
            if bytes > most {
                return Err(code::INVALID_VALUE);
            }
            function.opted_in = bytes;
        }
        Ok(())
    })
}

pub unsafe extern "C" fn cuFuncSetCacheConfig(function: u64, _config: u32) -> u32 {
    let known = with(|runtime| runtime.functions.contains_key(&function));
    if known { code::SUCCESS } else { code::INVALID_HANDLE }
}

#[allow(clippy::too_many_arguments)] // the driver's
pub unsafe extern "C" fn cuLaunchKernel(
    function: u64,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    stream: u64,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32 {
    call(|runtime| {
        let stream = stream_of(runtime, stream)?;
        let function = runtime.functions.get(&function).ok_or(code::INVALID_HANDLE)?.clone();
        let kernel = function.kernel;
        let shape = Shape {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            shared_bytes: shared_bytes as usize,
        };
        let shaped = runtime.device.check_shape(&kernel, &shape, function.opted_in);
        if let Err(report) = shaped {
            runtime.report(report);
            return Err(code::INVALID_VALUE);
        }
        let mut arguments = vec![0; kernel.parameter_bytes()];
        if !parameters.is_null() {
            for (index, &(offset, size)) in kernel.parameters().iter().enumerate() {
                // SAFETY: the caller's array has a pointer for each parameter, each good for the
                // parameter's size; null ones are refused.
                unsafe {
                    let argument = *parameters.add(index);
                    if argument.is_null() {
                        return Err(code::INVALID_VALUE);
                    }
                    let to = arguments[offset..offset + size].as_mut_ptr();
                    std::ptr::copy_nonoverlapping(argument.cast(), to, size);
                }
            }
        } else if !extra.is_null() {
            // SAFETY: the caller's list of keys and values ends with a null key.
            unsafe { buffer_arguments(runtime, extra, &mut arguments)? };
        } else if !arguments.is_empty() {
            return Err(code::INVALID_VALUE);
        }
        runtime.submit(stream, Work::Launch { kernel, shape, arguments }).map(|_| ())
    })
}

/// Arguments as one buffer: `CU_LAUNCH_PARAM_BUFFER_POINTER` and `_SIZE`.
///
/// # Safety
/// `extra` is a list of keys and values that ends with a null key, as the driver wants it.
unsafe fn buffer_arguments(
    runtime: &mut Runtime,
    extra: *mut *mut c_void,
    arguments: &mut [u8],
) -> Result<(), u32> {
    let (mut buffer, mut size) = (std::ptr::null::<u8>(), 0);
    let mut at = 0;
    // SAFETY: the caller's; the size is read from where the value points, the buffer has that size.
    unsafe {
        loop {
            match *extra.add(at) as usize {
                0 => break,
                1 => buffer = (*extra.add(at + 1)).cast(),
                2 => size = *(*extra.add(at + 1)).cast::<usize>(),
                _ => return Err(code::INVALID_VALUE),
            }
            at += 2;
        }
        if buffer.is_null() || size != arguments.len() {
            let message = format!("{size} bytes of arguments, not {}", arguments.len());
            runtime.complain(FaultKind::LaunchLimits, message);
            return Err(code::INVALID_VALUE);
        }
        std::ptr::copy_nonoverlapping(buffer, arguments.as_mut_ptr(), size);
    }
    Ok(())
}

pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: u64,
    function: *mut c_void,
    data: *mut c_void,
) -> u32 {
    call(|runtime| {
        let stream = stream_of(runtime, stream)?;
        if function.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let work = Work::Call { function: function as usize, data: data as usize };
        runtime.submit(stream, work).map(|_| ())
    })
}

pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    executable: *mut u64,
    graph: u64,
    _flags: u64,
) -> u32 {
    call(|runtime| {
        let work = runtime.graphs.get(&graph).ok_or(code::INVALID_HANDLE)?.clone();
        let handle = runtime.handle();
        runtime.executables.insert(handle, work);
        // SAFETY: the caller's.
        unsafe { put(executable, handle) }
    })
}

pub unsafe extern "C" fn cuGraphLaunch(executable: u64, stream: u64) -> u32 {
    call(|runtime| {
        let stream = stream_of(runtime, stream)?;
        let work = runtime.executables.get(&executable).ok_or(code::INVALID_HANDLE)?.clone();
        for work in work {
            runtime.submit(stream, work)?;
        }
        Ok(())
    })
}

pub unsafe extern "C" fn cuGraphExecDestroy(executable: u64) -> u32 {
    let removed = with(|runtime| runtime.executables.remove(&executable).is_some());
    if removed { code::SUCCESS } else { code::INVALID_HANDLE }
}

pub unsafe extern "C" fn cuGraphDestroy(graph: u64) -> u32 {
    let removed = with(|runtime| runtime.graphs.remove(&graph).is_some());
    if removed { code::SUCCESS } else { code::INVALID_HANDLE }
}

pub unsafe extern "C" fn cuGraphGetNodes(graph: u64, nodes: *mut c_void, count: *mut usize) -> u32 {
    call(|runtime| {
        let graph = runtime.graphs.get(&graph).ok_or(code::INVALID_HANDLE)?;
        if !nodes.is_null() {
            return Err(code::NOT_SUPPORTED);
        }
        // SAFETY: the caller's.
        unsafe { put(count, graph.len()) }
    })
}

pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut i32,
    function: u64,
    block_size: i32,
    shared_bytes: usize,
) -> u32 {
    call(|runtime| {
        let function = runtime.functions.get(&function).ok_or(code::INVALID_HANDLE)?;
        let threads = u32::try_from(block_size).map_err(|_| code::INVALID_VALUE)?;
        if threads == 0 {
            return Err(code::INVALID_VALUE);
        }
        // Threads, blocks and shared memory of a multiprocessor; registers are ptxas's to know.
        let shared = function.kernel.program.static_shared + shared_bytes + 1024;
        let most = (2048 / threads).min(32).min((limits::SHARED_PER_SM / shared) as u32);
        // SAFETY: the caller's.
        unsafe { put(blocks, most as i32) }
    })
}

pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: *mut i32,
    block: *mut i32,
    function: u64,
    _shared_of_block: *mut c_void,
    _shared_bytes: usize,
    limit: i32,
) -> u32 {
    call(|runtime| {
        if !runtime.functions.contains_key(&function) {
            return Err(code::INVALID_HANDLE);
        }
        let size = if limit > 0 { limit.min(256) } else { 256 };
        // SAFETY: the caller's.
        unsafe {
            put(grid, 108 * 8)?;
            put(block, size)
        }
    })
}

pub unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: *mut usize,
    function: u64,
    blocks: i32,
    _block_size: i32,
) -> u32 {
    call(|runtime| {
        let function = runtime.functions.get(&function).ok_or(code::INVALID_HANDLE)?;
        let blocks = usize::try_from(blocks).ok().filter(|&blocks| blocks > 0);
        let share = limits::SHARED_PER_SM / blocks.ok_or(code::INVALID_VALUE)?;
        let left = share.saturating_sub(1024 + function.kernel.program.static_shared);
        let most = limits::SHARED_PER_BLOCK_OPT_IN - function.kernel.program.static_shared;
        // SAFETY: the caller's.
        unsafe { put(bytes, left.min(most)) }
    })
}
