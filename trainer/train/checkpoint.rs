//! Checkpoints: all that a run needs to go on bit for bit.
//!
//! `checkpoints/step-N/` appears whole, by a rename, or not at all:
//!
//! | file | what it holds |
//! |---|---|
//! | `adapter_config.json`, `adapter_model.safetensors` | the adapter, as PEFT reads it |
//! | `optimizer.safetensors` | AdamW's moments, two f32 tensors a factor |
//! | `state.json` | steps, optimizer steps, tokens seen, the best evaluation so far; checksums of all four |
//!
//! What is not finite is never written, so that no checkpoint is ever removed for one from which nothing can go on.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use engine::{
    checkpoint::adapter::{Adapter, AdapterError},
    files::Staged,
    optimizer::{StateError, first_not_finite},
    tensor::device::DeviceError,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::Trainer;
use crate::{
    data::fingerprint,
    eval::results::{ResultsError, files::write_whole},
};

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
/// The files beside state.json.
const PARTS: [&str; 3] = ["adapter_config.json", "adapter_model.safetensors", OPTIMIZER];
/// The largest state.json that is read.
const MAX_STATE: u64 = 1 << 16;

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After which step.
    pub step: u64,
    /// Share of held-out pairs that were right in both orders.
    pub right_in_both: f64,
}

/// Contents of state.json: the state of a checkpoint beside its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointState {
    /// Steps taken.
    pub step: u64,
    /// Steps of the optimizer.
    pub updates: u64,
    /// Tokens of prompts and completions so far.
    pub tokens: u64,
    /// Best evaluation so far.
    pub best: Option<Best>,
    /// SHA-256 of the other files by their names; that of state.json is the fingerprint of what it says without it. Older
    /// checkpoints have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sha256: BTreeMap<String, String>,
}

impl CheckpointState {
    /// The fingerprint of all but itself.
    fn own_checksum(&self) -> String {
        let mut rest = self.clone();
        rest.sha256.remove(STATE);
        fingerprint::of_json(&serde_json::to_value(&rest).expect("plain numbers and texts"))
    }
}

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a part
pub enum CheckpointError {
    #[error("{0}")]
    Files(#[from] ResultsError),
    #[error("{0}")]
    Adapter(#[from] AdapterError),
    #[error("{0}")]
    Device(#[from] DeviceError),
    #[error("{}: {message}", path.display())]
    Damaged { path: PathBuf, message: String },
    #[error("{name} holds a number that is not finite, so no checkpoint was written")]
    NotFinite { name: String },
    #[error("the run has taken {step} steps, and its settings ask for {steps}; raise train.steps")]
    Beyond { step: u64, steps: u64 },
}

fn damaged(path: &Path, message: impl ToString) -> CheckpointError {
    CheckpointError::Damaged { path: path.to_owned(), message: message.to_string() }
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> CheckpointError {
    move |source| ResultsError::io(action, path, source).into()
}

/// The directory of a step's checkpoint.
pub fn directory(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("step-{step}"))
}

/// The steps that have a checkpoint, ascending.
pub fn list(checkpoints: &Path) -> Result<Vec<u64>, CheckpointError> {
    let names = names(checkpoints)?;
    let step = |name: &String| name.strip_prefix("step-")?.parse().ok();
    let mut steps: Vec<u64> = names.iter().filter_map(step).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Removes what runs left that were killed while they wrote or removed a checkpoint. The run's directory
/// must be claimed: another run may be writing one.
pub fn remove_leftovers(checkpoints: &Path) -> Result<(), CheckpointError> {
    for name in names(checkpoints)?.iter().filter(|name| name.starts_with(".step-")) {
        let path = checkpoints.join(name);
        fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
    }
    Ok(())
}

/// The names in a directory; none, if there is no directory.
fn names(checkpoints: &Path) -> Result<Vec<String>, CheckpointError> {
    let failed = io_error("list", checkpoints);
    let entries = match fs::read_dir(checkpoints) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(&failed)?.file_name().into_string());
    }
    Ok(names)
}

/// Writes the trainer's state as a checkpoint of its step, with `adapter` as the form to write.
pub fn save(
    trainer: &Trainer,
    adapter: &mut Adapter,
    checkpoints: &Path,
    best: Option<Best>,
) -> Result<(), CheckpointError> {
    let step = trainer.step;
    let (path, temporary) =
        (directory(checkpoints, step), checkpoints.join(format!(".step-{step}.tmp")));
    fs::create_dir_all(checkpoints).map_err(io_error("create", checkpoints))?;
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(io_error("remove", &temporary))?;
    }
    let staged = Staged::new(temporary, path.clone());
    write(trainer, adapter, staged.temporary(), best)?;
    if path.exists() {
        fs::remove_dir_all(&path).map_err(io_error("replace", &path))?;
    }
    staged.place().map_err(io_error("write", &path))
}

fn write(
    trainer: &Trainer,
    adapter: &mut Adapter,
    directory: &Path,
    best: Option<Best>,
) -> Result<(), CheckpointError> {
    let model = &trainer.language_model.model;
    if let Some(bad) = first_not_finite(model.parameters().map(|(_, values)| values))? {
        let name = model.parameters().nth(bad).expect("it was counted").0.peft_key();
        return Err(CheckpointError::NotFinite { name });
    }
    let state = trainer.optimizer.state()?;
    if let Some((name, _)) = state.iter().find(|(_, values)| !are_moments(values)) {
        return Err(CheckpointError::NotFinite { name: format!("AdamW's {name}") });
    }
    fs::create_dir_all(directory).map_err(io_error("create", directory))?;
    model.store_adapter(adapter)?;
    adapter.save(directory)?;
    let bytes: Vec<Vec<u8>> = state
        .iter()
        .map(|(_, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views: BTreeMap<&str, TensorView> = state
        .iter()
        .zip(&bytes)
        .map(|((name, values), bytes)| {
            let view = TensorView::new(Dtype::F32, vec![values.len()], bytes);
            (name.as_str(), view.expect("as many bytes as values"))
        })
        .collect();
    let bytes = safetensors::serialize(views, None).expect("the tensors are sound");
    write_whole(&directory.join(OPTIMIZER), &bytes)?;
    let mut state = CheckpointState {
        step: trainer.step,
        updates: trainer.optimizer.steps(),
        tokens: trainer.tokens,
        best,
        sha256: BTreeMap::new(),
    };
    for name in PARTS {
        let path = directory.join(name);
        let digits = fingerprint::sha256_of_file(&path).map_err(io_error("read", &path))?;
        state.sha256.insert(name.to_owned(), digits);
    }
    state.sha256.insert(STATE.to_owned(), state.own_checksum());
    let text = serde_json::to_string_pretty(&state).expect("plain numbers") + "\n";
    write_whole(&directory.join(STATE), text.as_bytes())?;
    Ok(())
}

/// Whether these can be moments: a square that is not finite would freeze its parameter silently.
fn are_moments(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

/// Reads `state.json` alone.
pub fn state(directory: &Path) -> Result<CheckpointState, CheckpointError> {
    let path = directory.join(STATE);
    let bytes = read(&path, MAX_STATE)?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(&path, error))
}

/// Whether a checkpoint's files are there and are those that were written, as far as it says: its state.
pub fn verify(directory: &Path) -> Result<CheckpointState, CheckpointError> {
    let state = state(directory)?;
    let path = directory.join(STATE);
    if directory.file_name().is_none_or(|name| name != format!("step-{}", state.step).as_str()) {
        return Err(damaged(&path, format!("it is of step {}", state.step)));
    }
    let changed = "it was changed after it was written, as its checksum in state.json tells";
    if state.sha256.get(STATE).is_some_and(|digits| *digits != state.own_checksum()) {
        return Err(damaged(&path, changed));
    }
    for name in PARTS {
        let path = directory.join(name);
        if !path.is_file() {
            return Err(damaged(&path, "this file of the checkpoint is missing"));
        }
        let Some(expected) = state.sha256.get(name) else { continue };
        let digits = fingerprint::sha256_of_file(&path).map_err(io_error("read", &path))?;
        if digits != *expected {
            return Err(damaged(&path, changed));
        }
    }
    Ok(state)
}

/// Takes up the state of a checkpoint. The trainer's model was opened with the checkpoint's adapter.
pub fn restore(
    trainer: &mut Trainer,
    directory: &Path,
) -> Result<CheckpointState, CheckpointError> {
    let state = state(directory)?;
    let path = directory.join(OPTIMIZER);
    // Two moments a factor and a header: what else is there does not belong to it.
    let factors = trainer.language_model.model.parameters();
    let values: usize = factors.map(|(_, factor)| factor.len()).sum();
    let bytes = read(&path, 8 * values as u64 + (16 << 20))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&path, error))?;
    let mut slices: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (name, view) in tensors.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(damaged(&path, format!("{name} is {:?}, not F32", view.dtype())));
        }
        let values = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let values: Vec<f32> = values.collect();
        if !are_moments(&values) {
            return Err(damaged(&path, format!("{name} holds a number that is not finite")));
        }
        slices.insert(name, values);
    }
    let slice = |name: &str| slices.get(name).map(Vec::as_slice);
    let restored: Result<(), StateError> =
        trainer.optimizer.restore(state.updates, slices.len(), slice);
    restored.map_err(|error| damaged(&path, error))?;
    if state.step > trainer.steps {
        return Err(CheckpointError::Beyond { step: state.step, steps: trainer.steps });
    }
    trainer.step = state.step;
    trainer.tokens = state.tokens;
    Ok(state)
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path)
        .and_then(|file| io::Read::read_to_end(&mut io::Read::take(file, limit + 1), &mut bytes));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(damaged(path, "this file of the checkpoint is missing"));
        }
        read => read.map_err(io_error("read", path))?,
    };
    if bytes.len() as u64 > limit {
        return Err(damaged(path, format!("it is longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// Removes all checkpoints up to `step` but the last `keep` and the best; and those after it, from which a run went back.
pub fn prune(
    checkpoints: &Path,
    keep: usize,
    best: Option<Best>,
    step: u64,
) -> Result<(), CheckpointError> {
    let (steps, later): (Vec<u64>, Vec<u64>) =
        list(checkpoints)?.into_iter().partition(|saved| *saved <= step);
    for later in later {
        remove(checkpoints, later)?;
    }
    let old = &steps[..steps.len().saturating_sub(keep)];
    for &step in old.iter().filter(|step| best.is_none_or(|best| best.step != **step)) {
        remove(checkpoints, step)?;
    }
    Ok(())
}

/// Removes the checkpoint of a step.
fn remove(checkpoints: &Path, step: u64) -> Result<(), CheckpointError> {
    let path = directory(checkpoints, step);
    // Renamed first, so that a kill never leaves half a checkpoint under its name.
    let doomed = checkpoints.join(format!(".step-{step}.old"));
    fs::rename(&path, &doomed).map_err(io_error("remove", &path))?;
    fs::remove_dir_all(&doomed).map_err(io_error("remove", &doomed))
}
