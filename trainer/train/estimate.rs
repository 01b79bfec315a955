//! About how long a run takes here, before its first step.

use std::time::Instant;

use engine::{
    generate::{self, Generator, GeneratorOptions, Request, SamplingParams},
    language_model::LanguageModel,
    model::kv_cache::KvCache,
};

use crate::train::settings::{GradientCheckpointing, Settings};

/// How fast the model is here.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Seconds for a row of a long pass.
    pub row: f64,
    /// Seconds for a decoding step of one sequence.
    pub step: f64,
}

/// Tokens that are decoded to measure the pace.
const DECODED: usize = 4;

impl Pace {
    /// Measures a piece of a prompt and some tokens after it: below a second where a step takes minutes.
    pub fn measure(
        language_model: &LanguageModel,
        prompt: &[u32],
    ) -> Result<Pace, generate::GenerateError> {
        let model = &language_model.model;
        let config = model.config();
        // As many rows as keep the device busy.
        let rows = if model.device().is_cuda() { 512 } else { 64 };
        let rows = rows.min(prompt.len()).min(config.max_position_embeddings - 1).max(1);
        let decoded = DECODED.min(config.max_position_embeddings - rows);
        let page = KvCache::page_bytes(config, model.cache_dtype());
        let cache_bytes = page * KvCache::pages_for(rows + decoded);
        let mut pace = Pace { row: f64::INFINITY, step: f64::INFINITY };
        // The first time much is read from the disk.
        for _ in 0..2 {
            let options = GeneratorOptions { max_batch: 1, prefill_rows: rows, cache_bytes };
            let mut generator = Generator::new(model, &[], options)?;
            generator.submit(Request {
                prompt: prompt[..rows.min(prompt.len())].to_vec(),
                samples: vec![0],
                seed: 0,
                max_new_tokens: decoded,
                sampling: SamplingParams::GREEDY,
                repetition_penalty: 1.0,
                top_log_probs: 0,
            })?;
            let mut is_first = true;
            while !generator.is_idle() {
                let started = Instant::now();
                generator.step(&mut |_| ())?;
                let seconds = started.elapsed().as_secs_f64();
                match is_first {
                    true => pace.row = pace.row.min(seconds / rows as f64),
                    false => pace.step = pace.step.min(seconds),
                }
                is_first = false;
            }
        }
        pace.step = if pace.step.is_finite() { pace.step } else { pace.row };
        model.device().trim();
        Ok(pace)
    }
}

/// A run, before its next step.
pub struct Ahead<'a> {
    /// Settings of the run.
    pub settings: &'a Settings,
    /// Mean length of a prompt, in tokens.
    pub prompt: f64,
    /// Steps taken, of all.
    pub steps: [u64; 2],
    /// Held-out pairs of an evaluation.
    pub held_out: usize,
}

impl Ahead<'_> {
    /// Seconds of the steps that are left, if completions have `tokens` tokens.
    pub fn seconds(&self, pace: Pace, completion: f64) -> f64 {
        let Settings { rollout, loss, train, .. } = self.settings;
        let (prompts, group) = (rollout.prompts_per_step as f64, rollout.group_size as f64);
        // Sequences that run at once take a row each beside what a step costs alone.
        let decoding = |sequences: f64| {
            completion
                * (pace.step + (sequences.min(256.0) - 1.0) * pace.row)
                * (sequences / 256.0).max(1.0)
        };
        let sampling = prompts * self.prompt * pace.row + decoding(prompts * group);
        // A backward pass through frozen weights takes as long as a forward pass, and some more for the factors.
        let recomputed = train.gradient_checkpointing != GradientCheckpointing::Off;
        let passes = loss.num_iterations as f64 * (2.2 + f64::from(u8::from(recomputed)));
        let passes = passes + f64::from(u8::from(loss.beta > 0.0));
        let update = prompts * (self.prompt + group * completion) * pace.row * passes;
        let left = self.steps[1].saturating_sub(self.steps[0]) as f64;
        let judgements = 2.0 * self.held_out as f64;
        let evaluations = match (train.eval_every, self.held_out) {
            (0, _) | (_, 0) => 0.0,
            // And one before the first step.
            (every, _) => (left / every as f64).ceil() + f64::from(u8::from(self.steps[0] == 0)),
        };
        let evaluation = judgements * self.prompt * pace.row + decoding(judgements.max(1.0));
        left * (sampling + update) + evaluations * evaluation
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::settings::{Orders, Preset};

    /// By hand: one prompt of 10 tokens, two completions of 8, one second per row and two per decoding step.
    #[test]
    fn time_is_what_the_passes_take() {
        let mut settings = Settings::preset(Preset::J1Nano);
        settings.rollout.prompts_per_step = 1;
        settings.data.orders = Orders::Random;
        settings.train.eval_every = 4;
        settings.loss.beta = 0.0;
        settings.train.gradient_checkpointing = GradientCheckpointing::Off;
        let pace = Pace { row: 1.0, step: 2.0 };
        let mut ahead = Ahead { settings: &settings, prompt: 10.0, steps: [2, 10], held_out: 0 };
        let step = (10.0 + 8.0 * (2.0 + 1.0)) + (10.0 + 2.0 * 8.0) * 2.2;
        assert!((ahead.seconds(pace, 8.0) - 8.0 * step).abs() < 1e-9);
        // Two evaluations of three pairs in both orders, six sequences at once.
        ahead.held_out = 3;
        let evaluation = 60.0 + 8.0 * (2.0 + 5.0);
        assert!((ahead.seconds(pace, 8.0) - 8.0 * step - 2.0 * evaluation).abs() < 1e-9);
        ahead.steps = [0, 8];
        assert!((ahead.seconds(pace, 8.0) - 8.0 * step - 3.0 * evaluation).abs() < 1e-9);
        let mut settings = settings.clone();
        settings.loss.beta = 0.1;
        settings.loss.num_iterations = 3;
        settings.train.gradient_checkpointing = GradientCheckpointing::On;
        let ahead = Ahead { settings: &settings, prompt: 10.0, steps: [9, 10], held_out: 0 };
        let step = (10.0 + 8.0 * 3.0) + 26.0 * (3.0 * 3.2 + 1.0);
        assert!((ahead.seconds(pace, 8.0) - step).abs() < 1e-9);
    }
}
