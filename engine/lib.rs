//! Tensors, weights, models, generation.
