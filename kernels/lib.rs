//! Raw kernels: slices or device buffers in, slices or device buffers out. No tensors, no models. The only
//! crate with `unsafe` in it (but for the engine's one memory map).

pub mod cpu;
pub mod cuda;
pub mod signals;
