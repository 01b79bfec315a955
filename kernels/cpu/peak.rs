//! What this machine can do at most, measured: what kernels are compared with.
//!
//! Multiply-adds per second with every operand in a register (in f32, and in pairs of bf16 where there is
//! an instruction for them), and bytes per second read from a buffer that fits no cache, on pages of 4 KiB
//! and of 2 MiB. Each is the best of several runs: a peak is what nothing disturbed.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use memmap2::MmapMut;

use super::vector::{Simd, Vector, for_each_isa};
use super::{Cpu, Isa};

/// Independent sums: more than latency times throughput of any multiplier (Zen 4: 4 × 2, Golden Cove: 4 × 2,
/// for pairs of bf16 6 × 1), and with two operands no more than the 16 registers of AVX2.
const SUMS: usize = 12;

/// Independent sums of portable vectors, each of which is two registers of SSE2.
const PORTABLE_SUMS: usize = 6;

/// Rounds between two looks at the clock, about 0.2 ms; sums of so many ones are exact in f32.
const ROUNDS: usize = 1 << 16;

/// Runs of which the best counts.
const RUNS: usize = 5;

/// How long the multipliers run at a time: past the start of a thread and the ramp of a clock.
const SPIN: Duration = Duration::from_millis(30);

/// Bytes of the buffer at least and at most.
const BUFFER: std::ops::RangeInclusive<usize> = 512 << 20..=2 << 30;

/// Bytes a thread takes at a time.
const PART: usize = 4 << 20;

/// Peaks of one context: its instruction set, its threads.
#[derive(Clone, Copy, Debug)]
pub struct Peaks {
    /// The instruction set they were measured with.
    pub isa: Isa,
    /// Its number of threads.
    pub threads: usize,
    /// Floating-point operations per second in f32 (a multiply-add is two), on one thread.
    pub f32_one: f64,
    /// The same on all threads.
    pub f32_all: f64,
    /// The same of bf16 pairs summed in f32, on one thread; `None` without AVX-512 BF16.
    pub bf16_one: Option<f64>,
    /// The same on all threads.
    pub bf16_all: Option<f64>,
    /// Bytes per second all threads read from pages of 4 KiB.
    pub read_4k: f64,
    /// The same from pages of 2 MiB; `None` where the system gives none.
    pub read_2m: Option<f64>,
}

impl Peaks {
    /// Measures all peaks. It takes about two seconds, and a buffer of 512 MiB or more.
    pub fn measure(cpu: &Cpu) -> Peaks {
        let one = Cpu::with_isa(1, cpu.isa());
        let has_bf16 = cpu.isa() == Isa::Avx512Bf16;
        let bf16 = |cpu: &Cpu| has_bf16.then(|| multiply_adds(cpu, spin_bf16));
        let f32 = |cpu: &Cpu| multiply_adds(cpu, spin_f32);
        Peaks {
            isa: cpu.isa(),
            threads: cpu.threads(),
            f32_one: f32(&one),
            f32_all: f32(cpu),
            bf16_one: bf16(&one),
            bf16_all: bf16(cpu),
            read_4k: read(cpu, false).expect("pages of 4 KiB are always there"),
            read_2m: read(cpu, true),
        }
    }

    /// The faster of the two ways to read, in bytes per second.
    pub fn read(&self) -> f64 {
        self.read_4k.max(self.read_2m.unwrap_or(0.0))
    }
}

/// Floating-point operations per second of `spin`, which returns the multiply-adds it did, on all threads.
fn multiply_adds(cpu: &Cpu, spin: unsafe fn(Isa, &mut f64)) -> f64 {
    let run = || {
        let total = std::sync::Mutex::new(0.0);
        let started = Instant::now();
        cpu.pool().run(&|_| {
            let mut done = 0.0;
            while started.elapsed() < SPIN {
                // SAFETY: `Cpu::with_isa` asserts the instruction set, and `spin_bf16` is only
                // measured with AVX-512 BF16.
                unsafe { spin(cpu.isa(), &mut done) };
            }
            *crate::lock(&total) += done;
        });
        2.0 * total.into_inner().expect("no thread panicked") / started.elapsed().as_secs_f64()
    };
    (0..RUNS).map(|_| run()).fold(0.0, f64::max)
}

for_each_isa! {
    /// Adds the multiply-adds it does, in f32, to `done`.
    fn spin_f32(done: &mut f64) = spin
}

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn spin<V: Vector>(done: &mut f64) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match V::TILE_ROWS {
            ..3 => spin_of::<V, PORTABLE_SUMS>(done),
            3.. => spin_of::<V, SUMS>(done),
        }
    }
}

/// Sums that grow by one a multiply-add, so that the work done can be read off them.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn spin_of<V: Vector, const N: usize>(done: &mut f64) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        // The compiler must not see that they are ones.
        let (factor, term) = (V::splat(black_box(1.0)), V::splat(black_box(1.0)));
        let mut sums = [V::splat(0.0); N];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = sum.mul_add(factor, term);
            }
        }
        for sum in sums {
            *done += f64::from(sum.reduce_add());
        }
    }
}

/// The same for pairs of bf16.
///
/// # Safety
/// The CPU has AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn spin_bf16(_: Isa, done: &mut f64) {
    use super::dot::Dot;
    use super::vector::{Avx512, Bf16Pairs};

    let ones = black_box([half::bf16::ONE; Bf16Pairs::STEP]);
    // SAFETY: the caller's promise; `ones` is a register long.
    unsafe {
        let (x, w) = (Bf16Pairs::load_x(ones.as_ptr()), Bf16Pairs::load_w(ones.as_ptr()));
        let mut sums = [Avx512::splat(0.0); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = Bf16Pairs::accumulate(*sum, x, w);
            }
        }
        for sum in sums {
            *done += f64::from(sum.reduce_add());
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn spin_bf16(isa: Isa, _: &mut f64) {
    unreachable!("{isa} has no pairs of bf16");
}

/// Bytes per second that all threads read; `None` if the pages are not to be had.
fn read(cpu: &Cpu, huge: bool) -> Option<f64> {
    let len = (4 * cpu.threads() * last_cache()).clamp(*BUFFER.start(), *BUFFER.end());
    let mut map = MmapMut::map_anon(len).expect("memory for a buffer that fits no cache");
    let before = huge_bytes();
    advise(&map, huge);
    let ones: &mut [f32] = bytemuck::cast_slice_mut(&mut map);
    ones.fill(1.0);
    if huge && huge_bytes().saturating_sub(before) < len / 2 {
        return None;
    }
    let parts: Vec<&[f32]> = ones.chunks(PART / size_of::<f32>()).collect();
    let run = || {
        let started = Instant::now();
        cpu.pool().for_each(parts.len(), &|_, part| {
            let mut sum = 0.0;
            // SAFETY: `Cpu::with_isa` asserts the instruction set.
            unsafe { sum_on(cpu.isa(), &mut sum, parts[part]) };
            black_box(sum);
        });
        len as f64 / started.elapsed().as_secs_f64()
    };
    Some((0..RUNS).map(|_| run()).fold(0.0, f64::max))
}

for_each_isa! {
    /// Writes the sum of `x` to `out`.
    fn sum_on(out: &mut f32, x: &[f32]) = sum
}

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn sum<V: Vector>(out: &mut f32, x: &[f32]) {
    /// Elements a round reads: four lines of a cache.
    const ROUND: usize = 64;
    /// Elements that are asked for ahead of their use.
    const AHEAD: usize = 1024;
    let rounds = x.chunks_exact(ROUND);
    let rest: f32 = rounds.remainder().iter().sum();
    // SAFETY: the caller's promise; a round has ROUND elements, a multiple of the lanes; any address may be
    // prefetched.
    unsafe {
        let mut sums = [V::splat(0.0); 4];
        for round in rounds {
            let start = round.as_ptr();
            for line in 0..4 {
                V::prefetch(start.wrapping_add(AHEAD + 16 * line).cast());
            }
            let mut i = 0;
            while i < ROUND {
                for sum in &mut sums {
                    *sum = sum.add(V::load(start.add(i % ROUND)));
                    i += V::LANES;
                }
            }
        }
        *out = sums.map(|sum| sum.reduce_add()).iter().sum::<f32>() + rest;
    }
}

/// Bytes of the last cache that a core reads through; 32 MiB where the system does not say.
fn last_cache() -> usize {
    let size = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().strip_suffix('K')?.parse::<usize>().ok()? << 10)
    };
    (0..8).filter_map(size).max().unwrap_or(32 << 20)
}

/// Bytes of this process on pages of 2 MiB.
fn huge_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("AnonHugePages:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

/// Asks for pages of 2 MiB, or for none of them. A system that has no such choice keeps its pages.
fn advise(map: &MmapMut, huge: bool) {
    #[cfg(target_os = "linux")]
    {
        use memmap2::Advice;
        let _ = map.advise(if huge { Advice::HugePage } else { Advice::NoHugePage });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (map, huge);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_that_is_counted_is_done() {
        for isa in Isa::available() {
            let lanes = match isa {
                Isa::Portable => 8 * PORTABLE_SUMS,
                Isa::Avx2 => 8 * SUMS,
                Isa::Avx512 | Isa::Avx512Bf16 => 16 * SUMS,
            };
            let mut done = 0.0;
            // SAFETY: `isa` is available.
            unsafe { spin_f32(isa, &mut done) };
            assert_eq!(done, (ROUNDS * lanes) as f64, "{isa}");
            if isa == Isa::Avx512Bf16 {
                done = 0.0;
                // SAFETY: `isa` is available.
                unsafe { spin_bf16(isa, &mut done) };
                assert_eq!(done, (ROUNDS * SUMS * 32) as f64, "{isa}");
            }
        }
    }

    #[test]
    fn every_element_is_read() {
        for isa in Isa::available() {
            for len in [0, 1, 63, 64, 65, 1000, 4096] {
                let x: Vec<f32> = (0..len).map(|i| (i % 7) as f32).collect();
                let mut got = f32::NAN;
                // SAFETY: `isa` is available.
                unsafe { sum_on(isa, &mut got, &x) };
                assert_eq!(got, x.iter().sum::<f32>(), "{isa}, {len}");
            }
        }
    }
}
