//! `j1 rollout`: judgements and their rewards, without training on them.

use std::{process::ExitCode, sync::atomic::Ordering};

use indicatif::ProgressBar;
use trainer::{
    data::{self, Wanted},
    eval::results::write_whole,
    train::{
        plan::{Slot, push_slots},
        sample::Sampler,
        sampling_options,
        session::{check_positions, template},
        settings::Settings,
    },
};

use crate::{
    Failure,
    args::{Rollout, SettingsArgs},
    commands::train::base_settings,
    interrupt, machine,
    output::{bar_style, note},
    sampling::left_out_of_training,
    session::{data_source, open_language_model, precision, resolve},
};

pub(crate) fn run(args: &Rollout) -> Result<ExitCode, Failure> {
    let settings = settings(args)?;
    let columns = args.columns.clone().unwrap_or_default();
    let wanted = Wanted { columns, ..Wanted::default() };
    let mut pairs = data::read_with(&data_source(&args.data)?, None, &wanted)?;
    pairs.truncate(args.limit.unwrap_or(usize::MAX));
    let (directory, adapter) = resolve(&args.model, args.runtime.adapter.as_deref())?;
    let device = machine::device(args.runtime.device, args.runtime.dtype, args.runtime.threads)?;
    let precision = precision(args.runtime.dtype);
    let mut language_model =
        open_language_model(&args.model, &directory, adapter.as_deref(), precision, &device)?;
    machine::place_weights(&mut language_model.model, args.runtime.weights)?;
    check_positions(&language_model, &settings)?;
    if let Some(line) = left_out_of_training(&language_model.generation) {
        note(&line);
    }
    let template = template(&settings)?.with_control_tokens(language_model.control_tokens());

    let group_size = settings.rollout.group_size;
    let prompts = settings.rollout.prompts_per_step;
    let cache_bytes = machine::cache_bytes(&device, args.cache_memory)? as usize;
    let options = sampling_options(&language_model.model, &settings, cache_bytes);
    let sampler = Sampler {
        language_model: &language_model,
        template: &template,
        settings: &settings,
        pairs: &pairs,
        options,
    };
    let slots = slots(&sampler, &settings)?;
    if slots.is_empty() {
        return Err("no pair has a prompt that fits data.max_prompt_tokens".into());
    }

    let stop = interrupt::flag();
    let bar = ProgressBar::new(slots.len() as u64);
    let style = "{msg} [{bar:30}] {pos}/{len} prompts {left}";
    bar.set_style(bar_style(style));
    let (mut text, mut rewards) = (Vec::new(), Vec::new());
    // As many prompts at a time as a training step has: whole pairs.
    for (part, slots) in slots.chunks(prompts).enumerate() {
        let own = |index: usize| index - part * prompts;
        let slots: Vec<Slot> =
            slots.iter().map(|slot| Slot { partner: slot.partner.map(own), ..*slot }).collect();
        let (count, first) = (slots.len(), (part * prompts * group_size) as u64);
        let sampled = sampler.sample(slots, first, stop, &mut |stats| {
            bar.set_message(format!("{} tokens", stats.generated_tokens));
        })?;
        let Some(sampled) = sampled else {
            bar.finish_and_clear();
            note("stopped; nothing was written");
            return Ok(interrupt::status());
        };
        for mut record in sampler.records(&sampled, 0) {
            record.group += part * prompts;
            record.other_order = record.other_order.map(|group| group + part * prompts);
            rewards.push(record.reward);
            serde_json::to_writer(&mut text, &record)?;
            text.push(b'\n');
        }
        bar.inc(count as u64);
    }
    bar.finish_and_clear();
    if stop.load(Ordering::Relaxed) {
        note("stopped after the last prompt");
    }
    write_whole(&args.out, &text)?;
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    note(&format!(
        "wrote {} judgements to {}; mean reward {mean:.4}",
        rewards.len(),
        args.out.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &Rollout) -> Result<Settings, Failure> {
    let SettingsArgs { preset, config, set } = &args.settings;
    let mut settings = base_settings(config.as_deref(), *preset, set)?;
    if let Some(group) = args.group {
        settings.rollout.group_size = group as usize;
    }
    if let Some(seed) = args.seed {
        settings.train.seed = seed;
    }
    settings.validate()?;
    Ok(settings)
}

/// Every pair that fits, in the order of the file; says how many do not.
fn slots(sampler: &Sampler, settings: &Settings) -> Result<Vec<Slot>, Failure> {
    let judge = sampler.judge();
    let (mut slots, mut over_long): (Vec<Slot>, usize) = (Vec::new(), 0);
    for (index, pair) in sampler.pairs.iter().enumerate() {
        let first = slots.len();
        push_slots(&mut slots, index, settings.data.orders, settings.train.seed, pair.row);
        let mut longest = 0;
        for slot in &slots[first..] {
            longest = longest.max(judge.prompt(pair, slot.order)?.len());
        }
        if longest > settings.data.max_prompt_tokens {
            over_long += 1;
            slots.truncate(first);
        }
    }
    if over_long > 0 {
        let limit = settings.data.max_prompt_tokens;
        note(&format!("{over_long} pairs have prompts above {limit} tokens and are left out"));
    }
    Ok(slots)
}
