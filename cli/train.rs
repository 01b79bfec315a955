//! `j1 train`: from a base model and preference pairs to an adapter.

mod plan;
mod resume;
mod view;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use engine::{
    adapter::Adapter,
    chat::RenderOptions,
    language_model::{LanguageModel, OpenError},
};
use serde_json::{Map, Value, json};
use trainer::{
    data::{self, Pair, Wanted},
    fingerprint, prepare,
    prompt::Template,
    settings::{Preset, Reference, Settings, SettingsError, Weights},
    train::{
        StepError, Trainer,
        directory::{RunDirectory, typed},
        run::{self, Ended, RunError},
    },
};

use crate::{
    Failure,
    args::{PresetArg, SettingsArgs, Train, WeightsArg},
    interrupt, machine, memory,
    output::{note, print},
    sampling::left_out_of_training,
    session::{data_source, is_local_pattern, note_unread, precision, resolve},
};
use plan::{Ahead, Pace, Pairs, first_prompt, fitting_pairs, show_prompt};
use resume::Resumed;
use view::View;

pub(crate) fn run(args: &Train) -> Result<ExitCode, Failure> {
    if args.print_config {
        print(&settings(args)?.to_toml())?;
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = train(args)?;
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
        (Some(path), _) => beside(path, Settings::from_file(path)?),
        (None, Some(preset)) => Settings::preset(preset.0),
        (None, None) => Settings::preset(Preset::J1Nano),
    };
    for assignment in replaced {
        settings = settings.with(assignment)?;
    }
    Ok(settings)
}

/// A template that a file of settings names lies beside that file, or where the name says.
fn beside(config: &Path, mut settings: Settings) -> Settings {
    let template = config.with_file_name(&settings.data.template);
    if let (false, true, Some(path)) =
        (settings.data.template.is_empty(), template.is_file(), template.to_str())
    {
        settings.data.template = path.to_owned();
    }
    settings
}

/// The template that settings name.
pub(crate) fn template(settings: &Settings) -> Result<Template, Failure> {
    Ok(match settings.data.template.as_str() {
        "" => Template::bundled()?,
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

/// What a run reads and works with, opened; nothing is written yet.
fn train(args: &Train) -> Result<Ended, Failure> {
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
    let (model, start) = (settings.model.path.clone(), settings.model.adapter.clone());
    if model.is_empty() {
        return Err("no model: give --model, or model.path in the settings".into());
    }
    if settings.data.train.is_empty() {
        return Err("no training data: give --data, or data.train in the settings".into());
    }
    if let (Some(out), None, false) = (out, &resumed, args.dry_run) {
        RunDirectory::check_free(out)?;
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
    let template = template(&settings)?;

    let start = Some(start.as_str()).filter(|start| !start.is_empty());
    let (directory, start) = resolve(&model, start)?;
    let checkpoint = resumed.as_ref().and_then(Resumed::checkpoint);
    let device = machine::device(args.device, args.dtype, args.threads)?;
    let from = checkpoint.or(start.as_ref());
    let opened = LanguageModel::open_with(
        &directory,
        |config| {
            let mut adapter = match (&checkpoint, &start) {
                (Some(path), _) => Adapter::load(path, config)?,
                (None, Some(path)) => {
                    let adapter = Adapter::load(path, config)?;
                    let notes = adapter.notes_for_training(&model);
                    notes.iter().for_each(|text| note(&format!("note: {text}")));
                    adapter
                }
                (None, None) => {
                    Adapter::initialize(config, &settings.lora.adapter(), settings.train.seed)?
                }
            };
            adapter.base_model = Some(model.clone());
            Ok(adapter)
        },
        precision(args.dtype),
        &device,
    );
    let (mut language_model, mut adapter) = match (opened, &resumed) {
        (Err(OpenError::Adapter(error)), Some(resumed)) => {
            return Err(resumed.damaged(error.into()));
        }
        (opened, _) => opened?,
    };
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
        if resumed.is_none() {
            note(
                "starting from the adapter's weights: AdamW's moments and the schedule begin anew",
            );
        }
        adapter.dropout = settings.lora.dropout;
    }
    let template = template.with_control_tokens(language_model.control_tokens());
    let date = settings.rollout.template_date.parse().ok();
    let options = RenderOptions { add_generation_prompt: true, date, ..RenderOptions::default() };
    note_unread(&language_model.chat, &template, options);
    check_positions(&language_model, &settings)?;
    if let Some(line) = left_out_of_training(&language_model.generation) {
        note(&line);
    }

    let fingerprints = json!({
        "j1": env!("CARGO_PKG_VERSION"),
        "model": fingerprint::of_directory(&directory)?,
        "adapter": start.as_deref().map(fingerprint::of_directory).transpose()?,
        "dtype": language_model.model.precision().name(),
        "instructions": machine::instructions(&device),
        "template": template.fingerprint(),
        "data": pairs_fingerprint,
        "held_out": held_out.as_ref().map(|(_, fingerprint)| fingerprint.clone()),
    });

    let stop = interrupt::flag();
    let cache_bytes = machine::cache_bytes(&device, args.cache_memory)? as usize;
    let view = View::new();
    let fitting = fitting_pairs(&language_model, &template, &settings, pairs, &view)?;
    let Some(fitting) = fitting else { return Ok(Ended::Interrupted) };
    let mut held_out = held_out.map(|(pairs, _)| pairs).unwrap_or_default();
    if settings.train.eval_pairs > 0 && held_out.len() > settings.train.eval_pairs {
        held_out = data::sample(held_out, settings.train.eval_pairs, settings.train.seed);
    }
    let written = settings.clone();
    let (model, cache) = (&language_model.model, cache_bytes as u64);
    let longest = fitting.longest;
    let peak = memory::resolve_checkpointing(&mut settings, model, &directory, longest, cache)?;
    let Pairs { pairs, mean: prompt, .. } = fitting;
    let (first, count) = (pairs[0].clone(), pairs.len());
    let mut trainer = Trainer::new(language_model, template, settings, pairs, cache_bytes);
    let first = first_prompt(&trainer, &first)?;
    let pace = Pace::measure(trainer.language_model(), &first)?;
    let done = resumed.as_ref().map_or(0, Resumed::step);
    let (steps, held_out_pairs) = ([done, trainer.steps()], held_out.len());
    let ahead = Ahead { settings: trainer.settings(), prompt, steps, held_out: held_out_pairs };
    for line in ahead.lines(count, peak, pace) {
        note(&line);
    }
    if args.dry_run {
        show_prompt(trainer.language_model(), &first)?;
        return Ok(Ended::Complete);
    }

    // All that can be known to be wrong is known: from here on the directory holds a run.
    let out = out.expect(required);
    let fingerprints = fingerprints.as_object().expect("made above");
    let about = about(&written);
    let run_directory = match &resumed {
        Some(resumed) => {
            resumed.go_on(args, &written, fingerprints, about)?;
            &resumed.directory
        }
        None => &RunDirectory::start(out, &written, fingerprints, about)?,
    };
    if start.is_some() {
        set_reference(&mut trainer, run_directory, &adapter, checkpoint.is_some())?;
    }
    let mut view = view.start(done, trainer.steps());
    let ended = run::run(
        &mut trainer,
        &mut adapter,
        run_directory,
        resumed.as_ref().and_then(Resumed::checkpoint).map(PathBuf::as_path),
        &held_out,
        stop,
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
        Ended::Complete if done == trainer.steps() => note(&format!(
            "all {done} steps were taken before, and the adapter is in {}; --resume --set train.steps=N makes the run \
             longer",
            out.join("adapter").display()
        )),
        Ended::Complete => {
            note(&format!("the adapter is in {}", out.join("adapter").display()));
        }
        Ended::Interrupted => note(&format!(
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

/// What run.json says for people.
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

/// What can be done about numbers that are not finite: what there is to go on from, and not the same again.
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

/// An adapter that training starts from keeps its rank, its scale and its matrices, which the settings must name.
fn check_start(adapter: &Adapter, settings: &Settings) -> Result<(), Failure> {
    let lora = &settings.lora;
    if adapter.alpha == 0.0 {
        return Err("the adapter to start from has lora_alpha = 0, with which no training changes what the model says: put the \
                    value it was trained with into its adapter_config.json (some tools write 0 when they convert)"
            .into());
    }
    let adapted = adapter.targets();
    let same = (adapter.rank, adapter.alpha, adapter.rank_stabilized)
        == (lora.r, lora.alpha, lora.rslora)
        && adapted == lora.adapter().targets;
    if same {
        return Ok(());
    }
    let modules: Vec<&str> =
        adapted.iter().filter_map(|target| target.module().rsplit('.').next()).collect();
    Err(format!(
        "the adapter to start from has r = {}, alpha = {}, rslora = {}, target_modules = {modules:?}, and the settings \
         say r = {}, alpha = {}, rslora = {}, target_modules = {:?}; add --set lora.r={} --set lora.alpha={} --set \
         lora.rslora={}{}",
        adapter.rank,
        adapter.alpha,
        adapter.rank_stabilized,
        lora.r,
        lora.alpha,
        lora.rslora,
        lora.target_modules,
        adapter.rank,
        adapter.alpha,
        adapter.rank_stabilized,
        match adapted == lora.adapter().targets {
            true => String::new(),
            false => format!(" --set 'lora.target_modules={modules:?}'"),
        }
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
    if prompt.checked_add(completion).is_some_and(|tokens| tokens <= positions) {
        return Ok(());
    }
    Err(format!(
        "data.max_prompt_tokens = {prompt} and rollout.max_completion_tokens = {completion} exceed the model's \
         {positions} positions; lower one of them with --set"
    )
    .into())
}
