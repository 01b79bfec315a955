//! `j1 bench`: how fast a model runs and trains here, and how near that is to what the machine can do.

mod measure;
mod work;

use std::{path::PathBuf, process::ExitCode, sync::atomic::Ordering};

use engine::{
    checkpoint::{
        random_checkpoint,
        weights::{Checkpoint, Dtype},
    },
    model::{Precision, suitability},
    tensor::Device,
};
use indicatif::ProgressBar;
use kernels::{
    cpu::peak::Peaks,
    cuda::{DataSheet, data_sheet},
};
use measure::{Case, Row, Run, Subject};
use serde_json::{Value, json};
use work::{Floor, Work};

use crate::{
    Failure,
    args::{Bench, BenchWork, ShapeArg},
    interrupt, machine,
    output::{bar_style, bytes, note, print, table},
    session::{precision, resolve},
};

pub(crate) fn run(args: &Bench) -> Result<ExitCode, Failure> {
    let cases = cases(args)?;
    // Before random weights are written: that there is no GPU is known at once.
    let device = machine::device(args.runtime.device, args.runtime.dtype, args.runtime.threads)?;
    let subject = open(args, &device, &cases)?;
    let stop = interrupt::raised();
    let machine = Machine::of(&device, &subject);
    // Each case has a device of its own.
    drop(device);

    let bar = ProgressBar::new(cases.len() as u64 * u64::from(args.repeat + 1));
    let style = "{msg} [{bar:30}] {pos}/{len} passes {left}";
    bar.set_style(bar_style(style));
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

/// The measurements that the flags ask for, in the order of the table.
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
fn open(args: &Bench, device: &Device, cases: &[Case]) -> Result<Subject, Failure> {
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
    let (checkpoint, config) = Checkpoint::open_checked::<Failure>(&directory)?;
    // The files stay mapped; nothing is left behind, however this ends.
    drop(weights);
    let limit = config.max_position_embeddings;
    if let Some(case) = cases.iter().find(|case| case.positions() > limit) {
        let needed = case.positions();
        return Err(format!("{case}: needs {needed} positions, the model has {limit}").into());
    }
    let weights = checkpoint.weight("model.embed_tokens.weight")?.dtype();
    let precision = precision(args.runtime.dtype).unwrap_or(match weights {
        Dtype::F32 if !device.is_cuda() => Precision::F32,
        _ => Precision::Bf16,
    });
    let gpu = match device {
        Device::Cpu(_) => None,
        Device::Cuda(cuda) => {
            suitability::check(&config, precision)?;
            Some(cuda.gpu().ordinal())
        }
    };
    let threads = args.runtime.threads;
    let placement = args.runtime.weights;
    Ok(Subject { checkpoint, config, weights, placement, precision, adapter, gpu, threads })
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

/// The peak of the device for the model's matmuls.
enum Machine {
    /// Measured.
    Cpu {
        peaks: Peaks,
        /// Multiplies pairs of bf16.
        bf16: bool,
    },
    /// The peak in the data sheet of the GPU, if its name is known.
    Gpu { device: String, sheet: Option<DataSheet> },
}

impl Machine {
    fn of(device: &Device, subject: &Subject) -> Machine {
        match device {
            Device::Cpu(_) => {
                note("measuring what this machine can do at most");
                let peaks = Peaks::measure(device.host());
                let bf16 = subject.precision == Precision::Bf16
                    && subject.weights == Dtype::BF16
                    && peaks.bf16_all.is_some();
                Machine::Cpu { peaks, bf16 }
            }
            Device::Cuda(cuda) => {
                Machine::Gpu { device: format!("{device:?}"), sheet: data_sheet(cuda.gpu().name()) }
            }
        }
    }

    /// Floating-point operations per second of the type that matmuls multiply in, and bytes per second from memory;
    /// `None` where they are not known.
    fn rates(&self) -> Option<[f64; 2]> {
        match self {
            Machine::Cpu { peaks, bf16 } => {
                let flops = peaks.bf16_all.filter(|_| *bf16).unwrap_or(peaks.f32_all);
                Some([flops, peaks.read()])
            }
            Machine::Gpu { sheet, .. } => {
                sheet.map(|sheet| [sheet.bf16_flops, sheet.bytes_per_second])
            }
        }
    }

    /// The least time for `work`, where it is known.
    fn floor(&self, work: &Work) -> Option<Floor> {
        self.rates().map(|[flops, bytes]| work.floor(flops, bytes))
    }

    fn multiplies(&self) -> &'static str {
        match self {
            Machine::Cpu { bf16: false, .. } => "f32",
            _ => "bf16",
        }
    }

    /// The device and its peaks, in two lines.
    fn describe(&self) -> String {
        match (self, self.rates()) {
            (Machine::Cpu { peaks, .. }, Some([flops, bytes])) => format!(
                "{} threads, {}\nthis machine at most: {:.0} GFLOP/s in {} registers, {:.1} GB/s read from memory",
                peaks.threads,
                peaks.isa,
                flops / 1e9,
                self.multiplies(),
                bytes / 1e9
            ),
            (Machine::Gpu { device, .. }, Some([flops, bytes])) => format!(
                "{device}\nits data sheet: {:.0} TFLOP/s of bf16, {:.0} GB/s from memory; not measured",
                flops / 1e12,
                bytes / 1e9
            ),
            (Machine::Gpu { device, .. }, None) => {
                format!("{device}\nno data sheet is known for it: no share of its peak is given")
            }
            (Machine::Cpu { .. }, None) => unreachable!("a CPU's peaks are measured"),
        }
    }
}

fn text(name: &str, subject: &Subject, machine: &Machine, rows: &[Row]) -> String {
    let mut lines = vec![
        ["", "tok/s", "median", "spread", "memory", "least", "of peak", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    for row in rows {
        let median = median(&row.seconds);
        let floor = machine.floor(&row.work);
        let known = |text: &dyn Fn(Floor) -> String| floor.map_or("-".to_owned(), text);
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
            known(&|floor| seconds(floor.seconds)),
            known(&|floor| format!("{:.0} %", 100.0 * floor.seconds / median)),
            known(&|floor| floor.bound.name().to_owned()),
        ]);
    }
    format!(
        "{name}: {:.1} M parameters, {}, {}\n\n{}",
        subject.config.parameter_count() as f64 / 1e6,
        subject.precision.name(),
        machine.describe(),
        table(&lines)
    )
}

fn report(name: &str, args: &Bench, subject: &Subject, machine: &Machine, rows: &[Row]) -> Value {
    let (device, threads, peak) = match machine {
        Machine::Cpu { peaks, .. } => (
            "cpu".to_owned(),
            Some(peaks.threads),
            json!({
                "f32_flops": peaks.f32_all,
                "bf16_flops": peaks.bf16_all,
                "read_bytes_per_second": peaks.read(),
                "multiplies": machine.multiplies(),
            }),
        ),
        Machine::Gpu { device, sheet } => (
            device.clone(),
            None,
            json!(sheet.map(|sheet| json!({
                "bf16_flops": sheet.bf16_flops,
                "read_bytes_per_second": sheet.bytes_per_second,
                "multiplies": machine.multiplies(),
            }))),
        ),
    };
    let instructions = match machine {
        Machine::Cpu { peaks, .. } => peaks.isa.name(),
        Machine::Gpu { .. } => "cuda",
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": name,
        "random_weights": args.model.is_none(),
        "adapter": subject.adapter,
        "parameters": subject.config.parameter_count(),
        "dtype": subject.precision.name(),
        "device": device,
        "instructions": instructions,
        "threads": threads,
        "repeat": args.repeat,
        "peak": peak,
        "rows": rows.iter().map(|row| row_report(row, machine)).collect::<Vec<_>>(),
    })
}

fn row_report(row: &Row, machine: &Machine) -> Value {
    let median = median(&row.seconds);
    let floor = machine.floor(&row.work);
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
        "least_seconds": floor.map(|floor| floor.seconds),
        "bound": floor.map(|floor| floor.bound.name()),
        "of_peak": floor.map(|floor| floor.seconds / median),
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
