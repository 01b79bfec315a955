//! [`crate::cpu::sample`] on the device.

use super::entries;
use super::launch::{Grid, args, expect};
use super::log_prob::error_of;
use super::{Buffer, Error, Gpu, SampleRequest};
use crate::cpu::log_prob::{LogitsError, VOCAB_BLOCK};
use crate::cpu::sample::{MAX_VOCAB, Sample};

/// Words of a request, and of a result.
const REQUEST: usize = 12;
const RESULT: usize = 4;

impl Gpu {
    /// Puts requests, one a row, on the device.
    pub fn sample_requests(&self, requests: &[SampleRequest]) -> Result<Buffer<u32>, Error> {
        let words: Vec<u32> = requests.iter().flat_map(|request| request.words()).collect();
        self.upload(&words)
    }

    /// The same into a buffer that has as many: what a captured step reads.
    pub fn rewrite_requests(
        &self,
        to: &mut Buffer<u32>,
        requests: &[SampleRequest],
    ) -> Result<(), Error> {
        let words: Vec<u32> = requests.iter().flat_map(|request| request.words()).collect();
        expect(self, "requests", to, &[words.len()]);
        self.write(to, 0, &words)
    }

    /// Reference: [`crate::cpu::sample::draw`] at the random number of its key, bit for bit: draws a token from each row of
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
        unsafe { self.launch(&entries::SAMPLE_DRAW, grid, args) }
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
