//! Why a request cannot run.

use super::{LogitsError, ParamsError, RequestId, repetition_penalty::PenaltyError};
use crate::{model::kv_cache::NoRoom, tensor::device::DeviceError};

/// Why a request cannot run.
#[derive(Debug, PartialEq)]
pub enum GenerateError {
    /// Prompt and completion do not fit the model's positions.
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Completion tokens asked for.
        max_new_tokens: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// One sequence does not fit the cache's memory.
    CacheTooSmall {
        /// Tokens of prompt and completion.
        tokens: usize,
        /// Bytes they need.
        needed_bytes: usize,
        /// Bytes that the cache has.
        cache_bytes: usize,
    },
    /// A prompt without tokens.
    EmptyPrompt,
    /// A token id beyond the model's vocabulary.
    UnknownToken {
        /// The id.
        token: u32,
        /// Rows of the embedding table.
        vocab_size: usize,
    },
    /// The system has no room for the keys and values of all sequences.
    NoRoom(NoRoom),
    /// The device failed.
    Device(DeviceError),
    /// A sampling parameter out of its range.
    Params(ParamsError),
    /// A penalty out of its range.
    Penalty(PenaltyError),
    /// The model's logits cannot be sampled.
    Sampling {
        /// The request whose sample it is.
        request: RequestId,
        /// Further requests to which the same happened in the step.
        others: Vec<RequestId>,
        /// What is wrong with the logits of the first.
        source: LogitsError,
    },
}

impl std::fmt::Display for GenerateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GenerateError::TooLong { prompt, max_new_tokens, limit } => write!(
                f,
                "a prompt of {prompt} tokens and {max_new_tokens} new ones exceed the model's \
                 {limit} positions; shorten the prompt or allow fewer new tokens"
            ),
            GenerateError::CacheTooSmall { tokens, needed_bytes, cache_bytes } => write!(
                f,
                "{tokens} tokens need {} MiB of keys and values, the cache has {} MiB; raise \
                 the memory for them or allow fewer new tokens",
                needed_bytes.div_ceil(1 << 20),
                cache_bytes >> 20
            ),
            GenerateError::EmptyPrompt => write!(f, "the prompt has no tokens"),
            GenerateError::UnknownToken { token, vocab_size } => write!(
                f,
                "token id {token} is beyond the model's vocabulary of {vocab_size}; tokenizer.json \
                 does not belong to this model"
            ),
            GenerateError::NoRoom(error) => write!(f, "{error}"),
            GenerateError::Device(error) => write!(f, "{error}"),
            GenerateError::Params(error) => write!(f, "{error}"),
            GenerateError::Penalty(error) => write!(f, "{error}"),
            GenerateError::Sampling { request, source, .. } => {
                write!(f, "request {}: {source}", request.0)
            }
        }
    }
}

impl std::error::Error for GenerateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            GenerateError::NoRoom(error) => Some(error),
            GenerateError::Device(error) => Some(error),
            GenerateError::Sampling { source, .. } => Some(source),
            _ => None,
        }
    }
}
