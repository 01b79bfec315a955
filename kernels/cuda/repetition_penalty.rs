//! [`crate::cpu::repetition_penalty`] on the device.

use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu, entries};
use crate::cpu::repetition_penalty::{self, Penalized};
use crate::cpu::sample::MAX_VOCAB;

/// What rows of logits are penalized for, on the device.
#[derive(Debug)]
pub struct Penalties {
    /// As repetition_penalty.cu has it; the list's end may be unused.
    words: Buffer<u32>,
    rows: usize,
    vocab: usize,
}

/// Of `rows`, as repetition_penalty.cu has it.
fn penalty_words(rows: &[Penalized<'_>], vocab: usize) -> Vec<u32> {
    let mut words: Vec<u32> = Vec::with_capacity(2 * rows.len() + 1);
    for row in rows {
        if let Err(error) = repetition_penalty::validate(row.penalty) {
            panic!("{error}");
        }
        words.push(row.penalty.to_bits());
    }
    let mut end = 0;
    words.push(end);
    for row in rows {
        end += row.tokens.iter().map(|tokens| tokens.len() as u32).sum::<u32>();
        words.push(end);
    }
    for &token in rows.iter().flat_map(|row| row.tokens).flatten() {
        assert!((token as usize) < vocab, "token {token} of {vocab}");
        words.push(token);
    }
    words
}

impl Gpu {
    /// Puts the penalties of rows of `vocab` logits on the device, with room for `room` penalized tokens of all rows
    /// together.
    ///
    /// # Panics
    /// If a token is not below `vocab`, or there is no room.
    pub fn penalties(
        &self,
        rows: &[Penalized<'_>],
        room: usize,
        vocab: usize,
    ) -> Result<Penalties, Error> {
        assert!((1..=MAX_VOCAB).contains(&vocab), "{vocab} logits in a row");
        let words = self.uninitialized(2 * rows.len() + 1 + room)?;
        let mut penalties = Penalties { words, rows: rows.len(), vocab };
        self.rewrite_penalties(&mut penalties, rows)?;
        Ok(penalties)
    }

    /// Replaces the penalties in place by others for as many rows, as a captured step needs.
    pub fn rewrite_penalties(
        &self,
        to: &mut Penalties,
        rows: &[Penalized<'_>],
    ) -> Result<(), Error> {
        assert_eq!(rows.len(), to.rows, "rows that are penalized");
        self.write(&mut to.words, 0, &penalty_words(rows, to.vocab))
    }

    /// Reference: [`repetition_penalty::apply`], on `logits` `[rows, padded_vocab(vocab)]`.
    pub fn repetition_penalty(
        &self,
        logits: &mut Buffer<f32>,
        penalties: &Penalties,
    ) -> Result<(), Error> {
        let Penalties { words, rows, vocab } = penalties;
        let stride = super::padded_vocab(*vocab);
        expect(self, "logits", logits, &[*rows, stride]);
        expect(self, "what is penalized", words, &[words.len()]);
        let args = args![logits, words, *rows, stride];
        // SAFETY: a block reads its row's words and ids, which lie in the buffer because all of them were written
        // to it, and changes its row of logits at ids below the vocabulary, which were checked then.
        unsafe { self.launch(&entries::REPETITION_PENALTY_APPLY, Grid::new(*rows, 256), args) }
    }
}
