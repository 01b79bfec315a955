//! The integration tests: one binary, one module a topic.

mod allocations;
mod bench;
mod cli;
mod data;
mod device;
#[cfg(unix)]
mod disk;
mod generation;
#[cfg(target_os = "linux")]
mod instructions;
mod memory;
mod merge;
mod profile;
mod real_models;
mod sampling;
mod tidy;
mod training;
mod verdicts;
