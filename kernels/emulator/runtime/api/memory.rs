//! Memory: allocating it, copying and filling it, at once or in a stream.

use std::ffi::c_void;

use super::super::queue::Work;
use super::super::{Runtime, code, with};
use super::{call, put, stream_of};
use crate::checks::limits;
use crate::fault::FaultKind;

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
