//! One step of LoRA on a loss of one's own, here the cross-entropy of a completion:
//! `cargo run --release --package engine --example finetune -- DIRECTORY PROMPT COMPLETION ADAPTER`.
//!
//! The adapter is written to the directory ADAPTER, in PEFT's form.

use std::{error::Error, path::Path, process::ExitCode};

use engine::{error::printable, optimizer, prelude::*};

const LEARNING_RATE: f64 = 1e-3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, prompt, completion, adapter] = &arguments[..] else {
        eprintln!("usage: finetune DIRECTORY PROMPT COMPLETION ADAPTER");
        return ExitCode::FAILURE;
    };
    match finetune(directory.as_ref(), prompt, completion, adapter.as_ref()) {
        Ok([before, after]) => {
            println!("loss {before:.4} before the step, {after:.4} after it");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", printable(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// Takes a step and saves the adapter; the loss before and after.
fn finetune(
    directory: &Path,
    prompt: &str,
    completion: &str,
    save_to: &Path,
) -> Result<[f32; 2], Box<dyn Error>> {
    // A new adapter: A is random and B is zero, so that the model starts as it was.
    let lora = AdapterSettings {
        rank: 8,
        alpha: 16.0,
        rank_stabilized: false,
        dropout: 0.0,
        targets: Projection::ALL.to_vec(),
    };
    let (LanguageModel { mut model, tokenizer, .. }, mut adapter) =
        LanguageModel::builder(directory)
            .adapter_from(|config| Adapter::initialize(config, &lora, 0))
            .open_with_adapter()?;
    model.train_adapter();
    let mut adamw = model.optimizer(optimizer::AdamWSettings::default());

    // Prompts, each with its completions.
    let (prompt, completion) = (tokenizer.encode(prompt)?, tokenizer.encode(completion)?);
    let mut batch = PackedBatch::default();
    batch.push(&prompt, &[&completion]);
    let pass = TrainingPass { temperature: 1.0, adapter: true, dropout: None, checkpoint: false };

    // Forward: log-probabilities, then the loss.
    let mut tape = Tape::new();
    let log_probs = model.log_probs(&mut tape, &batch, pass)?;
    let loss = cross_entropy(&mut tape, &log_probs);
    let before = loss.data()[0];

    // Backward, from dL/dL = 1 to the gradients of A and B.
    let mut gradients = Gradients::default();
    let one = Tensor::from_slice(model.device(), 1, 1, &[1.0]);
    tape.backward(&loss, one, &mut gradients);

    if let StepOutcome::NotFinite { norm } = model.step(&mut adamw, &gradients, LEARNING_RATE)? {
        return Err(format!("a gradient of norm {norm}").into());
    }

    let log_probs = model.log_probs(&mut Tape::off(), &batch, pass)?;
    let after = cross_entropy(&mut Tape::off(), &log_probs).data()[0];
    model.store_adapter(&mut adapter)?;
    adapter.save(save_to)?;
    Ok([before, after])
}

/// L = −(1/T)·Σ log p, of the log-probabilities and entropies `[T, 2]` of T tokens: `[1, 1]`. The entropies get no gradient.
fn cross_entropy(tape: &mut Tape<'_>, log_probs: &Tensor) -> Tensor {
    let [tokens, _] = log_probs.shape();
    let sum: f32 = log_probs.data().iter().step_by(2).sum();
    let mut loss = Tensor::from_slice(log_probs.device(), 1, 1, &[-sum / tokens as f32]);
    if tape.records(log_probs.requires_grad()) {
        tape.push(&mut loss, CrossEntropy { log_probs: log_probs.id(), tokens });
    }
    loss
}

struct CrossEntropy {
    log_probs: Id,
    tokens: usize,
}

impl Backward for CrossEntropy {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let mut dx = Tensor::zeros(dy.device(), self.tokens, 2);
        let each = -dy.data()[0] / self.tokens as f32;
        dx.data_mut().iter_mut().step_by(2).for_each(|dx| *dx = each);
        gradients.add(self.log_probs, dx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::tensor::check_gradient::check_gradient;

    #[test]
    fn a_step_makes_the_completion_more_probable_and_is_in_the_saved_adapter() {
        let directory =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/qwen3-tied/model");
        let scratch = tempfile::tempdir().unwrap();
        let saved = scratch.path().join("adapter");
        let [before, after] = finetune(&directory, "2+2=", "4, I think", &saved).unwrap();
        assert!(after < before - 0.01, "{before} to {after}");

        let builder = LanguageModel::builder(&directory).adapter(saved.as_path());
        let LanguageModel { mut model, tokenizer, .. } = builder.open().unwrap();
        model.train_adapter();
        let [prompt, completion] =
            ["2+2=", "4, I think"].map(|text| tokenizer.encode(text).unwrap());
        let mut batch = PackedBatch::default();
        batch.push(&prompt, &[&completion]);
        let pass =
            TrainingPass { temperature: 1.0, adapter: true, dropout: None, checkpoint: false };
        let log_probs = model.log_probs(&mut Tape::off(), &batch, pass).unwrap();
        assert_eq!(cross_entropy(&mut Tape::off(), &log_probs).data()[0], after);
    }

    #[test]
    fn the_gradient_of_the_loss_is_that_of_differences() {
        check_gradient([1, 2], cross_entropy);
        check_gradient([7, 2], cross_entropy);
    }
}
