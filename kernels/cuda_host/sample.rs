//! Drawing tokens on the device, and what comes before it.

use super::launch::{Grid, args, expect};
use super::log_prob::error_of;
use super::{Buffer, Error, Gpu, SampleRequest};
use crate::cpu::log_prob::{LogitsError, VOCAB_BLOCK};
use crate::cpu::repetition_penalty::{self, Penalized};
use crate::cpu::sample::{MAX_VOCAB, Sample};
use crate::ptx;

/// Words of a request, and of a result.
const REQUEST: usize = 12;
const RESULT: usize = 4;

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
    /// Puts on the device what each row of logits of `vocab` tokens is penalized for, with room for so many tokens
    /// of all rows together.
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

    /// Others for as many rows: what a recorded step reads.
    pub fn rewrite_penalties(
        &self,
        to: &mut Penalties,
        rows: &[Penalized<'_>],
    ) -> Result<(), Error> {
        assert_eq!(rows.len(), to.rows, "rows that are penalized");
        self.write(&mut to.words, 0, &penalty_words(rows, to.vocab))
    }

    /// Twin of [`repetition_penalty::apply`], on `logits` `[rows, padded_vocab(vocab)]`.
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
        unsafe { self.launch(&ptx::REPETITION_PENALTY_APPLY, Grid::new(*rows, 256), args) }
    }

    /// Puts requests, one a row, on the device.
    pub fn sample_requests(&self, requests: &[SampleRequest]) -> Result<Buffer<u32>, Error> {
        let words: Vec<u32> = requests.iter().flat_map(|request| request.words()).collect();
        self.upload(&words)
    }

    /// The same into a buffer that has as many: what a recorded step reads.
    pub fn rewrite_requests(
        &self,
        to: &mut Buffer<u32>,
        requests: &[SampleRequest],
    ) -> Result<(), Error> {
        let words: Vec<u32> = requests.iter().flat_map(|request| request.words()).collect();
        expect(self, "requests", to, &[words.len()]);
        self.write(to, 0, &words)
    }

    /// Twin of [`crate::cpu::sample::draw`] at the number Philox gives, bit for bit: draws a token from each row of
    /// `logits` `[rows, padded_vocab(vocab)]`. Results (token, bits of log-probability and entropy, status) go to `out`
    /// `[rows, 4]`; the token of row i is `out[4·i]`, where the next step can read it. See [`Gpu::samples`].
    pub fn sample(
        &self,
        out: &mut Buffer<u32>,
        logits: &Buffer<f32>,
        requests: &Buffer<u32>,
        vocab: usize,
    ) -> Result<(), Error> {
        let rows = requests.len() / REQUEST;
        expect(self, "requests", requests, &[rows, REQUEST]);
        expect(self, "out", out, &[rows, RESULT]);
        if rows == 0 {
            return Ok(());
        }
        let stride = super::padded_vocab(vocab);
        expect(self, "logits", logits, &[rows, stride]);
        assert!((1..=MAX_VOCAB).contains(&vocab), "{vocab} logits in a row");
        let blocks = vocab.div_ceil(VOCAB_BLOCK);
        let ids = self.uninitialized::<u32>(logits.len())?;
        let keys = self.uninitialized::<u32>(logits.len())?;
        let weights = self.uninitialized::<f32>(logits.len())?;
        let maxima = self.uninitialized::<f32>(rows * blocks * 16)?;
        // Blocks' sums, or weights of one block.
        let shared_bytes = (blocks * 12).max(VOCAB_BLOCK * 4);
        let grid = Grid { shared_bytes, ..Grid::new(rows, 512) };
        let args = args![out, logits, requests, &ids, &keys, &weights, &maxima, vocab, stride];
        // SAFETY: a block reads its row's logits and request, and writes its rows of scratch and its result.
        unsafe { self.launch(&ptx::SAMPLE_DRAW, grid, args) }
    }

    /// Waits for drawn tokens and brings them to the host.
    pub fn samples(&self, out: &Buffer<u32>) -> Result<Vec<Result<Sample, LogitsError>>, Error> {
        let words = self.download(out)?;
        let sample = |words: &[u32]| match error_of(words[3]) {
            Some(error) => Err(error),
            None => Ok(Sample {
                token: words[0],
                log_prob: f32::from_bits(words[1]),
                entropy: f32::from_bits(words[2]),
            }),
        };
        Ok(words.chunks_exact(RESULT).map(sample).collect())
    }
}
