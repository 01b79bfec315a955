//! Tensors, weights, models, generation.
#![deny(unsafe_code)] // allowed once: the memory map in weights.rs

pub mod adapter;
pub mod chat;
pub mod config;
pub mod error;
mod json_object;
pub mod tokenizer;
pub mod weights;

#[cfg(test)]
mod fuzz;
