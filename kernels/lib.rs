//! Raw kernels: slices or device buffers in, slices or device buffers out. No tensors, no models. The only
//! crate with `unsafe` in it (but for the engine's one memory map).

pub mod cpu;
#[cfg_attr(not(feature = "cuda"), path = "cuda_disabled.rs")]
pub mod cuda;
mod cuda_args;
mod cuda_comparison;
mod cuda_data_sheet;
mod cuda_error;
pub mod cuda_memory;
#[cfg(feature = "cuda")]
mod cuda_self_test;
#[cfg(feature = "cuda")]
pub mod ptx;
pub mod signals;

#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
