//! The driver's functions, called as a program would: through the resolver, by name.

use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use emulator::FaultKind;

use crate::module;

/// One driver at a time: its state is global.
fn driver() -> (MutexGuard<'static, ()>, u64) {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    emulator::reset();
    emulator::take_reports();
    assert_eq!(call!(c"cuInit", fn(u32), 0), 0);
    let mut context = 0u64;
    assert_eq!(call!(c"cuDevicePrimaryCtxRetain", fn(*mut u64, i32), &mut context, 0), 0);
    (guard, context)
}

fn find(name: &CStr) -> *const c_void {
    let function = emulator::resolve(name);
    assert!(!function.is_null(), "{name:?}");
    function
}

macro_rules! call {
    ($name:expr, fn($($kind:ty),*) $(, $argument:expr)*) => {{
        let pointer = $crate::driver::find($name);
        // SAFETY: the function of this name has these parameters (see emulator::api).
        unsafe {
            let function =
                std::mem::transmute::<*const c_void, unsafe extern "C" fn($($kind),*) -> u32>(pointer);
            function($($argument),*)
        }
    }};
}
use call;

fn load(source: &str) -> u64 {
    let image = CString::new(source).expect("no zero bytes");
    let mut handle = 0u64;
    let code = call!(
        c"cuModuleLoadDataEx",
        fn(*mut u64, *const i8, u32, *mut c_void, *mut c_void),
        &mut handle,
        image.as_ptr().cast(),
        0,
        std::ptr::null_mut(),
        std::ptr::null_mut()
    );
    assert_eq!(code, 0);
    handle
}

fn function(module: u64) -> u64 {
    let mut handle = 0u64;
    let name = c"k".as_ptr().cast();
    let code =
        call!(c"cuModuleGetFunction", fn(*mut u64, u64, *const i8), &mut handle, module, name);
    assert_eq!(code, 0);
    handle
}

fn allocate(bytes: usize) -> u64 {
    let mut address = 0u64;
    assert_eq!(call!(c"cuMemAlloc_v2", fn(*mut u64, usize), &mut address, bytes), 0);
    address
}

fn launch(function: u64, stream: u64, mut arguments: [u64; 3], shared: u32) -> u32 {
    let mut pointers: Vec<*mut c_void> =
        arguments.iter_mut().map(|argument| (argument as *mut u64).cast()).collect();
    call!(
        c"cuLaunchKernel",
        fn(u64, u32, u32, u32, u32, u32, u32, u32, u64, *mut *mut c_void, *mut *mut c_void),
        function,
        1,
        1,
        1,
        32,
        1,
        1,
        shared,
        stream,
        pointers.as_mut_ptr(),
        std::ptr::null_mut()
    )
}

fn stream(flags: u32) -> u64 {
    let mut handle = 0u64;
    let code = call!(c"cuStreamCreateWithPriority", fn(*mut u64, u32, i32), &mut handle, flags, 0);
    assert_eq!(code, 0);
    handle
}

fn synchronize(stream: u64) -> u32 {
    call!(c"cuStreamSynchronize", fn(u64), stream)
}

fn to_device(to: u64, words: &[u32]) -> u32 {
    call!(c"cuMemcpyHtoD_v2", fn(u64, *const u32, usize), to, words.as_ptr(), 4 * words.len())
}

fn to_host(from: u64) -> u32 {
    let mut word = 0u32;
    assert_eq!(call!(c"cuMemcpyDtoH_v2", fn(*mut u32, u64, usize), &mut word, from, 4), 0);
    word
}

/// `k(out, ..)`: lane 0 adds 1 to the word at `out`.
fn increment() -> u64 {
    function(load(&module(
        "",
        "setp.ne.u32 %p1, %r1, 0; @%p1 exit; ld.global.u32 %r5, [%d1]; add.u32 %r5, %r5, 1; st.global.u32 [%d1], %r5;",
    )))
}

#[test]
fn work_waits_for_a_synchronization() {
    let _driver = driver();
    let (kernel, queue) = (increment(), stream(1));
    let word = allocate(4);
    assert_eq!(to_device(word, &[5]), 0);
    assert_eq!(launch(kernel, queue, [word, 0, 0], 0), 0);
    // Not synchronized: old data, and a report.
    assert_eq!(to_host(word), 5);
    let kinds: Vec<_> = emulator::take_reports().iter().map(|report| report.kind).collect();
    assert_eq!(kinds, [FaultKind::MissingSynchronization]);
    assert_eq!(synchronize(queue), 0);
    assert_eq!(to_host(word), 6);
    // A blocking stream is ordered with the default stream that synchronous copies use.
    let blocking = stream(0);
    assert_eq!(launch(kernel, blocking, [word, 0, 0], 0), 0);
    assert_eq!(to_host(word), 7);
    assert!(emulator::take_reports().is_empty());
}

#[test]
fn events_order_streams_and_queries_end() {
    let _driver = driver();
    let (kernel, first, second) = (increment(), stream(1), stream(1));
    let word = allocate(4);
    to_device(word, &[0]);
    let mut event = 0u64;
    assert_eq!(call!(c"cuEventCreate", fn(*mut u64, u32), &mut event, 0), 0);
    launch(kernel, first, [word, 0, 0], 0);
    assert_eq!(call!(c"cuEventRecord", fn(u64, u64), event, first), 0);
    launch(kernel, first, [word, 0, 0], 0);
    assert_eq!(call!(c"cuStreamWaitEvent", fn(u64, u64, u32), second, event, 0), 0);
    launch(kernel, second, [word, 0, 0], 0);
    assert_eq!(synchronize(second), 0);
    // The second stream waited for the event, not for what came after it.
    emulator::take_reports();
    assert_eq!(to_host(word), 2);
    emulator::take_reports();
    assert_eq!(call!(c"cuStreamQuery", fn(u64), first), 600);
    assert_eq!(call!(c"cuStreamQuery", fn(u64), first), 0);
    assert_eq!(to_host(word), 3);
}

#[test]
fn pinned_memory_is_read_and_written_when_the_copy_runs() {
    let _driver = driver();
    let queue = stream(1);
    let word = allocate(4);
    let mut pinned: *mut u32 = std::ptr::null_mut();
    assert_eq!(call!(c"cuMemAllocHost_v2", fn(*mut *mut u32, usize), &mut pinned, 64), 0);
    // SAFETY: 64 bytes that this test owns.
    let memory = unsafe { std::slice::from_raw_parts_mut(pinned, 16) };
    memory[0] = 1;
    let upload = |from: *const u32| {
        call!(c"cuMemcpyHtoDAsync_v2", fn(u64, *const u32, usize, u64), word, from, 4, queue)
    };
    assert_eq!(upload(pinned), 0);
    memory[0] = 2; // too early: the copy has not run
    assert_eq!(synchronize(queue), 0);
    assert_eq!(to_host(word), 2);
    // Pageable memory is taken at the call.
    let mut pageable = 3u32;
    assert_eq!(upload(&raw const pageable), 0);
    pageable = 4;
    assert_eq!(synchronize(queue), 0);
    assert_eq!((to_host(word), pageable), (3, 4));
    memory[1] = 77;
    let code = call!(
        c"cuMemcpyDtoHAsync_v2",
        fn(*mut u32, u64, usize, u64),
        pinned.wrapping_add(1),
        word,
        4,
        queue
    );
    assert_eq!(code, 0);
    assert_eq!(memory[1], 77, "not synchronized");
    // Using it elsewhere meanwhile is known, and reported.
    let other = allocate(4);
    let from = pinned.wrapping_add(1);
    call!(c"cuMemcpyHtoD_v2", fn(u64, *const u32, usize), other, from, 4);
    assert_eq!(emulator::take_reports()[0].kind, FaultKind::MissingSynchronization);
    assert_eq!(synchronize(queue), 0);
    assert_eq!(memory[1], 3);
    assert_eq!(call!(c"cuMemFreeHost", fn(*mut u32), pinned), 0);
}

#[test]
fn a_graph_replays_what_was_captured() {
    let _driver = driver();
    let (kernel, queue) = (increment(), stream(1));
    let word = allocate(4);
    to_device(word, &[0]);
    assert_eq!(call!(c"cuStreamBeginCapture_v2", fn(u64, u32), queue, 0), 0);
    assert_eq!(synchronize(queue), 900, "not while capturing");
    for _ in 0..3 {
        assert_eq!(launch(kernel, queue, [word, 0, 0], 0), 0);
    }
    let (mut graph, mut executable) = (0u64, 0u64);
    assert_eq!(call!(c"cuStreamEndCapture", fn(u64, *mut u64), queue, &mut graph), 0);
    assert_eq!(to_host(word), 0, "captured, not run");
    let code =
        call!(c"cuGraphInstantiateWithFlags", fn(*mut u64, u64, u64), &mut executable, graph, 0);
    assert_eq!(code, 0);
    assert_eq!(call!(c"cuGraphDestroy", fn(u64), graph), 0);
    for replay in 1..=2 {
        assert_eq!(call!(c"cuGraphLaunch", fn(u64, u64), executable, queue), 0);
        assert_eq!(synchronize(queue), 0);
        assert_eq!(to_host(word), 3 * replay);
    }
    assert_eq!(call!(c"cuGraphExecDestroy", fn(u64), executable), 0);
    assert_eq!(call!(c"cuGraphLaunch", fn(u64, u64), executable, queue), 400);
}

#[test]
fn a_fault_stays() {
    let _driver = driver();
    let kernel = increment();
    assert_eq!(launch(kernel, 0, [0x1234, 0, 0], 0), 0);
    assert_eq!(call!(c"cuCtxSynchronize", fn()), 700);
    let mut address = 0u64;
    assert_eq!(call!(c"cuMemAlloc_v2", fn(*mut u64, usize), &mut address, 4), 700);
    let reports = emulator::take_reports();
    assert_eq!((reports.len(), reports[0].kind), (1, FaultKind::OutOfBounds));
    assert_eq!(reports[0].kernel, "k");
    emulator::clear_sticky_error();
    assert_eq!(call!(c"cuMemAlloc_v2", fn(*mut u64, usize), &mut address, 4), 0);
}

#[test]
fn wrong_handles_and_limits_are_refused() {
    let _driver = driver();
    let kernel = increment();
    let word = allocate(4);
    assert_eq!(launch(0xdead_beef, 0, [word, 0, 0], 0), 400);
    assert_eq!(launch(kernel, 0xdead_beef, [word, 0, 0], 0), 400);
    assert_eq!(call!(c"cuModuleUnload", fn(u64), kernel), 400, "a function is not a module");
    assert_eq!(call!(c"cuEventSynchronize", fn(u64), 77), 400);
    assert_eq!(launch(kernel, 0, [word, 0, 0], 48 * 1024 + 16), 1, "not opted in");
    assert_eq!(emulator::take_reports()[0].kind, FaultKind::LaunchLimits);
    let set = |bytes: i32| call!(c"cuFuncSetAttribute", fn(u64, u32, i32), kernel, 8, bytes);
    assert_eq!(set(166_913), 1);
    assert_eq!(set(166_912), 0);
    to_device(word, &[0]);
    assert_eq!(launch(kernel, 0, [word, 0, 0], 166_912), 0);
    assert_eq!(to_host(word), 1);
    assert_eq!(to_device(word + 4, &[0]), 1, "beyond the allocation");
    assert_eq!(emulator::take_reports()[0].kind, FaultKind::OutOfBounds);
    assert!(emulator::resolve(c"cuNoSuchFunction").is_null());
    let mut name = [0i8; 8];
    let code = call!(c"cuDeviceGetName", fn(*mut i8, i32, i32), name.as_mut_ptr(), 8, 0);
    assert_eq!((code, name[7]), (0, 0), "cut, and ended");
}

#[test]
fn leaks_are_known() {
    let _driver = driver();
    let _module = load(".version 8.0\n.target sm_80\n.address_size 64\n.global .u32 kept;\n");
    assert!(emulator::leaks().is_empty(), "a module's variables are not leaks");
    let word = allocate(4);
    let leaks = emulator::leaks();
    assert_eq!((leaks.len(), leaks[0].kind), (1, FaultKind::Leak));
    let queue = stream(1);
    assert_eq!(call!(c"cuMemFreeAsync", fn(u64, u64), word, queue), 0);
    assert!(emulator::leaks().is_empty());
}

#[test]
fn variables_and_fills() {
    let _driver = driver();
    let loaded =
        load(".version 8.0\n.target sm_80\n.address_size 64\n.global .u32 table[2] = {7, 8};\n");
    let (mut address, mut bytes) = (0u64, 0usize);
    let code = call!(
        c"cuModuleGetGlobal_v2",
        fn(*mut u64, *mut usize, u64, *const i8),
        &mut address,
        &mut bytes,
        loaded,
        c"table".as_ptr().cast()
    );
    assert_eq!((code, bytes), (0, 8));
    assert_eq!((to_host(address), to_host(address + 4)), (7, 8));
    assert_eq!(call!(c"cuMemsetD32_v2", fn(u64, u32, usize), address, 9, 2), 0);
    assert_eq!(to_host(address + 4), 9);
    assert_eq!(call!(c"cuMemsetD16_v2", fn(u64, u16, usize), address, 0x1234, 1), 0);
    assert_eq!(to_host(address), 0x1234);
}

#[test]
fn ptx_that_cannot_be_read_is_an_error() {
    let _driver = driver();
    let mut handle = 0u64;
    let code = call!(
        c"cuModuleLoadData",
        fn(*mut u64, *const i8),
        &mut handle,
        c".entry k() { frobnicate; }".as_ptr().cast()
    );
    assert_eq!(code, 218);
    let reports = emulator::take_reports();
    assert_eq!(reports[0].kind, FaultKind::InvalidModule);
    assert!(reports[0].message.contains("frobnicate"));
}
