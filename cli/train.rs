//! `j1 train`: from a base model and preference pairs to an adapter.

use std::{
    io::IsTerminal,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use engine::{
    adapter::{Adapter, AdapterSettings, Projection},
    language_model::LanguageModel,
    model::Precision,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use trainer::{
    data::{self, Pair, Wanted},
    prepare,
    prompt::Template,
    scores::Scores,
    settings::{LoraSettings, OverLong, Preset, Settings, SettingsError, Weights},
    train::{
        Progress, StepReport, Trainer,
        prompts::{Fitting, fitting},
        run::{self, Ended, Event, RunDirectory},
        sample::Sampler,
    },
};

use crate::{
    Failure,
    args::{PresetArg, SettingsArgs, Train, WeightsArg},
    interrupt, machine, memory,
    output::{note, print},
    session::{data_source, directory_fingerprint, precision, resolve},
};

pub(crate) fn run(args: &Train) -> Result<ExitCode, Failure> {
    if args.print_config {
        print(&settings(args)?.to_toml())?;
        return Ok(ExitCode::SUCCESS);
    }
    let out = args.out.as_deref().expect("clap requires it without --print-config");
    let mut settings = match args.resume {
        false => settings(args)?,
        true => resumed_settings(args, out)?,
    };
    // How batches are packed decides last bits: the number stays with the run.
    settings.train.micro_batch_tokens = settings.micro_batch_tokens();
    let settings = with_absolute_paths(settings);
    let outcome = train(args, &settings, out)?;
    Ok(match outcome {
        Ended::Complete => ExitCode::SUCCESS,
        Ended::Interrupted => interrupt::status(),
    })
}

/// Settings from a preset or a file, some replaced.
pub(crate) fn base_settings(
    config: Option<&Path>,
    preset: Option<PresetArg>,
    replaced: &[String],
) -> Result<Settings, Failure> {
    let mut settings = match (config, preset) {
        (Some(path), _) => Settings::from_file(path)?,
        (None, Some(preset)) => Settings::preset(preset.0),
        (None, None) => Settings::preset(Preset::J1Nano),
    };
    for assignment in replaced {
        settings = settings.with(assignment)?;
    }
    Ok(settings)
}

/// The template that settings name.
pub(crate) fn template(settings: &Settings) -> Result<Template, Failure> {
    Ok(match settings.data.template.as_str() {
        "" => Template::bundled(),
        path => Template::from_file(Path::new(path))?,
    })
}

/// The settings of all flags, paths included.
fn settings(args: &Train) -> Result<Settings, Failure> {
    let SettingsArgs { preset, config, set } = &args.settings;
    let mut settings = base_settings(config.as_deref(), *preset, set)?;
    let replace = |place: &mut String, flag: &Option<String>| {
        if let Some(value) = flag {
            place.clone_from(value);
        }
    };
    replace(&mut settings.model.path, &args.model);
    replace(&mut settings.model.adapter, &args.adapter);
    replace(&mut settings.data.train, &args.data);
    replace(&mut settings.data.held_out, &args.held_out);
    settings.validate().map_err(|problem| {
        let name = "the settings".to_owned();
        SettingsError::Conflict { name, problem }
    })?;
    Ok(settings)
}

/// Paths that exist made absolute, so that --resume works from any directory.
fn with_absolute_paths(mut settings: Settings) -> Settings {
    let (model, data) = (&mut settings.model, &mut settings.data);
    for place in [
        &mut model.path,
        &mut model.adapter,
        &mut data.train,
        &mut data.held_out,
        &mut data.template,
    ] {
        let found = Path::new(place.as_str()).canonicalize();
        if let Some(path) = found.ok().as_deref().and_then(Path::to_str) {
            *place = path.to_owned();
        }
    }
    settings
}

/// The settings of the run in `out`; paths may have moved.
fn resumed_settings(args: &Train, out: &Path) -> Result<Settings, Failure> {
    let config = RunDirectory::config_of(out)
        .ok_or_else(|| run::RunError::NothingToResume { directory: out.to_owned() })?;
    let mut settings = Settings::from_file(&config)?;
    for (place, flag) in [
        (&mut settings.model.path, &args.model),
        (&mut settings.data.train, &args.data),
        (&mut settings.data.held_out, &args.held_out),
    ] {
        if let Some(value) = flag {
            place.clone_from(value);
        }
    }
    Ok(settings)
}

/// Refuses training and held-out pairs of two different splits; own files may share prompts, but not unseen.
fn check_together(train: &[Pair], held_out: &[Pair], paths: [&Path; 2]) -> Result<(), Failure> {
    let checked = prepare::check_together(paths, train, held_out)?;
    let shared = prepare::shared_prompts(train, held_out);
    if shared > 0 && !checked {
        note(&format!(
            "warning: the prompts of {shared} of {} held-out pairs are in the training data too: on these, \
             accuracy measures memory (j1 data prepare splits by prompt)",
            held_out.len()
        ));
    }
    Ok(())
}

/// A file of pairs, with the fingerprint of its content.
fn read_pairs(spec: &str) -> Result<(Vec<Pair>, String), Failure> {
    let pairs = data::read_with(&data_source(spec)?, None, &Wanted::default())?;
    let fingerprint = data::fingerprint(&pairs);
    Ok((pairs, fingerprint))
}

fn train(args: &Train, settings: &Settings, out: &Path) -> Result<Ended, Failure> {
    let (model, start) = (&settings.model.path, &settings.model.adapter);
    if model.is_empty() {
        return Err("no model: give --model, or model.path in the settings".into());
    }
    if settings.data.train.is_empty() {
        return Err("no training data: give --data, or data.train in the settings".into());
    }
    if !args.resume && RunDirectory::config_of(out).is_some() {
        return Err(run::RunError::Exists { directory: out.to_owned() }.into());
    }
    let (pairs, pairs_fingerprint) = read_pairs(&settings.data.train)?;
    let held_out = match settings.data.held_out.as_str() {
        "" => None,
        spec => Some(read_pairs(spec)?),
    };
    if let Some((held_out, _)) = &held_out {
        let (train, evaluated) = (&settings.data.train, &settings.data.held_out);
        check_together(&pairs, held_out, [train, evaluated].map(Path::new))?;
    }
    let template = template(settings)?;

    let start = Some(start.as_str()).filter(|start| !start.is_empty());
    let (directory, start) = resolve(model, start)?;
    let checkpoint = match args.resume {
        true => RunDirectory::latest_checkpoint(out)?,
        false => None,
    };
    let device = machine::device(args.device, args.dtype, args.threads)?;
    let from = checkpoint.as_ref().or(start.as_ref());
    let (mut language_model, mut adapter) = LanguageModel::open_with(
        &directory,
        |config| {
            let mut adapter = match from {
                Some(path) => Adapter::load(path, config)?,
                None => {
                    let lora = adapter_settings(&settings.lora);
                    Adapter::initialize(config, &lora, settings.train.seed)?
                }
            };
            adapter.base_model = Some(model.clone());
            Ok(adapter)
        },
        precision(args.dtype),
        &device,
    )?;
    let mut settings = settings.clone();
    let weights = match (args.weights, settings.model.weights) {
        (Some(flag), _) => flag,
        // What was possible where the run began need not be here, and no result depends on it.
        (None, Weights::Packed) if args.resume && !language_model.model.can_pack() => {
            WeightsArg::Auto
        }
        (None, from_settings) => from_settings.into(),
    };
    settings.model.weights = machine::place_weights(&mut language_model.model, weights)?;
    if from.is_some() {
        check_start(&adapter, &settings)?;
    }
    let template = template.with_special_tokens(language_model.tokenizer.special_tokens());
    check_positions(&language_model, &settings)?;

    let fingerprints = json!({
        "j1": env!("CARGO_PKG_VERSION"),
        "model": directory_fingerprint(&directory)?,
        "adapter": start.as_deref().map(directory_fingerprint).transpose()?,
        "dtype": match language_model.model.precision() {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
        },
        "instructions": machine::instructions(&device),
        "template": template.fingerprint(),
        "data": pairs_fingerprint,
        "held_out": held_out.as_ref().map(|(_, fingerprint)| fingerprint.clone()),
    });
    let run_directory = open_run(args, &settings, out, &fingerprints)?;

    let stop = interrupt::flag();
    let cache_bytes = machine::cache_bytes(&device, args.cache_memory)? as usize;
    let view = View::new();
    let fitting = fitting_pairs(&language_model, &template, &settings, pairs, &view)?;
    let (pairs, longest) = match fitting {
        Some(pairs) => pairs,
        None => return Ok(Ended::Interrupted),
    };
    let mut held_out = held_out.map(|(pairs, _)| pairs).unwrap_or_default();
    if settings.train.eval_pairs > 0 && held_out.len() > settings.train.eval_pairs {
        held_out = data::sample(held_out, settings.train.eval_pairs, settings.train.seed);
    }

    let (model, cache) = (&language_model.model, cache_bytes as u64);
    memory::resolve_checkpointing(&mut settings, model, &directory, longest, cache)?;
    let mut trainer = Trainer::new(language_model, template, settings, pairs, cache_bytes);
    if let Some(checkpoint) = &checkpoint {
        note(&format!("continuing from {}", checkpoint.display()));
    } else if args.resume {
        note("no checkpoint was written yet: starting from the first step");
    }
    let mut view = view.start(trainer.steps());
    let ended = run::run(
        &mut trainer,
        &mut adapter,
        &run_directory,
        checkpoint.as_deref(),
        &held_out,
        stop,
        &mut |event| view.show(event),
    );
    view.finish();
    let ended = ended?;
    match ended {
        Ended::Complete => {
            note(&format!("the adapter is in {}", out.join("adapter").display()));
        }
        Ended::Interrupted => note(&format!(
            "stopped after step {} of {}; go on with `j1 train --out {} --resume`",
            trainer.step_count(),
            trainer.steps(),
            out.display()
        )),
    }
    Ok(ended)
}

fn open_run(
    args: &Train,
    settings: &Settings,
    out: &Path,
    fingerprints: &Value,
) -> Result<RunDirectory, run::RunError> {
    match args.resume {
        true => RunDirectory::resume(out, fingerprints),
        false => RunDirectory::start(out, &settings.to_toml(), fingerprints),
    }
}

/// What a new adapter is like.
pub(crate) fn adapter_settings(lora: &LoraSettings) -> AdapterSettings {
    let targets = Projection::ALL.into_iter().filter(|projection| {
        let name = projection.module().rsplit('.').next().unwrap_or_default();
        lora.target_modules.iter().any(|module| module == name)
    });
    AdapterSettings {
        rank: lora.r,
        alpha: lora.alpha,
        rank_stabilized: lora.rslora,
        dropout: lora.dropout,
        targets: targets.collect(),
    }
}

/// An adapter that training starts from keeps its rank and scale, which the settings must name.
fn check_start(adapter: &Adapter, settings: &Settings) -> Result<(), Failure> {
    let lora = &settings.lora;
    let same =
        (adapter.rank, adapter.alpha, adapter.rank_stabilized) == (lora.r, lora.alpha, lora.rslora);
    if same {
        return Ok(());
    }
    Err(format!(
        "the adapter to start from has r = {}, alpha = {}, rslora = {}, and the settings say r = {}, alpha = {}, \
         rslora = {}; add --set lora.r={} --set lora.alpha={} --set lora.rslora={}",
        adapter.rank,
        adapter.alpha,
        adapter.rank_stabilized,
        lora.r,
        lora.alpha,
        lora.rslora,
        adapter.rank,
        adapter.alpha,
        adapter.rank_stabilized
    )
    .into())
}

/// Prompt and completion must fit the model's positions.
pub(crate) fn check_positions(
    language_model: &LanguageModel,
    settings: &Settings,
) -> Result<(), Failure> {
    let positions = language_model.model.config().max_position_embeddings;
    let (prompt, completion) =
        (settings.data.max_prompt_tokens, settings.rollout.max_completion_tokens);
    if prompt + completion <= positions {
        return Ok(());
    }
    Err(format!(
        "data.max_prompt_tokens = {prompt} and rollout.max_completion_tokens = {completion} exceed the model's \
         {positions} positions; lower one of them with --set"
    )
    .into())
}

/// The pairs whose prompts fit, and the longest prompt in tokens. `None` if the user stopped it.
fn fitting_pairs(
    language_model: &LanguageModel,
    template: &Template,
    settings: &Settings,
    pairs: Vec<Pair>,
    view: &View,
) -> Result<Option<(Vec<Pair>, usize)>, Failure> {
    let options = engine::generate::Options { max_batch: 1, prefill_rows: 1, cache_bytes: 0 };
    let sampler = Sampler { language_model, template, settings, pairs: &pairs, options };
    let bar = view.bar("measuring prompts", pairs.len());
    let found = fitting(&sampler.judge(), &pairs, interrupt::raised(), &|done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let Some(Fitting { fit, over_long, longest, mean }) = found? else { return Ok(None) };
    let limit = settings.data.max_prompt_tokens;
    note(&format!(
        "{} pairs, prompts of {mean:.0} tokens on average, {longest} at most",
        pairs.len()
    ));
    if settings.data.over_long == OverLong::TruncateLeft {
        if over_long > 0 {
            note(&format!(
                "{over_long} pairs have prompts above {limit} tokens, cut at their left"
            ));
        }
        return Ok(Some((pairs, longest.min(limit))));
    }
    if over_long > 0 {
        note(&format!(
            "{over_long} pairs have prompts above data.max_prompt_tokens = {limit} and are left out"
        ));
    }
    if fit.is_empty() {
        return Err(format!(
            "no pair has a prompt of at most {limit} tokens; raise data.max_prompt_tokens"
        )
        .into());
    }
    let mut keep = vec![false; pairs.len()];
    fit.into_iter().for_each(|index| keep[index] = true);
    let kept = pairs.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(pair, _)| pair);
    Ok(Some((kept.collect(), longest.min(limit))))
}

/// What the terminal shows: a line a step, and below it a bar with what is going on.
struct View {
    is_terminal: bool,
    bar: Option<ProgressBar>,
    steps: u64,
    done: u64,
    /// Rewards of the last steps.
    rewards: Vec<f64>,
    started: Instant,
    taken: u64,
}

/// Steps that the recent mean of the reward is taken over.
const RECENT: usize = 10;

impl View {
    fn new() -> View {
        View {
            is_terminal: std::io::stderr().is_terminal(),
            bar: None,
            steps: 0,
            done: 0,
            rewards: Vec::new(),
            started: Instant::now(),
            taken: 0,
        }
    }

    fn bar(&self, what: &'static str, len: usize) -> ProgressBar {
        let bar = match self.is_terminal {
            true => ProgressBar::new(len as u64),
            false => ProgressBar::hidden(),
        };
        let style = "{msg} [{bar:30}] {pos}/{len} {eta}";
        bar.set_style(ProgressStyle::with_template(style).expect("a fixed template"));
        bar.set_message(what);
        bar
    }

    fn start(mut self, steps: u64) -> View {
        self.steps = steps;
        self.started = Instant::now();
        if self.is_terminal {
            let bar = ProgressBar::new(steps);
            let style = "[{bar:30}] {msg}";
            bar.set_style(ProgressStyle::with_template(style).expect("a fixed template"));
            bar.enable_steady_tick(Duration::from_millis(500));
            self.bar = Some(bar);
        }
        note(&View::header());
        self
    }

    fn header() -> String {
        // d log p: the largest difference between the log-probabilities of training and of sampling.
        "  step    reward   (mean)   right  format    tied  length  trunc      kl    |g|  d log p   gen t/s  train t/s"
            .into()
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(line)),
            None => note(line),
        }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Progress(progress) => {
                let Some(bar) = &self.bar else { return };
                let eta = match self.taken {
                    0 => String::new(),
                    taken => {
                        let each = self.started.elapsed().as_secs_f64() / taken as f64;
                        let left = Duration::from_secs_f64(each * (self.steps - self.done) as f64);
                        format!(", {} left", indicatif::HumanDuration(left))
                    }
                };
                let step = format!("step {} of {}", self.done + 1, self.steps);
                bar.set_message(match progress {
                    Progress::Sampling(stats) => {
                        format!("{step}: sampling, {} tokens{eta}", stats.generated_tokens)
                    }
                    Progress::Updating(done, all) => {
                        format!("{step}: updating, batch {done} of {all}{eta}")
                    }
                });
            }
            Event::Step(report) => self.step(report),
            Event::Evaluating(done, all) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("evaluating held-out pairs, {done} of {all}"));
                }
            }
            Event::Evaluated { step, scores } => self.say(&evaluated(step, scores)),
            Event::Saved(step) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("checkpoint of step {step} saved"));
                }
            }
            Event::Warning(message) => self.say(&format!("warning: {message}")),
        }
    }

    fn step(&mut self, report: &StepReport) {
        let metrics = &report.metrics;
        self.done = metrics.step;
        self.taken += 1;
        self.rewards.push(metrics.reward);
        let recent = &self.rewards[self.rewards.len().saturating_sub(RECENT)..];
        let recent = recent.iter().sum::<f64>() / recent.len() as f64;
        let right = report.rollouts.iter().filter(|rollout| rollout.right).count() as f64
            / report.rollouts.len().max(1) as f64;
        let named = |name: &str| {
            metrics.rewards.iter().find(|reward| reward.name == name).map_or(0.0, |r| r.mean)
        };
        let timed = |name: &str| {
            metrics.timing.iter().find(|(known, _)| known == name).map_or(0.0, |(_, v)| *v)
        };
        let difference = metrics
            .more
            .iter()
            .find(|(name, _)| name == "sampling/sampling_logp_difference/max")
            .map_or("-".to_owned(), |(_, difference)| match difference {
                0.0 => "0".to_owned(),
                difference => format!("{difference:.1e}"),
            });
        let line = format!(
            "{:>6}  {:>8.3} {:>8.3} {:>6.1}% {:>7.3} {:>6.0}% {:>7.0} {:>5.0}% {:>7.4} {:>6.3} {difference:>8} {:>9.0} {:>10.0}",
            metrics.step,
            metrics.reward,
            recent,
            100.0 * right,
            named("format"),
            100.0 * metrics.frac_reward_zero_std,
            metrics.completions.mean_length,
            100.0 * metrics.completions.clipped_ratio,
            metrics.kl.unwrap_or(0.0),
            metrics.grad_norm,
            timed("generated_tokens_per_s"),
            timed("trained_tokens_per_s"),
        );
        self.say(&line);
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A line about held-out pairs.
fn evaluated(step: u64, scores: &Scores) -> String {
    let percent =
        |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{:.1} %", 100.0 * s));
    format!(
        "after step {step}: held-out pairs {} right in both orders, {} of judgements right, {} unparsed",
        percent(scores.consistent.map(|share| share.share)),
        percent(scores.plain_accuracy),
        scores.unparsed_strict.total,
    )
}
