//! From flags to an opened judge, for `judge` and `eval`.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use engine::{
    checkpoint::{adapter::Adapter, config::Config},
    error::printable,
    generate::{GeneratorOptions, SamplingParams},
    hub::{self, Hub},
    language_model::{LanguageModel, OpenError},
    model::Precision,
    tensor::Device,
    text::chat::{ChatTemplate, RenderOptions},
};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use trainer::{
    data::{self, Source, fingerprint},
    judge::{Judge, prompt::Template},
    train::settings::Weights,
};

use crate::{
    Failure,
    args::{DtypeArg, GenerationArgs, OnOff, RuntimeArgs},
    machine,
    output::note,
    sampling::Sampling,
};

/// Tokens of a judgement where no flag says otherwise; of a model with few positions half of those, so that
/// prompts have the other half.
const MAX_NEW_TOKENS: usize = 2048;

/// A judge's parts, opened.
pub(crate) struct Session {
    pub(crate) language_model: LanguageModel,
    pub(crate) weights: Weights,
    template: Template,
    sampling: Sampling,
    generation: GenerationArgs,
    directory: PathBuf,
    adapter: Option<PathBuf>,
}

/// What a judge has room for.
#[derive(Clone, Debug)]
pub(crate) struct JudgeRoom {
    pub(crate) max_new_tokens: usize,
    pub(crate) max_prompt_tokens: usize,
    pub(crate) options: GeneratorOptions,
}

impl Session {
    /// Resolves and opens everything. Says on stderr what it waits for.
    pub(crate) fn open(
        model: &str,
        runtime: &RuntimeArgs,
        generation: &GenerationArgs,
    ) -> Result<Session, Failure> {
        let (directory, adapter) = resolve(model, runtime.adapter.as_deref())?;
        let precision = precision(runtime.dtype);
        let device = machine::device(runtime.device, runtime.dtype, runtime.threads)?;
        let mut language_model =
            open_language_model(model, &directory, adapter.as_deref(), precision, &device)?;
        let weights = machine::place_weights(&mut language_model.model, runtime.weights)?;
        let template = template(generation)?;
        let template = template.with_control_tokens(language_model.control_tokens());
        let sampling = Sampling::of(generation, &language_model.generation);
        sampling.validate()?;
        sampling.notes.iter().for_each(|line| note(line));
        note_unread(&language_model.chat, &template, render_options(generation));
        let generation = generation.clone();
        Ok(Session { language_model, weights, template, sampling, generation, directory, adapter })
    }

    /// Options of chat templates, as flags have them.
    pub(crate) fn render_options(&self) -> RenderOptions {
        render_options(&self.generation)
    }

    /// The judge. `max_prompt_tokens`: `None` for what the model's positions leave.
    pub(crate) fn judge(&self, max_prompt_tokens: Option<usize>) -> Result<Judge<'_>, Failure> {
        Ok(self.judge_within(&self.room(max_prompt_tokens)?))
    }

    /// How long prompts and judgements may be, and how much runs at once, by flags and by what is free now.
    pub(crate) fn room(&self, max_prompt_tokens: Option<usize>) -> Result<JudgeRoom, Failure> {
        let limit = self.language_model.model.config().max_position_embeddings;
        let max_new_tokens = match self.generation.max_new_tokens {
            Some(tokens) => tokens as usize,
            None => MAX_NEW_TOKENS.min(limit / 2).max(1),
        };
        let Some(room) = limit.checked_sub(max_new_tokens).filter(|&room| room > 0) else {
            return Err(format!(
                "--max-new-tokens {max_new_tokens} leaves no room for a prompt: the model has \
                 {limit} positions"
            )
            .into());
        };
        let device = self.language_model.model.device();
        Ok(JudgeRoom {
            max_new_tokens,
            max_prompt_tokens: max_prompt_tokens.unwrap_or(room).min(room),
            options: GeneratorOptions {
                max_batch: self.generation.batch as usize,
                prefill_rows: GeneratorOptions::PREFILL_ROWS,
                cache_bytes: machine::cache_bytes(device, self.generation.cache_memory)? as usize,
            },
        })
    }

    /// The judge, as flags have it.
    pub(crate) fn judge_within(&self, room: &JudgeRoom) -> Judge<'_> {
        Judge {
            language_model: &self.language_model,
            template: &self.template,
            thinking: self.generation.thinking.map(|thinking| thinking == OnOff::On),
            date: self.generation.template_date,
            sampling: self.sampling.params,
            repetition_penalty: self.sampling.repetition_penalty,
            stop_strings: &self.sampling.stop_strings,
            seed: self.generation.seed,
            max_new_tokens: room.max_new_tokens,
            max_prompt_tokens: room.max_prompt_tokens,
            options: room.options.clone(),
        }
    }

    /// Everything that decides what judgements say, for run.json. Threads, batch and memory do not.
    pub(crate) fn settings(&self, judge: &Judge) -> Result<Value, Failure> {
        let model = &self.language_model.model;
        let SamplingParams { temperature, top_k, top_p, min_p } = judge.sampling;
        let adapter = self.adapter.as_deref().map(fingerprint::of_directory).transpose()?;
        Ok(json!({
            "j1": env!("CARGO_PKG_VERSION"),
            "model": fingerprint::of_directory(&self.directory)?,
            "adapter": adapter,
            "dtype": model.precision().name(),
            "instructions": machine::instructions(model.device()),
            "template": self.template.fingerprint(),
            "verdict": self.template.verdict_form(),
            "thinking": judge.thinking,
            "template_date": judge.date.map(|date| date.to_string()),
            "seed": judge.seed,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": judge.repetition_penalty,
            "stop_strings": judge.stop_strings,
            "max_new_tokens": judge.max_new_tokens,
            "max_prompt_tokens": judge.max_prompt_tokens,
        }))
    }
}

/// Opens the checkpoint in `directory`, which the user calls `model`, with an adapter if there is one; what is odd about that
/// goes to stderr.
pub(crate) fn open_language_model(
    model: &str,
    directory: &Path,
    adapter: Option<&Path>,
    precision: Option<Precision>,
    device: &Device,
) -> Result<LanguageModel, OpenError> {
    let builder = LanguageModel::builder(directory).device(device).precision(precision);
    let Some(adapter) = adapter else { return builder.open() };
    let load = |config: &Config| {
        let adapter = Adapter::load(adapter, config)?;
        adapter.notes(model).iter().for_each(|text| note(&format!("note: {text}")));
        Ok(adapter)
    };
    builder.adapter_from(load).open()
}

/// Options of chat templates.
pub(crate) fn render_options(generation: &GenerationArgs) -> RenderOptions {
    RenderOptions {
        add_generation_prompt: true,
        enable_thinking: generation.thinking.map(|thinking| thinking == OnOff::On),
        date: generation.template_date,
    }
}

/// Notes the parts of a judge's prompt that a chat template leaves out silently.
pub(crate) fn note_unread(chat: &ChatTemplate, template: &Template, options: RenderOptions) {
    let path = chat.path().display();
    let [user, system] = chat.reads(options);
    if !user {
        note(&format!(
            "WARNING: {path}: the chat template leaves out what the user says, so that the judge reads none of the replies; \
             one of a model that sees pictures wants content in parts: use one for text"
        ));
    } else if !system && template.has_system() {
        note(&format!(
            "note: {path}: the chat template leaves out the system prompt; what it says can stand in the user's part of a \
             --template file"
        ));
    }
}

/// The judge's own prompt.
pub(crate) fn template(generation: &GenerationArgs) -> Result<Template, Failure> {
    Ok(Template::open(generation.template.as_deref().unwrap_or_default())?)
}

/// The directories of a model and an adapter, fetched if they have to be.
pub(crate) fn resolve(
    model: &str,
    adapter: Option<&str>,
) -> Result<(PathBuf, Option<PathBuf>), Failure> {
    let hub = Hub::from_env();
    let mut downloads = Downloads::default();
    let directory = hub.resolve_model(model, &mut |event| downloads.show(event))?;
    let adapter = adapter
        .map(|spec| hub.resolve_adapter(spec, &mut |event| downloads.show(event)))
        .transpose()?;
    Ok((directory, adapter))
}

/// The precision that a flag asks for; `None` for what suits the weights.
pub(crate) fn precision(flag: DtypeArg) -> Option<Precision> {
    match flag {
        DtypeArg::Auto => None,
        DtypeArg::Bf16 => Some(Precision::Bf16),
        DtypeArg::F32 => Some(Precision::F32),
    }
}

/// The preference pairs that `spec` names: a known name, a path, a pattern, `-`, or a Hugging Face id.
pub(crate) fn data_source(spec: &str) -> Result<Source, Failure> {
    Ok(Source::open(&data_path(spec)?)?)
}

/// Whether files here, and none of a repository, are named by a pattern.
pub(crate) fn is_local_pattern(spec: &str) -> bool {
    hub::data::is_pattern(spec) && !spec.contains(':') && !Path::new(spec).exists()
}

fn data_path(spec: &str) -> Result<PathBuf, Failure> {
    if spec == "-" || is_local_pattern(spec) {
        return Ok(PathBuf::from(spec));
    }
    let hub = Hub::from_env();
    let mut downloads = Downloads::default();
    let mut progress = |event: hub::HubEvent<'_>| downloads.show(event);
    Ok(match data::known(spec) {
        Some(known) if !Path::new(spec).exists() => {
            hub.resolve_dataset_file(known.dataset, known.file, &mut progress)?
        }
        _ => hub.resolve_data(spec, &mut progress)?,
    })
}

/// Download events as progress bars on stderr.
#[derive(Default)]
pub(crate) struct Downloads {
    bars: HashMap<String, ProgressBar>,
}

impl Downloads {
    pub(crate) fn show(&mut self, event: hub::HubEvent<'_>) {
        match event {
            hub::HubEvent::Started { file, total_bytes, resumed_bytes } => {
                let bar = ProgressBar::new(total_bytes.unwrap_or(0));
                let style = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
                bar.set_style(ProgressStyle::with_template(style).expect("a fixed template"));
                bar.set_message(printable(file).into_owned());
                bar.set_position(resumed_bytes);
                if bar.is_hidden() {
                    let size = total_bytes.map_or("?".to_string(), |b| HumanBytes(b).to_string());
                    note(&format!("downloading {file} ({size})"));
                }
                self.bars.insert(file.to_string(), bar);
            }
            hub::HubEvent::Received { file, bytes } => {
                if let Some(bar) = self.bars.get(file) {
                    bar.set_position(bytes);
                }
            }
            hub::HubEvent::Finished { file } => {
                if let Some(bar) = self.bars.remove(file) {
                    bar.finish();
                }
            }
            hub::HubEvent::Retrying { what, reason, attempt, attempts, pause } => {
                let pause: Duration = pause;
                note(&format!(
                    "{what}: {reason}; attempt {attempt} of {attempts} in {:.0} s",
                    pause.as_secs_f64()
                ));
            }
            hub::HubEvent::WaitingForLock { file } => {
                note(&format!("waiting for another process that downloads {file}"));
            }
            hub::HubEvent::Warning { message } => note(&format!("warning: {message}")),
            _ => {}
        }
    }
}
