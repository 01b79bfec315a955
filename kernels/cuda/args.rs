//! Arguments that several kernels take.

use crate::cpu::philox::RngKey;

/// Numbers of operations that the host has queued on a device, by kind. A captured graph counts as one, each time it is launched.
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
    /// Temperature and truncation, in their ranges.
    pub params: crate::cpu::sample::SamplingParams,
    /// The key of the sequence's random numbers.
    pub key: RngKey,
    /// Which random number of the key decides: the position that the token gets.
    pub position: u32,
}

impl SampleRequest {
    /// The words of `Request` in sample.cu.
    pub(crate) fn words(self) -> [u32; 12] {
        let SampleRequest { params, key, position } = self;
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
        let [seed0, seed1, stream, sequence0, sequence1] = key.device_words();
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
