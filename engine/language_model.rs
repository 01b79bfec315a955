//! A checkpoint opened whole: model, adapter, tokenizer, chat template, stop tokens.

use std::path::Path;

use kernels::cpu::heap;

use crate::{
    adapter::{Adapter, AdapterError},
    chat::{ChatError, ChatTemplate},
    config::{Config, ConfigError, GenerationConfig},
    model::{
        Model, Precision,
        suitability::{self, Unsuited},
    },
    tensor::Device,
    tokenizer::{Tokenizer, TokenizerError},
    weights::{Checkpoint, Dtype, WeightsError},
};

/// Everything that turns chat messages into text.
pub struct LanguageModel {
    /// The decoder, its adapter applied.
    pub model: Model,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to text.
    pub chat: ChatTemplate,
    /// What generation_config.json recommends.
    pub generation: GenerationConfig,
}

/// A checkpoint or adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a file
pub enum OpenError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Chat(#[from] ChatError),
    #[error(transparent)]
    Unsuited(#[from] Unsuited),
}

/// Opens the decoder alone, checking every tensor's name, shape and type. `precision`: `None` for
/// what suits the weights.
pub fn open_model(
    directory: &Path,
    adapter: Option<&Path>,
    precision: Option<Precision>,
    device: &Device,
) -> Result<Model, OpenError> {
    let load = |config: &Config| adapter.map(|path| Adapter::load(path, config)).transpose();
    Ok(open_decoder(directory, load, precision, device)?.0)
}

/// As [`open_model`], with an adapter that is made for the model's configuration, which is returned too.
pub fn open_model_with(
    directory: &Path,
    adapter: impl FnOnce(&Config) -> Result<Adapter, AdapterError>,
    precision: Option<Precision>,
    device: &Device,
) -> Result<(Model, Adapter), OpenError> {
    let make = |config: &Config| adapter(config).map(Some);
    let (model, adapter) = open_decoder(directory, make, precision, device)?;
    Ok((model, adapter.expect("made above")))
}

/// As [`open_model`], with the adapter that `adapter` gives for the model's configuration, which is
/// returned too.
fn open_decoder(
    directory: &Path,
    adapter: impl FnOnce(&Config) -> Result<Option<Adapter>, AdapterError>,
    precision: Option<Precision>,
    device: &Device,
) -> Result<(Model, Option<Adapter>), OpenError> {
    // Before the configuration, so that a wrong path is called one.
    let checkpoint = Checkpoint::open(directory)?;
    let config = Config::load(directory)?;
    checkpoint.check(&config)?;
    let adapter = adapter(&config)?;
    let stored = checkpoint.weight(crate::model::EMBEDDING)?.dtype();
    let precision = precision.unwrap_or(match stored {
        Dtype::F32 if !device.is_cuda() => Precision::F32,
        _ => Precision::Bf16,
    });
    if device.is_cuda() {
        suitability::check(&config, precision)?;
    }
    let model = Model::new(&checkpoint, config, adapter.as_ref(), precision, device.clone())?;
    Ok((model, adapter))
}

impl LanguageModel {
    /// Opens the checkpoint in `directory`, with the adapter in `adapter` if there is one.
    pub fn open(
        directory: &Path,
        adapter: Option<&Path>,
        precision: Option<Precision>,
        device: &Device,
    ) -> Result<LanguageModel, OpenError> {
        let decoder = || Ok((open_model(directory, adapter, precision, device)?, ()));
        Ok(LanguageModel::around(decoder, directory)?.0)
    }

    /// Opens the checkpoint with an adapter that is made for its configuration, and returns that too.
    pub fn open_with(
        directory: &Path,
        adapter: impl FnOnce(&Config) -> Result<Adapter, AdapterError>,
        precision: Option<Precision>,
        device: &Device,
    ) -> Result<(LanguageModel, Adapter), OpenError> {
        let decoder = || open_model_with(directory, adapter, precision, device);
        LanguageModel::around(decoder, directory)
    }

    fn around<T>(
        decoder: impl FnOnce() -> Result<(Model, T), OpenError>,
        directory: &Path,
    ) -> Result<(LanguageModel, T), OpenError> {
        let (tokenizer, decoder) = std::thread::scope(|scope| {
            // It takes longer than all else, and is needed first.
            let tokenizer = scope.spawn(|| Tokenizer::load(directory));
            let decoder = decoder();
            (tokenizer.join().expect("loading catches panics"), decoder)
        });
        let (model, more) = decoder?;
        let tokenizer = tokenizer?;
        tokenizer.check_against(model.config().vocab_size)?;
        let chat = ChatTemplate::load(directory)?;
        let generation = GenerationConfig::load(directory, model.config())?;
        // Without one, every completion would run to its limit.
        generation.stop_ids(directory)?;
        heap::give_back_freed();
        Ok((LanguageModel { model, tokenizer, chat, generation }, more))
    }

    /// Ids that end a completion.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.generation.eos_token_ids
    }
}
