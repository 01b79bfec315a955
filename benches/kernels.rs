//! Every kernel of kernels/cpu on the shapes of Qwen3-0.6B and Qwen3-1.7B, beside this machine's own peaks.
//!
//! ```sh
//! cargo bench --bench kernels                              # all
//! cargo bench --bench kernels -- cpu/matmul                # those whose id, device/kernel/shape, matches
//! cargo bench --bench kernels -- cpu/attention/decode --save-baseline before    # criterion's own options
//! J1_ISA=avx2 J1_BENCH_RECORD=benches/record cargo bench --bench kernels
//! ```
//!
//! Each result is compared with a naive one before anything is timed. The share of the peak is the least
//! time that the work takes on this machine (multiplying at the rate of registers, reading at that of memory,
//! whichever is longer) over the time taken.

use std::{cell::OnceCell, collections::HashSet, time::Duration, time::Instant};

use criterion::{Criterion, SamplingMode, Throughput};
use kernels::cpu::Cpu;

use measure::{Report, Work, median};

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/elements.rs"]
mod elements;
#[path = "kernels/matmul.rs"]
mod matmul;
mod measure;
#[path = "kernels/naive.rs"]
mod naive;
mod record;
#[path = "kernels/vocabulary.rs"]
mod vocabulary;

/// The widths of a model that kernels see; the rest is the same in both.
#[derive(Clone, Copy)]
struct Widths {
    hidden: usize,
    inner: usize,
}

const MODELS: [Widths; 2] =
    [Widths { hidden: 1024, inner: 3072 }, Widths { hidden: 2048, inner: 6144 }];
const LAYERS: usize = 28;
const HEADS: usize = 16;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const VOCAB: usize = 151_936;
const RANK: usize = 16;

/// A kernel on its operands, ready to be timed.
type Run<'c> = Box<dyn FnMut() + 'c>;

/// All benches of this binary.
struct Suite<'c> {
    cpu: &'c Cpu,
    criterion: Criterion,
    report: OnceCell<Report>,
    /// Whether anything is timed, not only listed or tried.
    timed: bool,
    /// Shapes that the two models share run once.
    ids: HashSet<String>,
}

impl<'c> Suite<'c> {
    /// Times `cpu/kernel/shape`. `make` builds the operands, checks the result against a naive one and returns what
    /// is timed; it is called only if the id was asked for.
    fn bench(
        &mut self,
        kernel: &str,
        shape: String,
        work: Work,
        make: impl FnOnce(&'c Cpu) -> Run<'c>,
    ) {
        let id = format!("cpu/{kernel}/{shape}");
        if !self.ids.insert(id.clone()) {
            return;
        }
        let mut group = self.criterion.benchmark_group(format!("cpu/{kernel}"));
        // As many runs in every sample: the median is over all of them alike.
        group.sampling_mode(SamplingMode::Flat);
        group.throughput(if work.flops > 0.0 {
            Throughput::Elements(work.flops as u64)
        } else {
            Throughput::BytesDecimal(work.bytes as u64)
        });
        let (mut make, mut run) = (Some(make), None);
        let mut samples: Vec<(u64, Duration)> = Vec::new();
        let (cpu, report, timed) = (self.cpu, &self.report, self.timed);
        group.bench_function(shape, |bencher| {
            let run = run.get_or_insert_with(|| {
                if timed {
                    report.get_or_init(|| Report::new(cpu));
                }
                make.take().expect("made once")(cpu)
            });
            bencher.iter_custom(|runs| {
                let started = Instant::now();
                (0..runs).for_each(|_| run());
                let elapsed = started.elapsed();
                samples.push((runs, elapsed));
                elapsed
            });
        });
        group.finish();
        if let (Some(report), Some(&(runs, _))) = (self.report.get_mut(), samples.last()) {
            // The warm-up comes first, in samples of other lengths.
            let measured = samples.iter().rev().take_while(|sample| sample.0 == runs);
            let times = measured.map(|(runs, time)| time.as_nanos() as f64 / *runs as f64);
            report.add(id, median(times.collect()), work, None, None);
        }
    }
}

fn main() {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    // Cargo says --bench where benches are to be timed; the others are criterion's.
    let untimed = ["--test", "--list", "--profile-time"];
    let criterion = Criterion::default()
        .sample_size(15)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .configure_from_args();
    let cpu = Cpu::new(std::thread::available_parallelism().map_or(1, usize::from));
    let mut suite = Suite {
        cpu: &cpu,
        criterion,
        report: OnceCell::new(),
        timed: has("--bench") && !untimed.into_iter().any(has),
        ids: HashSet::new(),
    };
    matmul::bench(&mut suite);
    attention::bench(&mut suite);
    elements::bench(&mut suite);
    vocabulary::bench(&mut suite);
    suite.criterion.final_summary();
    if let Some(report) = suite.report.into_inner() {
        report.finish();
    }
}
