//! Stands in for the crate of this name, which cust's build scripts call to find a CUDA toolkit. None is
//! needed and nothing is linked: crate `cuda_driver` defines the driver's symbols.

/// Does nothing.
pub fn include_cuda() {}
