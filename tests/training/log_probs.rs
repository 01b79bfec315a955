//! The log-probabilities of training are those of sampling, to the bit: without an update in between,
//! every importance ratio is exactly 1.

use engine::{
    generate::{Generator, GeneratorOptions, Request, SamplingParams},
    model::{
        Model, Precision,
        training::{PackedBatch, TrainingPass},
    },
    tensor::{
        device::{Cpu, Isa},
        tape::Tape,
    },
};

use super::{Run, metrics, number};
use crate::generation::open;

const TEMPERATURE: f32 = 0.9;

/// Completions with the log-probabilities they were sampled with, and the entropies of what they were drawn from.
type Sampled = Vec<(Vec<u32>, Vec<[f32; 2]>)>;

/// Samples groups from prompts around the page size, some of which begin alike.
fn sample(model: &Model, stop: &[u32]) -> Vec<(Vec<u32>, Sampled)> {
    let options = GeneratorOptions { max_batch: 7, prefill_rows: 48, cache_bytes: 4 << 20 };
    let vocab = model.config().vocab_size;
    let mut generator = Generator::new(model, stop, options).unwrap();
    let mut groups = Vec::new();
    for (index, length) in [1, 31, 32, 33, 40, 64, 70].into_iter().enumerate() {
        let token = |i: usize| ((i * 37 + index / 2 * 101 + 5) % vocab) as u32;
        let prompt: Vec<u32> = (0..length).map(token).collect();
        generator
            .submit(Request {
                prompt: prompt.clone(),
                samples: (4 * index as u64..4 * index as u64 + 4).collect(),
                seed: 3,
                max_new_tokens: 36,
                sampling: SamplingParams {
                    temperature: TEMPERATURE,
                    top_k: 0,
                    top_p: 1.0,
                    min_p: 0.0,
                },
                repetition_penalty: 1.0,
                top_log_probs: 0,
            })
            .unwrap();
        groups.push((prompt, vec![(Vec::new(), Vec::new()); 4]));
    }
    while !generator.is_idle() {
        generator
            .step(&mut |event| {
                let (tokens, drawn) = &mut groups[event.request.0 as usize].1[event.sample];
                tokens.push(event.token);
                drawn.push([event.log_prob, event.entropy]);
            })
            .unwrap();
    }
    groups
}

#[test]
fn training_computes_the_log_probs_and_entropies_of_the_rollout() {
    for (case, precision) in [
        ("qwen3-tied", Precision::F32),
        ("qwen3-untied", Precision::F32),
        ("qwen2", Precision::F32),
        ("llama", Precision::F32),
        ("qwen3-tied", Precision::Bf16),
        ("qwen3-tied-bf16", Precision::Bf16),
        ("qwen3-sharded", Precision::Bf16),
    ] {
        for isa in Isa::available() {
            let policy = |threads| open(case, true, precision, Cpu::with_isa(threads, isa));
            let (sampler, mut trained) = (policy(2), policy(1));
            trained.train_adapter();
            let stop: Vec<u32> = (0..8).collect();
            let groups = sample(&sampler, &stop);
            let mut batch = PackedBatch::default();
            for (prompt, completions) in &groups {
                let tokens: Vec<&[u32]> = completions.iter().map(|c| c.0.as_slice()).collect();
                batch.push(prompt, &tokens);
            }
            let expected: Vec<u32> = (groups.iter().flat_map(|(_, completions)| completions))
                .flat_map(|(_, drawn)| drawn.iter().flatten().map(|value| value.to_bits()))
                .collect();
            for checkpoint in [false, true] {
                let pass = TrainingPass {
                    temperature: TEMPERATURE,
                    adapter: true,
                    dropout: None,
                    checkpoint,
                };
                let y = trained.log_probs(&mut Tape::new(), &batch, pass).unwrap();
                let got: Vec<u32> = y.data().iter().map(|y| y.to_bits()).collect();
                assert!(got == expected, "{case} {precision:?} {isa}, checkpoint {checkpoint}");
            }
        }
    }
}

/// With a clip range of zero width, any ratio that is not exactly 1 is counted as clipped. The first
/// update is at a rate of 0, so that both iterations of the first step see the policy that sampled; the
/// second iteration of the second step sees one that moved.
#[test]
fn without_an_update_every_importance_ratio_is_one() {
    for case in ["qwen3-tied", "qwen3-tied-bf16"] {
        let mut run = Run::new(case);
        run.set(&["loss.num_iterations=2", "loss.epsilon_low=0", "loss.epsilon_high=0"]);
        run.set(&["loss.beta=0", "train.steps=2"]);
        let out = run.complete("out", 2);
        let lines = metrics(&out);
        let clipped = |line| number(&lines[line], "clip_ratio/region_mean");
        assert_eq!(clipped(0), 0.0, "{case}: {:?}", lines[0]);
        assert!((1e-3..=0.5).contains(&clipped(1)), "{case}: {:?}", lines[1]);
        for line in &lines {
            assert_eq!(number(line, "sampling/sampling_logp_difference/max"), 0.0, "{case}");
        }
    }
}

/// Where every group is trained on, the entropy of what was sampled is that of what was trained on.
#[test]
fn the_entropy_of_a_step_is_that_of_all_its_tokens() {
    let mut run = Run::new("qwen3-tied-bf16");
    run.set(&["reward.drop_zero_variance=false", "train.steps=4", "train.eval_every=0"]);
    let all = metrics(&run.complete("all", 1));
    for line in &all {
        let (sampled, trained) = (number(line, "entropy"), number(line, "entropy_trained"));
        assert!(sampled > 0.1 && (sampled - trained).abs() < 1e-9, "{sampled} {trained}");
    }
    // Which of them are trained on does not change it; the first step's rate is 0.
    run.set(&["reward.drop_zero_variance=true", "reward.weights.length=0"]);
    let none = metrics(&run.complete("none", 1));
    for (none, all) in none.iter().zip(&all).take(2) {
        assert_eq!(number(none, "entropy"), number(all, "entropy"));
        assert!(!none.contains_key("entropy_trained"), "every group ties");
    }
}
