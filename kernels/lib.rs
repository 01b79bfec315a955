//! Kernels: raw computation over slices on the CPU, and over device buffers on NVIDIA GPUs. There are no
//! tensors and no models here, and almost all `unsafe` of the project (the engine has one memory map).
//!
//! # The CPU
//!
//! A kernel is a function that takes a [`cpu::Cpu`] first: the instruction set, the threads and the scratch
//! memory. Operands are slices, row-major; shapes are asserted.
//!
//! ```
//! use kernels::cpu::{ComputeDtype, Cpu, Matrix, matmul, rms_norm};
//!
//! let cpu = Cpu::new(2);
//! let x = [3.0, 4.0];
//!
//! // RMSNorm of one row: mean(x²) is 12.5.
//! let mut normed = [0.0; 2];
//! rms_norm::forward(&cpu, &mut normed, &x, &[1.0, 1.0], 0.0);
//! assert!((normed[1] - 4.0 / 12.5f32.sqrt()).abs() < 1e-6);
//!
//! // y [1, 3] = x [1, 2] · w [3, 2]ᵀ.
//! let (mut y, w) = ([0.0; 3], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
//! matmul::forward(&cpu, &mut y, &x, Matrix::F32(&w), [1, 3, 2], ComputeDtype::F32, false);
//! assert_eq!(y, [3.0, 4.0, 7.0]);
//! ```
//!
//! # The GPU
//!
//! [`cuda::Gpu`] is one device. Its methods have the names of the CPU's kernels and take [`cuda::Buffer`]s.
//! The host code is compiled in every build; feature `cuda` embeds the kernels' PTX.
//!
//! # What holds everywhere
//!
//! - **Batch invariance:** an output row has the same bits for any number of rows, threads and tiles.
//! - **The CPU is the reference:** a GPU kernel has a CPU kernel of the same name, and a self-test compares them.
//! - **Once warm, no kernel allocates.**
//!
//! `kernels/README.md` has the layouts, the instruction sets and the way to a new kernel; `kernels/cuda/README.md`
//! has all about CUDA.

pub mod cpu;
pub mod cuda;
pub mod signals;

#[cfg(test)]
#[path = "../tests/shared.rs"]
mod shared;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex` whether or not a panic has poisoned it: what it guards is valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
