//! `j1 demo`: the whole pipeline on a tiny judge that is part of the program, offline.
//!
//! It writes the judge, its pairs, its template and a configuration to a directory and then does what
//! a user would do with them: `j1 data prepare`, `j1 train`, and an evaluation before and after.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::AtomicBool,
    time::Instant,
};

use engine::language_model::LanguageModel;
use trainer::{
    data::{
        self, Pair, Source,
        prepare::{self, prepare},
    },
    eval::{
        results::{Record, write_whole},
        scores::Scores,
    },
    judge::prompt::Template,
    train::{held_out::evaluate, sample::Sampler, settings::Settings},
};

use crate::{
    Failure,
    args::{Demo, DtypeArg, SettingsArgs, Train, WeightsArg},
    commands::train,
    interrupt, machine,
    output::{note, print, table},
};

/// The model of cli/commands/demo/make.py, and the configuration to train it with.
const FILES: [(&str, &[u8]); 8] = [
    ("model/config.json", include_bytes!("demo/model/config.json")),
    ("model/generation_config.json", include_bytes!("demo/model/generation_config.json")),
    ("model/model.safetensors", include_bytes!("demo/model/model.safetensors")),
    ("model/tokenizer.json", include_bytes!("demo/model/tokenizer.json")),
    ("model/tokenizer_config.json", include_bytes!("demo/model/tokenizer_config.json")),
    ("pairs.jsonl", include_bytes!("demo/pairs.jsonl")),
    ("template.jinja", include_bytes!("demo/template.jinja")),
    ("config.toml", include_bytes!("demo/config.toml")),
];

/// Share of the pairs that training does not see.
const HELD_OUT: f64 = 0.2;

/// Judgements that are shown.
const SHOWN: usize = 3;

pub(crate) fn run(args: &Demo) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    let out = &args.out;
    if out.join("run").exists() {
        return Err(format!(
            "{} holds a demo already; remove it, or choose another --out",
            out.display()
        )
        .into());
    }
    std::fs::create_dir_all(out.join("model"))
        .map_err(|error| format!("cannot create {}: {error}", out.display()))?;
    for (name, bytes) in FILES {
        write_whole(&out.join(name), bytes)?;
    }
    note(&format!("1. The judge, pairs, template and configuration are in {}", out.display()));

    let data = out.join("data");
    let options = prepare::PrepareOptions {
        held_out: HELD_OUT,
        seed: 0,
        ..prepare::PrepareOptions::default()
    };
    let pairs = Source::open(&out.join("pairs.jsonl"))?;
    prepare(&pairs, &data, &options, interrupt::raised(), &mut |_| ())?;
    let held_out = data::read(&data.join("held_out.jsonl"))?;
    note(&format!("2. Prepared the pairs; {} are held out", held_out.len()));

    let settings = settings(args)?;
    note("3. Judging the held-out pairs with the base model, in both orders");
    let before = judge(args, &settings, None, &held_out)?;

    note("4. Training with GRPO: what it prints is `right` of what was sampled, at temperature 1");
    let status = train::run(&train_arguments(args))?;
    if status != ExitCode::SUCCESS {
        return Ok(status);
    }

    note("5. Judging the held-out pairs with the trained adapter");
    let after = judge(args, &settings, Some(&out.join("run/adapter")), &held_out)?;

    print(&report(&before, &after, &held_out))?;
    note(&format!("\nThe demo took {:.0} s.", started.elapsed().as_secs_f64()));
    note(&where_it_is(out));
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &Demo) -> Result<Settings, Failure> {
    let mut settings = Settings::from_file(&args.out.join("config.toml"))?;
    settings.train.seed = args.seed;
    for assignment in &args.set {
        settings = settings.with(assignment)?;
    }
    Ok(settings)
}

/// The arguments of `j1 train --config DIR/config.toml ...`, which is what runs.
fn train_arguments(args: &Demo) -> Train {
    let out = &args.out;
    let text = |path: PathBuf| Some(path.display().to_string());
    let own = [
        format!("train.seed={}", args.seed),
        format!("data.template={:?}", out.join("template.jinja").display().to_string()),
    ];
    Train {
        settings: SettingsArgs {
            preset: None,
            config: Some(out.join("config.toml")),
            set: own.into_iter().chain(args.set.iter().cloned()).collect(),
        },
        print_config: false,
        dry_run: false,
        model: text(out.join("model")),
        adapter: None,
        dtype: DtypeArg::Auto,
        weights: None,
        data: text(out.join("data/train.jsonl")),
        held_out: None,
        out: Some(out.join("run")),
        resume: false,
        from: None,
        allow_other_instructions: false,
        device: args.device,
        threads: args.threads,
        cache_memory: None,
    }
}

type Judged = (Vec<Record>, Scores);

fn judge(
    args: &Demo,
    settings: &Settings,
    adapter: Option<&Path>,
    pairs: &[Pair],
) -> Result<Judged, Failure> {
    let device = machine::device(args.device, DtypeArg::Auto, args.threads)?;
    let directory = args.out.join("model");
    let builder = LanguageModel::builder(&directory).device(&device).adapter(adapter);
    let mut language_model = builder.open()?;
    machine::place_weights(&mut language_model.model, WeightsArg::Auto)?;
    let template = Template::from_file(&args.out.join("template.jinja"))?
        .with_control_tokens(language_model.control_tokens());
    let options = engine::generate::GeneratorOptions {
        max_batch: 64,
        prefill_rows: engine::generate::GeneratorOptions::PREFILL_ROWS,
        cache_bytes: machine::cache_bytes(&device, None)?.min(1 << 30) as usize,
    };
    let sampler =
        Sampler { language_model: &language_model, template: &template, settings, pairs, options };
    let never = AtomicBool::new(false);
    let judged = evaluate(sampler.judge(), pairs, &never, &mut |_, _| ())?;
    Ok(judged.expect("nobody raises the flag"))
}

/// The table before and after, and some judgements.
fn report(before: &Judged, after: &Judged, pairs: &[Pair]) -> String {
    let percent = |share: Option<f64>| share.map_or("-".into(), |s| format!("{:.1} %", 100.0 * s));
    let row = |name: &str, of: &dyn Fn(&Scores) -> String| {
        vec![name.to_owned(), of(&before.1), of(&after.1)]
    };
    let judgements = |scores: &Scores| scores.judgements as f64;
    let rows = vec![
        vec![format!("{} held-out pairs", pairs.len()), "before".into(), "after".into()],
        row("right in both orders", &|s| percent(s.consistent.map(|share| share.share))),
        row("right, of judgements", &|s| percent(s.plain_accuracy)),
        row("  chosen reply in slot A", &|s| percent(s.chosen_first.map(|share| share.share))),
        row("  rejected reply in slot A", &|s| percent(s.rejected_first.map(|share| share.share))),
        row("prefers slot A", &|s| percent(s.share_of_a.map(|share| share.share))),
        row("without a verdict", &|s| {
            percent(Some(s.unparsed_strict.total as f64 / judgements(s)))
        }),
    ];
    let mut text = format!("\n{}", table(&rows));
    // Those that training changed come first: they show what it did.
    let mut order: Vec<usize> = (0..before.0.len()).collect();
    let right = |record: &Record| {
        record
            .scores_by_label(trainer::judge::verdict::MatchRule::Strict)
            .is_some_and(|(chosen, rejected)| chosen > rejected)
    };
    order.sort_by_key(|&i| (right(&before.0[i]), !right(&after.0[i]), i));
    let mut shown: Vec<u64> = Vec::new();
    for index in order {
        let (old, new) = (&before.0[index], &after.0[index]);
        if shown.len() == SHOWN || shown.contains(&new.row) {
            continue;
        }
        let Some(pair) = pairs.iter().find(|pair| pair.row == new.row) else { continue };
        shown.push(new.row);
        let (a, b) = new.order.slots(pair);
        let question = pair.prompt.last().map_or("", |turn| turn.content.as_str());
        let better = if a == pair.chosen { "A" } else { "B" };
        text += &format!(
            "\n{question}\n  A: {a}\n  B: {b}\n  better: {better}\n  before: {}\n  after:  {}\n",
            one_line(&old.text),
            one_line(&new.text)
        );
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn where_it_is(out: &Path) -> String {
    let at = |name: &str| out.join(name).display().to_string();
    format!(
        "\
In {}:
  run/adapter       the trained adapter, in PEFT's form
  run/metrics.jsonl one line per step; TensorBoard reads run/ as well
  run/rollouts      every judgement of every step, with what it earned
  config.toml       the settings, yours to copy

The same by hand, with your own model and pairs:
  j1 data prepare {} --out {}
  j1 train --config {} --model {} --data {} --set data.template={} --out my-run
  j1 judge --model {} --adapter {} --template {} --data {}",
        out.display(),
        at("pairs.jsonl"),
        at("data"),
        at("config.toml"),
        at("model"),
        at("data/train.jsonl"),
        at("template.jinja"),
        at("model"),
        at("run/adapter"),
        at("template.jinja"),
        at("data/held_out.jsonl"),
    )
}
