//! Executes the project's PTX on the CPU, as a stand-in for an A100 and its driver. It checks CUDA
//! kernels where there is no GPU. It is a development crate: nothing that is shipped depends on it.
//!
//! # Code map
//!
//! - `ptx`: text to a syntax tree; `lower`: that to compact instructions over register slots
//!   (`program`); `lanes`: tables of what an instruction does to a lane; `numeric`: its arithmetic.
//! - `machine`: executes a launch; `memory`, `shadow`: device memory and who touched it.
//! - `device`: the above as an object; `runtime`: the driver's functions on one global device.
//! - `counters`, `model`: what was executed, and what it would cost on an A100.
//! - `checks`, `fault`: switches and limits; reports. `driver/`: the stand-in `libcuda.so.1`.
//!
//! # Use
//!
//! A test hands [`resolve`] to whatever forwards the driver's functions, then looks at [`take_reports`] and
//! [`counters()`]. The driver is global, so one test uses it at a time; [`reset`] makes a new device. A program is
//! started with `CUDA_DRIVER_LIB=target/release/libemulator_driver.so`. Reports go to stderr. `EMULATOR_CHECKS=off`
//! leaves the checks of bounds and alignment only, and `EMULATOR_THREADS` is the number of threads that blocks run on.
//! A fault ends the kernel and, as on a GPU, makes every later call fail.
//!
//! # What is modelled
//!
//! Results, bit for bit where PTX defines them; the memory spaces, barriers,
//! `cp.async` that lands at its wait, streams whose work runs at a synchronization, and the faults of
//! [`FaultKind`].
//!
//! # What is not modelled
//!
//! - Order: warps of a block run one after the other between barriers, blocks in any order on some
//!   threads. Warps or blocks that wait for each other by spinning end in [`FaultKind::Budget`].
//! - Races between lanes of one warp, and races that a named barrier of some warps leaves between the
//!   others. Order between blocks by fence and atomic is taken per block, not per address.
//! - Approximate instructions (`ex2`, `lg2`, `sin`, `cos`, `tanh`, `rsqrt`, `div.approx`) are
//!   computed to f32's own precision, so better than a GPU does; `mma` sums in f32 in the order of k.
//!   NaNs may carry other bits than the GPU's 0x7fffffff.
//! - Time. [`model`] computes bounds from counts; latencies and caches are not in it.
//! - `call`, textures, surfaces, clusters, `mbarrier`, `wgmma`, sparse and integer `mma`, f16
//!   accumulation: refused with line and opcode.

pub mod checks;
pub mod counters;
mod device;
mod fault;
mod lanes;
mod lower;
mod machine;
mod memory;
pub mod model;
mod numeric;
mod program;
mod ptx;
mod runtime;
mod shadow;

pub use checks::Checks;
pub use counters::KernelCounters;
pub use device::{Device, Kernel, Module, Shape};
pub use fault::{FaultKind, LoadError, Place, Report};
pub use program::Category;
pub use runtime::{
    api, clear_sticky_error, counters, leaks, reset, reset_counters, resolve, take_reports,
};
