//! The recipes, each by what it takes from where.

use engine::optimizer::schedule::Shape;

use super::keys::MODULES;
use super::{
    DataSettings, Deliver, GradientCheckpointing, LoraSettings, LossSettings, ModelSettings,
    OptimizerSettings, Orders, OverLong, Preset, Reference, RewardSettings, RewardWeights,
    RolloutSettings, Settings, Thinking, TrainSettings, Weights,
};
use crate::train::grpo::{advantages::ScaleRewards, loss::LossType};

pub(super) fn settings(preset: Preset) -> Settings {
    match preset {
        Preset::J1Nano => j1(preset, "Qwen/Qwen3-0.6B"),
        Preset::J1Micro => j1(preset, "Qwen/Qwen3-1.7B"),
        Preset::Cpu05b => cpu_0_5b(),
        Preset::Spct => spct(),
        Preset::Trl0152 => trl_0_15_2(),
    }
}

/// The published j1 recipe (haizelabs/j1-micro), with its faults mended: over-long prompts are left out instead of
/// cut, log-probabilities are taken at the temperature that sampled, every token of a step weighs the same,
/// a verdict outweighs the format whatever the group, pairs are seen in both orders, and no dropout comes
/// between the policy that samples and the one that is trained.
///
/// It takes 1,000 steps of 8 pairs in both orders, 8,000 pairs. The published chart of rewards has about as many
/// points for its two epochs, each took less than a day, and benches/MODELLED.md has 3.8 s a step of j1-nano on an
/// A100 and 6.2 s of j1-micro, 9.0 s with a straggler: one to three hours, and below a day at eight times that. Two
/// epochs of all of Skywork's pairs would be 19,000 steps, one to two days of the same.
fn j1(preset: Preset, model: &str) -> Settings {
    Settings {
        preset,
        model: ModelSettings {
            path: model.to_owned(),
            adapter: String::new(),
            weights: Weights::Auto,
        },
        lora: LoraSettings {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: MODULES.map(str::to_owned).to_vec(),
            rslora: false,
        },
        data: DataSettings {
            train: String::new(),
            held_out: String::new(),
            max_prompt_tokens: 2048,
            over_long: OverLong::Drop,
            orders: Orders::Both,
            template: String::new(),
        },
        rollout: RolloutSettings {
            group_size: 2,
            prompts_per_step: 16,
            temperature: 0.9,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            max_completion_tokens: 2048,
            thinking: Thinking::Auto,
            template_date: String::new(),
        },
        reward: RewardSettings {
            // Standardized, a reward's own size is gone: 0.2 is the published size of the format.
            weights: RewardWeights { format: 0.2, verdict: 1.0, ..RewardWeights::default() },
            wrong_verdict: 0.0,
            length_from_tokens: 1536,
            normalize_each: true,
            drop_zero_variance: true,
            scale_rewards: ScaleRewards::Group,
        },
        loss: LossSettings {
            kind: LossType::Dapo,
            beta: 0.0005,
            reference: Reference::Start,
            epsilon_low: 0.2,
            epsilon_high: 0.2,
            bias_corrected_kl: false,
            reasoning_weight: 1.0,
            num_iterations: 1,
            mask_truncated: false,
            temperature_scaled: true,
            accumulation_steps: 1,
        },
        optimizer: OptimizerSettings {
            learning_rate: 1e-4,
            betas: [0.9, 0.99],
            eps: 1e-8,
            weight_decay: 0.1,
            max_grad_norm: 0.1,
            schedule: Shape::Cosine,
            warmup_steps: 5,
        },
        train: TrainSettings {
            steps: 1000,
            epochs: 2.0, // where steps is 0; what was run of the 10 that were configured
            seed: 0,
            micro_batch_tokens: 0,
            gradient_checkpointing: GradientCheckpointing::Auto,
            save_every: 100,
            keep_last: 3,
            eval_every: 100,
            eval_pairs: 100,
            show_every: 0,
            deliver: Deliver::Best,
        },
    }
}

/// A recipe for a model of half a billion parameters that has never seen the form, on two cores. benches/LEARNING.md has
/// what each setting was tried against.
fn cpu_0_5b() -> Settings {
    let mut settings = j1(Preset::Cpu05b, "Qwen/Qwen2.5-Coder-0.5B-Instruct");
    // The form from the first step on, so that the reward can go into the verdict. The examples run once a
    // micro-batch, and are about 600 of the tokens.
    settings.data.template = "examples".to_owned();
    settings.data.max_prompt_tokens = 1800;
    // Labels are noisy and differ by pair, so more pairs tell more than more samples of one: 16 pairs in both orders. Four
    // samples differ nearly always, as the rewards below are shares.
    settings.rollout.prompts_per_step = 32;
    settings.rollout.group_size = 4;
    // The log-probabilities that are trained are those of the model itself.
    settings.rollout.temperature = 1.0;
    // Judgements have about 70 tokens. A verdict counts, too, where the text rambles on behind it; so length itself has to cost
    // something: without that, 44 % of completions were cut off at step 15.
    settings.rollout.max_completion_tokens = 160;
    settings.reward.length_from_tokens = 110;
    // A right verdict counts as far as the other order agrees, and points as far as they decide the sum: a constant slot
    // earns neither. Each reward in its own size, by the step's deviation, or the pull to the middle is lost.
    settings.reward.weights = RewardWeights {
        format: 1.0, // at most 0.2
        verdict: 0.0,
        consistency: 1.0,
        summed: 1.0,
        length: 0.5,
        ..RewardWeights::default()
    };
    settings.reward.normalize_each = false;
    settings.reward.scale_rewards = ScaleRewards::Batch;
    // No reference pass: a quarter of the update. The steps are few.
    settings.loss.beta = 0.0;
    // What the data say adds up with steps times the rate, what chance says with their root: at 2e-4 the kinds of scores fell
    // from 60 to 14 in 20 steps, before the replies had come into the verdict.
    settings.optimizer.learning_rate = 7e-5;
    settings.optimizer.schedule = Shape::Constant;
    settings.optimizer.warmup_steps = 4;
    // Gradients have norms of 0.2 to 0.5 here: what is cut is an accident.
    settings.optimizer.max_grad_norm = 1.0;
    // A step in two micro-batches instead of four: the examples run half as often. Activations take 5 GiB then; with less
    // memory they are recomputed.
    settings.train.micro_batch_tokens = 8192;
    settings.train.steps = 200;
    settings.train.save_every = 5;
    settings.train.eval_every = 20;
    settings
}

/// The RL stage of SPCT (DeepSeek, arXiv 2504.02495): G = 4, +1 or -1 for a strict argmax and nothing for the format,
/// the GRPO paper's loss, and its larger KL weight, 0.08. The paper tunes all weights of a 27B model at a rate
/// of 4e-7; a LoRA adapter keeps the j1 rate.
fn spct() -> Settings {
    let mut settings = j1(Preset::Spct, "Qwen/Qwen3-0.6B");
    settings.data.orders = Orders::Random;
    settings.rollout.group_size = 4;
    settings.reward.weights = RewardWeights { verdict: 1.0, ..RewardWeights::default() };
    settings.reward.wrong_verdict = -1.0;
    settings.reward.normalize_each = false;
    settings.loss.kind = LossType::Grpo;
    settings.loss.beta = 0.08;
    settings
}

/// The original as it ran on TRL 0.15.2: prompts cut at their left, log-probabilities at T = 1 of what was sampled at
/// T = 0.9, the mean over each completion first, groups without variance kept for their KL term, dropout between
/// sampling and training, one drawn order, four accumulated parts of four prompts. One thing is not as it was: a score
/// off the template's scale is no verdict here either, where the original let 100 beat 10. The format reward is the
/// original's to the letter.
fn trl_0_15_2() -> Settings {
    let mut settings = j1(Preset::Trl0152, "Qwen/Qwen3-0.6B");
    settings.lora.dropout = 0.1;
    settings.data.over_long = OverLong::TruncateLeft;
    settings.data.orders = Orders::Random;
    settings.reward.weights =
        RewardWeights { format: 1.0, verdict: 1.0, ..RewardWeights::default() };
    settings.reward.normalize_each = false;
    settings.reward.drop_zero_variance = false;
    settings.loss.kind = LossType::Grpo;
    settings.loss.temperature_scaled = false;
    settings.loss.reference = Reference::Base; // the adapter is switched off
    settings.loss.accumulation_steps = 4;
    settings.train.steps = 0;
    settings.train.epochs = 10.0;
    settings.train.seed = 42; // of the transformers Trainer
    settings
}
