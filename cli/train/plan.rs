//! What is known before the first step: which pairs fit, how many steps and tokens there are, and about how long they
//! take.

use std::time::Instant;

use engine::{
    generate::{self, Generator, Options, Request},
    kv_cache::KvCache,
    language_model::LanguageModel,
};
use kernels::cpu::sample::SamplingParams;
use trainer::{
    data::Pair,
    prompt::{Order, Template},
    settings::{GradientCheckpointing, Orders, OverLong, Settings},
    train::{
        Trainer,
        plan::Plan,
        prompts::{Fitting, fitting},
        sample::Sampler,
    },
};

use super::view::{View, duration};
use crate::{
    Failure, interrupt,
    output::{bytes, note, print},
};

/// The pairs whose prompts fit, and the lengths of these in tokens.
pub(super) struct Pairs {
    pub(super) pairs: Vec<Pair>,
    pub(super) longest: usize,
    pub(super) mean: f64,
}

/// The pairs whose prompts fit. `None` if the user stopped it.
pub(super) fn fitting_pairs(
    language_model: &LanguageModel,
    template: &Template,
    settings: &Settings,
    pairs: Vec<Pair>,
    view: &View,
) -> Result<Option<Pairs>, Failure> {
    let options = Options { max_batch: 1, prefill_rows: 1, cache_bytes: 0 };
    let sampler = Sampler { language_model, template, settings, pairs: &pairs, options };
    let bar = view.bar("measuring prompts", pairs.len());
    let found = fitting(&sampler.judge(), &pairs, interrupt::raised(), &|done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let Some(Fitting { fit, over_long, longest, mean }) = found? else { return Ok(None) };
    let limit = settings.data.max_prompt_tokens;
    let (count, longest_that_fits) = (pairs.len(), longest.min(limit));
    if settings.data.over_long == OverLong::TruncateLeft {
        note(&format!("{count} pairs, prompts of {longest} tokens at most"));
        if over_long > 0 {
            note(&format!(
                "{over_long} pairs have prompts above {limit} tokens, cut at their left"
            ));
        }
        let mean = if fit.is_empty() { limit as f64 } else { mean };
        return Ok(Some(Pairs { pairs, longest: longest_that_fits, mean }));
    }
    if fit.is_empty() {
        return Err(format!(
            "no pair has a prompt of at most {limit} tokens: the longest of {count} pairs has {longest}; raise \
             data.max_prompt_tokens"
        )
        .into());
    }
    note(&format!("{count} pairs, prompts of {mean:.0} tokens on average, {longest} at most"));
    if over_long > 0 {
        note(&format!(
            "{over_long} pairs have prompts above data.max_prompt_tokens = {limit} and are left out"
        ));
    }
    let mut keep = vec![false; pairs.len()];
    fit.into_iter().for_each(|index| keep[index] = true);
    let kept = pairs.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(pair, _)| pair);
    Ok(Some(Pairs { pairs: kept.collect(), longest: longest_that_fits, mean }))
}

/// How fast the model is here.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Seconds for a row of a long pass.
    row: f64,
    /// Seconds for a decoding step of one sequence.
    step: f64,
}

/// Tokens that are decoded to measure the pace.
const DECODED: usize = 4;

impl Pace {
    /// Measures a piece of a prompt and some tokens after it: below a second where a step takes minutes.
    pub(super) fn measure(
        language_model: &LanguageModel,
        prompt: &[u32],
    ) -> Result<Pace, generate::Error> {
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
            let options = Options { max_batch: 1, prefill_rows: rows, cache_bytes };
            let mut generator = Generator::new(model, &[], options)?;
            generator.submit(Request {
                prompt: prompt[..rows.min(prompt.len())].to_vec(),
                samples: vec![0],
                seed: 0,
                max_new_tokens: decoded,
                sampling: SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 },
                repetition_penalty: 1.0,
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
pub(super) struct Ahead<'a> {
    pub(super) settings: &'a Settings,
    /// Mean length of a prompt, in tokens.
    pub(super) prompt: f64,
    /// Steps taken, of all.
    pub(super) steps: [u64; 2],
    /// Held-out pairs of an evaluation.
    pub(super) held_out: usize,
}

impl Ahead<'_> {
    /// Seconds of what is left, where completions have so many tokens.
    fn seconds(&self, pace: Pace, completion: f64) -> f64 {
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

    /// What is ahead, in lines.
    pub(super) fn lines(&self, pairs: usize, peak: Option<u64>, pace: Pace) -> Vec<String> {
        let Settings { rollout, data, train, .. } = self.settings;
        let plan = Plan::new(pairs, rollout.prompts_per_step, data.orders, train.seed);
        let [done, steps] = self.steps;
        let prompts = match data.orders {
            Orders::Both => format!(
                "{} prompts (both orders of {} pairs)",
                rollout.prompts_per_step,
                rollout.prompts_per_step / 2
            ),
            Orders::Random => format!("{} prompts", rollout.prompts_per_step),
        };
        let limit = rollout.max_completion_tokens as f64;
        let tokens = (rollout.prompts_per_step * rollout.group_size) as f64 * (self.prompt + limit);
        let left = steps.saturating_sub(done);
        let time = |share: f64| duration(self.seconds(pace, (share * limit).max(1.0)));
        let mut lines = vec![
            format!(
                "plan: {steps} steps ({:.2} epochs of {pairs} pairs) of {prompts} x {} completions{}",
                plan.epoch_after(steps),
                rollout.group_size,
                if done > 0 { format!("; {left} are left") } else { String::new() }
            ),
            format!(
                "tokens: up to {} a step, {} in all; memory: a peak of {}",
                count(tokens),
                count(tokens * left as f64),
                peak.map_or_else(
                    || "nobody knows how much".into(),
                    |peak| format!("about {}", bytes(peak))
                )
            ),
            format!(
                "time: about {} to {} here, for completions of a quarter of rollout.max_completion_tokens to all of it",
                time(0.25),
                time(1.0)
            ),
        ];
        let in_a_step = match data.orders {
            Orders::Both => rollout.prompts_per_step / 2,
            Orders::Random => rollout.prompts_per_step,
        };
        if in_a_step > pairs {
            lines.push(format!(
                "warning: a step takes {in_a_step} pairs and there are {pairs}: some stand in it more than once; lower \
                 rollout.prompts_per_step, or give more pairs"
            ));
        }
        let warmup = self.settings.optimizer.warmup_steps;
        if warmup >= steps {
            lines.push(format!(
                "warning: optimizer.warmup_steps = {warmup} is all of the {steps} steps: the rate never reaches \
                 optimizer.learning_rate"
            ));
        }
        lines
    }
}

/// A number of tokens.
fn count(number: f64) -> String {
    match number {
        n if n < 1e5 => format!("{n:.0}"),
        n if n < 1e7 => format!("{:.0} thousand", n / 1e3),
        n if n < 1e10 => format!("{:.0} million", n / 1e6),
        n => format!("{:.0} thousand million", n / 1e9),
    }
}

/// The first prompt of the run, in its tokens' text.
pub(super) fn first_prompt(trainer: &Trainer, pair: &Pair) -> Result<Vec<u32>, Failure> {
    Ok(trainer.sampler().prompt(pair, Order::ChosenFirst)?)
}

/// Shows a prompt as the model reads it.
pub(super) fn show_prompt(language_model: &LanguageModel, tokens: &[u32]) -> Result<(), Failure> {
    let text = language_model.tokenizer.decode(tokens, false)?;
    print(&format!("{text}\n"))?;
    note(&format!(
        "the prompt above has {} tokens; --dry-run ends here, and nothing was written",
        tokens.len()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainer::settings::Preset;

    /// By hand: one prompt of 10 tokens, two completions of 8, a second a row and two a decoding step.
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

    #[test]
    fn a_plan_that_cannot_be_meant_is_warned_of() {
        let mut settings = Settings::preset(Preset::J1Nano);
        settings.rollout.prompts_per_step = 4;
        settings.data.orders = Orders::Both;
        settings.optimizer.warmup_steps = 5;
        let lines = |settings: &Settings, steps: u64, pairs: usize| {
            let ahead = Ahead { settings, prompt: 10.0, steps: [0, steps], held_out: 0 };
            ahead.lines(pairs, Some(1 << 20), Pace { row: 1.0, step: 2.0 }).join("\n")
        };
        assert!(!lines(&settings, 6, 2).contains("warning"));
        let early = lines(&settings, 5, 2);
        assert!(early.contains("warmup_steps = 5 is all of the 5 steps"), "{early}");
        let few = lines(&settings, 6, 1);
        assert!(few.contains("a step takes 2 pairs and there are 1"), "{few}");
        settings.data.orders = Orders::Random;
        assert!(lines(&settings, 6, 3).contains("a step takes 4 pairs and there are 3"));
    }
}
