//! The text that follows a prompt, as it is written: a [`Generator`] with one request.

use kernels::cpu::sample::{ParamsError, SamplingParams};

use super::LanguageModel;
use crate::{
    generate::{self, FinishReason, Generator, GeneratorOptions, Request},
    model::kv_cache::KvCache,
    text::tokenizer::{DecodeStream, TokenizerError},
};

/// Why a prompt has no completion.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a part
pub enum CompletionError {
    #[error("{0}")]
    Sampling(#[from] ParamsError),
    #[error("{0}")]
    Tokenizer(#[from] TokenizerError),
    #[error("{0}")]
    Generate(#[from] generate::GenerateError),
}

/// Text that the model writes, piece by piece, from [`LanguageModel::generate`]. Each piece is what became whole with
/// the latest tokens; after an error there are no more.
pub struct Completion<'m> {
    generator: Generator<'m>,
    /// `None` once the completion has ended.
    text: Option<DecodeStream<'m>>,
}

impl LanguageModel {
    /// The text that follows `prompt`: up to a stop token, which is not part of it, or to `max_new_tokens` tokens.
    ///
    /// `prompt` is taken as it is: a conversation is rendered first ([`ChatTemplate::render`]). The seed is 0, so the
    /// same call gives the same text. For other seeds, several samples, prompts that run together, token ids or
    /// log-probabilities there is [`Generator`].
    ///
    /// ```
    /// # use std::path::Path;
    /// use engine::prelude::*;
    ///
    /// # let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/qwen3-tied/model");
    /// let language_model = LanguageModel::open(directory)?;
    /// let sampling = SamplingParams { temperature: 0.7, top_p: 0.95, ..SamplingParams::default() };
    /// let text: String = language_model.generate("2+2=", sampling, 16)?.collect::<Result<_, _>>()?;
    /// # assert!(!text.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Sampling parameters out of range, a prompt without tokens, more tokens than the model has positions or memory has
    /// room for; while it runs, a device that fails and logits that are not finite.
    ///
    /// # Panics
    /// If `max_new_tokens` is 0.
    ///
    /// [`ChatTemplate::render`]: crate::text::chat::ChatTemplate::render
    pub fn generate(
        &self,
        prompt: &str,
        sampling: SamplingParams,
        max_new_tokens: usize,
    ) -> Result<Completion<'_>, CompletionError> {
        sampling.validate()?;
        let prompt = self.tokenizer.encode(prompt)?;
        let (model, positions) = (&self.model, self.model.config().max_position_embeddings);
        let tokens = prompt.len().saturating_add(max_new_tokens).min(positions);
        let options = GeneratorOptions {
            max_batch: 1,
            prefill_rows: GeneratorOptions::PREFILL_ROWS,
            cache_bytes: KvCache::page_bytes(model.config(), model.cache_dtype())
                .saturating_mul(KvCache::pages_for(tokens)),
        };
        let mut generator = Generator::new(model, self.stop_tokens(), options)?;
        generator.submit(Request {
            prompt,
            samples: vec![0],
            seed: 0,
            max_new_tokens,
            sampling,
            repetition_penalty: 1.0,
            top_log_probs: 0,
        })?;
        Ok(Completion { generator, text: Some(self.tokenizer.stream(true)) })
    }
}

impl Completion<'_> {
    /// Takes steps until text comes out; `None` at the end.
    fn advance(&mut self) -> Result<Option<String>, CompletionError> {
        // Taken, so that an error ends it.
        while let Some(mut text) = self.text.take() {
            let mut event = None;
            // A step that is part of a long prompt draws no token.
            self.generator.step(&mut |one| event = Some((one.token, one.finish)))?;
            let mut piece = String::new();
            let finish = event.and_then(|(_, finish)| finish);
            if let Some((token, _)) = event
                && finish != Some(FinishReason::Stop)
            {
                piece = text.push(token)?;
            }
            match finish {
                Some(_) => piece.push_str(&text.finish()?),
                None => self.text = Some(text),
            }
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}

impl Iterator for Completion<'_> {
    type Item = Result<String, CompletionError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

impl std::iter::FusedIterator for Completion<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{golden::case, tensor::device::Device};

    fn open(name: &str) -> LanguageModel {
        let device = Device::cpu_threads(1);
        LanguageModel::builder(case(name).join("model")).device(&device).open().unwrap()
    }

    /// The tokens of the same request, taken from a generator, and why it ended.
    fn tokens(
        language_model: &LanguageModel,
        prompt: &str,
        sampling: SamplingParams,
        max_new_tokens: usize,
    ) -> (Vec<u32>, FinishReason) {
        let options = GeneratorOptions { max_batch: 4, prefill_rows: 16, cache_bytes: 8 << 20 };
        let stop = language_model.stop_tokens();
        let mut generator = Generator::new(&language_model.model, stop, options).unwrap();
        let prompt = language_model.tokenizer.encode(prompt).unwrap();
        let (samples, seed, repetition_penalty) = (vec![0], 0, 1.0);
        let request = Request {
            prompt,
            samples,
            seed,
            max_new_tokens,
            sampling,
            repetition_penalty,
            top_log_probs: 0,
        };
        generator.submit(request).unwrap();
        let (mut tokens, mut finish) = (Vec::new(), None);
        while !generator.is_idle() {
            let on = &mut |event: generate::TokenEvent| {
                tokens.push(event.token);
                finish = event.finish;
            };
            generator.step(on).unwrap();
        }
        (tokens, finish.unwrap())
    }

    #[test]
    fn pieces_are_the_text_of_the_tokens_without_the_one_that_stops() {
        let mut language_model = open("qwen3-tied");
        let long = "What comes next? ".repeat(60);
        let sampled = SamplingParams { temperature: 1.5, ..SamplingParams::default() };
        for (prompt, sampling, most) in [
            ("2+2=", SamplingParams::GREEDY, 1),
            ("2+2=", SamplingParams::GREEDY, 40),
            ("Once", sampled, 60),
            // More rows than a step takes.
            (&long, SamplingParams::GREEDY, 20),
        ] {
            let (all, finish) = tokens(&language_model, prompt, sampling, most);
            assert_eq!((all.len(), finish), (most, FinishReason::Length));
            // The token in the middle stops the second run.
            for stop in [None, Some(all[most / 2])] {
                language_model.generation.eos_token_ids = stop.into_iter().collect();
                let written = stop.and_then(|stop| all.iter().position(|&token| token == stop));
                let want = &all[..written.unwrap_or(most)];
                let completion = language_model.generate(prompt, sampling, most).unwrap();
                let pieces: Vec<String> = completion.map(Result::unwrap).collect();
                assert!(pieces.iter().all(|piece| !piece.is_empty()));
                let want = language_model.tokenizer.decode(want, true).unwrap();
                assert_eq!(pieces.concat(), want, "{prompt:?}, {stop:?}");
            }
            language_model.generation.eos_token_ids.clear();
        }
    }

    #[test]
    fn what_cannot_run_is_refused() {
        let language_model = open("qwen3-tied");
        let refused = |prompt: &str, sampling: SamplingParams, most: usize| {
            language_model.generate(prompt, sampling, most).err().expect("refused").to_string()
        };
        let positions = language_model.model.config().max_position_embeddings;
        let (greedy, hot) = (SamplingParams::GREEDY, f32::INFINITY);
        assert!(refused("", greedy, 1).contains("no tokens"));
        for most in [positions, usize::MAX] {
            assert!(refused("2+2=", greedy, most).contains("positions"));
        }
        let hot = SamplingParams { temperature: hot, ..greedy };
        assert!(refused("2+2=", hot, 1).contains("temperature is inf"));
    }
}
