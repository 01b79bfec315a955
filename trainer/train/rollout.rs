//! Rollouts: judgements sampled from the policy, with the log-probabilities that training needs.
//!
//! All groups of a step are one generation: a prompt is computed once for its group, and what prompts
//! have in common (the system prompt, the two orders of a pair) once for all.

use std::sync::atomic::{AtomicBool, Ordering};

use engine::{
    generate::{self, FinishReason, Generator, Request, Stats},
    text::tokenizer::{Tokenizer, TokenizerError},
};
use serde::{Deserialize, Serialize};

use crate::{
    data::Message,
    eval::results::Finish,
    judge::{
        Judge,
        prompt::Order,
        verdict::{self, Verdict},
    },
};

/// One sampled judgement.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Token ids, the stop token included.
    pub tokens: Vec<u32>,
    /// Log-probability of each at the sampling temperature.
    pub log_probs: Vec<f32>,
    /// Sum over its tokens of the entropy, in nats, of what each was drawn from, before top-k and the like.
    pub entropy: f64,
    /// UnparsedReason of its end: stop token or length.
    pub finish: Finish,
    /// The decoded text, thinking included.
    pub text: String,
    /// Its verdict by the published rule.
    pub verdict: Verdict,
    /// The tokens that say the scores: from the one that opens the section to the one after its end, where a judgement ends.
    /// Empty where nothing opens it.
    pub scores: [usize; 2],
}

/// Why rollouts could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a part
pub enum RolloutError {
    #[error("prompt {prompt} of the step: {source}")]
    Generate { prompt: usize, source: generate::GenerateError },
    /// No prompt's fault: the device failed, or there is no memory.
    #[error("{0}")]
    Machine(#[source] generate::GenerateError),
    #[error("a completion cannot be decoded: {0}")]
    Tokenizer(#[from] TokenizerError),
}

/// Samples `group_size` completions of each prompt with the judge's model: prompt after prompt, those
/// of a prompt side by side. `None` if `stop` was raised before the end.
///
/// `first_sequence` numbers the completions of the run, so that each draws its own; `progress` is told
/// after every forward pass.
pub fn rollouts(
    judge: &Judge,
    prompts: &[Vec<u32>],
    group_size: usize,
    first_sequence: u64,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Stats),
) -> Result<Option<Vec<Completion>>, RolloutError> {
    let language_model = judge.language_model;
    let stop_tokens = language_model.stop_tokens();
    let mut generator = Generator::new(&language_model.model, stop_tokens, judge.options.clone())
        .map_err(RolloutError::Machine)?;
    let failed = |prompt| move |source| RolloutError::Generate { prompt, source };
    for (index, prompt) in prompts.iter().enumerate() {
        let first = first_sequence + (index * group_size) as u64;
        let request = Request {
            prompt: prompt.clone(),
            samples: (first..first + group_size as u64).collect(),
            seed: judge.seed,
            max_new_tokens: judge.max_new_tokens,
            sampling: judge.sampling,
            // The policy that samples is the one that is trained: its logits are sampled unchanged.
            repetition_penalty: 1.0,
            top_log_probs: 0,
        };
        generator.submit(request).map_err(failed(index))?;
    }
    let mut drawn: Vec<Drawn> = vec![Drawn::default(); prompts.len() * group_size];
    while !generator.is_idle() {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let step = generator.step(&mut |event| {
            let drawn = &mut drawn[event.request.0 as usize * group_size + event.sample];
            drawn.tokens.push(event.token);
            drawn.log_probs.push(event.log_prob);
            drawn.entropy += f64::from(event.entropy);
            drawn.finish = event.finish;
        });
        step.map_err(|source| match source {
            generate::GenerateError::Sampling { request, .. } => failed(request.0 as usize)(source),
            _ => RolloutError::Machine(source),
        })?;
        progress(generator.stats());
    }

    let tokenizer = &language_model.tokenizer;
    let complete = |drawn: Drawn| {
        let Drawn { tokens, log_probs, entropy, finish } = drawn;
        let (finish, said) = match finish.expect("the generator is idle") {
            FinishReason::Stop => (Finish::Stop, &tokens[..tokens.len() - 1]),
            FinishReason::Length => (Finish::Length, &tokens[..]),
        };
        let text = tokenizer.decode(said, true)?;
        let verdict = verdict::read(&text, finish, judge.template.verdict_form()).strict;
        let scores = tokens_of_scores(tokenizer, &tokens)?;
        Ok(Completion { tokens, log_probs, entropy, finish, text, verdict, scores })
    };
    drawn.into_iter().map(complete).collect::<Result<_, _>>().map(Some)
}

/// See [`Completion::scores`].
fn tokens_of_scores(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<[usize; 2], TokenizerError> {
    let Some(first) = token_with(tokenizer, tokens, verdict::SCORES_TAGS[0])? else {
        return Ok([0; 2]);
    };
    let last = token_with(tokenizer, tokens, verdict::SCORES_TAGS[1])?;
    Ok([first, last.map_or(tokens.len(), |last| tokens.len().min(last + 2))])
}

/// The token that completes the first `tag`.
fn token_with(
    tokenizer: &Tokenizer,
    tokens: &[u32],
    tag: &str,
) -> Result<Option<usize>, TokenizerError> {
    let said = |count: usize| {
        Ok::<bool, TokenizerError>(tokenizer.decode(&tokens[..count], true)?.contains(tag))
    };
    if !said(tokens.len())? {
        return Ok(None);
    }
    // Not said by `before` tokens, said by `after`.
    let (mut before, mut after) = (0, tokens.len());
    while after - before > 1 {
        let middle = before.midpoint(after);
        if said(middle)? { after = middle } else { before = middle }
    }
    Ok(Some(before))
}

#[derive(Clone, Default)]
struct Drawn {
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    entropy: f64,
    finish: Option<FinishReason>,
}

/// A line of `rollouts/step-N.jsonl`, which is read alone: what the completions of a prompt share is written with each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// The step, counted from 1; 0 for `j1 rollout`.
    pub step: u64,
    /// Number of the prompt in the step, counted from 0.
    pub group: usize,
    /// Number of the completion in its group, counted from 0.
    pub sample: usize,
    /// The pair's id.
    pub id: String,
    /// Its position in the data file.
    pub row: u64,
    /// Which reply stood in slot A.
    pub order: Order,
    /// `group` of the same pair's prompt in the other order; `None` if that is not in the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_order: Option<usize>,
    /// Length of the prompt in tokens.
    pub prompt_tokens: usize,
    /// Length of the completion in tokens, the stop token included.
    pub tokens: usize,
    /// UnparsedReason of its end: stop token or length.
    pub finish: Finish,
    /// Its verdict, slot A first.
    pub verdict: Verdict,
    /// Whether the chosen reply has the strictly higher score.
    pub right: bool,
    /// Each reward by name, before weights and normalization.
    pub rewards: std::collections::BTreeMap<String, f64>,
    /// The weighted sum.
    pub reward: f64,
    /// The advantage.
    pub advantage: f32,
    /// Sum of the log-probabilities of its tokens at the sampling temperature.
    pub log_prob: f64,
    /// The conversation that the replies answer, as the data have it, even where the prompt was cut at its beginning. Files
    /// of older versions have neither it nor the replies.
    #[serde(default)]
    pub prompt: Vec<Message>,
    /// The preferred reply.
    #[serde(default)]
    pub chosen: String,
    /// The other reply.
    #[serde(default)]
    pub rejected: String,
    /// The decoded text.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_scores_are_found_among_the_tokens() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/qwen3-tied/model");
        let tokenizer = Tokenizer::load(&model).unwrap();
        let found = |text: &str| {
            let tokens = tokenizer.encode(text).unwrap();
            let [first, end] = tokens_of_scores(&tokenizer, &tokens).unwrap();
            let decode =
                |range: std::ops::Range<usize>| tokenizer.decode(&tokens[range], true).unwrap();
            [decode(0..first), decode(first..end), decode(end..tokens.len())]
        };
        for before in ["", "é is right, A is not\n", "<analysis>\nA\n</analysis>\n<score>"] {
            let scores = "<scores>\n\\boxed{8, 6}\n</scores>";
            let [first, said, rest] = found(&format!("{before}{scores}\n\n#### <scores> 1"));
            // The tag's first tokens may be before it, and one token after it belongs to it.
            assert!(first.starts_with(before) && !first.contains("<scores>"), "{first}");
            assert!(format!("{first}{said}").starts_with(&format!("{before}{scores}")), "{said}");
            assert!(rest.contains("####") && !rest.contains("</scores>"), "{rest}");
            let [_, said, rest] = found(&format!("{before}<scores> \\boxed{{8, 6}}"));
            assert!(said.ends_with("6}") && rest.is_empty(), "{said}, {rest}");
        }
        assert_eq!(found("\\boxed{8, 6}")[1], "");
        assert_eq!(found("")[1], "");
    }
}
