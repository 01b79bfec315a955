//! The program's allocator: it ends the process with a message where memory runs out, and gives freed memory back to
//! the system.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use crate::signals;

/// Gives freed memory back to the system. glibc keeps it for later: after many small values, such as those of a
/// tokenizer's file, these are tens of megabytes that nobody needs again. On other systems it does nothing.
pub fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc has the function (malloc.h) and any thread may call it at any time.
        unsafe { malloc_trim(0) };
    }
}

/// The system's allocator, for a program's `#[global_allocator]`. An allocation that fails ends the process with a message,
/// except inside [`fallible`].
#[derive(Debug)]
pub struct Heap;

thread_local! {
    static FALLIBLE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, in which an allocation may fail (`Vec::try_reserve`). Elsewhere a failed allocation ends the process with a
/// message, where the program's allocator is [`Heap`]. Rust's own handler prints, which allocates, and can wait forever on
/// a lock that a panic holds.
pub fn fallible<T>(work: impl FnOnce() -> T) -> T {
    let outer = FALLIBLE.replace(true);
    let result = work();
    FALLIBLE.set(outer);
    result
}

fn had(block: *mut u8, bytes: usize) -> *mut u8 {
    if block.is_null() && !FALLIBLE.get() {
        signals::out_of_memory(bytes);
    }
    block
}

// SAFETY: all of it is the system's allocator. Nothing here allocates (thread-local without a destructor) or panics.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        had(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        had(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_len: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        had(unsafe { System.realloc(block, layout, new_len) }, new_len)
    }
}
