//! What most programs need, for `use engine::prelude::*`.
//!
//! Errors stay in their modules.

pub use crate::{
    checkpoint::{
        adapter::{Adapter, AdapterSettings, Projection},
        config::Config,
    },
    generate::{FinishReason, Generator, GeneratorOptions, Request, SamplingParams},
    language_model::LanguageModel,
    model::{
        Model, Precision,
        training::{PackedBatch, TrainingPass},
    },
    optimizer::{AdamW, StepOutcome},
    tensor::{
        Id, Tensor,
        device::{Cpu, Device, Isa},
        tape::{Backward, Gradients, Tape},
    },
    text::{
        chat::{ChatTemplate, Message, RenderOptions},
        tokenizer::Tokenizer,
    },
};
