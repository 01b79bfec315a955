//! What a run needs before its first step, opened and checked in the order in which it can be wrong: pairs, template, model,
//! adapter, prompts, memory. Nothing is written.

use std::{path::Path, sync::atomic::AtomicBool};

use engine::{
    checkpoint::adapter::Adapter,
    error::FileError,
    generate,
    language_model::{LanguageModel, OpenError},
    model::{Model, Precision},
    tensor::device::Device,
};
use serde_json::{Map, Value, json};

use super::{
    Trainer,
    checkpointing::{DecideError, Decision, decide},
    estimate::Pace,
    prompts::{LengthFiltered, length_filter},
    sample::Sampler,
};
use crate::{
    data::{
        self, DataError, Pair, Source, Wanted, fingerprint,
        prepare::{self, PrepareError},
    },
    judge::{
        JudgeError,
        prompt::{Order, PromptError, Template},
    },
    train::settings::{OverLong, Settings, Weights},
};

/// Any error of the program around a session.
type HostError = Box<dyn std::error::Error>;

/// The pairs of a run.
pub struct RunPairs {
    train: Vec<Pair>,
    held_out: Vec<Pair>,
    fingerprint: String,
    held_out_fingerprint: Option<String>,
}

/// Paths, device and settings to open a session with.
pub struct SessionSpec<'a> {
    /// All settings; paths in them are names for people.
    pub settings: Settings,
    /// The template that they name ([`template`]).
    pub template: Template,
    /// The directory of the base model.
    pub model: &'a Path,
    /// That of the adapter to start from.
    pub start: Option<&'a Path>,
    /// That of the checkpoint to go on from, whose adapter is taken instead.
    pub checkpoint: Option<&'a Path>,
    /// Device of the model.
    pub device: &'a Device,
    /// In which precision; `None` for what suits the weights.
    pub precision: Option<Precision>,
    /// Which instructions the device computes with, for run.json.
    pub instructions: &'a str,
}

/// Callbacks of the program that opens a session.
pub trait Host: Sync {
    /// Says where the model's weights are read, or takes them to the device.
    fn place_weights(&mut self, model: &mut Model, asked: Weights) -> Result<Weights, HostError>;

    /// Bytes for keys and values, once the model is there.
    fn cache_bytes(&mut self, device: &Device) -> Result<u64, HostError>;

    /// A sentence for whoever waits.
    fn note(&mut self, text: &str);

    /// Progress: the prompts of `pairs` of all pairs were measured. Called from several threads.
    fn measured(&self, pairs: usize, of: usize);

    /// Raised when the user interrupts the program.
    fn stop(&self) -> &AtomicBool;
}

/// A run, ready for its next step.
pub struct Session {
    /// The trainer, which takes steps.
    pub trainer: Trainer,
    /// The adapter as it is written.
    pub adapter: Adapter,
    /// Held-out pairs of an evaluation.
    pub held_out: Vec<Pair>,
    /// The settings as they are written: what the machine decides of them is in the trainer's.
    pub settings: Settings,
    /// Fingerprints that run.json keeps, and a resumed run compares.
    pub fingerprints: Map<String, Value>,
    /// Pairs that are trained on.
    pub pairs: usize,
    /// Mean length of their prompts, in tokens.
    pub mean_prompt: f64,
    /// Tokens of the first prompt.
    pub first_prompt: Vec<u32>,
    /// How fast the model is here.
    pub pace: Pace,
    /// Whether activations are kept, and the peak of memory.
    pub checkpointing: Decision,
}

/// Why a run cannot begin.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a cause
pub enum SessionError {
    #[error("{0}")]
    Data(#[from] DataError),
    #[error("{0}")]
    Prepare(#[from] PrepareError),
    #[error("{0}")]
    Prompt(#[from] PromptError),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{0}")]
    Judge(#[from] JudgeError),
    #[error("{0}")]
    Decide(#[from] DecideError),
    #[error("{0}")]
    Generate(#[from] generate::GenerateError),
    #[error("{0}")]
    Files(#[from] FileError),
    #[error(
        "the adapter to start from has lora_alpha = 0, with which no training changes what the model says: put the \
         value it was trained with into its adapter_config.json (some tools write 0 when they convert)"
    )]
    NoEffect,
    #[error(
        "the adapter to start from has r = {}, alpha = {}, rslora = {}, target_modules = {modules:?}, and the settings \
         say r = {}, alpha = {}, rslora = {}, target_modules = {:?}; set them as the adapter has them",
        adapter.rank, adapter.alpha, adapter.rank_stabilized, lora.r, lora.alpha, lora.rslora, lora.target_modules
    )]
    OtherAdapter {
        adapter: Box<Adapter>,
        lora: Box<crate::train::settings::LoraSettings>,
        modules: Vec<&'static str>,
        same_modules: bool,
    },
    #[error(
        "data.max_prompt_tokens = {prompt} and rollout.max_completion_tokens = {completion} exceed the model's \
         {positions} positions; lower one of them"
    )]
    Positions { prompt: usize, completion: usize, positions: usize },
    #[error(
        "no pair has a prompt of at most {limit} tokens: the longest of {pairs} pairs has {longest}; raise \
         data.max_prompt_tokens"
    )]
    NothingFits { limit: usize, pairs: usize, longest: usize },
    #[error("{0}")]
    Host(#[source] HostError),
}

impl RunPairs {
    /// Reads training and held-out pairs from sources that the settings name so, and refuses those of two different splits.
    /// Own files may share prompts, but `note` says so.
    pub fn read(
        (train, train_path): (&Source, &Path),
        held_out: Option<(&Source, &Path)>,
        note: &mut dyn FnMut(&str),
    ) -> Result<RunPairs, SessionError> {
        let read = |source: &Source| -> Result<(Vec<Pair>, String), DataError> {
            let pairs = data::read_with(source, None, &Wanted::default())?;
            let fingerprint = data::fingerprint(&pairs);
            Ok((pairs, fingerprint))
        };
        let (train, fingerprint) = read(train)?;
        let Some((held_out, held_out_path)) = held_out else {
            return Ok(RunPairs {
                train,
                held_out: Vec::new(),
                fingerprint,
                held_out_fingerprint: None,
            });
        };
        let (held_out, held_out_fingerprint) = read(held_out)?;
        let checked = prepare::check_together([train_path, held_out_path], &train, &held_out)?;
        let shared = prepare::shared_prompts(&train, &held_out);
        if shared > 0 && !checked {
            note(&format!(
                "warning: the prompts of {shared} of {} held-out pairs are in the training data too: on these, \
                 accuracy measures memory (j1 data prepare splits by prompt)",
                held_out.len()
            ));
        }
        let held_out_fingerprint = Some(held_out_fingerprint);
        Ok(RunPairs { train, held_out, fingerprint, held_out_fingerprint })
    }
}

/// The template that settings name.
pub fn template(settings: &Settings) -> Result<Template, PromptError> {
    Template::open(&settings.data.template)
}

/// Prompt and completion must fit the model's positions.
pub fn check_positions(
    language_model: &LanguageModel,
    settings: &Settings,
) -> Result<(), SessionError> {
    let positions = language_model.model.config().max_position_embeddings;
    let (prompt, completion) =
        (settings.data.max_prompt_tokens, settings.rollout.max_completion_tokens);
    match prompt.checked_add(completion).is_some_and(|tokens| tokens <= positions) {
        true => Ok(()),
        false => Err(SessionError::Positions { prompt, completion, positions }),
    }
}

/// An adapter that training starts from keeps its rank, its scale and its matrices, which the settings must name.
fn check_start(adapter: &Adapter, settings: &Settings) -> Result<(), SessionError> {
    let lora = &settings.lora;
    if adapter.alpha == 0.0 {
        return Err(SessionError::NoEffect);
    }
    let targets = adapter.targets();
    let same_modules = targets == lora.adapter().targets;
    let scale = (adapter.rank, adapter.alpha, adapter.rank_stabilized);
    if scale == (lora.r, lora.alpha, lora.rslora) && same_modules {
        return Ok(());
    }
    let last = |module: &'static str| module.rsplit('.').next();
    let modules = targets.iter().filter_map(|target| last(target.module())).collect();
    let (adapter, lora) = (Box::new(adapter.clone()), Box::new(lora.clone()));
    Err(SessionError::OtherAdapter { adapter, lora, modules, same_modules })
}

impl Session {
    /// Opens all of it; `None` if the user stopped it.
    pub fn open(
        spec: SessionSpec<'_>,
        pairs: RunPairs,
        host: &mut dyn Host,
    ) -> Result<Option<Session>, SessionError> {
        let SessionSpec {
            mut settings, template, model: directory, start, checkpoint, device, ..
        } = spec;
        let (mut language_model, mut adapter) = LanguageModel::builder(directory)
            .device(device)
            .precision(spec.precision)
            .adapter_from(|config| {
                let mut adapter = match (checkpoint, start) {
                    (Some(path), _) => Adapter::load(path, config)?,
                    (None, Some(path)) => {
                        let adapter = Adapter::load(path, config)?;
                        let notes = adapter.notes_for_training(&settings.model.path);
                        notes.iter().for_each(|text| host.note(&format!("note: {text}")));
                        adapter
                    }
                    (None, None) => {
                        let lora = settings.lora.adapter();
                        Adapter::initialize(config, &lora, settings.train.seed)?
                    }
                };
                adapter.base_model = Some(settings.model.path.clone());
                Ok(adapter)
            })
            .open_with_adapter()?;
        settings.model.weights = host
            .place_weights(&mut language_model.model, settings.model.weights)
            .map_err(SessionError::Host)?;
        if checkpoint.is_some() || start.is_some() {
            check_start(&adapter, &settings)?;
            if checkpoint.is_none() {
                host.note(
                    "starting from the adapter's weights: AdamW's moments and the schedule begin anew",
                );
            }
            adapter.dropout = settings.lora.dropout;
        }
        let template = template.with_control_tokens(language_model.control_tokens());
        check_positions(&language_model, &settings)?;
        let fingerprints = json!({
            "j1": env!("CARGO_PKG_VERSION"),
            "model": fingerprint::of_directory(directory)?,
            "adapter": start.map(fingerprint::of_directory).transpose()?,
            "dtype": language_model.model.precision().name(),
            "instructions": spec.instructions,
            "template": template.fingerprint(),
            "data": pairs.fingerprint,
            "held_out": pairs.held_out_fingerprint,
        });
        let Value::Object(fingerprints) = fingerprints else { unreachable!("an object") };

        let cache = host.cache_bytes(device).map_err(SessionError::Host)?;
        let RunPairs { train, mut held_out, .. } = pairs;
        let fit = fitting_pairs(&language_model, &template, &settings, train, host)?;
        let Some(Fit { pairs, longest, mean }) = fit else { return Ok(None) };
        if settings.train.eval_pairs > 0 && held_out.len() > settings.train.eval_pairs {
            held_out = data::sample(held_out, settings.train.eval_pairs, settings.train.seed);
        }
        let written = settings.clone();
        let tokenizer = tokenizer_bytes(directory);
        let checkpointing = decide(&settings, &language_model.model, tokenizer, longest, cache)?;
        settings.train.gradient_checkpointing = checkpointing.choice;
        let (first, count) = (pairs[0].clone(), pairs.len());
        let trainer = Trainer::new(language_model, template, settings, pairs, cache as usize);
        let first_prompt = trainer.sampler().prompt(&first, Order::ChosenFirst)?;
        let pace = Pace::measure(trainer.language_model(), &first_prompt)?;
        Ok(Some(Session {
            trainer,
            adapter,
            held_out,
            settings: written,
            fingerprints,
            pairs: count,
            mean_prompt: mean,
            first_prompt,
            pace,
            checkpointing,
        }))
    }
}

/// Bytes of the tokenizer of a model's directory.
pub fn tokenizer_bytes(directory: &Path) -> u64 {
    std::fs::metadata(directory.join("tokenizer.json")).map_or(0, |file| file.len())
}

/// The pairs whose prompts fit, and the lengths of these in tokens.
struct Fit {
    pairs: Vec<Pair>,
    longest: usize,
    mean: f64,
}

fn fitting_pairs(
    language_model: &LanguageModel,
    template: &Template,
    settings: &Settings,
    pairs: Vec<Pair>,
    host: &mut dyn Host,
) -> Result<Option<Fit>, SessionError> {
    let options = generate::GeneratorOptions { max_batch: 1, prefill_rows: 1, cache_bytes: 0 };
    let sampler = Sampler { language_model, template, settings, pairs: &pairs, options };
    let (limit, count) = (settings.data.max_prompt_tokens, pairs.len());
    let found = {
        let host = &*host;
        length_filter(&sampler.judge(), &pairs, host.stop(), &|done| host.measured(done, count))?
    };
    let Some(LengthFiltered { fit, over_long, longest, mean }) = found else { return Ok(None) };
    let longest_that_fits = longest.min(limit);
    if settings.data.over_long == OverLong::TruncateLeft {
        host.note(&format!("{count} pairs, prompts of {longest} tokens at most"));
        if over_long > 0 {
            host.note(&format!(
                "{over_long} pairs have prompts above {limit} tokens, cut at their left"
            ));
        }
        let mean = if fit.is_empty() { limit as f64 } else { mean };
        return Ok(Some(Fit { pairs, longest: longest_that_fits, mean }));
    }
    if fit.is_empty() {
        return Err(SessionError::NothingFits { limit, pairs: count, longest });
    }
    host.note(&format!("{count} pairs, prompts of {mean:.0} tokens on average, {longest} at most"));
    if over_long > 0 {
        host.note(&format!(
            "{over_long} pairs have prompts above data.max_prompt_tokens = {limit} and are left out"
        ));
    }
    let mut keep = vec![false; count];
    fit.into_iter().for_each(|index| keep[index] = true);
    let kept = pairs.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(pair, _)| pair);
    Ok(Some(Fit { pairs: kept.collect(), longest: longest_that_fits, mean }))
}
