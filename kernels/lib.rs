//! Raw kernels: slices in, slices out. No tensors, no models. The only crate with `unsafe` in it
//! (but for the engine's one memory map).

pub mod cpu;
