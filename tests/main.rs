//! The integration tests: one binary, one module per topic.

mod allocations;
mod bench;
mod cli;
mod compare;
mod data;
mod device;
#[cfg(unix)]
mod disk;
mod generation;
#[cfg(target_os = "linux")]
mod instructions;
mod kill;
#[cfg(target_os = "linux")]
mod limits;
mod memory;
mod merge;
mod profile;
mod real_models;
mod sampling;
mod serve;
mod shared;
#[cfg(target_os = "linux")]
mod terminal;
mod tidy;
mod training;
mod verdicts;
