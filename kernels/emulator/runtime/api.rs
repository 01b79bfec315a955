//! The driver's functions, under their own names; what they do is in the CUDA driver API reference.
//! They are the ones that the crate cust uses, and those for graphs.

#![allow(non_snake_case, missing_docs)] // the driver's names, documented by it
#![allow(clippy::missing_safety_doc)] // pointers must be good for what the driver's reference says

mod functions;
mod memory;
mod streams;

use std::ffi::{CStr, c_char, c_void};

pub use functions::*;
pub use memory::*;
pub use streams::*;

use super::{Function, Runtime, code, with};
use crate::checks::limits;
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
