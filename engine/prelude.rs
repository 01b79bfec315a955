//! What most programs need, for `use engine::prelude::*`.
//!
//! Errors stay in their modules, where their names say whose they are.

pub use crate::{
    adapter::{Adapter, AdapterSettings, Projection},
    chat::{ChatTemplate, Message, RenderOptions},
    config::Config,
    device::{Cpu, Device, Isa},
    generate::{FinishReason, Generator, Options, Request, SamplingParams},
    language_model::LanguageModel,
    model::{
        Model, Precision,
        training::{PackedBatch, TrainingPass},
    },
    optimizer::{AdamW, Outcome},
    tape::{Backward, Gradients, Tape},
    tensor::{Id, Tensor},
    tokenizer::Tokenizer,
};
