//! Which tokens of a row survive top-k, top-p and min-p.
//!
//! Nothing is sorted but a few hundred tokens around a cut. A lower bound on the cut, from the lane
//! maxima (top-k) or from the mass that all tokens below could have (top-p), selects candidates;
//! binning them by logit finds the cut.

use super::SamplingParams;
use crate::cpu::Cpu;
use crate::cpu::lanes::{self, LANES};
use crate::cpu::log_prob::{Block, Distribution, VOCAB_BLOCK};
use crate::cpu::vector::{Vector, for_each_isa};

/// Working memory, and the outcome of the last row.
#[derive(Debug)]
pub(super) struct Truncation {
    candidates: Vec<Candidate>,
    /// Candidates around a cut.
    members: Vec<Candidate>,
    lane_maxima: Vec<f32>,
    bins: Vec<u64>,
}

impl Truncation {
    pub(super) fn new() -> Truncation {
        Truncation {
            candidates: Vec::new(),
            members: Vec::new(),
            lane_maxima: Vec::new(),
            bins: vec![0; BINS],
        }
    }

    /// Forgets the last row and makes room for one of `vocab` logits.
    pub(super) fn clear(&mut self, vocab: usize) {
        self.candidates.clear();
        self.candidates.reserve(vocab.next_multiple_of(LANES));
        self.members.clear();
        self.members.reserve(vocab);
        self.lane_maxima.clear();
        self.lane_maxima.reserve(vocab.div_ceil(VOCAB_BLOCK) * LANES);
    }

    /// What [`Truncation::keep`] kept last.
    #[cfg(test)]
    pub(super) fn kept(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The tokens that survive, in the order of the vocabulary. `blocks` and `distribution` are of
    /// `logits`; a `top_k` of 0 or of the whole vocabulary keeps all.
    pub(super) fn keep(
        &mut self,
        cpu: &Cpu,
        blocks: &[Block],
        logits: &[f32],
        distribution: &Distribution,
        params: &SamplingParams,
    ) -> &[Candidate] {
        let Truncation { candidates, members, lane_maxima, bins } = self;
        let SamplingParams { top_p, min_p, .. } = *params;
        let top_k = if (params.top_k as usize) < logits.len() { params.top_k } else { 0 };
        // d is monotone in the logit, so a bound on d keeps a prefix of the ranking.
        let lowest_min_p =
            if min_p > 0.0 { lanes::ln(min_p as f64) as f32 } else { f32::NEG_INFINITY };
        let lowest = if top_k > 0 {
            // top-p is of what top-k keeps, so all k must be there, min-p or not.
            distribution.shifted(kth_lane_maximum(lane_maxima, blocks, top_k as usize))
        } else if top_p < 1.0 {
            lowest_min_p.max(lowest_for_top_p(distribution, logits.len(), top_p))
        } else {
            lowest_min_p
        };

        let (max, inverse) = (distribution.max(), distribution.inverse_temperature());
        for (index, logits) in logits.chunks(VOCAB_BLOCK).enumerate() {
            if distribution.shifted(blocks[index].max) >= lowest {
                let first = (index * VOCAB_BLOCK) as u32;
                // SAFETY: `Cpu::with_isa` asserts the instruction set.
                unsafe {
                    gather_on(cpu.isa(), candidates, logits, first, max, inverse, lowest);
                }
            }
        }
        let mut keep_reaching = |candidates: &mut Vec<Candidate>, measure: Measure, target: u64| {
            if let Some(last) = last_kept(candidates, members, bins, measure, target) {
                retain(candidates, |c| c.ranks_up_to(&last));
            }
        };
        if top_k > 0 {
            keep_reaching(candidates, Measure::Count, top_k as u64);
        }
        if top_p < 1.0 {
            let total = if top_k > 0 {
                candidates.iter().map(|c| Measure::Mass.of(c)).sum::<u64>() as f64
            } else {
                distribution.sum() * MASS_UNIT
            };
            let target = (total * top_p as f64).ceil() as u64;
            keep_reaching(candidates, Measure::Mass, target.max(1));
        }
        if top_k > 0 && min_p > 0.0 {
            retain(candidates, |c| distribution.shifted(c.logit) >= lowest_min_p);
        }
        candidates
    }
}

/// A token that may survive truncation. Its logit is finite.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Candidate {
    pub(super) token: u32,
    logit: f32,
    /// e^d: its probability relative to the largest.
    pub(super) weight: f32,
}

impl Candidate {
    /// More probable first; on equal logits the lower id first.
    fn rank(&self, other: &Candidate) -> std::cmp::Ordering {
        let by_logit = other.logit.partial_cmp(&self.logit).expect("candidates are finite");
        by_logit.then(self.token.cmp(&other.token))
    }

    /// Whether it is `last` or ranks before it, without a branch.
    fn ranks_up_to(&self, last: &Candidate) -> bool {
        (self.logit > last.logit) | ((self.logit == last.logit) & (self.token <= last.token))
    }
}

/// A logit that at least `k` tokens reach: the k-th largest maximum over a lane of a block.
fn kth_lane_maximum(lane_maxima: &mut Vec<f32>, blocks: &[Block], k: usize) -> f32 {
    lane_maxima.extend(blocks.iter().flat_map(|block| block.lane_max));
    if k > lane_maxima.len() {
        return f32::NEG_INFINITY;
    }
    *lane_maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// A d below which no token survives top-p: if all tokens lay below it, they would together have
/// less than 1 - top_p. The last term outweighs the rounding of d.
fn lowest_for_top_p(distribution: &Distribution, vocab: usize, top_p: f32) -> f32 {
    let share = (1.0 - top_p as f64) * distribution.sum() / vocab as f64;
    (lanes::ln(share) - 1e-3) as f32
}

for_each_isa! {
    fn gather_on(
        candidates: &mut Vec<Candidate>,
        logits: &[f32],
        first: u32,
        max: f32,
        inverse: f32,
        lowest: f32,
    ) = gather
}

/// Appends the tokens of a block, whose first is `first`, that have d >= `lowest`.
#[inline(always)]
fn gather<V: Vector>(
    candidates: &mut Vec<Candidate>,
    logits: &[f32],
    first: u32,
    max: f32,
    inverse: f32,
    lowest: f32,
) {
    let mut count = candidates.len();
    candidates.resize(count + logits.len().next_multiple_of(LANES), Candidate::default());
    for (index, z) in logits.chunks(LANES).enumerate() {
        let z = lanes::padded(z);
        let d = z.map(|z| (z - max) * inverse);
        // One test for sixteen tokens: most vectors hold no candidate.
        if !d.iter().fold(false, |any, &d| any | (d >= lowest)) {
            continue;
        }
        let weights = d.map(lanes::exp);
        for lane in 0..LANES {
            let token = first + (index * LANES + lane) as u32;
            candidates[count] = Candidate { token, logit: z[lane], weight: weights[lane] };
            count += ((d[lane] >= lowest) & (z[lane] > f32::NEG_INFINITY)) as usize;
        }
    }
    candidates.truncate(count);
}

/// Keeps some candidates, in order. Written always, counted if kept: `Vec::retain` branches, and
/// mispredicts its way through a row of which half is kept.
fn retain(candidates: &mut Vec<Candidate>, keep: impl Fn(&Candidate) -> bool) {
    let mut kept = 0;
    for i in 0..candidates.len() {
        let candidate = candidates[i];
        candidates[kept] = candidate;
        kept += keep(&candidate) as usize;
    }
    candidates.truncate(kept);
}

/// What a truncation limits.
#[derive(Clone, Copy, Debug)]
enum Measure {
    Count,
    /// Weight in units of 1 / `MASS_UNIT`, rounded down. A sum of integers has no order.
    Mass,
}

/// With a weight of at most 1, the masses of `MAX_VOCAB` tokens add up to at most 2^63.
const MASS_UNIT: f64 = (1u64 << 40) as f64;

impl Measure {
    fn of(self, candidate: &Candidate) -> u64 {
        match self {
            Measure::Count => 1,
            Measure::Mass => (candidate.weight as f64 * MASS_UNIT) as i64 as u64,
        }
    }
}

const BINS: usize = 1024;
/// Up to this many candidates are sorted rather than binned again.
const SORTED: usize = 256;

/// The last candidate, by rank, of the shortest prefix of the ranking that measures `target` (at
/// least 1) or more. None if all together measure less.
///
/// Binning by logit keeps the ranking between bins, so only the bin in which the target is reached
/// is looked into. The largest and the smallest logit never share a bin: each round is smaller.
fn last_kept(
    candidates: &[Candidate],
    members: &mut Vec<Candidate>,
    bins: &mut [u64],
    measure: Measure,
    target: u64,
) -> Option<Candidate> {
    let mut left = target;
    members.clear();
    match Grid::over(candidates) {
        None => members.extend_from_slice(candidates),
        Some(grid) => {
            let bin = grid.bin_reaching(candidates, bins, measure, &mut left)?;
            members.extend(candidates.iter().filter(|c| grid.bin(c) == bin));
        }
    }
    while let Some(grid) = Grid::over(members) {
        let bin = grid.bin_reaching(members, bins, measure, &mut left)?;
        retain(members, |c| grid.bin(c) == bin);
    }
    members.sort_unstable_by(Candidate::rank);
    members.iter().copied().find(|c| !passes(&mut left, measure.of(c)))
}

/// `BINS` equal intervals of logit, the highest first.
struct Grid {
    highest: f64,
    scale: f64,
}

impl Grid {
    /// None if there is nothing to part: few candidates, or one logit.
    fn over(candidates: &[Candidate]) -> Option<Grid> {
        if candidates.len() <= SORTED {
            return None;
        }
        // Sixteen maxima and minima at a time: one of each would wait for itself.
        let (vectors, tail) = candidates.as_chunks::<LANES>();
        let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
        for candidates in vectors.iter().map(|v| &v[..]).chain([tail]) {
            for ((low, high), c) in low.iter_mut().zip(&mut high).zip(candidates) {
                *low = if c.logit < *low { c.logit } else { *low };
                *high = if c.logit > *high { c.logit } else { *high };
            }
        }
        let highest = high.into_iter().fold(f32::NEG_INFINITY, f32::max) as f64;
        let lowest = low.into_iter().fold(f32::INFINITY, f32::min) as f64;
        (lowest < highest).then(|| Grid { highest, scale: BINS as f64 / (highest - lowest) })
    }

    fn bin(&self, candidate: &Candidate) -> usize {
        let bin = (self.highest - candidate.logit as f64) * self.scale;
        (bin as i64 as usize).min(BINS - 1)
    }

    /// The bin in which the running measure reaches `left`. Takes what lies before it off `left`.
    fn bin_reaching(
        &self,
        candidates: &[Candidate],
        bins: &mut [u64],
        measure: Measure,
        left: &mut u64,
    ) -> Option<usize> {
        bins.fill(0);
        for candidate in candidates {
            bins[self.bin(candidate)] += measure.of(candidate);
        }
        bins.iter().position(|&mass| !passes(left, mass))
    }
}

/// Takes `mass` off `left` if less than it.
fn passes(left: &mut u64, mass: u64) -> bool {
    let passes = mass < *left;
    *left -= if passes { mass } else { 0 };
    passes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::log_prob;

    const ALL: SamplingParams =
        SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    fn kept(truncation: &mut Truncation, logits: &[f32], params: SamplingParams) -> Vec<u32> {
        let cpu = Cpu::new(1);
        let blocks: Vec<Block> =
            logits.chunks(VOCAB_BLOCK).map(|z| log_prob::block(&cpu, z, 1.0)).collect();
        let distribution = log_prob::row(&cpu, logits, 1.0).unwrap();
        truncation.clear(logits.len());
        let kept = truncation.keep(&cpu, &blocks, logits, &distribution, &params);
        kept.iter().map(|c| c.token).collect()
    }

    #[test]
    fn equal_logits_are_cut_by_id() {
        let count = |params| {
            let tokens = kept(&mut Truncation::new(), &[2.5; 4000], params);
            assert!(tokens.iter().copied().eq(0..tokens.len() as u32), "not the lowest ids");
            tokens.len()
        };
        assert_eq!(count(SamplingParams { top_k: 3, ..ALL }), 3);
        assert_eq!(count(SamplingParams { top_k: 1999, ..ALL }), 1999);
        assert_eq!(count(SamplingParams { top_p: 0.5, ..ALL }), 2000);
        assert_eq!(count(SamplingParams { top_p: 1e-9, ..ALL }), 1);
        assert_eq!(count(SamplingParams { min_p: 1.0, ..ALL }), 4000);
        assert_eq!(count(SamplingParams { top_k: 100, top_p: 0.25, ..ALL }), 25);
    }

    #[test]
    fn zeros_of_either_sign_are_equal() {
        let first = SamplingParams { top_k: 1, ..ALL };
        assert_eq!(kept(&mut Truncation::new(), &[-0.0, 0.0, -0.0, -1.0], first), [0]);
        assert_eq!(kept(&mut Truncation::new(), &[-1.0, 0.0, -0.0], first), [1]);
    }

    #[test]
    fn outliers_do_not_hide_the_cut() {
        // Binned by logit, all but two of these share the first bin, then all but one.
        let mut logits: Vec<f32> = (0..5000).map(|v| (v * 37 % 5000) as f32 * 1e-3).collect();
        logits[10] = f32::MIN;
        logits[4000] = -1e20;
        let mut want: Vec<u32> = (0..5000).collect();
        want.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        for top_k in [1, 1300, 4000, 4998, 4999] {
            let mut want = want[..top_k as usize].to_vec();
            want.sort_unstable();
            let params = SamplingParams { top_k, ..ALL };
            assert_eq!(kept(&mut Truncation::new(), &logits, params), want, "top_k {top_k}");
        }
    }

    #[test]
    fn warm_memory_does_not_grow() {
        let mut truncation = Truncation::new();
        truncation.clear(5000);
        let capacities = |t: &Truncation| {
            let candidates = [t.candidates.capacity(), t.members.capacity()];
            (candidates, t.lane_maxima.capacity(), t.bins.capacity())
        };
        let before = capacities(&truncation);
        for (top_k, top_p) in [(0, 1.0), (4999, 1.0), (3, 0.5), (0, 0.999_999)] {
            for vocab in [5000, 4097, 1] {
                kept(&mut truncation, &vec![1.0; vocab], SamplingParams { top_k, top_p, ..ALL });
                assert_eq!(capacities(&truncation), before);
            }
        }
    }
}
