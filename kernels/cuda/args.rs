//! What kernels are told.

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

impl Draws {
    /// Key, stream, sequence: low words first.
    pub(crate) fn words(self) -> [u32; 5] {
        let Draws { seed, sequence, stream } = self;
        let [seed, sequence] = [seed, sequence].map(|word| [word as u32, (word >> 32) as u32]);
        [seed[0], seed[1], stream.0, sequence[0], sequence[1]]
    }
}

/// What a host has queued on a device, by kind. What is recorded counts when it is launched: as one graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// Launches of kernels.
    pub kernels: u64,
    /// Copies from, to and on the device, and fills.
    pub copies: u64,
    /// Launches of graphs.
    pub graphs: u64,
}

/// How to draw a row's token; see [`crate::cpu::sample`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRequest {
    /// Temperature and truncation; valid.
    pub params: crate::cpu::sample::SamplingParams,
    /// Whose draws.
    pub draws: Draws,
    /// Which of them.
    pub position: u32,
}

impl SampleRequest {
    /// As sample.cu's Request has it.
    pub(crate) fn words(self) -> [u32; 12] {
        let SampleRequest { params, draws, position } = self;
        if let Err(error) = params.validate() {
            panic!("{error}");
        }
        let greedy = params.temperature == 0.0;
        let inverse = if greedy { 1.0 } else { 1.0 / params.temperature };
        let min_p = f64::from(params.min_p);
        let lowest = match min_p > 0.0 {
            true => crate::cpu::lanes::ln(min_p) as f32,
            false => f32::NEG_INFINITY,
        };
        let [seed0, seed1, stream, sequence0, sequence1] = draws.words();
        [
            inverse.to_bits(),
            greedy.into(),
            params.top_k,
            params.top_p.to_bits(),
            lowest.to_bits(),
            seed0,
            seed1,
            stream,
            sequence0,
            sequence1,
            position,
            0,
        ]
    }
}
