//! The operations of the model, one file each: formula, shapes, forward, what backward needs,
//! backward, tests.

pub mod attention;
pub mod embedding;
pub mod gather;
pub mod linear;
pub mod log_prob;
pub mod mlp;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;
