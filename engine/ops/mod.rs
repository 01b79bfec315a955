//! The operations of the forward pass, one file each: formula, shapes, what they assert.

pub mod attention;
pub mod embedding;
pub mod linear;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;
