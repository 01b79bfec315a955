//! What lies in a checkpoint's directory: `config.json`, weights, adapters; read, merged, and written at random for tests.
//!
//! Every file may come from a stranger: it is bounded before it is allocated, and what is wrong with it is a typed error.

pub mod adapter;
pub mod config;
mod json_object;
pub mod merge;
mod quantization;
pub mod random_checkpoint;
pub mod weights;
