//! Tensors, weights, models, generation, optimizer.
#![deny(unsafe_code)] // allowed once: the memory map in weights.rs

pub mod adapter;
pub mod chat;
pub mod config;
pub mod device;
pub mod error;
pub mod files;
pub mod generate;
pub mod hub;
mod json_object;
pub mod kv_cache;
pub mod language_model;
pub mod memory;
pub mod merge;
pub mod model;
pub mod ops;
pub mod optimizer;
mod quantization;
pub mod random_checkpoint;
pub mod schedule;
pub mod tape;
pub mod template;
pub mod tensor;
pub mod tokenizer;
pub mod weights;

#[cfg(test)]
mod check_gradient;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod golden;
#[cfg(test)]
#[path = "../tests/shared.rs"]
mod shared;
