//! Every kernel of kernels/cpu, and of kernels/cuda, on the shapes of Qwen3-0.6B and Qwen3-1.7B, beside what
//! the machine can do at most.
//!
//! ```sh
//! cargo bench --bench kernels                              # all
//! cargo bench --bench kernels -- cpu/matmul                # those whose id, device/kernel/shape, matches
//! cargo bench --bench kernels -- cpu/attention/decode --save-baseline before    # criterion's own options
//! J1_ISA=avx2 J1_BENCH_RECORD=benches/record cargo bench --bench kernels
//! cargo bench --features cuda --bench kernels -- cuda/     # on a GPU
//! ```
//!
//! Each result is compared with a naive one before anything is timed. The share of the peak is the least
//! time that the work takes on this machine (multiplying at the rate of registers, reading at that of memory,
//! whichever is longer) over the time taken.
//!
//! Ids of `cuda/` have the shapes of `cpu/`. Differences: weights have one form there, so none is `-packed`, and a GPU
//! knows no `-1t`; log-probabilities come with the LM head before them, hence their `-k`; philox is drawn within other
//! kernels; `matmul/factor`, LoRA's factors in bf16 parts, is only there. What is one kernel there and two or more on a
//! CPU has one id: SwiGLU behind a product (`matmul/swiglu`, `matmul/backward-swiglu`; results are bf16 only there),
//! QK-norm with the rotation (`rope/norm`), rows that are rounded as they are written (`-bf16` where no weights are).
//!
//! Without an id: the sum of slices (within `product`), heads of other widths than Qwen3's, and tiles that a GPU does
//! not take for these shapes.
//!
//! Ids of `cuda/` are timed by events around many launches, which shows the launch where a kernel is shorter, and their
//! peaks are the data sheet's: of a GPU that has none here no share is stated. Without a GPU a line on stderr says so,
//! and the ids of the CPU run.
//! An emulated GPU (`CUDA_DRIVER_LIB`) checks results (`-- --test cuda/rms_norm`); where ids are to be timed it counts
//! as none.

use std::{cell::OnceCell, collections::HashSet, time::Duration, time::Instant};

use criterion::{Criterion, SamplingMode, Throughput};
use kernels::{cpu::Cpu, cuda::Error};

use cuda::Cuda;
use measure::{Report, Work, median};

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/cuda.rs"]
mod cuda;
#[path = "kernels/elements.rs"]
mod elements;
#[path = "kernels/matmul.rs"]
mod matmul;
mod measure;
#[path = "kernels/naive.rs"]
mod naive;
mod record;
#[path = "kernels/rope.rs"]
mod rope;
#[path = "kernels/rounded.rs"]
mod rounded;
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

/// Bytes of weights, or of keys and values, that no cache keeps from one use to the next.
const STREAMED: usize = 256 << 20;

/// As many copies of so many bytes as layers have, or as leave every cache: a pass meets each but once.
fn copies(bytes: usize) -> usize {
    STREAMED.div_ceil(bytes).clamp(1, LAYERS)
}

/// Runs a kernel so many times and says how long they took.
type Timed<'c> = Box<dyn FnMut(u64) -> Duration + 'c>;

/// The first part of an id.
#[derive(Clone, Copy)]
enum Device {
    Cpu,
    Cuda,
}

/// All benches of this binary.
struct Suite<'c> {
    cpu: &'c Cpu,
    cuda: Option<Cuda<'c>>,
    criterion: Criterion,
    /// By device.
    reports: [OnceCell<Report>; 2],
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
        let cpu = self.cpu;
        let make = || -> Timed<'c> {
            let mut run = make(cpu);
            Box::new(move |runs| {
                let started = Instant::now();
                (0..runs).for_each(|_| run());
                started.elapsed()
            })
        };
        self.time(Device::Cpu, kernel, shape, work, || Report::new(cpu), make);
    }

    /// Times `cuda/kernel/shape`, where there is a GPU; `make` as in [`Suite::bench`].
    fn bench_cuda(
        &mut self,
        kernel: &str,
        shape: String,
        work: Work,
        make: impl FnOnce(Cuda<'c>) -> Result<cuda::Run<'c>, Error>,
    ) {
        let Some(cuda) = self.cuda else { return };
        let id = format!("cuda/{kernel}/{shape}");
        let fail = move |error: Error| -> ! {
            eprintln!("{id}: {error}");
            std::process::exit(1);
        };
        let make = || -> Timed<'c> {
            let mut run = make(cuda).unwrap_or_else(|error| fail(error));
            Box::new(move |runs| {
                let seconds = cuda.timer().and_then(|timer| {
                    (0..runs).try_for_each(|_| run())?;
                    timer.stop()
                });
                Duration::from_secs_f64(seconds.unwrap_or_else(|error| fail(error)))
            })
        };
        self.time(Device::Cuda, kernel, shape, work, || cuda::report(cuda.gpu), make);
    }

    fn time(
        &mut self,
        device: Device,
        kernel: &str,
        shape: String,
        work: Work,
        new_report: impl Fn() -> Report,
        make: impl FnOnce() -> Timed<'c>,
    ) {
        let name = ["cpu", "cuda"][device as usize];
        let id = format!("{name}/{kernel}/{shape}");
        if !self.ids.insert(id.clone()) {
            return;
        }
        let mut group = self.criterion.benchmark_group(format!("{name}/{kernel}"));
        // As many runs in every sample: the median is over all of them alike.
        group.sampling_mode(SamplingMode::Flat);
        group.throughput(if work.flops > 0.0 {
            Throughput::Elements(work.flops as u64)
        } else {
            Throughput::BytesDecimal(work.bytes as u64)
        });
        let (mut make, mut run) = (Some(make), None);
        let mut samples: Vec<(u64, Duration)> = Vec::new();
        let (report, timed) = (&self.reports[device as usize], self.timed);
        group.bench_function(shape, |bencher| {
            let run = run.get_or_insert_with(|| {
                if timed {
                    report.get_or_init(&new_report);
                }
                make.take().expect("made once")()
            });
            bencher.iter_custom(|runs| {
                let elapsed = run(runs);
                samples.push((runs, elapsed));
                elapsed
            });
        });
        group.finish();
        let report = self.reports[device as usize].get_mut();
        if let (Some(report), Some(&(runs, _))) = (report, samples.last()) {
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
    let timed = has("--bench") && !untimed.into_iter().any(has);
    let criterion = Criterion::default()
        .sample_size(15)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .configure_from_args();
    let cpu = Cpu::new(std::thread::available_parallelism().map_or(1, usize::from));
    let gpu = cuda::open(timed);
    if let Err(why) = &gpu {
        eprintln!("kernels: no id of cuda/ runs: {why}");
    }
    let mut suite = Suite {
        cpu: &cpu,
        cuda: gpu.as_ref().ok().map(|gpu| Cuda { gpu, timed }),
        criterion,
        reports: Default::default(),
        timed,
        ids: HashSet::new(),
    };
    matmul::bench(&mut suite);
    attention::bench(&mut suite);
    elements::bench(&mut suite);
    rounded::bench(&mut suite);
    rope::bench(&mut suite);
    vocabulary::bench(&mut suite);
    suite.criterion.final_summary();
    for report in suite.reports.into_iter().filter_map(OnceCell::into_inner) {
        report.finish();
    }
}
