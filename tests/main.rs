//! The integration tests: one binary, one module a topic.

mod cli;
mod data;
mod generation;
mod smollm2;
mod tidy;
