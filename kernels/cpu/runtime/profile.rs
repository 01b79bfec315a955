//! A recorder of what ran when on which thread, for the whole process: a Chrome trace, which
//! ui.perfetto.dev and chrome://tracing open.
//!
//! A kernel opens a [`span`] at its entry, with the [`Work`] it has to do at least, so that a slice
//! of the trace says GFLOP/s and GB/s. [`crate::cpu::Pool::run`] adds, on the row of each of its threads,
//! that thread's own part under the name of the kernel, and on the caller's row how long it waited
//! for the others. Layers above open a [`phase`] around steps that are made of kernels.
//!
//! Where nothing records, a kernel call reads one atomic, relaxed. Where something does, events lie in
//! a buffer of the thread, which is written out as it fills: memory does not grow with the run. That
//! writing is a slice of its own, `write trace`, and so no mystery in the trace.

mod trace;

use std::cell::{Cell, OnceCell};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use crate::lock;
use trace::Trace;

/// Name of the slices in which a thread writes its events out.
pub(crate) const WRITING: &str = "write trace";

/// Name of the slices in which a caller waits for the other threads of its pool.
pub(crate) const WAITING: &str = "wait for threads";

/// Events in a thread's buffer at most: about 400 KB.
const BUFFERED: usize = 4096;

/// Dimensions that a span's shape has at most.
const DIMENSIONS: usize = 4;

/// Number of the recording under way; 0 is none.
static RECORDING: AtomicU32 = AtomicU32::new(0);

/// What is recorded goes here. Locked after [`THREADS`], and after a buffer.
static TRACE: Mutex<Option<Trace>> = Mutex::new(None);

/// The buffers of all threads that recorded something. Locked before any of them.
static THREADS: Mutex<Vec<Arc<Mutex<Buffer>>>> = Mutex::new(Vec::new());

thread_local! {
    static THREAD: Local = const {
        Local { op: Cell::new(("other", Kind::Phase)), buffer: OnceCell::new() }
    };
}

struct Local {
    /// The innermost span.
    op: Cell<(&'static str, Kind)>,
    buffer: OnceCell<Arc<Mutex<Buffer>>>,
}

struct Buffer {
    /// Number of the row in the trace.
    row: usize,
    name: String,
    events: Vec<Event>,
    /// The recording that has the row's name already.
    named_in: u32,
}

/// The kind of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A kernel, on the thread that called it.
    Kernel,
    /// A part of a kernel: a thread's share of its work, or a kernel that it calls.
    Part,
    /// Kernels and what is between them.
    Phase,
}

struct Event {
    name: &'static str,
    kind: Kind,
    start: Instant,
    end: Instant,
    work: Work,
    shape: Shape,
}

#[derive(Clone, Copy)]
struct Shape {
    sizes: [u32; DIMENSIONS],
    dimensions: u8,
}

/// What an op has to do at least. Operations are additions, subtractions, multiplications, divisions,
/// roots and exponentials in the op's formula, each 1. Bytes are those of its operands, each read once,
/// and of its results, each written once; a result that is added to is read as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes between the op and memory.
    pub bytes: u64,
}

impl Work {
    /// `flops` operations and `bytes` bytes for each of `count` elements.
    pub fn each(count: usize, flops: u64, bytes: u64) -> Work {
        let count = count as u64;
        Work { flops: count.saturating_mul(flops), bytes: count.saturating_mul(bytes) }
    }

    /// A matrix product of f32 with operands of any type: 2·m·n·k operations; `y [m,n]` is f32, and
    /// read too where it is added to; `x` and `w` are the bytes of the operands.
    pub fn product([m, n, k]: [usize; 3], [x, w]: [usize; 2], accumulate: bool) -> Work {
        let outputs = (m as u64).saturating_mul(n as u64);
        let y = outputs.saturating_mul(if accumulate { 8 } else { 4 });
        Work {
            flops: outputs.saturating_mul(k as u64).saturating_mul(2),
            bytes: y.saturating_add(x as u64).saturating_add(w as u64),
        }
    }

    /// The same work and `bytes` more bytes.
    pub(crate) fn and_bytes(self, bytes: usize) -> Work {
        Work { bytes: self.bytes.saturating_add(bytes as u64), ..self }
    }
}

/// Starts to record, as process `name`, to `out`, which gets a JSON document by [`finish`].
///
/// # Panics
/// If something records already.
pub fn start(name: &str, out: Box<dyn Write + Send>) {
    static LAST: AtomicU32 = AtomicU32::new(0);
    // The first row is this thread's, whoever ends a span first.
    THREAD.with(|thread| _ = thread.buffer.get_or_init(Buffer::register));
    let mut trace = lock(&TRACE);
    assert!(trace.is_none(), "a profile is being recorded already");
    let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    *trace = Some(Trace::new(number, name, out));
    RECORDING.store(number, Ordering::Relaxed);
}

/// Ends what [`start`] began, and says how many slices were written; none if nothing records. Spans
/// that are still open are left out. A first error in writing ended the recording when it came, and is
/// returned here.
pub fn finish() -> io::Result<u64> {
    RECORDING.store(0, Ordering::Relaxed);
    // A thread adds to its buffer under its lock, and only after it has seen there that the recording
    // goes on: from here on a buffer that was emptied stays so.
    for buffer in lock(&THREADS).iter() {
        lock(buffer).write_out();
    }
    match lock(&TRACE).take() {
        Some(trace) => trace.finish(),
        None => Ok(0),
    }
}

/// A slice of the trace, from its making to its drop, on the row of the thread that made it.
#[must_use = "a span ends when it is dropped"]
pub struct SpanGuard(Option<Open>);

struct Open {
    recording: u32,
    name: &'static str,
    kind: Kind,
    start: Instant,
    work: Work,
    shape: Shape,
    /// The enclosing span.
    outer: (&'static str, Kind),
}

/// Opens the span of a kernel with operands of this shape. `work` says what it has to do, and is called only where a
/// profile is recorded. A kernel inside another one has no work of its own: the outer one counts it.
#[inline]
pub fn span<const N: usize>(
    name: &'static str,
    shape: [usize; N],
    work: impl FnOnce() -> Work,
) -> SpanGuard {
    const { assert!(N <= DIMENSIONS) };
    match RECORDING.load(Ordering::Relaxed) {
        0 => SpanGuard(None),
        recording => open(recording, name, Kind::Kernel, &shape, work()),
    }
}

/// Opens the span of a phase, which is made of kernels. `shape` has its rows, tokens or the like.
#[inline]
pub fn phase<const N: usize>(name: &'static str, shape: [usize; N]) -> SpanGuard {
    const { assert!(N <= DIMENSIONS) };
    match RECORDING.load(Ordering::Relaxed) {
        0 => SpanGuard(None),
        recording => open(recording, name, Kind::Phase, &shape, Work::default()),
    }
}

/// The op that the threads of a pool work on.
#[derive(Clone, Copy)]
pub(super) struct Op {
    recording: u32,
    name: &'static str,
    kind: Kind,
}

/// The innermost span of this thread, if something records.
#[inline]
pub(super) fn current() -> Option<Op> {
    match RECORDING.load(Ordering::Relaxed) {
        0 => None,
        recording => {
            let (name, kind) = THREAD.with(|thread| thread.op.get());
            Some(Op { recording, name, kind })
        }
    }
}

impl Op {
    /// This thread's part of it.
    pub(super) fn part(self) -> SpanGuard {
        let span = open(self.recording, self.name, Kind::Part, &[], Work::default());
        // Kernels inside a part are parts themselves if the whole is a kernel.
        THREAD.with(|thread| thread.op.set((self.name, self.kind)));
        span
    }

    /// Waiting for the others' parts.
    pub(super) fn wait(self) -> SpanGuard {
        open(self.recording, WAITING, Kind::Part, &[], Work::default())
    }
}

#[cold]
fn open(recording: u32, name: &'static str, kind: Kind, shape: &[usize], work: Work) -> SpanGuard {
    let outer = THREAD.with(|thread| thread.op.get());
    let nested = kind == Kind::Kernel && outer.1 != Kind::Phase;
    let (kind, work) = if nested { (Kind::Part, Work::default()) } else { (kind, work) };
    let mut sizes = [0; DIMENSIONS];
    for (to, from) in sizes.iter_mut().zip(shape) {
        *to = u32::try_from(*from).unwrap_or(u32::MAX);
    }
    let shape = Shape { sizes, dimensions: shape.len() as u8 };
    THREAD.with(|thread| thread.op.set((name, kind)));
    SpanGuard(Some(Open { recording, name, kind, start: Instant::now(), work, shape, outer }))
}

impl Drop for SpanGuard {
    #[inline]
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            open.close();
        }
    }
}

impl Open {
    #[cold]
    fn close(self) {
        let Open { recording, name, kind, start, work, shape, outer } = self;
        let event = Event { name, kind, start, end: Instant::now(), work, shape };
        // A thread's locals may be gone already, and then nothing is recorded.
        let _ = THREAD.try_with(|thread| {
            thread.op.set(outer);
            let mut buffer = lock(thread.buffer.get_or_init(Buffer::register));
            if RECORDING.load(Ordering::Relaxed) == recording {
                buffer.events.push(event);
                // A thread whose part is done is waited for: it writes later, in `make_room`.
                if buffer.events.len() >= BUFFERED && kind != Kind::Part {
                    buffer.make_room();
                }
            }
        });
    }
}

/// Writes this thread's events out if there are many.
#[cold]
pub(super) fn make_room() {
    THREAD.with(|thread| {
        let Some(buffer) = thread.buffer.get() else { return };
        let mut buffer = lock(buffer);
        if RECORDING.load(Ordering::Relaxed) != 0 && buffer.events.len() >= BUFFERED {
            buffer.make_room();
        }
    });
}

impl Buffer {
    /// A row for this thread.
    fn register() -> Arc<Mutex<Buffer>> {
        let mut threads = lock(&THREADS);
        // Threads that have ended leave their events here, and no more than that.
        threads.retain(|buffer| {
            let gone = Arc::strong_count(buffer) == 1;
            if gone {
                lock(buffer).write_out();
            }
            !gone
        });
        static ROWS: AtomicU32 = AtomicU32::new(0);
        let thread = thread::current();
        let buffer = Arc::new(Mutex::new(Buffer {
            row: ROWS.fetch_add(1, Ordering::Relaxed) as usize,
            name: thread.name().unwrap_or("unnamed").to_string(),
            // Parts may add a few before there is time to write.
            events: Vec::with_capacity(BUFFERED + 64),
            named_in: 0,
        }));
        threads.push(Arc::clone(&buffer));
        buffer
    }

    fn make_room(&mut self) {
        let start = Instant::now();
        self.write_out();
        let (work, shape) = (Work::default(), Shape { sizes: [0; DIMENSIONS], dimensions: 0 });
        let end = Instant::now();
        self.events.push(Event { name: WRITING, kind: Kind::Phase, start, end, work, shape });
    }

    /// Empties the buffer into the trace.
    fn write_out(&mut self) {
        if let Some(trace) = &mut *lock(&TRACE) {
            if self.named_in != trace.number && !self.events.is_empty() {
                self.named_in = trace.number;
                trace.thread(self.row, &self.name);
            }
            if trace.write(self.row, &self.events).is_err() {
                // The trace keeps the error; there is no use in more events.
                RECORDING.store(0, Ordering::Relaxed);
            }
        }
        self.events.clear();
    }
}

#[cfg(test)]
pub(crate) mod tests;
