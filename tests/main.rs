//! The integration tests: one binary, one module a topic.

mod allocations;
mod cli;
#[cfg(unix)]
mod disk;
mod generation;
mod smollm2;
mod tidy;
