//! `j1 info --train`: the memory of a training run.

mod cuda;

use clap::ValueEnum;
use engine::{
    checkpoint::{
        config::Config,
        weights::{Checkpoint, Dtype},
    },
    hub::Hub,
    model::{Precision, memory::PassMemory},
};
use kernels::cpu::Isa;
use serde_json::{Value, json};
use trainer::train::{
    memory::{RunMemory, RunShape, weights_bytes},
    session::tokenizer_bytes,
    settings::{Choice, Settings},
};

use crate::{
    Failure,
    args::{Info, ShapeArg},
    commands::train::base_settings,
    machine,
    output::bytes,
    session::precision,
};

/// Bytes of the tokenizer.json of Qwen3.
const QWEN3_TOKENIZER: u64 = 11_422_654;

/// A model that is to be trained.
struct Subject {
    config: Config,
    weights: Dtype,
    tokenizer: u64,
    name: String,
}

impl Subject {
    fn open(model: &str) -> Result<Subject, Failure> {
        let directory = Hub::from_env().resolve_model(model, &mut |_| ())?;
        let (checkpoint, config) = Checkpoint::open_checked::<Failure>(&directory)?;
        let weights = checkpoint.weight("model.embed_tokens.weight")?.dtype();
        let tokenizer = tokenizer_bytes(&directory);
        Ok(Subject { config, weights, tokenizer, name: directory.display().to_string() })
    }

    fn of_shape(shape: ShapeArg) -> Subject {
        Subject {
            config: shape.config(),
            weights: Dtype::BF16,
            tokenizer: QWEN3_TOKENIZER,
            name: shape.id().to_owned(),
        }
    }
}

impl ShapeArg {
    /// Its Hugging Face id.
    pub(crate) fn id(self) -> &'static str {
        match self {
            ShapeArg::Qwen3_0_6b => "Qwen/Qwen3-0.6B",
            ShapeArg::Qwen3_1_7b => "Qwen/Qwen3-1.7B",
        }
    }

    pub(crate) fn config(self) -> Config {
        match self {
            ShapeArg::Qwen3_0_6b => Config::qwen3(1024, 3072),
            ShapeArg::Qwen3_1_7b => Config::qwen3(2048, 6144),
        }
    }
}

/// Rows of the table of `j1 info --train`, and the same as JSON.
pub(crate) fn training(args: &Info, isa: Isa) -> Result<(Vec<[String; 2]>, Value), Failure> {
    let settings = base_settings(args.config.as_deref(), args.preset, &args.set)?;
    settings.validate()?;
    let mut shapes = ShapeArg::value_variants().iter().copied();
    let named = shapes.find(|shape| shape.id() == settings.model.path);
    let subject = match (&args.model, args.shape.or(named)) {
        (Some(model), _) => Subject::open(model)?,
        (None, Some(shape)) => Subject::of_shape(shape),
        (None, None) if settings.model.path.is_empty() => {
            return Err("no model: give --model, --shape, or model.path in the settings".into());
        }
        (None, None) => Subject::open(&settings.model.path)?,
    };
    if let Some(memory) = args.device_memory {
        let budget = cuda::Budget::new(&settings, &subject.config, memory, args.cache_memory)?;
        return Ok((budget.rows(&subject.name, &settings), budget.report(&subject.name)));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let precision =
        precision(args.dtype).unwrap_or_else(|| Precision::for_weights(subject.weights, false));
    let memory = RunMemory::of(
        &settings,
        &subject.config,
        (subject.weights, precision),
        (args.threads.map_or(cores, usize::from), isa),
        RunShape {
            weights: weights_bytes(&subject.config, subject.weights),
            tokenizer: subject.tokenizer,
            prompt: settings.data.max_prompt_tokens,
            cache: args.cache_memory.unwrap_or_else(machine::quarter_of_memory),
        },
    )?;
    Ok((rows(&subject.name, &settings, &memory), report(&subject.name, &memory)))
}

fn rows(name: &str, settings: &Settings, memory: &RunMemory) -> Vec<[String; 2]> {
    let two = |of: &dyn Fn(bool) -> u64| format!("{} / {}", bytes(of(true)), bytes(of(false)));
    let row = |name: &str, value: String| [name.to_owned(), value];
    let rollout = &settings.rollout;
    let block = memory.recomputed.logits;
    vec![
        row("training", format!("{name}, preset {}", settings.preset.name())),
        row("rows of a micro-batch", memory.rows.to_string()),
        row("weights (mapped)", bytes(memory.weights)),
        row("program (mapped)", bytes(memory.program)),
        row("tokenizer, threads, templates", bytes(memory.process)),
        row("adapter", bytes(memory.adapter)),
        row("optimizer", bytes(memory.moments)),
        [
            format!("keys and values of {} x {}", rollout.prompts_per_step, rollout.group_size),
            bytes(memory.cache),
        ],
        row("generation's activations", bytes(memory.generation.buffers - memory.adapter / 2)),
        row("", "recomputed / kept".to_owned()),
        row("training's activations", two(&|recompute| memory.activations(recompute))),
        row("  of it a block of logits", bytes(block)),
        row("scratch", two(&|recompute| memory.scratch(recompute))),
        row("anonymous, at the peak", two(&|recompute| memory.anonymous(recompute))),
        row("in all", two(&|recompute| memory.total(recompute))),
    ]
}

fn report(name: &str, memory: &RunMemory) -> Value {
    let pass = |pass: &PassMemory, recompute: bool| {
        json!({
            "activation_bytes": memory.activations(recompute),
            "buffer_bytes": pass.buffers,
            "allocated_bytes": pass.allocated,
            "logits_block_bytes": pass.logits,
            "scratch_bytes": memory.scratch(recompute),
            "anonymous_bytes": memory.anonymous(recompute),
            "total_bytes": memory.total(recompute),
        })
    };
    json!({
        "model": name,
        "micro_batch_rows": memory.rows,
        "weights_bytes": memory.weights,
        "program_bytes": memory.program,
        "process_bytes": memory.process,
        "adapter_bytes": memory.adapter,
        "optimizer_bytes": memory.moments,
        "cache_bytes": memory.cache,
        "generation_bytes": memory.generation.buffers,
        "recomputed": pass(&memory.recomputed, true),
        "kept": pass(&memory.kept, false),
    })
}
