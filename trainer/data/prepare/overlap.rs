//! Prompts that are in a benchmark: training on them would measure memory, not judgement.
//!
//! Texts are compared by their letters and digits alone, in lower case, one space between words, so that
//! punctuation, markup and line breaks hide nothing. A row overlaps if all its user turns together, or one of
//! them that is long enough to be no accident, stand in the benchmark as a prompt or as one of its long turns.

use std::collections::HashSet;

use super::PrepareError;
use crate::data::{self, Message, Source};

/// The fewest characters, normalized, by which a single turn is recognized: shorter ones ("go on") repeat.
const LONG_TURN: usize = 32;

/// The prompts of all excluded files.
#[derive(Debug, Default)]
pub(super) struct Benchmark(HashSet<String>);

impl Benchmark {
    pub(super) fn read(sources: &[Source]) -> Result<Benchmark, PrepareError> {
        let mut prompts = HashSet::new();
        for source in sources {
            data::visit_prompts(source, |prompt| prompts.extend(keys(&prompt)))?;
        }
        Ok(Benchmark(prompts))
    }

    pub(super) fn contains(&self, prompt: &[Message]) -> bool {
        !self.0.is_empty() && keys(prompt).any(|key| self.0.contains(&key))
    }
}

/// Keys that a prompt is recognized by: all user turns together, and each that is long.
fn keys(prompt: &[Message]) -> impl Iterator<Item = String> {
    let turns: Vec<String> = (prompt.iter())
        .filter(|message| message.role == "user")
        .map(|message| normalized(&message.content))
        .collect();
    let whole = turns.join(" ");
    let long = turns.into_iter().filter(|turn| turn.chars().count() >= LONG_TURN);
    // A prompt of signs only ("?!") is empty here and would match every other such prompt.
    [whole].into_iter().chain(long).filter(|key| !key.is_empty())
}

/// Letters and digits in lower case, words apart by one space.
fn normalized(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(texts: &[&str]) -> Vec<Message> {
        texts.iter().map(|text| Message::new("user", text)).collect()
    }

    #[test]
    fn prompts_are_recognized_through_their_dress() {
        let question = "How many moons does Jupiter have, and why so many?";
        let benchmark = Benchmark(keys(&user(&[question])).chain(keys(&user(&["Hi!"]))).collect());
        for (prompt, found) in [
            (user(&["how many MOONS does\n**Jupiter** have -- and why so many"]), true),
            (user(&["Hello.", question, "Go on."]), true),
            (user(&["hi"]), true),
            (user(&["hi", "What is the capital of the largest country?"]), false),
            (user(&["How many moons does Jupiter have, and why so few?"]), false),
            (user(&["?!"]), false),
        ] {
            assert_eq!(benchmark.contains(&prompt), found, "{prompt:?}");
        }
        assert!(!Benchmark::default().contains(&user(&["?!"])));
        assert_eq!(normalized("Ça va?  ΑΒ-12"), "ça va αβ 12");
    }
}
