//! What is printed before the first step: number of steps and tokens, the time they take, and whether activations are kept.

use engine::language_model::LanguageModel;
use trainer::train::{
    checkpointing::{Decision, DecisionReason},
    estimate::{Ahead, Pace},
    plan::Plan,
    settings::{Choice, GradientCheckpointing, Orders, Settings},
};

use super::view::duration;
use crate::{
    Failure,
    output::{bytes, note, print, sentence},
};

/// The lines of the plan.
pub(super) fn lines(ahead: &Ahead<'_>, pairs: usize, peak: Option<u64>, pace: Pace) -> Vec<String> {
    let Settings { rollout, data, train, .. } = ahead.settings;
    let plan = Plan::new(pairs, rollout.prompts_per_step, data.orders, train.seed);
    let [done, steps] = ahead.steps;
    let prompts = match data.orders {
        Orders::Both => format!(
            "{} prompts (both orders of {} pairs)",
            rollout.prompts_per_step,
            rollout.prompts_per_step / 2
        ),
        Orders::Random => format!("{} prompts", rollout.prompts_per_step),
    };
    let limit = rollout.max_completion_tokens as f64;
    let tokens = (rollout.prompts_per_step * rollout.group_size) as f64 * (ahead.prompt + limit);
    let left = steps.saturating_sub(done);
    let time = |share: f64| duration(ahead.seconds(pace, (share * limit).max(1.0)));
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
    let warmup = ahead.settings.optimizer.warmup_steps;
    if warmup >= steps {
        lines.push(format!(
                "warning: optimizer.warmup_steps = {warmup} is all of the {steps} steps: the rate never reaches \
                 optimizer.learning_rate"
            ));
    }
    lines
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

/// Says whether activations are kept, and why, where it was decided here.
pub(super) fn announce(decision: &Decision) {
    let Decision { choice, reason, .. } = *decision;
    let name = choice.name();
    let says = |[kept, recomputed]: [u64; 2], why: &str| {
        sentence(&format!(
            "gradient checkpointing {name}: a peak of {} without it {why} ({} with it)",
            bytes(kept),
            bytes(recomputed)
        ));
    };
    let fits = if choice == GradientCheckpointing::Off { "fits" } else { "does not fit" };
    match reason {
        DecisionReason::Settings => (),
        DecisionReason::Unknown(why) => sentence(&format!("gradient checkpointing {name}: {why}")),
        DecisionReason::Memory { kept, recomputed, free: Some(free) } => {
            let why = format!("{fits} half of the {} that are free", bytes(free));
            says([kept, recomputed], &why);
        }
        DecisionReason::Memory { kept, recomputed, free: None } => {
            says([kept, recomputed], "may not fit: free memory is unknown");
        }
        DecisionReason::Gpu { kept, recomputed, usable } => {
            let why = format!("{fits} the GPU, of which {} are this run's", bytes(usable));
            says([kept, recomputed], &why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainer::train::settings::Preset;

    #[test]
    fn a_plan_that_cannot_be_meant_is_warned_of() {
        let mut settings = Settings::preset(Preset::J1Nano);
        settings.rollout.prompts_per_step = 4;
        settings.data.orders = Orders::Both;
        settings.optimizer.warmup_steps = 5;
        let lines = |settings: &Settings, steps: u64, pairs: usize| {
            let ahead = Ahead { settings, prompt: 10.0, steps: [0, steps], held_out: 0 };
            super::lines(&ahead, pairs, Some(1 << 20), Pace { row: 1.0, step: 2.0 }).join("\n")
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
