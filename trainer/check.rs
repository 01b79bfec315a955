//! Comparison of the engine with dumps that PyTorch and PEFT made (tests/golden holds some, with the
//! script that writes the format).
//!
//! A dump directory has `model/`, perhaps `adapter/`, `case.json` with the inputs, and one safetensors
//! file of reference values without the adapter (`base`) and one with it (`lora`). Compared are, of
//! every sequence alone: hidden states, logits, log-probabilities, entropies; all sequences in one
//! batch against the padded reference, and bit for bit against the sequences alone; and greedy
//! continuations, token by token. Gradients of the adapter's factors are compared where the dump has
//! them (see [`gradients`]), losses and optimizer steps (see [`learning`]), and a reference in bf16 (see
//! [`bfloat16`]).

mod bfloat16;
mod gradients;
mod learning;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use engine::{
    generate::{Generator, Options, Request},
    kv_cache::{KvCache, PageTable},
    language_model::open_model,
    model::{Batch, Model, Precision},
    tensor::{Device, Tensor},
};
use kernels::cpu::{lanes, log_prob, sample::SamplingParams};
use safetensors::SafeTensors;
use serde_json::Value;

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
    /// What was compared.
    pub quantity: String,
    /// Values compared.
    pub count: usize,
    /// Largest absolute difference; for tokens and bits the number of them that differ.
    pub error: f64,
    /// What it may be.
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

/// Compares everything in the dump `directory`, in f32 on `device`.
pub fn check(directory: &Path, device: &Device) -> Result<Vec<Finding>, CheckError> {
    let case = Case::read(directory)?;
    let mut findings = Vec::new();
    for (variant, adapter) in [("base", None), ("lora", Some("adapter"))] {
        let reference = directory.join(format!("{variant}.safetensors"));
        if reference.is_file() {
            let adapter = adapter.map(|name| directory.join(name));
            let model = open(&directory.join("model"), adapter.as_deref(), Precision::F32, device)?;
            findings.extend(case.compare(&model, variant, &reference)?);
        }
    }
    findings.extend(gradients::compare(&case, device)?);
    findings.extend(learning::compare(&case, device)?);
    findings.extend(bfloat16::compare(&case, device)?);
    if findings.is_empty() {
        return Err(case.error("there is no base, lora or bfloat16.safetensors"));
    }
    Ok(findings)
}

fn open(
    directory: &Path,
    adapter: Option<&Path>,
    precision: Precision,
    device: &Device,
) -> Result<Model, CheckError> {
    open_model(directory, adapter, Some(precision), device)
        .map_err(|error| CheckError { path: directory.to_path_buf(), what: error.to_string() })
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

    fn compare(
        &self,
        model: &Model,
        variant: &'static str,
        reference: &Path,
    ) -> Result<Vec<Finding>, CheckError> {
        let bytes = self.bytes(reference)?;
        let dump = SafeTensors::deserialize(&bytes)
            .map_err(|e| self.error(format!("{}: {e}", reference.display())))?;
        let vocab = model.config().vocab_size;
        if let Some(id) = self.inputs.iter().flatten().find(|&&id| id as usize >= vocab) {
            return Err(self.error(format!("input id {id} is beyond the vocabulary of {vocab}")));
        }

        let mut errors = Errors::default();
        let mut alone = Vec::new();
        for (index, ids) in self.inputs.iter().enumerate() {
            let mut hidden = Vec::new();
            let logits = forward(model, &[ids], &mut |_, x| hidden.extend_from_slice(x.data()));
            let logits = logits.data().to_vec();
            self.values(
                &mut errors,
                &dump,
                "hidden states",
                &format!("hidden_seq{index}"),
                &hidden,
            )?;
            self.values(&mut errors, &dump, "logits", &format!("logits_seq{index}"), &logits)?;
            for (key, temperature) in [("logp", 1.0), ("logp_T0.7", 0.7)] {
                let (log_probs, entropies) = self.score(&logits, ids, temperature)?;
                let key = format!("{key}_seq{index}");
                let named = format!("log-probs, T = {temperature}");
                self.values(&mut errors, &dump, &named, &key, &log_probs)?;
                if temperature == 1.0 {
                    let key = format!("entropy_seq{index}");
                    self.values(&mut errors, &dump, "entropies", &key, &entropies)?;
                }
            }
            alone.push(logits);
        }
        self.batch(&mut errors, model, &dump, &alone)?;
        self.greedy(&mut errors, model, &format!("greedy_{variant}"))?;

        Ok(errors.named(self, variant))
    }

    fn bytes(&self, path: &Path) -> Result<Vec<u8>, CheckError> {
        std::fs::read(path).map_err(|e| self.error(format!("{}: {e}", path.display())))
    }

    /// A list of numbers of case.json.
    fn numbers(&self, key: &str) -> Result<Vec<f64>, CheckError> {
        let numbers =
            self.json[key].as_array().map(|list| list.iter().map(Value::as_f64).collect());
        numbers.flatten().ok_or_else(|| self.error(format!("{key} is not a list of numbers")))
    }

    /// Log-probability of each next token, and the entropy of each row.
    fn score(
        &self,
        logits: &[f32],
        ids: &[u32],
        temperature: f32,
    ) -> Result<(Vec<f32>, Vec<f32>), CheckError> {
        // The last row has no next token; any stands in, its log-probability is dropped.
        let next: Vec<u32> = ids[1..].iter().chain(&ids[..1]).copied().collect();
        let (mut log_probs, mut entropies) = (vec![0.0; ids.len()], vec![0.0; ids.len()]);
        let level = lanes::Level::detect();
        log_prob::forward(level, &mut log_probs, &mut entropies, logits, &next, temperature)
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
        let together = forward(model, &sequences, &mut |_, _| ());
        let vocab = model.config().vocab_size;
        let padded = self.tensor(dump, "logits_padded")?;
        let padded_rows = padded.len() / vocab / self.inputs.len().max(1);
        let mut rows = together.data().chunks_exact(vocab);
        for (index, ids) in self.inputs.iter().enumerate() {
            for position in 0..ids.len() {
                let row = rows.next().expect("a row a token");
                let reference = padded
                    .get((index * padded_rows + position) * vocab..)
                    .and_then(|rest| rest.get(..vocab))
                    .ok_or_else(|| self.error("logits_padded is shorter than the inputs"))?;
                errors.values("logits, padded batch", row, reference);
                let single = &alone[index][position * vocab..][..vocab];
                let differing = row.iter().zip(single).filter(|(a, b)| a.to_bits() != b.to_bits());
                errors.add("bits that depend on the batch", vocab, differing.count() as f64, 0.0);
            }
        }
        Ok(())
    }

    /// Greedy continuations of every sequence, all in one batch.
    fn greedy(&self, errors: &mut Errors, model: &Model, key: &str) -> Result<(), CheckError> {
        let Some(expected) = token_lists(&self.json[key]) else { return Ok(()) };
        if expected.len() != self.inputs.len() || expected.iter().any(Vec::is_empty) {
            return Err(self.error(format!("{key} has not one continuation a sequence")));
        }
        let options = Options { max_batch: 64, prefill_rows: 16, cache_bytes: 64 << 20 };
        let mut generator = Generator::new(model, &[], options);
        let mut written = vec![Vec::new(); expected.len()];
        for (ids, expected) in self.inputs.iter().zip(&expected) {
            let request = Request {
                prompt: ids.clone(),
                samples: vec![0],
                seed: 0,
                max_new_tokens: expected.len(),
                sampling: SamplingParams::GREEDY,
            };
            generator.submit(request).map_err(|e| self.error(e.to_string()))?;
        }
        while !generator.is_idle() {
            generator
                .step(&mut |event| written[event.request.0 as usize].push(event.token))
                .map_err(|e| self.error(e.to_string()))?;
        }
        for (written, expected) in written.iter().zip(&expected) {
            let differing = written.iter().zip(expected).filter(|(a, b)| a != b).count();
            errors.add("greedy tokens that differ", expected.len(), differing as f64, 0.0);
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

    fn tensor(&self, dump: &SafeTensors, key: &str) -> Result<Vec<f32>, CheckError> {
        let view = dump.tensor(key).map_err(|e| self.error(format!("{key}: {e}")))?;
        if view.dtype() != safetensors::Dtype::F32 {
            return Err(self.error(format!("{key} is {:?}, not F32", view.dtype())));
        }
        Ok(view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

/// Logits of all rows of `sequences`, run as one batch.
fn forward(model: &Model, sequences: &[&[u32]], observe: &mut dyn FnMut(usize, &Tensor)) -> Tensor {
    let pages = sequences.iter().map(|ids| KvCache::pages_for(ids.len())).sum();
    let mut cache = KvCache::new(model.device(), model.config(), model.cache_dtype(), pages);
    let mut batch = Batch::default();
    for ids in sequences {
        let mut table = PageTable::default();
        cache.extend(&mut table, ids.len());
        batch.push(ids, 0, table.pages());
    }
    model.forward_observed(&batch, &mut cache, observe)
}

/// Findings by quantity, the largest error of each.
#[derive(Default)]
struct Errors(Vec<Finding>);

impl Errors {
    /// The findings under the names of their case.
    fn named(self, case: &Case, variant: &'static str) -> Vec<Finding> {
        let named = |error| Finding { case: case.name.clone(), variant, ..error };
        self.0.into_iter().map(named).collect()
    }

    /// Allows `quantity` an error of `bound`, or more if an earlier part of it was allowed more.
    fn bound(&mut self, quantity: &str, bound: f64) {
        let finding = self.0.iter_mut().find(|finding| finding.quantity == quantity);
        let finding = finding.expect("compared before");
        // The first comparison came with the bound for f32.
        finding.bound = if finding.bound == BOUND { bound } else { finding.bound.max(bound) };
    }

    fn values(&mut self, quantity: &str, ours: &[f32], reference: &[f32]) {
        let difference = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).abs();
        let largest =
            ours.iter().zip(reference).map(difference).fold(0.0, |largest: f64, error| {
                if error.is_nan() || error > largest { error } else { largest }
            });
        self.add(quantity, ours.len(), largest, BOUND);
    }

    fn add(&mut self, quantity: &str, count: usize, error: f64, bound: f64) {
        match self.0.iter_mut().find(|finding| finding.quantity == quantity) {
            Some(finding) => {
                finding.count += count;
                if error.is_nan() || error > finding.error {
                    finding.error = error;
                }
            }
            None => self.0.push(Finding {
                case: String::new(),
                variant: "",
                quantity: quantity.to_string(),
                count,
                error,
                bound,
            }),
        }
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
