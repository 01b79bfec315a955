//! Streams, events, and the graphs that streams record.

use std::ffi::c_void;
use std::time::Instant;

use super::super::queue::{Stream, Work};
use super::super::{Event, Runtime, code, with};
use super::{call, put, stream_of};

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
