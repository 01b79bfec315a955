//! `j1 train`: from a base model and preference pairs to an adapter.

mod judgements;
mod plan;
mod resume;
mod table;
mod view;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{OnceLock, atomic::AtomicBool},
};

use engine::{
    checkpoint::adapter::Adapter, language_model::OpenError, model::Model, tensor::device::Device,
};
use indicatif::ProgressBar;
use serde_json::{Map, Value};
use trainer::judge::{RunStatus, prompt::Template};
use trainer::train::{
    StepError, Trainer,
    directory::RunDirectory,
    estimate::Ahead,
    run::{self, RunError},
    session::{self, Host, RunPairs, Session, SessionError, SessionSpec},
    settings::{Preset, Reference, Settings, SettingsError, Weights},
};

use crate::{
    Failure,
    advice::typed,
    args::{PresetArg, SettingsArgs, Train, WeightsArg},
    interrupt, machine,
    output::{note, print, sentence},
    sampling::left_out_of_training,
    session::{data_source, is_local_pattern, precision, resolve},
};
use plan::show_prompt;
use resume::Resumed;
use view::View;

/// What `--print-config` says of flags that settings have, too.
const FLAGS_FIRST: &str =
    "# --model, --adapter, --weights, --data and --held-out come before what is set here.\n\n";

pub(crate) fn run(args: &Train) -> Result<ExitCode, Failure> {
    if args.print_config {
        print(&format!("{FLAGS_FIRST}{}", settings(args)?.to_toml()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = train(args)?;
    Ok(match outcome {
        RunStatus::Complete => ExitCode::SUCCESS,
        RunStatus::Interrupted => interrupt::status(),
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
    let template = (!Template::is_bundled(&data.template)).then_some(&mut data.template);
    let paths = [&mut model.path, &mut model.adapter, &mut data.train, &mut data.held_out];
    for place in paths.into_iter().chain(template) {
        let found = Path::new(place.as_str()).canonicalize();
        if let Some(path) = found.ok().as_deref().and_then(Path::to_str) {
            *place = path.to_owned();
        }
    }
    // A pattern is no path that exists; the directory that it begins in has a name.
    for place in [&mut settings.data.train, &mut settings.data.held_out] {
        let found = is_local_pattern(place).then(|| std::path::absolute(place.as_str()));
        let found = found.and_then(Result::ok).filter(|_| {
            let here = std::env::current_dir().unwrap_or_default();
            !engine::hub::data::is_pattern(&here.to_string_lossy())
        });
        if let Some(path) = found.as_deref().and_then(Path::to_str) {
            *place = path.to_owned();
        }
    }
    settings
}

/// The program's callbacks while a session opens.
struct Opening<'a> {
    args: &'a Train,
    view: &'a View,
    bar: OnceLock<ProgressBar>,
}

impl Opening<'_> {
    fn clear_bar(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

impl Host for Opening<'_> {
    fn place_weights(&mut self, model: &mut Model, asked: Weights) -> Result<Weights, Failure> {
        let weights = match (self.args.weights, asked) {
            (Some(flag), _) => flag,
            // What was possible where the run began need not be here, and no result depends on it.
            (None, Weights::Packed) if self.args.resume && !model.can_pack() => WeightsArg::Auto,
            (None, from_settings) => from_settings.into(),
        };
        machine::place_weights(model, weights)
    }

    fn cache_bytes(&mut self, device: &Device) -> Result<u64, Failure> {
        machine::cache_bytes(device, self.args.cache_memory)
    }

    fn note(&mut self, text: &str) {
        self.clear_bar();
        sentence(text);
    }

    fn measured(&self, pairs: usize, of: usize) {
        let bar = self.bar.get_or_init(|| self.view.bar("measuring prompts", of));
        bar.set_position(pairs as u64);
    }

    fn stop(&self) -> &AtomicBool {
        interrupt::flag()
    }
}

fn train(args: &Train) -> Result<RunStatus, Failure> {
    let out = args.out.as_deref();
    let required = "clap requires it without --dry-run";
    let resumed = match args.resume {
        true => Some(Resumed::open(args, out.expect(required))?),
        false => None,
    };
    let mut settings = match &resumed {
        Some(resumed) => resumed.settings.clone(),
        None => with_absolute_paths(settings(args)?),
    };
    // How batches are packed decides last bits: the number stays with the run.
    settings.train.micro_batch_tokens = settings.micro_batch_tokens();
    if settings.model.path.is_empty() {
        return Err("no model: give --model, or model.path in the settings".into());
    }
    if settings.data.train.is_empty() {
        return Err("no training data: give --data, or data.train in the settings".into());
    }
    if let (Some(out), None, false) = (out, &resumed, args.dry_run) {
        RunDirectory::check_free(out)?;
    }
    let source = data_source(&settings.data.train)?;
    let unseen = match settings.data.held_out.as_str() {
        "" => None,
        spec => Some((data_source(spec)?, Path::new(spec))),
    };
    let pairs = RunPairs::read(
        (&source, Path::new(&settings.data.train)),
        unseen.as_ref().map(|(source, path)| (source, *path)),
        &mut |text| sentence(text),
    )?;
    // Before a model is fetched.
    let template = session::template(&settings)?;

    let start = Some(settings.model.adapter.as_str()).filter(|start| !start.is_empty());
    let (directory, start) = resolve(&settings.model.path, start)?;
    let checkpoint = resumed.as_ref().and_then(Resumed::checkpoint);
    let device = machine::device(args.device, args.dtype, args.threads)?;
    let done = resumed.as_ref().map_or(0, Resumed::step);
    let spec = SessionSpec {
        settings,
        template,
        model: &directory,
        start: start.as_deref(),
        checkpoint: checkpoint.map(PathBuf::as_path),
        device: &device,
        precision: precision(args.dtype),
        instructions: machine::instructions(&device),
    };
    let view = View::new();
    let mut opening = Opening { args, view: &view, bar: OnceLock::new() };
    let opened = Session::open(spec, pairs, &mut opening);
    opening.clear_bar();
    let session = match (opened, &resumed) {
        (Err(SessionError::Open(OpenError::Adapter(error))), Some(resumed)) => {
            return Err(resumed.damaged(error.into()));
        }
        (opened, _) => opened?,
    };
    let Some(session) = session else { return Ok(RunStatus::Interrupted) };
    let Session { mut trainer, mut adapter, held_out, settings: written, fingerprints, .. } =
        session;
    if let Some(line) = left_out_of_training(&trainer.language_model().generation) {
        note(&line);
    }
    plan::announce(&session.checkpointing);
    let ahead = Ahead {
        settings: trainer.settings(),
        prompt: session.mean_prompt,
        steps: [done, trainer.steps()],
        held_out: held_out.len(),
    };
    let peak = session.checkpointing.peak;
    for line in plan::lines(&ahead, session.pairs, peak, session.pace) {
        sentence(&line);
    }
    if args.dry_run {
        show_prompt(trainer.language_model(), &session.first_prompt)?;
        return Ok(RunStatus::Complete);
    }

    // All that can be known to be wrong is known: from here on the directory holds a run.
    let out = out.expect(required);
    let about = about(&written);
    let run_directory = match &resumed {
        Some(resumed) => {
            resumed.go_on(args, &written, &fingerprints, about)?;
            &resumed.directory
        }
        None => &RunDirectory::start(out, &written, &fingerprints, about)?,
    };
    if start.is_some() {
        set_reference(&mut trainer, run_directory, &adapter, checkpoint.is_some())?;
    }
    let mut view = view.start(trainer.settings(), done, trainer.steps());
    let ended = run::run(
        &mut trainer,
        &mut adapter,
        run_directory,
        resumed.as_ref().and_then(Resumed::checkpoint).map(PathBuf::as_path),
        &held_out,
        interrupt::flag(),
        &mut |event| view.show(event),
    );
    view.finish();
    let ended = match (ended, &resumed) {
        (Err(RunError::Checkpoint(error)), Some(resumed)) => return Err(resumed.damaged(error)),
        (Err(RunError::Step(error)), _) if error.is_numeric() => {
            return Err(not_finite(&error, run_directory, out));
        }
        (ended, _) => ended?,
    };
    match ended {
        RunStatus::Complete if done == trainer.steps() => note(&format!(
            "all {done} steps were taken before, and the adapter is in {}; --resume --set train.steps=N makes the run \
             longer",
            out.join("adapter").display()
        )),
        RunStatus::Complete => {
            note(&format!("the adapter is in {}", out.join("adapter").display()));
        }
        RunStatus::Interrupted => note(&format!(
            "stopped after step {} of {}; go on with `j1 train --out {} --resume`",
            trainer.step_count(),
            trainer.steps(),
            typed(out)
        )),
    }
    Ok(ended)
}

/// Where an adapter is trained further, the KL term compares with it as training began, if the settings say so.
fn set_reference(
    trainer: &mut Trainer,
    directory: &RunDirectory,
    adapter: &Adapter,
    resumed: bool,
) -> Result<(), Failure> {
    let loss = &trainer.settings().loss;
    if loss.beta == 0.0 || loss.reference == Reference::Base {
        return Ok(());
    }
    if !resumed {
        directory.keep_start(adapter)?;
    }
    let start = directory.start_adapter(trainer.language_model().model.config());
    let start = start.map_err(|error| {
        format!("{error}; the run keeps the adapter it began with there, for its KL term: put a copy of that back")
    })?;
    trainer.set_reference(&start);
    Ok(())
}

/// The part of run.json that is for people.
fn about(settings: &Settings) -> Map<String, Value> {
    let named = |text: &'_ String| Some(text.clone()).filter(|text| !text.is_empty());
    let Settings { model, data, .. } = settings;
    let names = [
        ("model", named(&model.path)),
        ("adapter", named(&model.adapter)),
        ("data", named(&data.train)),
        ("held_out", named(&data.held_out)),
        ("template", named(&data.template)),
    ];
    let names: Vec<(&str, Option<&str>)> =
        names.iter().map(|(key, name)| (*key, name.as_deref())).collect();
    machine::about(&names)
}

/// The error of numbers that are not finite, with a way on: a resumed run would compute the same again.
fn not_finite(error: &StepError, directory: &RunDirectory, out: &Path) -> Failure {
    let config = out.join("config.toml");
    let again = format!("j1 train --config {}", typed(&config));
    let lower = "a lower optimizer.learning_rate or optimizer.max_grad_norm";
    let advice = match directory.newest_checkpoint() {
        Some(checkpoint) => format!(
            "--resume would compute the same again. Another run can go on from the last checkpoint's adapter with {lower}: \
             `{again} --adapter {} --set optimizer.learning_rate=... --out OTHER`",
            typed(&checkpoint)
        ),
        None if directory.took_a_step() => format!(
            "No checkpoint was written yet: start another run with {lower}: `{again} --set optimizer.learning_rate=... \
             --out OTHER`"
        ),
        None => "It was the first step, before which the adapter had not been trained: look at reward.*, loss.* and the \
                 model's checkpoint (--dtype f32 has more range). The same --out can be started again"
            .to_owned(),
    };
    format!("{error}. {advice}").into()
}
