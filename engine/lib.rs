//! An engine for decoder models (Qwen3, Qwen2, Llama): it loads Hugging Face checkpoints, generates text, and trains LoRA
//! adapters, on a CPU or through CUDA, without Python, libtorch or BLAS.
//!
//! ```
//! # use std::path::Path;
//! use engine::prelude::*;
//!
//! # let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/qwen3-tied/model");
//! let language_model = LanguageModel::open(directory)?;
//! for text in language_model.generate("2+2=", SamplingParams::GREEDY, 16)? {
//!     print!("{}", text?);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! That opens a directory with `config.json`, `tokenizer.json` and safetensors files, and computes on all cores. An adapter, a
//! GPU or another precision is asked for with [`LanguageModel::builder`](language_model::LanguageModel::builder).
//! `examples/generate.rs` is this as a program; `examples/finetune.rs` takes a training step on a loss of its own.
//!
//! # The modules, from the bottom up
//!
//! Each rests on those before it, and can be used without those behind it.
//!
//! 1. **Tensors.** [`device`] is where values live and ops run, [`tensor`] holds them, [`tape`] remembers which ops ran so
//!    that gradients can be computed.
//! 2. **Ops.** [`ops`] has one file each: formula, forward pass, backward pass. [`check_gradient`] compares a gradient with
//!    differences; [`tape`] shows how to add an op from outside the crate.
//! 3. **Model.** [`model`] is the decoder; [`model::training`] computes log-probabilities of completions that can be
//!    differentiated, [`model::memory`] how much memory that takes. [`optimizer`] is AdamW, [`schedule`] its learning rate.
//! 4. **Generation.** [`kv_cache`] keeps keys and values in pages, [`generate`] runs many sequences at once on it.
//! 5. **Checkpoints.** [`config`] and [`weights`] read what Hugging Face transformers writes, [`adapter`] what PEFT does;
//!    [`merge`] adds an adapter to its base, [`random_checkpoint`] writes one for tests and benches.
//! 6. **Text.** [`tokenizer`] turns text into ids, [`chat`] messages into text, by a [`template`] in Jinja.
//!    [`language_model`] opens all of it at once.
//! 7. **Hub.** [`hub`] downloads models and data; [`Hub::resolve_model`](hub::Hub::resolve_model) gives the directory of a
//!    Hugging Face id.
//!
//! Aside: [`error`] and [`files`] read and write small files with errors that say what to do, [`memory`] knows how much of it
//! the process may take.
//!
//! # What holds everywhere
//!
//! - A row's results have the same bits alone, in a batch, in decoding and in training, with any number of threads.
//! - Files, devices and model output fail with a typed error that names the file and says what to do. A wrong shape is a mistake of
//!   the program and panics.
//! - The CPU's path defines what is correct; a GPU's is compared with it.
#![deny(unsafe_code)] // allowed once: the memory map in weights.rs

pub mod adapter;
pub mod chat;
pub mod check_gradient;
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
pub mod prelude;
mod quantization;
pub mod random_checkpoint;
pub mod schedule;
pub mod tape;
pub mod template;
pub mod tensor;
pub mod tokenizer;
pub mod weights;

#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod golden;
#[cfg(test)]
#[path = "../tests/shared.rs"]
mod shared;
