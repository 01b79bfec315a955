//! A thread pool for kernels: one closure on every thread, done when all are done.
//!
//! Kernels run for microseconds to milliseconds and follow each other closely. Waking a parked
//! thread can take long (37 µs measured in a virtual machine, EPYC 9004, 2026-11), so a waiting
//! thread spins for less than a microsecond, then offers its core to others for some fifty, then
//! parks. Starting a run allocates nothing.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};

use memmap2::MmapOptions;

use super::profile;
use crate::lock;

/// Turns of the spin loop before yielding: a `pause` takes 40 to 65 cycles, so less than a
/// microsecond. Spinning for two decodes no faster (2026-11-25).
const SPINS: usize = 48;

/// Times a waiting thread yields its core before it parks, at about half a microsecond each when
/// nobody wants it. Without them decoding one sequence takes 8 % longer (2026-11-25).
const YIELDS: usize = 100;

/// Bytes of address space that must be free before another thread is started.
const THREAD_ROOM: usize = 64 << 20;

type Job = *const (dyn Fn(usize) + Sync);

/// A fixed set of threads, the caller's among them. Calls from several threads take turns.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
    /// The threads that a pool which only counts stands for.
    counted: Option<usize>,
}

struct Shared {
    /// Grows by one with every run; workers wait for it to change.
    generation: AtomicUsize,
    /// Workers that have not finished the present run.
    remaining: AtomicUsize,
    stop: AtomicBool,
    /// Written by the caller before it raises `generation`, read by workers after they see that.
    run: UnsafeCell<Option<Run>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

struct Run {
    job: Job,
    caller: Thread,
    /// The op that it is a part of, where a profile is recorded.
    op: Option<profile::Op>,
}

// SAFETY: `run` is written only while `remaining` is 0 and the caller holds `turn`, and read only
// by workers between the release store of `generation` and their decrement of `remaining`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the job pointer is to a `Sync` closure that outlives the run.
unsafe impl Send for Shared {}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// A pool of `threads` threads, the caller included: `threads - 1` are started. There are fewer where the system
    /// refuses one (for lack of memory, or because of a limit per user), or where a limit of the address space leaves
    /// little for anything else. No result depends on their number.
    pub fn new(threads: usize) -> Pool {
        assert!(threads > 0, "a pool needs at least one thread");
        let shared = Arc::new(Shared {
            generation: AtomicUsize::new(0),
            remaining: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            run: UnsafeCell::new(None),
            panic: Mutex::new(None),
        });
        let workers = (1..threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                // Room for a stack, and for all else that the program does. A thread that has started needs no more:
                // one at a time, so that the next one's room is not what it is about to take.
                MmapOptions::new().len(THREAD_ROOM).map_anon().ok()?;
                let (started, has_started) = std::sync::mpsc::channel();
                let worker = thread::Builder::new().name(format!("kernel-{index}"));
                let worker = worker.spawn(move || {
                    let _ = started.send(());
                    work(&shared, index);
                });
                let worker = worker.ok()?;
                has_started.recv().ok().map(|()| worker)
            })
            .collect();
        Pool { shared, workers, turn: Mutex::new(()), counted: None }
    }

    /// Stands for a pool of `threads` threads and runs nothing (see [`crate::cpu::Cpu::counting`]).
    pub(super) fn counting(threads: usize) -> Pool {
        let mut pool = Pool::new(1);
        pool.counted = Some(threads);
        pool
    }

    /// Whether it only counts, and runs nothing.
    pub(super) fn counts(&self) -> bool {
        self.counted.is_some()
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.counted.unwrap_or(self.workers.len() + 1)
    }

    /// Runs `f(thread_index)` once on every thread (0 is the caller) and returns when all are
    /// done. A panic on any thread is raised again here, after all have finished.
    ///
    /// # Panics
    /// If called from inside a run, of this or another pool.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        let inside = Inside::enter();
        if self.counts() {
            return;
        }
        if self.workers.is_empty() {
            f(0);
            return;
        }
        let turn = lock(&self.turn);
        // SAFETY: only the lifetime changes. Workers use the pointer between here and their
        // decrement of `remaining`, and this function does not return before that is 0.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(f) };
        let op = profile::current();
        // SAFETY: `turn` is held and the last run is over (`remaining` is 0): no worker reads.
        unsafe { *self.shared.run.get() = Some(Run { job, caller: thread::current(), op }) };
        self.shared.remaining.store(self.workers.len(), Ordering::Relaxed);
        self.shared.generation.fetch_add(1, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        let waiting = op.map(profile::Op::wait);
        let mut turns = 0;
        while self.shared.remaining.load(Ordering::Acquire) != 0 {
            wait(&mut turns);
        }
        drop(waiting);
        let panic = lock(&self.shared.panic).take();
        drop(turn);
        drop(inside);
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Runs `f(thread_index, task)` for every task in `0..tasks`, each once, handed out in order
    /// to whichever thread is free. Nothing may depend on which thread that is but scratch.
    pub fn for_each(&self, tasks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        if self.counts() {
            return;
        }
        if tasks <= 1 || self.workers.is_empty() {
            let _inside = Inside::enter();
            (0..tasks).for_each(|task| f(0, task));
            return;
        }
        let next = AtomicUsize::new(0);
        self.run(&|thread| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                f(thread, task);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.generation.fetch_add(1, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's panics are caught and raised in `run`: joining cannot fail.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

/// Marks this thread as inside a run until dropped.
struct Inside;

impl Inside {
    fn enter() -> Inside {
        assert!(!INSIDE.replace(true), "a kernel was started from inside another kernel's run");
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

/// One turn of waiting for another thread. Turns get longer.
fn wait(turns: &mut usize) {
    *turns += 1;
    if *turns <= SPINS {
        std::hint::spin_loop();
    } else if *turns <= SPINS + YIELDS {
        thread::yield_now();
    } else {
        thread::park();
    }
}

fn work(shared: &Shared, index: usize) {
    INSIDE.set(true);
    let mut seen = 0;
    loop {
        let mut turns = 0;
        loop {
            let generation = shared.generation.load(Ordering::Acquire);
            if generation != seen {
                seen = generation;
                break;
            }
            wait(&mut turns);
        }
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: the caller wrote `run` before the release of `generation` acquired above, and
        // writes it again only after this worker's decrement of `remaining`.
        let run = unsafe { (*shared.run.get()).as_ref() }.expect("a run is set before it starts");
        let (job, caller, op) = (run.job, run.caller.clone(), run.op);
        let part = op.map(profile::Op::part);
        // SAFETY: `Pool::run` keeps the closure alive until `remaining` is 0.
        let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(index) }));
        if let Err(payload) = outcome {
            lock(&shared.panic).get_or_insert(payload);
        }
        drop(part);
        if shared.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            caller.unpark();
        }
        if op.is_some() {
            profile::make_room();
        }
    }
}

/// A mutable slice whose disjoint parts are written by several threads.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access is only through `part`, whose contract is that parts in use do not overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        let (start, len) = (slice.as_mut_ptr(), slice.len());
        Disjoint { start, len, slice: std::marker::PhantomData }
    }

    /// The part from `first` on, `len` long; checked against the slice.
    ///
    /// # Safety
    /// No other part in use at the same time overlaps this one.
    #[allow(clippy::mut_from_ref)] // the contract above is what makes it sound
    pub(crate) unsafe fn part(&self, first: usize, len: usize) -> &mut [T] {
        assert!(
            first <= self.len && len <= self.len - first,
            "part {first}..+{len} of a slice of {}",
            self.len
        );
        // SAFETY: in bounds by the assert above, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }

    /// The start of the slice, for kernels that write strided blocks.
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_thread_runs_once_and_every_task_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for _ in 0..200 {
                let mask = AtomicU64::new(0);
                pool.run(&|thread| {
                    let old = mask.fetch_or(1 << thread, Ordering::Relaxed);
                    assert_eq!(old & (1 << thread), 0);
                });
                assert_eq!(mask.into_inner(), (1 << threads) - 1);
                let counts: Vec<_> = (0..37).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(counts.len(), &|thread, task| {
                    assert!(thread < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
            pool.for_each(0, &|_, _| panic!("there is no task"));
        }
    }

    #[test]
    fn parked_workers_wake() {
        let pool = Pool::new(3);
        for pause_us in [0, 50, 2000] {
            thread::sleep(std::time::Duration::from_micros(pause_us));
            let count = AtomicUsize::new(0);
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 3);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for bad in 0..3 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|thread| assert_ne!(thread, bad, "thread is bad"));
            }));
            let payload = outcome.expect_err("the panic must not be lost");
            assert!(payload.downcast_ref::<String>().unwrap().contains("thread is bad"));
            let count = AtomicUsize::new(0);
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 3);
        }
    }

    #[test]
    fn nested_runs_are_refused() {
        for threads in [1, 2] {
            let pool = Pool::new(threads);
            let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(&|_| pool.run(&|_| {}))));
            let payload = outcome.expect_err("a nested run would deadlock");
            assert!(payload.downcast_ref::<&str>().unwrap().contains("inside another"));
        }
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2);
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.for_each(5, &|_, _| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 100 * 5);
    }
}
