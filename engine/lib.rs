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
//! 1. **[`tensor`]**: values, the [`device`](tensor::device) on which they live and ops run, the [`tape`](tensor::tape) that
//!    remembers which ops ran so that gradients can be computed, and a [check](tensor::check_gradient) of gradients against
//!    differences. The page of the tape shows how to add an op from outside the crate.
//! 2. **[`ops`]**: one file per op, with its formula, its forward pass and its backward pass.
//! 3. **[`model`]**: the decoder, with keys and values [in pages](model::kv_cache). [`model::training`] computes
//!    log-probabilities of completions that can be differentiated, [`model::memory`] how much memory that takes.
//!    [`optimizer`] is AdamW and its learning rates.
//! 4. **[`generate`]**: many sequences at once, sampled.
//! 5. **[`checkpoint`]**: configurations, weights and adapters as Hugging Face transformers and PEFT write them; an adapter
//!    merged into its base; random checkpoints for tests and benches.
//! 6. **[`text`]**: the chat template and the tokenizer. [`language_model`] opens a checkpoint with all of it at once.
//! 7. **[`hub`]**: downloads of models and data; [`Hub::resolve_model`](hub::Hub::resolve_model) gives the directory of a
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
#![deny(unsafe_code)] // allowed once: the memory map in checkpoint/weights.rs

pub mod checkpoint;
pub mod error;
pub mod files;
pub mod generate;
pub mod hub;
pub mod language_model;
pub mod memory;
pub mod model;
pub mod ops;
pub mod optimizer;
pub mod prelude;
pub mod tensor;
pub mod text;

#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod golden;
#[cfg(test)]
#[path = "../tests/shared.rs"]
mod shared;
