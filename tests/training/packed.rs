//! A group packed as `[prompt][completion 1]..[completion G]`, behind a prompt that it begins like, computes what its
//! completions compute as sequences of their own: log-probabilities and entropies to the bit, gradients but for the
//! order of sums.

use engine::{
    model::{
        Model, Precision,
        kv_cache::KvCache,
        training::{PackedBatch, TrainingPass},
    },
    tensor::{
        Tensor,
        device::{Cpu, Isa},
        tape::{Gradients, Tape},
    },
};

use crate::generation::open;

const PASS: TrainingPass =
    TrainingPass { temperature: 0.9, adapter: true, dropout: None, checkpoint: false };

/// Tokens that the last four prompts share with the fifth: of the next one three quarters, and less and less.
const SHARED: [usize; 4] = [70, 65, 64, 31];

/// A prompt and its completions.
type Group = (Vec<u32>, Vec<Vec<u32>>);

/// Prompts around the ends of pages, with completions that end in them, at their ends and beyond. Some begin like the
/// prompt before.
fn groups(vocab: usize) -> Vec<Group> {
    let lengths: [(usize, &[usize]); 9] = [
        (1, &[1, 31, 4]),
        (31, &[2, 1, 33, 1]),
        (32, &[1, 1]),
        (33, &[32, 7, 3]),
        (80, &[25]),
        (90, &[3, 2]),
        (71, &[9, 0]),
        (70, &[5]),
        (64, &[2]),
    ];
    let token = |seed: usize, i: usize| ((i * 37 + seed * 101 + i * i * seed + 5) % vocab) as u32;
    let group = |(index, (prompt, completions)): (usize, &(usize, &[usize]))| {
        let tokens = |seed, len| (0..len).map(|i| token(seed, i)).collect::<Vec<u32>>();
        let completion = |(sample, &len)| tokens(10 * (index + 1) + sample, len);
        let mut own = tokens(index, *prompt);
        if let Some(shared) = index.checked_sub(5).map(|of| SHARED[of]) {
            own[..shared].copy_from_slice(&tokens(4, shared));
        }
        (own, completions.iter().enumerate().map(completion).collect())
    };
    lengths.iter().enumerate().map(group).collect()
}

fn packed(groups: &[Group]) -> PackedBatch {
    let mut batch = PackedBatch::default();
    for (prompt, completions) in groups {
        let completions: Vec<&[u32]> = completions.iter().map(Vec::as_slice).collect();
        batch.push(prompt, &completions);
    }
    batch
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What the loss's derivative by each log-probability might be; entropies have none.
fn derivatives(first: usize, targets: usize) -> Vec<f32> {
    let of = |i: usize| ((i * 29 + 7) % 17) as f32 / 8.0 - 1.0;
    (first..first + targets).flat_map(|i| [of(i), 0.0]).collect()
}

/// One pass: log-probabilities and entropies; gradients are added to `gradients`.
fn pass(
    model: &Model,
    batch: &PackedBatch,
    derivatives: &[f32],
    pass: TrainingPass,
    gradients: &mut Gradients,
) -> Vec<u32> {
    let mut tape = Tape::new();
    let y = model.log_probs(&mut tape, batch, pass).unwrap();
    let values = bits(y.data());
    let dy = Tensor::from_slice(model.device(), batch.targets(), 2, derivatives);
    tape.backward(&y, dy, gradients);
    values
}

/// The gradient of every factor, with its name.
fn named(model: &Model, gradients: &Gradients) -> Vec<(String, Vec<f32>)> {
    let of = |factor| gradients.get(factor).expect("every factor has a gradient").data().to_vec();
    model.parameters().map(|(name, factor)| (name.peft_key(), of(factor))).collect()
}

fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |largest, value| largest.max(f64::from(value.abs())))
}

fn trained(case: &str, precision: Precision, threads: usize, isa: Isa) -> Model {
    let mut model = open(case, true, precision, Cpu::with_isa(threads, isa));
    model.train_adapter();
    model
}

#[test]
fn packed_groups_are_their_sequences() {
    for case in ["qwen3-tied", "qwen3-untied", "qwen2", "llama"] {
        for isa in Isa::available() {
            let model = trained(case, Precision::F32, 1, isa);
            let groups = groups(model.config().vocab_size);
            let whole = packed(&groups);
            let all = derivatives(0, whole.targets());
            let alone = |(prompt, completions): &Group| {
                prompt.len() + completions.iter().map(|all| all.len().max(1) - 1).sum::<usize>()
            };
            // The last one shares less than a page.
            let shared: usize = SHARED[..3].iter().sum();
            assert_eq!(whole.rows() + shared, groups.iter().map(alone).sum::<usize>());
            let mut gradients = Gradients::default();
            let values = pass(&model, &whole, &all, PASS, &mut gradients);
            let together = named(&model, &gradients);

            let (mut separate, mut apart) = (Vec::new(), Gradients::default());
            let mut sizes = vec![0.0; together.len()];
            let (mut first, mut rows) = (0, 0);
            for (prompt, completions) in &groups {
                for completion in completions {
                    let mut batch = PackedBatch::default();
                    batch.push(prompt, &[completion]);
                    let own = derivatives(first, batch.targets());
                    let mut of_one = Gradients::default();
                    separate.extend(pass(&model, &batch, &own, PASS, &mut of_one));
                    pass(&model, &batch, &own, PASS, &mut apart);
                    for (size, (_, gradient)) in sizes.iter_mut().zip(named(&model, &of_one)) {
                        *size += largest(&gradient);
                    }
                    first += batch.targets();
                    rows += batch.rows();
                }
            }
            assert!(values == separate, "{case} {isa}: log-probabilities or entropies differ");

            // Both gradients are sums of the same products over at most `rows` rows, in f32, each in an order
            // of its own. What that rounds is of the size √rows·u·Σ|terms|, u = 2⁻²⁴ (Higham and Mary 2019,
            // "A New Approach to Probabilistic Rounding Error Analysis"); the strict bound has rows for √rows.
            // For Σ|terms| stands what is not more: the sequences' largest gradients, added up.
            let roundings = 2.0 * (rows as f64).sqrt() * f64::from(f32::EPSILON) / 2.0;
            let apart = named(&model, &apart);
            for ((size, (name, a)), (_, b)) in sizes.iter().zip(&together).zip(&apart) {
                let differences = a.iter().zip(b).map(|(a, b)| a - b);
                let worst = largest(&differences.collect::<Vec<f32>>());
                assert!(largest(b) > 0.0, "{case} {isa} {name}: no gradient");
                assert!(
                    worst <= roundings * size,
                    "{case} {isa} {name}: {worst:e} of {size:e}, at most {:e}",
                    roundings * size
                );
            }

            // Neither recomputed layers nor threads change a bit.
            let expected: Vec<Vec<u32>> = together.iter().map(|(_, g)| bits(g)).collect();
            for (threads, checkpoint) in [(1, true), (2, false), (2, true), (5, true)] {
                let model = trained(case, Precision::F32, threads, isa);
                let mut gradients = Gradients::default();
                let options = TrainingPass { checkpoint, ..PASS };
                let again = pass(&model, &whole, &all, options, &mut gradients);
                let place = format!("{case} {isa}, {threads} threads, checkpoint {checkpoint}");
                assert!(again == values, "{place}: values");
                let again = named(&model, &gradients);
                let again: Vec<Vec<u32>> = again.iter().map(|(_, g)| bits(g)).collect();
                assert!(again == expected, "{place}: gradients");
            }
        }
    }
}

/// In the precision that trains real models, and without the adapter, as the reference policy runs.
#[test]
fn no_precision_and_no_policy_depends_on_the_packing() {
    for (case, precision) in [
        ("qwen3-tied-bf16", Precision::Bf16),
        ("qwen3-untied", Precision::Bf16),
        ("qwen3-sharded", Precision::Bf16),
        ("llama", Precision::Bf16),
        ("qwen2", Precision::F32),
    ] {
        for isa in Isa::available() {
            let model = open(case, true, precision, Cpu::with_isa(2, isa));
            let groups = groups(model.config().vocab_size);
            for adapter in [true, false] {
                let options = TrainingPass { adapter, ..PASS };
                let run = |batch: &PackedBatch| {
                    bits(model.log_probs(&mut Tape::off(), batch, options).unwrap().data())
                };
                let alone = |(prompt, completions): &Group| -> Vec<u32> {
                    let one = |completion: &Vec<u32>| {
                        let mut batch = PackedBatch::default();
                        batch.push(prompt, &[completion]);
                        run(&batch)
                    };
                    completions.iter().flat_map(one).collect()
                };
                let separate: Vec<u32> = groups.iter().flat_map(alone).collect();
                assert!(run(&packed(&groups)) == separate, "{case} {isa}, adapter {adapter}");
            }
        }
    }
}

/// The prompts above stand around the ends of the pages that the cache really has.
#[test]
fn the_prompts_lie_around_the_page_size() {
    let pages: Vec<usize> =
        groups(100).iter().map(|(prompt, _)| KvCache::pages_for(prompt.len())).collect();
    assert_eq!(pages, [1, 1, 1, 2, 3, 3, 3, 3, 2]);
}
