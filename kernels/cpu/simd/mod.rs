//! Instruction sets, vectors, and what kernels build on them.

pub(crate) mod dot;
pub(crate) mod exp;
pub(crate) mod isa;
pub(crate) mod lanes;
pub(crate) mod vector;
