//! Logits of tokens that the sequence holds.

use super::Comparisons;
use super::sample::padded;
use crate::cpu::repetition_penalty::Penalized;
use crate::cpu::values::grid_row;
use crate::cpu::{self, Cpu};
use crate::cuda::Error;

pub(crate) fn penalized_logits_equal_their_reference_bit_for_bit(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for (rows, vocab) in [(1, 1), (3, 33), (2, 2100)] {
        let logits: Vec<f32> = (0..rows).flat_map(|r| grid_row(vocab, 9.0, r as u64)).collect();
        // None, some, all of the tokens; more than a block has threads.
        let tokens = |keep: &dyn Fn(u32) -> bool| (0..vocab as u32).filter(|v| keep(*v)).collect();
        let lists: [Vec<u32>; 3] =
            [tokens(&|v| v % 2 == 1), tokens(&|v| v % 2 == 0), tokens(&|v| v % 7 == 3)];
        let all = [
            Penalized { tokens: [&lists[0], &lists[1]], penalty: 1.1 },
            Penalized { tokens: [&[], &lists[2]], penalty: 0.8 },
            Penalized::NOT,
        ];
        let there = gpu.penalties(&all[..rows], vocab * rows + 5, vocab)?;
        let mut got = gpu.upload(&padded(&logits, vocab))?;
        gpu.repetition_penalty(&mut got, &there)?;
        let mut want = logits.clone();
        cpu::repetition_penalty::apply(&cpu, &mut want, vocab, &|row| all[row]);
        let got = gpu.download(&got)?;
        on.same_bits(&got, &padded(&want, vocab), &format!("{rows} rows of {vocab}"));

        // Others in the same place, as a captured step has them.
        let mut there = there;
        let again = vec![Penalized { tokens: [&lists[2], &[]], penalty: 3.0 }; rows];
        gpu.rewrite_penalties(&mut there, &again)?;
        let mut got = gpu.upload(&padded(&logits, vocab))?;
        gpu.repetition_penalty(&mut got, &there)?;
        let mut want = logits.clone();
        cpu::repetition_penalty::apply(&cpu, &mut want, vocab, &|row| again[row]);
        let got = gpu.download(&got)?;
        on.same_bits(&got, &padded(&want, vocab), &format!("{rows} rows of {vocab}, rewritten"));
    }
    Ok(())
}
