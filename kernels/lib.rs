//! Raw kernels: slices in, slices out. No tensors, no models.

pub mod cpu;
