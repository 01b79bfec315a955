//! The integration tests: one binary, one module a topic.

mod allocations;
mod cli;
mod data;
#[cfg(unix)]
mod disk;
mod generation;
#[cfg(target_os = "linux")]
mod instructions;
mod memory;
mod merge;
mod smollm2;
mod tidy;
mod training;
