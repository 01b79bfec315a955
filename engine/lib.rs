//! Tensors, weights, models, generation.

pub mod hub;
