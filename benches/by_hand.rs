//! What benches of seconds a run share: arguments, the model they run, the loop over what was asked for.
//!
//! Criterion wants ten samples and more; here a few runs and their median do.

use std::{path::PathBuf, time::Instant};

use engine::{
    checkpoint::{config::Config, random_checkpoint, weights::Packing},
    tensor::Device,
};
use tempfile::TempDir;

use crate::measure::{Report, Work, median};

/// Flags without a value, what cargo and those used to criterion give among them.
const SWITCHES: [&str; 9] = [
    "--bench",
    "--exact",
    "--list",
    "--noplot",
    "--nocapture",
    "--quick",
    "--separate",
    "--test",
    "--verbose",
];

/// Flags with a value that each of these benches takes.
const VALUES: [&str; 5] = ["--model", "--rounds", "--shape", "--threads", "--weights"];

/// The command line.
pub(crate) struct Arguments {
    flags: Vec<(String, String)>,
    /// Parts of ids, any of which is asked for; all ids if there are none.
    filters: Vec<String>,
}

impl Arguments {
    /// Reads it; `own` are further flags with a value. What it does not know ends the bench: a flag that is misspelled would
    /// otherwise measure something else.
    pub(crate) fn parse(own: &[&str]) -> Arguments {
        let mut parsed = Arguments { flags: Vec::new(), filters: Vec::new() };
        let mut arguments = std::env::args().skip(1).peekable();
        while let Some(argument) = arguments.next() {
            if !argument.starts_with("--") {
                parsed.filters.push(argument);
                continue;
            }
            let is = |known: &[&str]| known.contains(&argument.as_str());
            let value = match arguments.next_if(|_| is(&VALUES) || is(own)) {
                Some(value) => value,
                None if is(&SWITCHES) => String::new(),
                None => refuse(&argument, own),
            };
            parsed.flags.push((argument, value));
        }
        parsed
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.flags.iter().find(|(flag, _)| flag == name).map(|(_, value)| value.as_str())
    }

    /// `--weights packed`, the default and what `j1` comes to in long work, or `mapped`.
    pub(crate) fn packing(&self) -> Packing {
        match self.value("--weights") {
            None | Some("packed") => Packing::AtOnce,
            Some("mapped") => Packing::Mapped,
            Some(other) => panic!("--weights {other}: packed or mapped"),
        }
    }

    pub(crate) fn number(&self, name: &str, default: usize) -> usize {
        let number =
            |text: &str| text.parse().unwrap_or_else(|_| panic!("{name} {text}: a number"));
        self.value(name).map_or(default, number)
    }

    fn wants(&self, id: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| id.contains(filter.as_str()))
    }
}

/// Ends the bench with what it takes.
fn refuse(argument: &str, own: &[&str]) -> ! {
    let known = [&VALUES, own].concat().join(", ");
    let what = if known.contains(argument) { "needs a value" } else { "is not known here" };
    eprintln!(
        "{argument} {what}; there are {known} (each with a value), --list, --test, --separate, and parts of ids"
    );
    std::process::exit(2)
}

/// The model under test: `--model DIR`, or random weights of `--shape qwen3-0.6b`, `qwen3-1.7b` or `tiny`, the
/// default, which is for trying whether benches run.
pub(crate) struct Subject {
    /// Its part of ids.
    pub(crate) name: String,
    source: Source,
}

enum Source {
    Directory(PathBuf),
    Random(Config),
}

impl Subject {
    pub(crate) fn of(arguments: &Arguments) -> Subject {
        if let Some(directory) = arguments.value("--model") {
            let directory = PathBuf::from(directory);
            let name = directory.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            return Subject { name, source: Source::Directory(directory) };
        }
        let name = arguments.value("--shape").unwrap_or("tiny");
        let config = match name {
            "qwen3-0.6b" => Config::qwen3(1024, 3072),
            "qwen3-1.7b" => Config::qwen3(2048, 6144),
            "tiny" => Config {
                num_hidden_layers: 4,
                num_attention_heads: 4,
                num_key_value_heads: 2,
                head_dim: 64,
                vocab_size: 2048,
                eos_token_ids: vec![0],
                ..Config::qwen3(256, 768)
            },
            _ => panic!("--shape {name}: qwen3-0.6b, qwen3-1.7b or tiny"),
        };
        Subject { name: name.to_owned(), source: Source::Random(config) }
    }

    /// Its directory, which is there as long as what is returned with it.
    pub(crate) fn directory(&self) -> (PathBuf, Option<TempDir>) {
        match &self.source {
            Source::Directory(directory) => (directory.clone(), None),
            Source::Random(config) => {
                let directory = tempfile::tempdir().expect("a directory for a checkpoint");
                random_checkpoint::write(directory.path(), config, 1)
                    .unwrap_or_else(|error| panic!("{error}"));
                (directory.path().to_owned(), Some(directory))
            }
        }
    }
}

/// What a run is reported as.
pub(crate) struct Outcome {
    /// Nanoseconds, of each run.
    pub(crate) times: Vec<f64>,
    pub(crate) work: Work,
    /// What a run counts, and its unit.
    pub(crate) counted: (usize, &'static str),
    pub(crate) peak_bytes: Option<u64>,
}

/// Runs `run(device, index, runs)` for each of `ids` that is asked for, and reports it; `runs` is how many are timed.
/// `open` makes what all of them need.
pub(crate) fn bench<T>(
    arguments: &Arguments,
    ids: &[String],
    open: impl FnOnce(&Device) -> T,
    mut run: impl FnMut(&mut T, usize, usize) -> Outcome,
) {
    let wanted: Vec<usize> = (0..ids.len()).filter(|&i| arguments.wants(&ids[i])).collect();
    if arguments.has("--list") {
        wanted.iter().for_each(|&i| println!("{}: benchmark", ids[i]));
        return;
    }
    if wanted.is_empty() {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let device = Device::cpu_threads(arguments.number("--threads", cores));
    // Cargo says --bench where benches are to be timed, not only tried.
    let timed = arguments.has("--bench") && !arguments.has("--test");
    let mut report = timed.then(|| Report::new(device.host()));
    let runs = if timed { arguments.number("--rounds", 3) } else { 1 };
    let mut opened = open(&device);
    for index in wanted {
        let started = Instant::now();
        let Outcome { times, work, counted, peak_bytes } = run(&mut opened, index, runs);
        println!(
            "{}: {} runs in {:.1} s",
            ids[index],
            times.len(),
            started.elapsed().as_secs_f64()
        );
        if let Some(report) = &mut report {
            report.add(ids[index].clone(), median(times), work, Some(counted), peak_bytes);
        }
    }
    if let Some(report) = report {
        report.finish();
    }
}
