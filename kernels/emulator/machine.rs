//! Executes a launch: blocks over the host's threads, warps of a block one after the other from
//! barrier to barrier, 32 lanes of a warp in lockstep.
//!
//! Lanes that part at a branch meet again at its post-dominator; in between one side runs, then the
//! other. A program in which one side waits for the other therefore never ends here, and neither does
//! one whose blocks wait for each other: the instruction budget ends them.

mod access;
mod asynchronous;
mod atomic;
mod block;
mod exchange;
mod matrix;
mod step;
mod transfer;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::checks::Checks;
use crate::counters::Counts;
use crate::fault::Report;
use crate::memory::Region;
use crate::program::Program;
use block::Worker;

/// Windows of the generic address space.
pub(crate) mod windows {
    /// Shared memory begins here.
    pub(crate) const SHARED: u64 = 0x00fe_0000_0000_0000;
    /// Local memory begins here.
    pub(crate) const LOCAL: u64 = 0x00fd_0000_0000_0000;
    /// Bytes of each window.
    pub(crate) const SIZE: u64 = 1 << 24;
}

/// Everything a launch needs.
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Program,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: usize,
    pub(crate) arguments: &'a [u8],
    /// Device address of each of the module's variables.
    pub(crate) variables: &'a [u64],
    /// Names of the module's source files.
    pub(crate) files: &'a std::collections::HashMap<u32, String>,
    /// Ordered by address.
    pub(crate) regions: &'a [Region],
    pub(crate) is_freed: &'a (dyn Fn(u64) -> bool + Sync),
    pub(crate) checks: Checks,
    pub(crate) threads: usize,
    /// Actor number of block 0; `None` if races between blocks are not checked.
    pub(crate) first_number: Option<u32>,
}

impl Launch<'_> {
    pub(crate) fn blocks(&self) -> u64 {
        self.grid.iter().map(|&size| u64::from(size)).product()
    }

    pub(crate) fn threads_per_block(&self) -> usize {
        self.block.iter().map(|&size| size as usize).product()
    }
}

/// What blocks of a launch tell each other.
pub(crate) struct Between {
    next_block: AtomicUsize,
    stop: AtomicBool,
    clock: AtomicU32,
    /// When each block last released its writes (fence, then atomic), by the clock; 0 is never.
    /// Only kept for launches whose kernel has a fence.
    released: Vec<AtomicU32>,
}

/// More threads are worth their start only if this much work is left.
const WORTH_A_THREAD: Duration = Duration::from_micros(200);

/// Runs a launch. The counts are those of all blocks; of several faults the one of the first block is
/// returned.
pub(crate) fn run(launch: &Launch) -> (Counts, Option<Report>) {
    let blocks = launch.blocks() as usize;
    let fences = launch
        .program
        .code
        .iter()
        .any(|instruction| instruction.action == crate::program::Action::Fence);
    let between = Between {
        next_block: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        clock: AtomicU32::new(1),
        released: if fences { (0..blocks).map(|_| AtomicU32::new(0)).collect() } else { vec![] },
    };
    let mut counts = Counts::new(launch.program.code.len(), launch.regions.len());
    let mut first: Option<(usize, Report)> = None;
    let mut collect = |result: (Counts, Option<(usize, Report)>)| {
        counts.add(&result.0);
        if let Some((block, report)) = result.1
            && first.as_ref().is_none_or(|(other, _)| block < *other)
        {
            first = Some((block, report));
        }
    };
    let threads = launch.threads.min(blocks).max(1);
    let begun = Instant::now();
    let mut worker = Worker::new(launch, &between);
    let more = worker.run(1);
    let left = begun.elapsed() * (blocks.saturating_sub(1)).min(u32::MAX as usize) as u32;
    if more && threads > 1 && left > WORTH_A_THREAD {
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads)
                .map(|_| {
                    scope.spawn(|| {
                        let mut worker = Worker::new(launch, &between);
                        worker.run(usize::MAX);
                        worker.finish()
                    })
                })
                .collect();
            worker.run(usize::MAX);
            for helper in helpers {
                match helper.join() {
                    Ok(result) => collect(result),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    } else if more {
        worker.run(usize::MAX);
    }
    collect(worker.finish());
    (counts, first.map(|(_, report)| report))
}

impl Between {
    /// The next block to run.
    fn take(&self, blocks: usize) -> Option<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let block = self.next_block.fetch_add(1, Ordering::Relaxed);
        (block < blocks).then_some(block)
    }
}
