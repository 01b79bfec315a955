//! Raw kernels: slices or device buffers in, slices or device buffers out. No tensors, no models. The only
//! crate with `unsafe` in it (but for the engine's one memory map).

pub mod cpu;
pub mod cuda;
pub mod signals;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex` whether or not a panic has poisoned it: what it guards is valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
