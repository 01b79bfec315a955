//! CPU kernels, one file per kernel, same stem as `cuda/<stem>.cu`.

pub mod lanes;
pub mod log_prob;
pub mod philox;
pub mod sample;
