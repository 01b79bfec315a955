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
    tokenizer::{ControlTokens, Tokenizer, TokenizerError},
    weights::{Checkpoint, WeightsError},
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
    let (checkpoint, config) = Checkpoint::open_checked::<OpenError>(directory)?;
    let adapter = adapter(&config)?;
    let stored = checkpoint.weight(crate::model::EMBEDDING)?.dtype();
    let precision = precision.unwrap_or_else(|| Precision::for_weights(stored, device.is_cuda()));
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
            let load = || Tokenizer::load(directory);
            let tokenizer = std::thread::Builder::new().spawn_scoped(scope, load);
            let decoder = decoder();
            let tokenizer = match tokenizer {
                Ok(thread) => thread.join().expect("loading catches panics"),
                // The system has no thread for it.
                Err(_) => load(),
            };
            (tokenizer, decoder)
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

    /// The texts that act in a prompt wherever they stand: the tokenizer's control tokens, and the markers that the chat template
    /// writes and the tokenizer may not know.
    pub fn control_tokens(&self) -> ControlTokens {
        self.tokenizer.control_tokens().with(self.chat.markers())
    }

    /// Ids that end a completion.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.generation.eos_token_ids
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kernels::cpu::Cpu;

    use super::*;
    use crate::golden;

    /// A golden case's checkpoint and adapter, the named file of which is made by `make` (or left out).
    fn opened(case: &str, broken: &str, make: &dyn Fn(&Path)) -> Result<LanguageModel, OpenError> {
        let scratch = tempfile::tempdir().unwrap();
        for folder in ["model", "adapter"] {
            fs::create_dir(scratch.path().join(folder)).unwrap();
            for entry in fs::read_dir(golden::case(case).join(folder)).unwrap() {
                let path = entry.unwrap().path();
                let to = scratch.path().join(folder).join(path.file_name().unwrap());
                if !to.ends_with(broken) {
                    fs::copy(path, to).unwrap();
                }
            }
        }
        make(&scratch.path().join(broken));
        let [model, adapter] = ["model", "adapter"].map(|folder| scratch.path().join(folder));
        LanguageModel::open(&model, Some(&adapter), None, &Device::new(Cpu::new(1)))
    }

    const FILES: [(&str, &str); 9] = [
        ("qwen3-tied", "model/config.json"),
        ("qwen3-tied", "model/model.safetensors"),
        ("qwen3-tied", "model/tokenizer.json"),
        ("qwen3-tied", "model/tokenizer_config.json"),
        ("qwen3-tied", "model/generation_config.json"),
        ("qwen3-tied", "model/chat_template.jinja"),
        ("qwen3-sharded", "model/model-00002-of-00002.safetensors"),
        ("qwen3-tied", "adapter/adapter_config.json"),
        ("qwen3-tied", "adapter/adapter_model.safetensors"),
    ];

    #[track_caller]
    fn says(result: Result<LanguageModel, OpenError>, parts: &[&str]) {
        let error = result.err().expect("should be refused").to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }

    #[test]
    fn a_pointer_in_place_of_any_file_says_git_lfs() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 7031645\n";
        for (case, file) in FILES {
            let name = file.rsplit_once('/').unwrap().1;
            let write = |path: &Path| fs::write(path, pointer).unwrap();
            says(opened(case, file, &write), &[name, "git lfs pull"]);
        }
        // The files are sound without it.
        let write = |path: &Path| fs::write(path, pointer).unwrap();
        opened("qwen3-tied", "model/README.md", &write).map_err(|e| e.to_string()).unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn a_link_to_nothing_in_place_of_any_file_names_its_target() {
        for (case, file) in FILES {
            let name = file.rsplit_once('/').unwrap().1;
            let link = |path: &Path| {
                std::os::unix::fs::symlink("../../blobs/4d7a2146", path).unwrap();
            };
            says(opened(case, file, &link), &[name, "../../blobs/4d7a2146", "cp -L"]);
        }
    }
}
