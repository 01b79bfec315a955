//! The C library's heap.

/// Gives memory that was freed back to the system. glibc keeps it for later, and after many small values, such
/// as those of a tokenizer's file, that is tens of megabytes which nobody asks for again. Elsewhere it does nothing.
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
