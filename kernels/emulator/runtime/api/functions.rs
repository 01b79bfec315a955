//! Kernels: their attributes, launches and occupancy.

use std::ffi::c_void;

use super::super::queue::Work;
use super::super::{Runtime, code, with};
use super::{call, put, stream_of};
use crate::checks::limits;
use crate::device::Shape;
use crate::fault::FaultKind;

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
            4 => function.kernel.registers().min(255) as i32,
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
