//! Errors of a configuration, or of another JSON object of a checkpoint.

use std::path::PathBuf;

use crate::error::FileError;

/// The advice at the end of each message.
pub(crate) const QUANTIZATION_REMEDY: &str = "bf16, f16 and f32 are read: fetch the checkpoint that it was made from; or let Python's transformers \
    undo it where it can, `AutoModelForCausalLM.from_pretrained(dir).dequantize().save_pretrained(out)`";

/// A configuration that cannot be read, contradicts itself, or asks for what this engine does not compute.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// JSON, but not an object.
    #[error("{}: expected a JSON object, got {got}", path.display())]
    NotAnObject { path: PathBuf, got: String },
    /// A key without a default is absent.
    #[error("{}: {key:?} is missing", path.display())]
    Missing { path: PathBuf, key: String },
    /// A value of the wrong JSON type.
    #[error("{}: {key:?} should be {expected}, got {got}", path.display())]
    WrongType { path: PathBuf, key: String, expected: &'static str, got: String },
    /// A number that no sound model has.
    #[error("{}: {key:?} should be {expected}, got {got}", path.display())]
    OutOfRange { path: PathBuf, key: String, expected: String, got: String },
    /// Two values that cannot both be true.
    #[error("{}: {message}", path.display())]
    Contradiction { path: PathBuf, message: String },
    /// Another architecture.
    #[error(
        "{}: model_type {got:?} is not supported; supported are qwen3, qwen2 and llama", path.display()
    )]
    UnsupportedModel { path: PathBuf, got: String },
    /// No token ends a generation: it would always run to its limit.
    #[error(
        "{}: neither generation_config.json nor config.json names an \"eos_token_id\", so that no generation would end; add it to generation_config.json",
        directory.display()
    )]
    NoEndOfSequence { directory: PathBuf },
    /// Weights in another form than numbers of a floating-point type.
    #[error(
        "{}: the weights are quantized by {maker} ({key:?} says so); {}", path.display(), QUANTIZATION_REMEDY
    )]
    Quantized { path: PathBuf, key: &'static str, maker: String },
    /// A variation of the architecture that this engine does not compute.
    #[error("{}: {key:?} = {got} is not supported ({supported})", path.display())]
    Unsupported { path: PathBuf, key: String, got: String, supported: String },
}
