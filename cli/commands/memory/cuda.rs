//! The same on a GPU: from its memory, and on one that is there from what is free.

use engine::{checkpoint::config::Config, model::memory::CudaPass};
use serde_json::{Value, json};
use trainer::train::{
    memory::{CudaMemory, usable},
    settings::{Choice, GradientCheckpointing, Settings},
    update::TooLarge,
};

use crate::{machine, output::bytes};

/// Memory of the driver, its context and the kernels. It is assumed, as nothing here has run on a GPU.
const DRIVER: u64 = 512 << 20;

/// A GPU's memory and what a run takes of it.
pub(super) struct Budget {
    memory: u64,
    run: CudaMemory,
    advice: Option<&'static str>,
}

impl Budget {
    pub(super) fn new(
        settings: &Settings,
        config: &Config,
        memory: u64,
        cache: Option<u64>,
    ) -> Result<Budget, TooLarge> {
        let prompt = settings.data.max_prompt_tokens;
        let free = memory.saturating_sub(DRIVER);
        let predict = |cache| CudaMemory::of(settings, config, prompt, cache);
        let run = match cache {
            Some(cache) => predict(cache)?,
            None => {
                // As `j1 train` takes it: when weights and adapter are there.
                let model = predict(0)?.model;
                predict(machine::half_of_gpu(free.saturating_sub(model.weights + model.adapter)))?
            }
        };
        let advice = run.advice(settings, usable(free));
        let advice = advice.map(|advice| match advice {
            CudaMemory::LESS_CACHE => "lower --cache-memory",
            other => other,
        });
        Ok(Budget { memory, run, advice })
    }

    /// Memory that a run may take, in bytes.
    fn usable(&self) -> u64 {
        usable(self.memory.saturating_sub(DRIVER))
    }

    fn fits(&self, recompute: bool) -> bool {
        self.run.total(recompute) <= self.usable()
    }

    fn left(&self, recompute: bool) -> u64 {
        self.memory.saturating_sub(DRIVER).saturating_sub(self.run.total(recompute))
    }

    fn choice(&self) -> GradientCheckpointing {
        choice(&self.run, self.memory.saturating_sub(DRIVER))
    }

    pub(super) fn rows(&self, name: &str, settings: &Settings) -> Vec<[String; 2]> {
        let Budget { memory, run, advice } = self;
        let row = |name: &str, value: String| [name.to_owned(), value];
        let two = |of: &dyn Fn(bool) -> String| format!("{} / {}", of(true), of(false));
        let sizes =
            |of: &dyn Fn(&CudaPass) -> u64| two(&|recompute| bytes(of(run.pass(recompute))));
        let yes = |recompute| if self.fits(recompute) { "yes" } else { "no" }.to_owned();
        let rollout = &settings.rollout;
        let auto = match self.choice() {
            GradientCheckpointing::Off => "activations kept",
            _ => "activations recomputed",
        };
        let mut rows = vec![
            row("training", format!("{name}, preset {}", settings.preset.name())),
            row("rows of a micro-batch", run.rows.to_string()),
            row("memory of the GPU", bytes(*memory)),
            row("driver and kernels (assumed)", bytes(DRIVER)),
            row("weights in bf16", bytes(run.model.weights)),
            row("adapter", bytes(run.model.adapter)),
            row("optimizer", bytes(run.model.moments)),
            [
                format!("keys and values of {} x {}", rollout.prompts_per_step, rollout.group_size),
                bytes(run.cache),
            ],
            row("generation's activations", bytes(run.generation)),
            row("", "recomputed / kept".to_owned()),
            row("training's activations", sizes(&|pass| pass.peak)),
            row("  log-probabilities", sizes(&|pass| pass.log_probs)),
            row("  attention's backward pass", sizes(&|pass| pass.attention)),
            row("in all, at the peak", two(&|recompute| bytes(run.total(recompute)))),
            row("left", two(&|recompute| bytes(self.left(recompute)))),
            row("fits, a tenth left free", two(&yes)),
            row("gradient_checkpointing = auto", auto.to_owned()),
        ];
        if let Some(advice) = advice {
            rows.push(row("it does not fit", (*advice).to_owned()));
        }
        rows
    }

    pub(super) fn report(&self, name: &str) -> Value {
        let run = &self.run;
        let pass = |recompute: bool| {
            let CudaPass { peak, log_probs, attention } = *run.pass(recompute);
            json!({
                "activation_bytes": peak,
                "log_prob_bytes": log_probs,
                "attention_backward_bytes": attention,
                "total_bytes": run.total(recompute),
                "left_bytes": self.left(recompute),
                "fits": self.fits(recompute),
            })
        };
        json!({
            "model": name,
            "micro_batch_rows": run.rows,
            "device_memory_bytes": self.memory,
            "driver_bytes_assumed": DRIVER,
            "weights_bytes": run.model.weights,
            "adapter_bytes": run.model.adapter,
            "optimizer_bytes": run.model.moments,
            "cache_bytes": run.cache,
            "generation_bytes": run.generation,
            "recomputed": pass(true),
            "kept": pass(false),
            "gradient_checkpointing": self.choice().name(),
            "advice": self.advice,
        })
    }
}

/// The choice of "auto" with `free` bytes, the run's own memory counted.
fn choice(run: &CudaMemory, free: u64) -> GradientCheckpointing {
    match run.training(false) <= usable(free) {
        true => GradientCheckpointing::Off,
        false => GradientCheckpointing::On,
    }
}
