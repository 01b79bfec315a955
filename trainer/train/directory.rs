//! The directory of a run: who may write in it, and what a run that goes on must have in common with its start.
//!
//! `run.json` says what a run is: fingerprints of what it reads, every setting, and under `about`, which is for
//! people and not compared, when, where and how it was begun and resumed. `config.toml` holds the settings for those who
//! read and edit them: a key that decides what steps are must be as it was, and one that does not may change.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use engine::checkpoint::{
    adapter::{Adapter, AdapterError},
    config::Config,
};
use serde_json::{Map, Value, json};

use super::checkpoint::{self, CheckpointError, CheckpointState};
use crate::{
    eval::results::{
        ABOUT, RUN, ResultsError, compare_settings,
        files::{remove_temporaries, write_whole},
        lock, pretty, read_json, refuse_foreign,
    },
    train::{
        metrics,
        settings::{Settings, SettingsError},
    },
};

const CONFIG: &str = "config.toml";
pub(super) const METRICS: &str = "metrics.jsonl";
pub(super) const ROLLOUTS: &str = "rollouts";
pub(super) const CHECKPOINTS: &str = "checkpoints";
pub(super) const ADAPTER: &str = "adapter";
const START: &str = "start";
/// Key of run.json that holds every setting.
const SETTINGS: &str = "settings";
/// Key of run.json that names the instruction set.
const INSTRUCTIONS: &str = "instructions";
/// Resumptions that run.json tells of: it is read into memory.
const RESUMPTIONS: usize = 100;

/// Why a directory cannot hold this run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a part
pub enum DirectoryError {
    #[error("{0}")]
    Files(#[from] ResultsError),
    #[error("{0}")]
    Checkpoint(#[from] CheckpointError),
    #[error("{0}")]
    Settings(#[from] SettingsError),
    #[error("{} already holds a run", directory.display())]
    Exists { directory: PathBuf },
    #[error("{} holds no run to resume (there is no config.toml)", directory.display())]
    NothingToResume { directory: PathBuf },
    #[error(
        "{} {problem}, and it says what the run was started with; put it back, or start another run with the settings \
         in {}", run.display(), config.display()
    )]
    NoRun { run: PathBuf, problem: String, config: PathBuf },
    #[error(
        "{error}\nThe run was started with a whole config.toml, which run.json holds too: repair the file, or remove \
         it: a run that is resumed writes it again as it was"
    )]
    Config { error: Box<SettingsError> },
    #[error(
        "{}: {} of the {} keys that the run was started with are missing ({}), so it was cut or edited; put them \
         back, or remove the file: a run that is resumed writes it again as it was", config.display(), missing.len(), all,
        missing.join(", ")
    )]
    Cut { config: PathBuf, missing: Vec<String>, all: usize },
    #[error(
        "{}: {}. A run keeps what its steps depend on: put the old values back, or remove the file: a run \
         that is resumed writes it again as it was. Or start another run with this file in another directory",
        config.display(), changes.join("; ")
    )]
    Edited { config: PathBuf, changes: Vec<String> },
    #[error(
        "a run that is resumed keeps what its steps depend on: {}. What may change are paths, train.steps, train.epochs, \
         and what is saved and evaluated; start another run with {} in another directory",
        changes.join("; "), config.display()
    )]
    Refused { config: PathBuf, changes: Vec<String> },
    #[error(
        "{} was made with instructions = {stored}, and this run has instructions = {given}: the last bits of what is \
         computed differ. {}", run.display(), isa_hint(stored, given)
    )]
    Instructions { run: PathBuf, stored: String, given: String },
    #[error("{error}. {}", way_on(*before))]
    Damaged { error: Box<CheckpointError>, directory: PathBuf, before: Option<u64> },
    #[error("{} has no checkpoint step-{step}; there are: {}", directory.display(), list(there))]
    NoCheckpoint { directory: PathBuf, step: u64, there: Vec<u64> },
    #[error(
        "{} ends at step {last}, and the run has taken {step}: it was emptied, cut or removed. Put it back, or go on \
         from step-{step} without what is lost", path.display()
    )]
    Metrics { path: PathBuf, directory: PathBuf, last: u64, step: u64 },
    #[error(
        "{} holds no checkpoint, and the run has taken {last} steps, as its metrics.jsonl says: put the checkpoints back, or \
         take all steps again in another directory", path.display()
    )]
    NoCheckpoints { path: PathBuf, config: PathBuf, last: u64 },
    #[error("{} is damaged: {message}. Put it back as it was, or move it away and go on from step-{step}", path.display())]
    BadMetrics { path: PathBuf, message: String, step: u64 },
}

fn isa_hint(stored: &str, given: &str) -> String {
    match (stored, given) {
        ("cuda", _) => "The GPU computes the same bits".to_owned(),
        (_, "cuda") => "The CPU computes the same bits".to_owned(),
        _ => format!(
            "Where the CPU has it, the environment variable J1_ISA={stored} computes the same bits"
        ),
    }
}

/// How a run goes on whose newest checkpoint is damaged, where `before` is the newest whole one.
fn way_on(before: Option<u64>) -> String {
    match before {
        Some(before) => format!(
            "Checkpoint step-{before} before it is whole: a run that goes on from there takes the steps after it again"
        ),
        None => "No whole checkpoint is left before it (train.keep_last says how many are kept): start again in another \
                 directory"
            .to_owned(),
    }
}

fn list(steps: &[u64]) -> String {
    match steps {
        [] => "none".to_owned(),
        steps => steps.iter().map(|step| format!("step-{step}")).collect::<Vec<_>>().join(", "),
    }
}

/// The directory of a run, claimed by this process.
pub struct RunDirectory {
    pub(super) path: PathBuf,
    _lock: File,
}

/// The run that was begun in a directory, as its files describe it.
pub struct Begun {
    /// Settings in config.toml, which agree with those that the run was started with.
    pub settings: Settings,
    /// Whether config.toml was missing, so that the settings are those in run.json.
    pub restored: bool,
    /// Contents of run.json.
    run: Map<String, Value>,
}

/// A checkpoint to go on from.
pub struct FoundCheckpoint {
    /// Its directory.
    pub path: PathBuf,
    /// The contents of its state.json.
    pub state: CheckpointState,
    /// The first steps before it that metrics.jsonl has no lines of.
    pub gap: Option<RangeInclusive<u64>>,
}

/// Whether a directory holds a run that took a step, or may have.
fn took_a_step(directory: &Path) -> Result<bool, DirectoryError> {
    let has_entries = |name: &str, but: &str| {
        let mut entries = fs::read_dir(directory.join(name)).into_iter().flatten().flatten();
        entries.any(|entry| entry.file_name() != but)
    };
    // The line of step 0 is of no step. What cannot be read may be of one.
    let logged =
        metrics::last_step(&directory.join(METRICS), u64::MAX).map_or(true, |last| last > 0);
    // A step's rollouts are written before its line, and the same again by whoever takes it again.
    let sampled = has_entries(ROLLOUTS, "step-1.jsonl");
    let saved = !checkpoint::list(&directory.join(CHECKPOINTS))?.is_empty();
    Ok(logged || sampled || saved || directory.join(ADAPTER).exists())
}

impl RunDirectory {
    /// Whether a run may be started in a directory: one that is empty or not there, or in which a start was tried and no
    /// step was taken. Nothing is touched.
    pub fn check_free(directory: &Path) -> Result<(), DirectoryError> {
        let is_run = [CONFIG, RUN].iter().any(|name| directory.join(name).is_file());
        if is_run && took_a_step(directory)? {
            return Err(DirectoryError::Exists { directory: directory.to_owned() });
        }
        if !directory.exists() {
            return Ok(());
        }
        if !directory.join(RUN).exists() {
            return Ok(refuse_foreign(directory)?);
        }
        // A start without a step leaves these and nothing else: what another program wrote is not replaced.
        let io = |source| ResultsError::io("list", directory, source);
        for entry in fs::read_dir(directory).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let name = name.to_string_lossy();
            let is_ours = [CONFIG, RUN, METRICS, ROLLOUTS, CHECKPOINTS, START].contains(&&*name)
                || name.starts_with("events.out.tfevents.")
                || name.starts_with('.');
            if !is_ours {
                let (path, found) = (directory.to_owned(), name.into_owned());
                return Err(ResultsError::Foreign { path, found }.into());
            }
        }
        Ok(())
    }

    /// Starts a run in a directory that is free (see [`RunDirectory::check_free`]). `fingerprints` are of what it reads;
    /// `about` is what it says of itself.
    pub fn start(
        directory: &Path,
        settings: &Settings,
        fingerprints: &Map<String, Value>,
        about: Map<String, Value>,
    ) -> Result<RunDirectory, DirectoryError> {
        RunDirectory::check_free(directory)?;
        let claimed = RunDirectory::claim(directory)?;
        // Somebody else may have been first.
        RunDirectory::check_free(directory)?;
        // Of an earlier start, which may have evaluated another model and begun with another adapter.
        let (metrics, start) = (directory.join(METRICS), directory.join(START));
        for (path, removed) in
            [(&metrics, fs::remove_file(&metrics)), (&start, fs::remove_dir_all(&start))]
        {
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(ResultsError::io("remove", path, error).into());
                }
                _ => {}
            }
        }
        claimed.write(settings, fingerprints.clone(), json!({"started": about}))?;
        Ok(claimed)
    }

    /// Claims a directory whose run is to go on. Nothing of the run is changed before [`RunDirectory::go_on`].
    pub fn open(directory: &Path) -> Result<(RunDirectory, Begun), DirectoryError> {
        let (config, run) = (directory.join(CONFIG), directory.join(RUN));
        match (config.is_file(), run.is_file()) {
            (false, false) => {
                return Err(DirectoryError::NothingToResume { directory: directory.to_owned() });
            }
            (true, false) => {
                return Err(DirectoryError::NoRun { run, problem: "is missing".into(), config });
            }
            _ => {}
        }
        let claimed = RunDirectory::claim(directory)?;
        let stored = match read_json(&run) {
            Ok(stored) => stored.and_then(|run| run.as_object().cloned()).unwrap_or_default(),
            Err(ResultsError::NotJson { message, .. }) => {
                let problem = format!("is damaged ({message})");
                return Err(DirectoryError::NoRun { run, problem, config });
            }
            Err(error) => return Err(error.into()),
        };
        let restored = !config.is_file();
        let settings = match (stored.get(SETTINGS).and_then(Value::as_object), restored) {
            // An older version's run: there is nothing to compare with.
            (None, false) => Settings::from_file(&config)?,
            (None, true) => {
                return Err(DirectoryError::NothingToResume { directory: directory.to_owned() });
            }
            (Some(started), true) => Settings::from_values(&run.display().to_string(), started)?,
            (Some(started), false) => read_config(&config, started)?,
        };
        Ok((claimed, Begun { settings, restored, run: stored }))
    }

    /// Locks the directory, and removes what runs left in it that were killed.
    fn claim(directory: &Path) -> Result<RunDirectory, DirectoryError> {
        let lock = lock(directory)?;
        remove_temporaries(directory)?;
        for part in [ROLLOUTS, ADAPTER, START] {
            remove_temporaries(&directory.join(part))?;
        }
        checkpoint::remove_leftovers(&directory.join(CHECKPOINTS))?;
        Ok(RunDirectory { path: directory.to_owned(), _lock: lock })
    }

    /// Keeps the adapter that training begins with: what it was read from may change before the run is continued.
    pub fn keep_start(&self, adapter: &Adapter) -> Result<(), AdapterError> {
        adapter.save(&self.path.join(START))
    }

    /// The adapter that training began with.
    pub fn start_adapter(&self, config: &Config) -> Result<Adapter, AdapterError> {
        Adapter::load(&self.path.join(START), config)
    }

    /// The checkpoint to go on from: that of step `from`, or the newest; `None` if none was written yet. A damaged one is
    /// an error that says how to go on. So is a metrics.jsonl without the steps before, unless `from` is named; and that
    /// there is none although more than `save_every` steps were taken.
    pub fn checkpoint(
        &self,
        from: Option<u64>,
        save_every: u64,
    ) -> Result<Option<FoundCheckpoint>, DirectoryError> {
        let checkpoints = self.path.join(CHECKPOINTS);
        let steps = checkpoint::list(&checkpoints)?;
        let step = match (from, steps.last()) {
            (Some(step), _) if !steps.contains(&step) => {
                let directory = self.path.clone();
                return Err(DirectoryError::NoCheckpoint { directory, step, there: steps });
            }
            (None, None) => {
                let last = metrics::last_step(&self.path.join(METRICS), u64::MAX).unwrap_or(0);
                let is_due = save_every > 0 && last > save_every;
                return match is_due || self.path.join(ADAPTER).exists() {
                    true => {
                        let config = self.path.join(CONFIG);
                        Err(DirectoryError::NoCheckpoints { path: checkpoints, config, last })
                    }
                    false => Ok(None),
                };
            }
            (Some(step), _) | (None, Some(&step)) => step,
        };
        let path = checkpoint::directory(&checkpoints, step);
        let state = checkpoint::verify(&path).map_err(|error| self.damaged(step, error))?;
        let metrics = self.path.join(METRICS);
        match metrics::last_step(&metrics, step) {
            Ok(last) if last < step && from.is_none() => {
                let directory = self.path.clone();
                return Err(DirectoryError::Metrics { path: metrics, directory, last, step });
            }
            Ok(_) => {}
            Err(ResultsError::NotJson { path, message }) => {
                return Err(DirectoryError::BadMetrics { path, message, step });
            }
            Err(error) => return Err(error.into()),
        }
        let gap = metrics::gap(&metrics, step)?;
        Ok(Some(FoundCheckpoint { path, state, gap }))
    }

    /// The error of a step's damaged checkpoint, which says how to go on without it.
    pub fn damaged(&self, step: u64, error: CheckpointError) -> DirectoryError {
        if !matches!(error, CheckpointError::Damaged { .. } | CheckpointError::Adapter(_)) {
            return error.into();
        }
        let before = self.newest_whole(step);
        DirectoryError::Damaged { error: Box::new(error), directory: self.path.clone(), before }
    }

    /// The newest checkpoint of a step before `step` that is whole.
    fn newest_whole(&self, step: u64) -> Option<u64> {
        let checkpoints = self.path.join(CHECKPOINTS);
        let steps = checkpoint::list(&checkpoints).unwrap_or_default().into_iter().rev();
        steps.filter(|before| *before < step).find(|before| {
            checkpoint::verify(&checkpoint::directory(&checkpoints, *before)).is_ok()
        })
    }

    /// The newest checkpoint that is whole, if there is one.
    pub fn newest_checkpoint(&self) -> Option<PathBuf> {
        let step = self.newest_whole(u64::MAX)?;
        Some(checkpoint::directory(&self.path.join(CHECKPOINTS), step))
    }

    /// Whether any step was taken.
    pub fn took_a_step(&self) -> bool {
        took_a_step(&self.path).unwrap_or(true)
    }

    /// Takes up the run, which must read what it was started with: `settings` and `about` are written down. Returns what
    /// changed in the settings, for the user.
    pub fn go_on(
        &self,
        begun: &Begun,
        settings: &Settings,
        fingerprints: &Map<String, Value>,
        allow_other_instructions: bool,
        from: Option<&FoundCheckpoint>,
        mut about: Map<String, Value>,
    ) -> Result<Vec<String>, DirectoryError> {
        let path = self.path.join(RUN);
        let mut stored = begun.run.clone();
        let started = stored.remove(SETTINGS);
        let text =
            |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("not set").to_owned();
        let given = fingerprints.get(INSTRUCTIONS).cloned();
        let before = stored.insert(INSTRUCTIONS.to_owned(), given.clone().unwrap_or_default());
        compare_settings(&path, &Value::from(stored), &Value::from(fingerprints.clone()))?;
        if before != given {
            let (stored, given) = (text(before.as_ref()), text(given.as_ref()));
            if !allow_other_instructions {
                return Err(DirectoryError::Instructions { run: path, stored, given });
            }
            about.insert(INSTRUCTIONS.to_owned(), json!({"before": stored, "now": given}));
        }
        let step = from.map_or(0, |found| found.state.step);
        about.insert("from_step".to_owned(), json!(step));
        let started = started.as_ref().and_then(Value::as_object).cloned();
        let started = started.unwrap_or_else(|| values(&begun.settings));
        let changed = changes(&started, settings, &|_| true);
        if !changed.is_empty() {
            about.insert("changed".to_owned(), json!(changed));
        }

        let mut history =
            begun.run.get(ABOUT).and_then(Value::as_object).cloned().unwrap_or_default();
        let resumed = history.entry("resumed").or_insert_with(|| json!([]));
        if let Some(resumed) = resumed.as_array_mut() {
            resumed.push(Value::from(about));
            resumed.drain(..resumed.len().saturating_sub(RESUMPTIONS));
        }
        self.write(settings, fingerprints.clone(), Value::from(history))?;
        Ok(changed)
    }

    /// config.toml last: without it there is no run.
    fn write(
        &self,
        settings: &Settings,
        mut run: Map<String, Value>,
        about: Value,
    ) -> Result<(), ResultsError> {
        run.insert(SETTINGS.to_owned(), Value::from(values(settings)));
        run.insert(ABOUT.to_owned(), about);
        write_whole(&self.path.join(RUN), pretty(&Value::from(run)).as_bytes())?;
        write_whole(&self.path.join(CONFIG), settings.to_toml().as_bytes())
    }
}

impl Begun {
    /// The most steps between two checkpoints, by what the run has in its files.
    pub fn save_every(&self) -> u64 {
        let stored =
            self.run.get(SETTINGS).and_then(|settings| settings["train.save_every"].as_u64());
        self.settings.train.save_every.max(stored.unwrap_or(0))
    }

    /// Refuses other settings than those of the run, where they decide what its steps are.
    pub fn check(&self, directory: &Path, settings: &Settings) -> Result<(), DirectoryError> {
        let changes = changes(&values(&self.settings), settings, &|key| !Settings::may_change(key));
        if changes.is_empty() {
            return Ok(());
        }
        Err(DirectoryError::Refused { config: directory.join(CONFIG), changes })
    }
}

/// The settings of config.toml, as far as they may differ from those that the run was started with.
fn read_config(config: &Path, started: &Map<String, Value>) -> Result<Settings, DirectoryError> {
    let read = Settings::from_file_with_keys(config);
    let (settings, found) =
        read.map_err(|error| DirectoryError::Config { error: Box::new(error) })?;
    let found: BTreeSet<&str> = found;
    let missing = started.keys().filter(|key| !found.contains(key.as_str())).cloned();
    let missing: Vec<String> = missing.collect();
    let config = config.to_owned();
    if !missing.is_empty() {
        return Err(DirectoryError::Cut { config, missing, all: started.len() });
    }
    let changes = changes(started, &settings, &|key| !Settings::may_change(key));
    match changes.is_empty() {
        true => Ok(settings),
        false => Err(DirectoryError::Edited { config, changes }),
    }
}

/// All settings but where weights are read, which is the machine's.
fn values(settings: &Settings) -> Map<String, Value> {
    let mut values = settings.values();
    values.remove("model.weights");
    values
}

/// `key = new value (was old value)` of the keys that differ. A key that an older version did not know has had its
/// preset's value.
fn changes(
    before: &Map<String, Value>,
    settings: &Settings,
    is_meant: &dyn Fn(&str) -> bool,
) -> Vec<String> {
    let preset = Settings::preset(settings.preset).values();
    let mut changes = Vec::new();
    for (key, now) in values(settings) {
        let old = before.get(&key).or(preset.get(&key)).unwrap_or(&Value::Null);
        if *old != now && is_meant(&key) {
            changes.push(format!("{key} = {now} (was {old})"));
        }
    }
    changes
}

#[cfg(test)]
mod tests;
