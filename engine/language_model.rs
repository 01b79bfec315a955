//! A checkpoint opened whole: model, adapter, tokenizer, chat template, stop tokens; and text that it generates.

mod completion;

use std::path::{Path, PathBuf};

use kernels::cpu::heap;

pub use completion::{Completion, CompletionError};

use crate::{
    checkpoint::{
        adapter::{Adapter, AdapterError},
        config::{Config, ConfigError, GenerationConfig},
        weights::{Checkpoint, WeightsError},
    },
    model::{
        Model, Precision,
        suitability::{self, Unsuited},
    },
    tensor::Device,
    text::{
        chat::{ChatError, ChatTemplate},
        tokenizer::{ControlTokens, Tokenizer, TokenizerError},
    },
};

/// Everything that turns chat messages into text.
pub struct LanguageModel {
    /// The decoder, its adapter applied.
    pub model: Model,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to text.
    pub chat: ChatTemplate,
    /// The settings that generation_config.json recommends.
    pub generation: GenerationConfig,
}

/// A checkpoint or adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a file
pub enum OpenError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Weights(#[from] WeightsError),
    #[error("{0}")]
    Adapter(#[from] AdapterError),
    #[error("{0}")]
    Tokenizer(#[from] TokenizerError),
    #[error("{0}")]
    Chat(#[from] ChatError),
    #[error("{0}")]
    Unsuited(#[from] Unsuited),
}

/// Options for opening a checkpoint directory, from [`LanguageModel::builder`]. Each has a default.
#[must_use = "nothing is opened yet"]
pub struct Builder<'a> {
    directory: PathBuf,
    device: Option<Device>,
    precision: Option<Precision>,
    adapter: Option<MakeAdapter<'a>>,
}

type MakeAdapter<'a> = Box<dyn FnOnce(&Config) -> Result<Adapter, AdapterError> + 'a>;

impl<'a> Builder<'a> {
    /// The device to compute on; without it the CPU with all its cores.
    pub fn device(mut self, device: &Device) -> Self {
        self.device = Some(device.clone());
        self
    }

    /// The precision to compute in; `None`, the default, chooses by the weights ([`Precision::for_weights`]).
    pub fn precision(mut self, precision: impl Into<Option<Precision>>) -> Self {
        self.precision = precision.into();
        self
    }

    /// The directory of a LoRA adapter in PEFT's form; `None`, the default, means the checkpoint alone.
    pub fn adapter(mut self, directory: impl Into<Option<&'a Path>>) -> Self {
        self.adapter = directory.into().map(|directory| {
            Box::new(move |config: &Config| Adapter::load(directory, config)) as MakeAdapter
        });
        self
    }

    /// An adapter that `make` loads or initializes for the model's configuration.
    pub fn adapter_from(
        mut self,
        make: impl FnOnce(&Config) -> Result<Adapter, AdapterError> + 'a,
    ) -> Self {
        self.adapter = Some(Box::new(make));
        self
    }

    /// Opens all of it.
    ///
    /// # Errors
    /// A file is missing, damaged, of another model, or asks for something that the engine does not compute.
    pub fn open(self) -> Result<LanguageModel, OpenError> {
        let directory = self.directory.clone();
        Ok(LanguageModel::around(|| Ok((self.open_model()?, ())), &directory)?.0)
    }

    /// As [`Builder::open`], and returns the adapter too, to be saved after training.
    ///
    /// # Panics
    /// If no adapter was asked for.
    pub fn open_with_adapter(self) -> Result<(LanguageModel, Adapter), OpenError> {
        let directory = self.directory.clone();
        let (language_model, adapter) = LanguageModel::around(|| self.decoder(), &directory)?;
        Ok((language_model, adapter.expect("open_with_adapter is for a builder with an adapter")))
    }

    /// Opens the decoder alone, for which no tokenizer needs to be there. Every tensor's name, shape and type is checked.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open_model(self) -> Result<Model, OpenError> {
        Ok(self.decoder()?.0)
    }

    fn decoder(self) -> Result<(Model, Option<Adapter>), OpenError> {
        let (checkpoint, config) = Checkpoint::open_checked::<OpenError>(&self.directory)?;
        let adapter = self.adapter.map(|make| make(&config)).transpose()?;
        let device = self.device.unwrap_or_else(Device::cpu);
        let stored = checkpoint.weight(crate::checkpoint::config::EMBEDDING)?.dtype();
        let suiting = || Precision::for_weights(stored, device.is_cuda());
        let precision = self.precision.unwrap_or_else(suiting);
        if device.is_cuda() {
            suitability::check(&config, precision)?;
        }
        let model = Model::new(&checkpoint, config, adapter.as_ref(), precision, device)?;
        Ok((model, adapter))
    }
}

impl LanguageModel {
    /// Opens the checkpoint in `directory` on the CPU, with all its cores, in the precision that suits its weights.
    /// [`LanguageModel::builder`] has more to choose.
    ///
    /// # Errors
    /// A file is missing, damaged, or asks for something that the engine does not compute.
    pub fn open(directory: impl AsRef<Path>) -> Result<LanguageModel, OpenError> {
        LanguageModel::builder(directory).open()
    }

    /// How to open the checkpoint in `directory`: on which device, in which precision, with which adapter.
    ///
    /// ```
    /// # use std::path::Path;
    /// use engine::prelude::*;
    ///
    /// # let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/qwen3-tied-bf16");
    /// # let (checkpoint, adapter) = (golden.join("model"), golden.join("adapter"));
    /// let language_model = LanguageModel::builder(&checkpoint)
    ///     .device(&Device::cpu_threads(2))
    ///     .adapter(adapter.as_path())
    ///     .precision(Precision::F32)
    ///     .open()?;
    /// assert_eq!(language_model.model.precision(), Precision::F32);
    /// assert!(language_model.model.parameters().count() > 0, "LoRA's A and B");
    /// # Ok::<(), engine::language_model::OpenError>(())
    /// ```
    pub fn builder<'a>(directory: impl AsRef<Path>) -> Builder<'a> {
        let directory = directory.as_ref().to_owned();
        Builder { directory, device: None, precision: None, adapter: None }
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
        LanguageModel::builder(&model)
            .device(&Device::cpu_threads(1))
            .adapter(adapter.as_path())
            .open()
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
