//! CPU kernels, one file per kernel. They take the [`Cpu`] context first. `simd/` has the instruction sets
//! and vectors, `runtime/` the threads, the memory and the recorder of profiles.
//!
//! Batch invariance: an output row has the same bits for any number of rows, threads and tiles. Each
//! reduction has one order, which the row's own shape and the instruction set decide.

pub mod adamw;
pub mod add;
pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod gather;
pub mod log_prob;
pub mod matmul;
pub mod norm;
pub mod peak;
pub mod philox;
pub mod product;
pub mod repetition_penalty;
pub mod rms_norm;
pub mod rope;
pub mod round;
pub mod sample;
pub mod swiglu;
pub mod values;

#[cfg(test)]
pub(crate) mod reference;
mod runtime;
mod simd;

pub use matmul::{ComputeDtype, Matrix};
pub use runtime::{allocations, arena, heap, profile};
pub(crate) use runtime::{context, pool};
pub use runtime::{context::Cpu, context::ScratchBytes, pool::Pool};
pub use simd::isa::{Isa, UnknownIsa};
pub(crate) use simd::{dot, exp, lanes, vector};

/// Elements of an array of this shape, for the asserts that slices are what a kernel takes them for.
///
/// # Panics
/// If they cannot be counted: a product that wrapped would be equal to the length of a slice that is too short.
#[track_caller]
pub(crate) fn elements<const N: usize>(shape: [usize; N]) -> usize {
    let count = shape.iter().try_fold(1usize, |count, &n| count.checked_mul(n));
    count.unwrap_or_else(|| panic!("an array of shape {shape:?} is beyond any memory"))
}
