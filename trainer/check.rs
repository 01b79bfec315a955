//! Comparison of the engine with dumps that PyTorch and PEFT made (tests/golden holds some, with the
//! script that writes the format).
//!
//! A dump directory has `model/`, perhaps `adapter/`, `case.json` with the inputs, and one safetensors
//! file of reference values without the adapter (`base`) and one with it (`lora`). Compared are, of
//! every sequence alone: hidden states, logits, log-probabilities, entropies; all sequences in one
//! batch against the padded reference, and bit for bit against the sequences alone; and greedy
//! continuations, token by token, whose log-probabilities training must repeat bit for bit. Gradients of
//! the adapter's factors are compared where the dump has them (see `check/gradients.rs`), losses (see
//! `check/learning.rs`) and optimizer steps (see `check/steps.rs`), and a reference in bf16 (see `check/bfloat16.rs`).
//!
//! The CPU is held to its f32. A GPU, which computes in bf16, is held to what rounding allows (see
//! `check/rounded.rs`).

mod bfloat16;
mod errors;
mod gradients;
mod greedy;
mod learning;
mod rounded;
mod steps;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use engine::{
    checkpoint::weights::Dtype,
    language_model::LanguageModel,
    model::{
        Batch, Model, Precision,
        kv_cache::{KvCache, PageTable},
        training::{PackedBatch, TrainingPass},
    },
    tensor::{Device, Tensor, tape::Tape},
};
use kernels::cpu::{Cpu, log_prob};
use safetensors::SafeTensors;
use serde_json::Value;

use errors::{Bound, Errors, LOGITS, ROUNDING, largest, largest_difference};
use gradients::PLAIN;

/// Largest difference allowed in logits, hidden states, log-probabilities and entropies: f32 against
/// f32, where PyTorch's own kernels differ from each other by 1e-5.
pub const BOUND: f64 = 2e-5;

/// The largest error of one quantity.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Name of the dump directory.
    pub case: String,
    /// `base` or `lora`.
    pub variant: &'static str,
    /// The quantity that was compared.
    pub quantity: String,
    /// Number of values compared.
    pub count: usize,
    /// Largest absolute difference; for tokens and bits the number of them that differ.
    pub error: f64,
    /// Its bound.
    pub bound: f64,
}

impl Finding {
    /// Whether the error is within its bound. An error that is not a number is not.
    pub fn passes(&self) -> bool {
        self.error <= self.bound
    }
}

/// Why a dump could not be compared.
#[derive(Debug)]
pub struct CheckError {
    path: PathBuf,
    what: String,
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl std::error::Error for CheckError {}

/// A dump as read: inputs and where the references are.
struct Case<'a> {
    name: String,
    directory: &'a Path,
    inputs: Vec<Vec<u32>>,
    json: Value,
}

/// The variants of a dump, and the directory of each one's adapter.
const VARIANTS: [(&str, Option<&str>); 2] = [("base", None), ("lora", Some("adapter"))];

/// Compares everything in the dump `directory`: on the CPU in f32; on a GPU in bf16, where a model that it has
/// no kernels for is a finding without values that says so.
pub fn check(directory: &Path, device: &Device) -> Result<Vec<Finding>, CheckError> {
    let case = Case::read(directory)?;
    let findings = match device {
        Device::Cpu(_) => {
            let mut findings = case.findings(passes(&case, Precision::F32, device)?);
            findings.extend(case.findings(greedy::compare(&case, device)?));
            findings.extend(case.findings(steps::compare(&case, device)?));
            findings.extend(case.findings(bfloat16::compare(&case, device)?));
            findings
        }
        Device::Cuda(_) => rounded::check(&case, device)?,
    };
    if findings.is_empty() {
        return Err(case.error("there is no base, lora, step or bfloat16.safetensors"));
    }
    Ok(findings)
}

/// Errors by variant.
type ByVariant = Vec<(&'static str, Errors)>;

/// All that a device computes in `precision`: forward passes, gradients, losses.
fn passes(case: &Case, precision: Precision, device: &Device) -> Result<ByVariant, CheckError> {
    let mut all = Vec::new();
    for (variant, adapter) in VARIANTS {
        let reference = case.reference(variant);
        if reference.is_file() {
            let model = case.model(adapter, precision, device)?;
            all.push((variant, case.compare(&model, adapter.is_some(), &reference)?));
        }
    }
    all.push(("lora", gradients::compare(case, precision, device)?));
    all.push(("lora", learning::compare(case, precision, device)?));
    Ok(all)
}

impl<'a> Case<'a> {
    fn read(directory: &'a Path) -> Result<Case<'a>, CheckError> {
        let path = directory.join("case.json");
        let error = |what: String| CheckError { path: path.clone(), what };
        let text = std::fs::read_to_string(&path).map_err(|e| {
            error(format!("{e}; a dump directory has case.json, model/ and base.safetensors"))
        })?;
        let json: Value = serde_json::from_str(&text).map_err(|e| error(e.to_string()))?;
        // A dump of a TRL step has its inputs in tensors.
        let inputs = match json.get("input_ids") {
            None if directory.join("step.safetensors").is_file() => Vec::new(),
            _ => token_lists(&json["input_ids"])
                .filter(|lists| !lists.is_empty() && lists.iter().all(|list| !list.is_empty()))
                .ok_or_else(|| {
                    error("input_ids is not a list of lists of token ids".to_string())
                })?,
        };
        let name = directory.file_name().map_or("dump".into(), |name| name.to_string_lossy());
        Ok(Case { name: name.into_owned(), directory, inputs, json })
    }

    fn error(&self, what: impl Into<String>) -> CheckError {
        CheckError { path: self.directory.to_path_buf(), what: what.into() }
    }

    /// An error of case.json.
    fn json_error(&self, what: impl Into<String>) -> CheckError {
        CheckError { path: self.directory.join("case.json"), what: what.into() }
    }

    /// Whether `model` can be given a sequence.
    fn fits(&self, model: &Model, ids: &[u32]) -> Result<(), CheckError> {
        let config = model.config();
        let (vocab, positions) = (config.vocab_size, config.max_position_embeddings);
        if ids.is_empty() {
            return Err(self.error("a sequence has no token"));
        }
        if ids.len() > positions {
            let len = ids.len();
            let what =
                format!("a sequence of {len} tokens, and the model has {positions} positions");
            return Err(self.error(what));
        }
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(id) => {
                Err(self.error(format!("input id {id} is beyond the vocabulary of {vocab}")))
            }
            None => Ok(()),
        }
    }

    /// Another error, as an error of this case.
    fn failed(&self, error: impl fmt::Display) -> CheckError {
        self.error(error.to_string())
    }

    /// The findings of all variants, one line per quantity.
    fn findings(&self, all: ByVariant) -> Vec<Finding> {
        all.into_iter().flat_map(|(variant, errors)| errors.findings(&self.name, variant)).collect()
    }

    /// Path of a variant's reference values.
    fn reference(&self, variant: &str) -> PathBuf {
        self.directory.join(format!("{variant}.safetensors"))
    }

    /// The dump's model, with the adapter of this name. In bf16 its weights are too, on a CPU as on a GPU.
    fn model(
        &self,
        adapter: Option<&str>,
        precision: Precision,
        device: &Device,
    ) -> Result<Model, CheckError> {
        let directory = self.directory.join("model");
        let adapter = adapter.map(|name| self.directory.join(name));
        let builder = LanguageModel::builder(&directory).device(device).precision(precision);
        let mut model = builder
            .adapter(adapter.as_deref())
            .open_model()
            .map_err(|error| CheckError { path: directory, what: error.to_string() })?;
        if precision == Precision::Bf16 && model.weights_dtype() != Dtype::BF16 {
            model.round_weights();
        }
        Ok(model)
    }

    /// The same with its adapter's factors as leaves.
    fn trained_model(&self, precision: Precision, device: &Device) -> Result<Model, CheckError> {
        let mut model = self.model(Some("adapter"), precision, device)?;
        model.train_adapter();
        Ok(model)
    }

    fn compare(
        &self,
        model: &Model,
        adapter: bool,
        reference: &Path,
    ) -> Result<Errors, CheckError> {
        let bytes = self.bytes(reference)?;
        let dump = SafeTensors::deserialize(&bytes)
            .map_err(|e| self.error(format!("{}: {e}", reference.display())))?;
        let mut errors = Errors::default();
        let mut alone = Vec::new();
        for (index, ids) in self.inputs.iter().enumerate() {
            let mut hidden = Ok(Vec::new());
            let logits = self.forward(model, &[ids], &mut |_, x| {
                if let Ok(all) = &mut hidden {
                    match x.to_vec() {
                        Ok(values) => all.extend(values),
                        Err(error) => hidden = Err(error),
                    }
                }
            })?;
            let hidden = hidden.map_err(|error| self.failed(error))?;
            self.values(
                &mut errors,
                &dump,
                "hidden states",
                &format!("hidden_seq{index}"),
                &hidden,
            )?;
            self.values(&mut errors, &dump, LOGITS, &format!("logits_seq{index}"), &logits)?;
            for (key, temperature) in [("logp", 1.0), ("logp_T0.7", 0.7)] {
                let (log_probs, entropies) = self.score(&logits, ids, temperature)?;
                let key = format!("{key}_seq{index}");
                let named = format!("log-probs, T = {temperature}");
                self.values(&mut errors, &dump, &named, &key, &log_probs)?;
                if temperature == 1.0 {
                    self.entropies(&mut errors, &dump, "entropies", index, &entropies)?;
                }
                let of = (index, key.as_str(), temperature);
                let rows = [&log_probs[..], &entropies];
                self.trained(&mut errors, model, adapter, &dump, of, rows)?;
            }
            alone.push(logits);
        }
        self.batch(&mut errors, model, &dump, &alone)?;
        Ok(errors)
    }

    /// Log-probabilities and entropies of a sequence as training computes them: its first token is the prompt.
    /// They differ from the CPU's of the same logits, `rows`, as f32 may.
    fn trained(
        &self,
        errors: &mut Errors,
        model: &Model,
        adapter: bool,
        dump: &SafeTensors,
        (index, key, temperature): (usize, &str, f32),
        rows: [&[f32]; 2],
    ) -> Result<(), CheckError> {
        let (prompt, completion) = self.inputs[index].split_at(1);
        if completion.is_empty() {
            return Ok(());
        }
        let y = self.log_probs(
            model,
            &[(prompt, completion)],
            TrainingPass { temperature, adapter, ..PLAIN },
        )?;
        let (log_probs, entropies): (Vec<f32>, Vec<f32>) =
            y.chunks_exact(2).map(|of_token| (of_token[0], of_token[1])).unzip();
        let named = format!("log-probs in training, T = {temperature}");
        self.values(errors, dump, &named, key, &log_probs)?;
        if temperature == 1.0 {
            self.entropies(errors, dump, "entropies in training", index, &entropies)?;
        }
        for (ours, rows) in [&log_probs, &entropies].into_iter().zip(rows) {
            let error = largest_difference(ours, &rows[..completion.len()]);
            errors.add("training's, of the same logits", ours.len(), error, Bound::Fixed(BOUND));
        }
        Ok(())
    }

    /// Log-probability and entropy of every token of completions, in a training pass.
    fn log_probs(
        &self,
        model: &Model,
        sequences: &[(&[u32], &[u32])],
        pass: TrainingPass,
    ) -> Result<Vec<f32>, CheckError> {
        let mut batch = PackedBatch::default();
        for (prompt, completion) in sequences {
            self.fits(model, &[*prompt, *completion].concat())?;
            batch.push(prompt, &[completion]);
        }
        let y = model.log_probs(&mut Tape::off(), &batch, pass);
        y.map_err(|e| self.failed(e))?.to_vec().map_err(|e| self.failed(e))
    }

    fn bytes(&self, path: &Path) -> Result<Vec<u8>, CheckError> {
        std::fs::read(path).map_err(|e| self.error(format!("{}: {e}", path.display())))
    }

    /// A list of numbers of case.json.
    fn numbers(&self, key: &str) -> Result<Vec<f64>, CheckError> {
        let numbers =
            self.json[key].as_array().map(|list| list.iter().map(Value::as_f64).collect());
        numbers.flatten().ok_or_else(|| self.json_error(format!("{key} is not a list of numbers")))
    }

    /// Log-probability of each next token, and the entropy of each row.
    fn score(
        &self,
        logits: &[f32],
        ids: &[u32],
        temperature: f32,
    ) -> Result<(Vec<f32>, Vec<f32>), CheckError> {
        // The last row has no next token. Any token serves; its log-probability is dropped.
        let next: Vec<u32> = ids[1..].iter().chain(&ids[..1]).copied().collect();
        let (mut log_probs, mut entropies) = (vec![0.0; ids.len()], vec![0.0; ids.len()]);
        let cpu = Cpu::new(1);
        log_prob::forward(&cpu, &mut log_probs, &mut entropies, logits, &next, temperature)
            .map_err(|e| self.error(e.to_string()))?;
        log_probs.pop();
        Ok((log_probs, entropies))
    }

    /// All sequences in one batch: the padded reference's rows, and the same bits as alone.
    fn batch(
        &self,
        errors: &mut Errors,
        model: &Model,
        dump: &SafeTensors,
        alone: &[Vec<f32>],
    ) -> Result<(), CheckError> {
        let sequences: Vec<&[u32]> = self.inputs.iter().map(Vec::as_slice).collect();
        let together = self.forward(model, &sequences, &mut |_, _| ())?;
        let vocab = model.config().vocab_size;
        let padded = self.tensor(dump, "logits_padded")?;
        let padded_rows = padded.len() / vocab / self.inputs.len().max(1);
        let mut start = 0;
        for (index, (ids, alone)) in self.inputs.iter().zip(alone).enumerate() {
            let len = ids.len() * vocab;
            let rows = &together[start..start + len];
            start += len;
            let reference = padded
                .get(index * padded_rows * vocab..)
                .and_then(|rest| rest.get(..len))
                .ok_or_else(|| self.error("logits_padded is shorter than the inputs"))?;
            errors.values("logits, padded batch", rows, reference);
            let differing = rows.iter().zip(alone).filter(|(a, b)| a.to_bits() != b.to_bits());
            errors.count("bits that depend on the batch", len, differing.count());
        }
        Ok(())
    }

    fn values(
        &self,
        errors: &mut Errors,
        dump: &SafeTensors,
        quantity: &str,
        key: &str,
        ours: &[f32],
    ) -> Result<(), CheckError> {
        let reference = self.tensor(dump, key)?;
        if reference.len() != ours.len() {
            let (ours, theirs) = (ours.len(), reference.len());
            return Err(self.error(format!("{key} has {theirs} values where {ours} are computed")));
        }
        errors.values(quantity, ours, &reference);
        Ok(())
    }

    /// Compares the entropies of a sequence's first rows.
    fn entropies(
        &self,
        errors: &mut Errors,
        dump: &SafeTensors,
        quantity: &str,
        index: usize,
        ours: &[f32],
    ) -> Result<(), CheckError> {
        let key = format!("entropy_seq{index}");
        let theirs = self.tensor(dump, &key)?;
        let logits = self.tensor(dump, &format!("logits_seq{index}"))?;
        let rows = self.inputs[index].len();
        if theirs.len() != rows || ours.len() > rows {
            return Err(self.error(format!("{key} has {} values for {rows} tokens", theirs.len())));
        }
        let logits = &logits[..logits.len() / rows * ours.len()];
        errors.entropies(quantity, ours, &theirs[..ours.len()], logits);
        Ok(())
    }

    fn tensor(&self, dump: &SafeTensors, key: &str) -> Result<Vec<f32>, CheckError> {
        let view = dump.tensor(key).map_err(|e| self.error(format!("{key}: {e}")))?;
        if view.dtype() != safetensors::Dtype::F32 {
            return Err(self.error(format!("{key} is {:?}, not F32", view.dtype())));
        }
        Ok(view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Logits of all rows of `sequences`, run as one batch: `vocab_size` a row.
    fn forward(
        &self,
        model: &Model,
        sequences: &[&[u32]],
        observe: &mut dyn FnMut(usize, &Tensor),
    ) -> Result<Vec<f32>, CheckError> {
        for ids in sequences {
            self.fits(model, ids)?;
        }
        let pages = sequences.iter().map(|ids| KvCache::pages_for(ids.len())).sum();
        if pages == 0 {
            return Err(
                self.json_error("there are no input_ids, which this file's references are of")
            );
        }
        let mut cache = KvCache::new(model.device(), model.config(), model.cache_dtype(), pages)
            .map_err(|error| self.failed(error))?;
        let mut batch = Batch::default();
        for ids in sequences {
            let mut table = PageTable::default();
            cache.extend(&mut table, ids.len());
            batch.push(ids, 0, table.pages());
        }
        let logits = model.forward_observed(&batch, &mut cache, observe);
        let ([_, columns], vocab) = (logits.shape(), model.config().vocab_size);
        let logits = logits.to_vec().map_err(|error| self.failed(error))?;
        if columns == vocab {
            return Ok(logits);
        }
        // A GPU pads its rows.
        Ok(logits.chunks_exact(columns).flat_map(|row| &row[..vocab]).copied().collect())
    }
}

/// A list of lists of ids; a plain list of ids is one list.
fn token_lists(value: &Value) -> Option<Vec<Vec<u32>>> {
    let ids = |list: &Value| -> Option<Vec<u32>> {
        list.as_array()?
            .iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect()
    };
    match ids(value) {
        Some(list) => Some(vec![list]),
        None => value.as_array()?.iter().map(ids).collect(),
    }
}

#[cfg(test)]
mod tests;
