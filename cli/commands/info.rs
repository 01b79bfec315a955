//! `j1 info`: the machine, the model, the memory.

use std::process::ExitCode;

use engine::{
    checkpoint::{config::Config, weights::Checkpoint},
    hub::Hub,
    model::kv_cache::{CacheDtype, KvCache},
    tensor::device::{Cpu, Isa},
};
use serde_json::json;

use crate::{
    Failure,
    args::Info,
    commands::memory,
    machine,
    output::{bytes, print, table},
};

pub(crate) fn run(args: &Info) -> Result<ExitCode, Failure> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = Cpu::new(1);
    let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let free = machine::available_memory();
    let mut report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instructions": cpu.isa().name(),
        "instructions_available": available,
        "threads": threads,
        "memory_available_bytes": free,
    });
    let mut rows = vec![
        ["j1".to_string(), env!("CARGO_PKG_VERSION").to_string()],
        ["instructions".to_string(), format!("{} (of {})", cpu.isa(), available.join(", "))],
        ["threads".to_string(), threads.to_string()],
        ["memory free".to_string(), free.map_or("unknown".to_string(), bytes)],
    ];
    if args.train {
        let (training, values) = memory::training(args, cpu.isa())?;
        rows.extend(training);
        report["training"] = values;
    } else if let Some(model) = &args.model {
        let directory = Hub::from_env().resolve_model(model, &mut |_| ())?;
        let (checkpoint, config) = Checkpoint::open_checked::<Failure>(&directory)?;
        let (batch, length) = (args.batch as usize, args.length as usize);
        let budget = Budget::of(&config, checkpoint.len_bytes(), batch, length);
        rows.extend(model_rows(&config, &budget, args));
        report["model"] = json!({
            "directory": directory,
            "family": config.family.model_type(),
            "parameters": config.parameter_count(),
            "parameters_without_embedding": config.non_embedding_parameter_count(),
            "weights_bytes": budget.weights,
            "cache_bytes_per_token": budget.cache_per_token,
            "batch": args.batch,
            "length": args.length,
            "cache_bytes": budget.cache,
            "activation_bytes": budget.activations,
            "total_bytes": budget.total(),
        });
    }
    match args.json {
        true => print(&format!("{report:#}\n"))?,
        false => {
            let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
            print(&table(&rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Memory of a run in bytes.
struct Budget {
    weights: u64,
    cache_per_token: u64,
    cache: u64,
    activations: u64,
}

impl Budget {
    fn of(config: &Config, weights: u64, batch: usize, length: usize) -> Budget {
        let page = KvCache::page_bytes(config, CacheDtype::Bf16);
        let cache = batch * KvCache::pages_for(length) * page;
        let rows = engine::generate::GeneratorOptions::PREFILL_ROWS + batch;
        // The residual stream and its norm, queries, keys, values, attention's output, gate, up
        // and their product live at once, in f32; logits for one row a sequence.
        let row = 2 * config.hidden_size
            + 2 * config.query_width()
            + 2 * config.key_value_width()
            + 3 * config.intermediate_size;
        let activations = 4 * (rows * row + batch * config.vocab_size);
        Budget {
            weights,
            cache_per_token: (page / engine::model::kv_cache::PAGE) as u64,
            cache: cache as u64,
            activations: activations as u64,
        }
    }

    fn total(&self) -> u64 {
        self.weights + self.cache + self.activations
    }
}

fn model_rows(config: &Config, budget: &Budget, args: &Info) -> Vec<[String; 2]> {
    let millions = |count: u64| format!("{:.1} M", count as f64 / 1e6);
    let Info { batch, length, .. } = args;
    vec![
        ["family".to_string(), config.family.model_type().to_string()],
        [
            "layers, width".to_string(),
            format!("{}, {}", config.num_hidden_layers, config.hidden_size),
        ],
        [
            "heads (query, kv, width)".to_string(),
            format!(
                "{}, {}, {}",
                config.num_attention_heads, config.num_key_value_heads, config.head_dim
            ),
        ],
        ["parameters".to_string(), millions(config.parameter_count())],
        ["  without embedding".to_string(), millions(config.non_embedding_parameter_count())],
        ["weights (mapped)".to_string(), bytes(budget.weights)],
        ["keys and values a token".to_string(), bytes(budget.cache_per_token)],
        [format!("  {batch} x {length} tokens"), bytes(budget.cache)],
        ["activations, at most".to_string(), bytes(budget.activations)],
        ["in all".to_string(), bytes(budget.total())],
    ]
}
