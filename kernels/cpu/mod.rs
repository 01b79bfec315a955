//! CPU kernels, one file per kernel. Every kernel takes the [`Cpu`] context first.
//!
//! Batch invariance: an output row has the same bits for any number of rows, any thread count and
//! any tiling. Each reduction has one order, fixed by the row's own shape, per instruction set.

pub mod attention;
pub mod embedding;
pub mod lanes;
pub mod log_prob;
pub mod matmul;
pub mod philox;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod swiglu;

mod context;
mod dot;
mod isa;
mod pool;
mod round;
#[cfg(test)]
mod twin;
mod vector;

pub use context::{Cpu, Matrix, Rounding};
pub use isa::Isa;
pub use pool::Pool;
