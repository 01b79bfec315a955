//! What kernels are told, the same in builds with and without feature `cuda`.

use crate::cpu::philox::Stream;

/// Which draws of Philox a kernel takes; see [`crate::cpu::philox`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws {
    /// The run's.
    pub seed: u64,
    /// Tells apart what draws under the seed.
    pub sequence: u64,
    /// What the draws are for.
    pub stream: Stream,
}

#[cfg(feature = "cuda")]
impl Draws {
    /// Key, stream, sequence: low words first.
    pub(crate) fn words(self) -> [u32; 5] {
        let Draws { seed, sequence, stream } = self;
        let [seed, sequence] = [seed, sequence].map(|word| [word as u32, (word >> 32) as u32]);
        [seed[0], seed[1], stream.0, sequence[0], sequence[1]]
    }
}

/// A position's cosines, then its sines, for all positions: those of [`crate::cpu::rope::RopeTable`], the
/// angle an f32 product and its functions taken in f64.
#[cfg(feature = "cuda")]
pub(crate) fn angles(inv_freq: &[f32], positions: usize) -> Vec<f32> {
    let mut table = Vec::with_capacity(positions * 2 * inv_freq.len());
    for position in 0..positions {
        let angle = |f: &f32| f64::from(position as f32 * f);
        table.extend(inv_freq.iter().map(|f| angle(f).cos() as f32));
        table.extend(inv_freq.iter().map(|f| angle(f).sin() as f32));
    }
    table
}
