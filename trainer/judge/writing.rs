//! A judgement as it is written, and what is read from it at its end.

use engine::{
    generate::{FinishReason, Request},
    text::tokenizer::{DecodeStream, TokenizerError},
};

use super::{
    Judge, MAX_VOTES, Task,
    prompt::Order,
    stop::{Watch, kept},
    verdict::{self, Reading},
};
use crate::{
    data::Pair,
    eval::results::{Finish, Record},
};

/// A judgement under way.
#[derive(Clone, Debug)]
pub struct Writing<'a> {
    task: Task,
    text: DecodeStream<'a>,
    watch: Option<Watch<'a>>,
    tokens: usize,
    log_prob: f64,
    /// What stands of the text at its end, in bytes, and how it ended.
    end: Option<(String, Finish)>,
}

impl Writing<'_> {
    /// The judgement that is written.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Takes a token. Gives the text that it completes, and how the judgement ended, if it did: at a stop string the generator
    /// would go on.
    pub fn push(
        &mut self,
        token: u32,
        log_prob: f32,
        finish: Option<FinishReason>,
    ) -> Result<(String, Option<Finish>), TokenizerError> {
        self.tokens += 1;
        self.log_prob += f64::from(log_prob);
        let said = self.text.text().len();
        let mut fresh = String::new();
        let mut behind = None;
        if finish != Some(FinishReason::Stop) {
            fresh = self.text.push(token)?;
            if let Some(watch) = &mut self.watch {
                behind = watch.push(token)?;
            }
        }
        if finish.is_some() && behind.is_none() {
            // With what was held back.
            fresh = [fresh, self.text.clone().finish()?].concat();
            if let Some(watch) = &mut self.watch {
                behind = watch.finish()?;
            }
        }
        let fresh = kept(&fresh, behind.unwrap_or(0)).to_owned();
        let finish = match (finish, behind) {
            (_, Some(_)) | (Some(FinishReason::Stop), None) => Some(Finish::Stop),
            (Some(FinishReason::Length), None) => Some(Finish::Length),
            (None, None) => None,
        };
        self.end = finish.map(|finish| (self.text.text()[..said].to_owned() + &fresh, finish));
        Ok((fresh, finish))
    }
}

impl Judge<'_> {
    /// Begins to write a judgement.
    pub fn begin(&self, task: Task) -> Writing<'_> {
        let tokenizer = &self.language_model.tokenizer;
        let watch = Watch::new(self.stop_strings, tokenizer);
        Writing { task, text: tokenizer.stream(true), watch, tokens: 0, log_prob: 0.0, end: None }
    }

    /// What a generator is asked for the votes of one pair and order, whose prompt this is.
    pub fn request(&self, pair: &Pair, votes: &[Task], prompt: Vec<u32>) -> Request {
        Request {
            prompt,
            samples: votes.iter().map(|task| sequence(pair, task)).collect(),
            seed: self.seed,
            max_new_tokens: self.max_new_tokens,
            sampling: self.sampling,
            repetition_penalty: self.repetition_penalty,
            top_log_probs: 0,
        }
    }

    /// A judgement that has ended.
    ///
    /// # Panics
    /// If it has not.
    pub fn record(&self, pair: &Pair, writing: &Writing<'_>, prompt_tokens: usize) -> Record {
        let (text, finish) = writing.end.clone().expect("a judgement that has ended");
        self.record_of(pair, writing, prompt_tokens, text, finish)
    }

    /// The record of a judgement that is not made, since its prompt does not fit.
    pub fn too_long(&self, pair: &Pair, task: Task, prompt_tokens: usize) -> Record {
        let writing = self.begin(task);
        self.record_of(pair, &writing, prompt_tokens, String::new(), Finish::PromptTooLong)
    }

    fn record_of(
        &self,
        pair: &Pair,
        writing: &Writing<'_>,
        prompt_tokens: usize,
        text: String,
        finish: Finish,
    ) -> Record {
        let Reading { strict, soft } = verdict::read(&text, finish, self.template.verdict_form());
        Record {
            row: pair.row,
            id: pair.id.clone(),
            subset: pair.subset.clone(),
            candidates: pair.candidates,
            order: writing.task.order,
            vote: writing.task.vote,
            prompt_tokens: prompt_tokens as u32,
            tokens: writing.tokens as u32,
            finish,
            log_prob: writing.log_prob,
            strict,
            soft,
            text,
        }
    }
}

/// The number under which a judgement draws: its own among all of a run's, whatever is left out.
fn sequence(pair: &Pair, task: &Task) -> u64 {
    assert!(task.vote < MAX_VOTES, "vote {}", task.vote);
    let order = match task.order {
        Order::ChosenFirst => 0,
        Order::RejectedFirst => 1,
    };
    (pair.row << 17) | (order << 16) | u64::from(task.vote)
}
