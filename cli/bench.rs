//! `j1 bench`: how fast a model runs and trains here, and how near that is to what the machine can do.

mod measure;
mod work;

use std::{path::PathBuf, process::ExitCode, sync::atomic::Ordering};

use engine::{
    config::Config,
    model::Precision,
    random_checkpoint,
    tensor::Device,
    weights::{Checkpoint, Dtype},
};
use indicatif::{ProgressBar, ProgressStyle};
use kernels::cpu::{Cpu, peak::Peaks};
use measure::{Case, Row, Run, Subject};
use serde_json::{Value, json};

use crate::{
    Failure,
    args::{Bench, BenchWork, ShapeArg},
    interrupt, machine,
    output::{bytes, note, print, table},
    session::{precision, resolve},
};

pub(crate) fn run(args: &Bench) -> Result<ExitCode, Failure> {
    let cases = cases(args)?;
    let subject = open(args, &cases)?;
    let stop = interrupt::raised();
    let device = Device::new(machine::cpu(args.runtime.threads));
    note("measuring what this machine can do at most");
    let machine = Machine::measure(device.cpu(), &subject);
    drop(device);

    let bar = ProgressBar::new(cases.len() as u64 * u64::from(args.repeat + 1));
    let style = "{msg} [{bar:30}] {pos}/{len} passes {eta}";
    bar.set_style(ProgressStyle::with_template(style).expect("a fixed template"));
    let run = Run { repeat: args.repeat, recompute: args.gradient_checkpointing, stop, bar: &bar };
    let mut rows = Vec::with_capacity(cases.len());
    for &case in &cases {
        bar.set_message(case.to_string());
        let Some(row) = subject.measure(case, &run)? else { break };
        if bar.is_hidden() {
            note(&format!("{case}: {}", seconds(median(&row.seconds))));
        }
        rows.push(row);
    }
    bar.finish_and_clear();
    let name = subject_name(args);
    match args.json {
        true => print(&format!("{:#}\n", report(&name, args, &subject, &machine, &rows)))?,
        false => print(&text(&name, &subject, &machine, &rows))?,
    }
    if stop.load(Ordering::Relaxed) {
        note(&format!("stopped: {} of {} rows are whole", rows.len(), cases.len()));
        return Ok(interrupt::status());
    }
    Ok(ExitCode::SUCCESS)
}

/// What the flags ask for, in the order of the table.
fn cases(args: &Bench) -> Result<Vec<Case>, Failure> {
    let size = |number: u32| number as usize;
    let wanted = |kind: BenchWork| args.only.is_empty() || args.only.contains(&kind);
    let mut cases: Vec<Case> =
        args.prompt.iter().map(|&prompt| Case::Prefill { prompt: size(prompt) }).collect();
    let (depth, tokens) = (size(args.depth), size(args.r#gen));
    cases.extend(args.batch.iter().map(|&batch| Case::Decode {
        batch: size(batch),
        depth,
        tokens,
    }));
    if let Some(tokens) = args.train {
        cases.push(Case::Lora { tokens: size(tokens) });
        if let Some(group) = args.group {
            let (prompt, completion) = (size(tokens), size(args.completion));
            cases.push(Case::Grpo { prompt, group: size(group), completion });
        }
    }
    for kind in &args.only {
        if !cases.iter().any(|case| case.kind() == *kind) {
            let flags = if *kind == BenchWork::Grpo { "--train N --group G" } else { "--train N" };
            let name = format!("{kind:?}").to_lowercase();
            return Err(format!("--only {name} has nothing to measure: add {flags}").into());
        }
    }
    cases.retain(|case| wanted(case.kind()));
    Ok(cases)
}

/// Opens what is measured, and from then on answers Ctrl-C.
fn open(args: &Bench, cases: &[Case]) -> Result<Subject, Failure> {
    let (directory, adapter, weights) = match (&args.model, args.shape) {
        (Some(model), _) => {
            let (directory, adapter) = resolve(model, args.runtime.adapter.as_deref())?;
            interrupt::flag();
            (directory, adapter, None)
        }
        (None, shape) => {
            let shape = shape.expect("clap asks for one of the two");
            let adapter = args.runtime.adapter.as_deref().map(resolve_adapter).transpose()?;
            // Before there is a directory that an end at once would leave.
            interrupt::flag();
            let weights = random_weights(shape)?;
            (weights.path().to_owned(), adapter, Some(weights))
        }
    };
    // Before the configuration, so that a wrong path is called one.
    let checkpoint = Checkpoint::open(&directory)?;
    let config = Config::load(&directory)?;
    checkpoint.check(&config)?;
    // The files stay mapped; nothing is left behind, however this ends.
    drop(weights);
    let limit = config.max_position_embeddings;
    if let Some(case) = cases.iter().find(|case| case.positions() > limit) {
        let needed = case.positions();
        return Err(format!("{case}: needs {needed} positions, the model has {limit}").into());
    }
    let weights = checkpoint.weight("model.embed_tokens.weight")?.dtype();
    let precision = precision(args.runtime.dtype).unwrap_or(match weights {
        Dtype::F32 => Precision::F32,
        _ => Precision::Bf16,
    });
    let threads = args.runtime.threads;
    let placement = args.runtime.weights;
    Ok(Subject { checkpoint, config, weights, placement, precision, adapter, threads })
}

fn resolve_adapter(spec: &str) -> Result<PathBuf, Failure> {
    let hub = engine::hub::Hub::from_env();
    let mut downloads = crate::session::Downloads::default();
    Ok(hub.resolve_adapter(spec, &mut |event| downloads.show(event))?)
}

/// A checkpoint in a temporary directory.
fn random_weights(shape: ShapeArg) -> Result<tempfile::TempDir, Failure> {
    let directory = tempfile::Builder::new()
        .prefix("j1-bench-")
        .tempdir()
        .map_err(|error| format!("cannot create a temporary directory: {error}"))?;
    note(&format!(
        "writing random weights of {}'s shape to {}",
        shape.id(),
        directory.path().display()
    ));
    random_checkpoint::write(directory.path(), &shape.config(), 0)
        .map_err(|error| format!("{error}; TMPDIR names the place for temporary files"))?;
    Ok(directory)
}

fn subject_name(args: &Bench) -> String {
    match (&args.model, args.shape) {
        (Some(model), _) => model.clone(),
        (None, Some(shape)) => format!("{}, random weights", shape.id()),
        (None, None) => String::new(),
    }
}

/// What the machine can do at most with what the model multiplies.
struct Machine {
    peaks: Peaks,
    /// Multiplies pairs of bf16.
    bf16: bool,
}

impl Machine {
    fn measure(cpu: &Cpu, subject: &Subject) -> Machine {
        let peaks = Peaks::measure(cpu);
        let bf16 = subject.precision == Precision::Bf16
            && subject.weights == Dtype::BF16
            && peaks.bf16_all.is_some();
        Machine { peaks, bf16 }
    }

    /// Floating-point operations per second of the type that matmuls multiply in.
    fn flops(&self) -> f64 {
        self.peaks.bf16_all.filter(|_| self.bf16).unwrap_or(self.peaks.f32_all)
    }

    fn multiplies(&self) -> &'static str {
        if self.bf16 { "bf16" } else { "f32" }
    }
}

fn precision_name(subject: &Subject) -> &'static str {
    match subject.precision {
        Precision::Bf16 => "bf16",
        Precision::F32 => "f32",
    }
}

fn text(name: &str, subject: &Subject, machine: &Machine, rows: &[Row]) -> String {
    let Peaks { isa, threads, .. } = machine.peaks;
    let mut lines = vec![
        ["", "tok/s", "median", "spread", "memory", "least", "of peak", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    for row in rows {
        let median = median(&row.seconds);
        let floor = row.work.floor(machine.flops(), machine.peaks.read());
        let layers = match row.recomputed {
            Some(true) => ", recomputed",
            Some(false) => ", kept",
            None => "",
        };
        lines.push(vec![
            format!("{}{layers}", row.case),
            format!("{:.1}", row.case.tokens() as f64 / median),
            seconds(median),
            format!("{:.1} %", 100.0 * spread(&row.seconds)),
            row.peak_memory.map_or("-".to_owned(), bytes),
            seconds(floor.seconds),
            format!("{:.0} %", 100.0 * floor.seconds / median),
            floor.bound.name().to_owned(),
        ]);
    }
    format!(
        "{name}: {:.1} M parameters, {}, {threads} threads, {isa}\n\
         this machine at most: {:.0} GFLOP/s in {} registers, {:.1} GB/s read from memory\n\n{}",
        subject.config.parameter_count() as f64 / 1e6,
        precision_name(subject),
        machine.flops() / 1e9,
        machine.multiplies(),
        machine.peaks.read() / 1e9,
        table(&lines)
    )
}

fn report(name: &str, args: &Bench, subject: &Subject, machine: &Machine, rows: &[Row]) -> Value {
    let peaks = &machine.peaks;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": name,
        "random_weights": args.model.is_none(),
        "adapter": subject.adapter,
        "parameters": subject.config.parameter_count(),
        "dtype": precision_name(subject),
        "instructions": peaks.isa.name(),
        "threads": peaks.threads,
        "repeat": args.repeat,
        "peak": {
            "f32_flops": peaks.f32_all,
            "bf16_flops": peaks.bf16_all,
            "read_bytes_per_second": peaks.read(),
            "multiplies": machine.multiplies(),
        },
        "rows": rows.iter().map(|row| row_report(row, machine)).collect::<Vec<_>>(),
    })
}

fn row_report(row: &Row, machine: &Machine) -> Value {
    let median = median(&row.seconds);
    let floor = row.work.floor(machine.flops(), machine.peaks.read());
    let mut value = json!({
        "name": row.case.to_string(),
        "seconds": row.seconds,
        "median_seconds": median,
        "spread": spread(&row.seconds),
        "tokens": row.case.tokens(),
        "tokens_per_second": row.case.tokens() as f64 / median,
        "peak_memory_bytes": row.peak_memory,
        "flops": row.work.flops,
        "bytes": row.work.bytes,
        "least_seconds": floor.seconds,
        "bound": floor.bound.name(),
        "of_peak": floor.seconds / median,
    });
    let mut set = |key: &str, number: usize| value[key] = number.into();
    match row.case {
        Case::Prefill { prompt } => set("prompt", prompt),
        Case::Decode { batch, depth, tokens } => {
            set("batch", batch);
            set("depth", depth);
            set("gen", tokens);
        }
        Case::Lora { tokens } => set("train", tokens),
        Case::Grpo { prompt, group, completion } => {
            set("train", prompt);
            set("group", group);
            set("completion", completion);
        }
    }
    value["work"] = format!("{:?}", row.case.kind()).to_lowercase().into();
    value["recomputed"] = row.recomputed.into();
    value
}

/// `12.3 s`, `45.6 ms`.
fn seconds(seconds: f64) -> String {
    match seconds {
        s if s >= 100.0 => format!("{s:.1} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s => format!("{:.2} ms", 1e3 * s),
    }
}

/// The middle one, or the mean of the two in the middle.
fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// (Slowest - fastest) / median.
fn spread(seconds: &[f64]) -> f64 {
    let slowest = seconds.iter().copied().fold(0.0, f64::max);
    let fastest = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    (slowest - fastest) / median(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(spread(&[4.0, 1.0, 2.0]), 1.5);
        assert_eq!(spread(&[2.0]), 0.0);
    }

    #[test]
    fn seconds_are_readable() {
        assert_eq!([123.45, 1.234, 0.0123].map(seconds), ["123.5 s", "1.23 s", "12.30 ms"]);
    }
}
