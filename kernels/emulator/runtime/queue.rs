//! Streams: work is queued, and runs when the host synchronizes with it.
//!
//! Every piece of work has a ticket, and tickets grow over all streams. To run a stream up to a ticket
//! is to run its queue up to there, and before each piece what it waits for: the record of an event
//! in another stream, or, between the legacy default stream and the blocking ones, whatever has a
//! smaller ticket. Work of streams nobody synchronized with stays undone: a program that forgot to
//! wait sees old data, always.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::time::Instant;

use super::{Runtime, code};
use crate::device::{Kernel, Shape};
use crate::fault::{FaultKind, Report};

/// A stream of its own order.
pub(super) struct Stream {
    queue: VecDeque<(u64, Work)>,
    /// Ordered with the legacy default stream (made without `CU_STREAM_NON_BLOCKING`).
    pub(super) blocking: bool,
    /// During a capture, work goes here instead.
    pub(super) capture: Option<Vec<Work>>,
}

impl Stream {
    pub(super) fn new(blocking: bool) -> Stream {
        Stream { queue: VecDeque::new(), blocking, capture: None }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }
}

/// A piece of work.
#[derive(Clone)]
pub(super) enum Work {
    Launch {
        kernel: Kernel,
        shape: Shape,
        arguments: Vec<u8>,
    },
    /// From memory that was copied when the call was made, as drivers do with pageable memory.
    Upload {
        to: u64,
        bytes: Vec<u8>,
    },
    /// From page-locked memory, read when the work runs.
    UploadPinned {
        to: u64,
        from: usize,
        length: usize,
    },
    Download {
        to: usize,
        from: u64,
        length: usize,
    },
    Copy {
        to: u64,
        from: u64,
        length: usize,
    },
    Fill {
        to: u64,
        pattern: Vec<u8>,
        count: usize,
    },
    Free {
        address: u64,
    },
    Call {
        function: usize,
        data: usize,
    },
    Record {
        event: u64,
    },
    /// Waits for another stream to reach a ticket.
    Wait {
        stream: u64,
        ticket: u64,
    },
}

impl Work {
    /// Whether it may touch the allocation. A kernel touches what its arguments point to; pointers
    /// that it finds in memory are not known.
    fn touches(&self, allocation: u64, of: &dyn Fn(u64) -> Option<u64>) -> bool {
        let same = |address: u64| of(address) == Some(allocation);
        match self {
            Work::Launch { arguments, .. } => arguments.chunks_exact(8).any(|bytes| {
                let mut raw = [0; 8];
                raw.copy_from_slice(bytes);
                same(u64::from_le_bytes(raw))
            }),
            Work::Upload { to, .. } | Work::UploadPinned { to, .. } | Work::Fill { to, .. } => {
                same(*to)
            }
            Work::Download { from, .. } => same(*from),
            Work::Copy { to, from, .. } => same(*to) || same(*from),
            Work::Free { address } => same(*address),
            Work::Call { .. } | Work::Record { .. } | Work::Wait { .. } => false,
        }
    }
}

impl Runtime {
    /// Queues work, or records it if the stream is being captured.
    pub(super) fn submit(&mut self, stream: u64, work: Work) -> Result<u64, u32> {
        let ticket = self.next_ticket;
        let stream = self.streams.get_mut(&stream).ok_or(code::INVALID_HANDLE)?;
        if let Some(captured) = &mut stream.capture {
            captured.push(work);
            return Ok(0);
        }
        self.next_ticket += 1;
        stream.queue.push_back((ticket, work));
        Ok(ticket)
    }

    /// Runs a stream's work up to a ticket.
    pub(super) fn drain(&mut self, stream: u64, until: u64) {
        loop {
            let Some(state) = self.streams.get(&stream) else { return };
            let blocking = state.blocking;
            let Some(&(ticket, _)) = state.queue.front().filter(|(ticket, _)| *ticket <= until)
            else {
                return;
            };
            if stream == 0 {
                let others: Vec<u64> = self
                    .streams
                    .iter()
                    .filter(|(handle, stream)| **handle != 0 && stream.blocking)
                    .map(|(&handle, _)| handle)
                    .collect();
                others.into_iter().for_each(|other| self.drain(other, ticket - 1));
            } else if blocking {
                self.drain(0, ticket - 1);
            }
            let front = self.streams.get_mut(&stream).and_then(|state| {
                // What was drained in between may have waited for this very piece.
                let same = state.queue.front().is_some_and(|(front, _)| *front == ticket);
                if same { state.queue.pop_front() } else { None }
            });
            if let Some((_, work)) = front {
                self.perform(work);
            }
        }
    }

    /// Runs everything.
    pub(super) fn drain_all(&mut self) {
        let mut streams: Vec<u64> = self.streams.keys().copied().collect();
        streams.sort_unstable();
        streams.into_iter().for_each(|stream| self.drain(stream, u64::MAX));
    }

    /// What a synchronous call of the legacy default stream waits for.
    pub(super) fn drain_default(&mut self) {
        let blocking = self.streams.iter().filter(|(_, stream)| stream.blocking);
        let mut streams: Vec<u64> = blocking.map(|(&handle, _)| handle).collect();
        streams.sort_unstable();
        streams.into_iter().for_each(|stream| self.drain(stream, u64::MAX));
    }

    fn perform(&mut self, work: Work) {
        // After a fault the device does nothing any more.
        if self.sticky != code::SUCCESS {
            return;
        }
        let result = match work {
            Work::Launch { kernel, shape, arguments } => {
                self.device.launch(&kernel, shape, &arguments)
            }
            Work::Upload { to, bytes } => self.device.write(to, &bytes),
            Work::UploadPinned { to, from, length } => match self.pinned_bytes(from, length) {
                Some(bytes) => self.device.write(to, &bytes),
                None => Err(freed_pinned(from)),
            },
            Work::Download { to, from, length } => self.download(to, from, length),
            Work::Copy { to, from, length } => self.device.copy(to, from, length),
            Work::Fill { to, pattern, count } => self.device.fill(to, &pattern, count),
            Work::Free { address } => {
                self.device.free(address);
                Ok(())
            }
            Work::Call { function, data } => {
                type HostFunction = unsafe extern "C" fn(*mut c_void);
                // SAFETY: `cuLaunchHostFunc` took a function of this type, not null, with the data
                // its caller wants it to have.
                unsafe {
                    let function = std::mem::transmute::<usize, HostFunction>(function);
                    function(data as *mut c_void);
                }
                Ok(())
            }
            Work::Record { event } => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.completed = Some(Instant::now());
                }
                Ok(())
            }
            Work::Wait { stream, ticket } => {
                self.drain(stream, ticket);
                Ok(())
            }
        };
        if let Err(report) = result {
            self.fail(report);
        }
    }

    /// Copies to host memory.
    pub(super) fn download(&mut self, to: usize, from: u64, length: usize) -> Result<(), Report> {
        // SAFETY: whoever called the driver's copy promised `length` writable bytes at `to`, until
        // the copy is done; page-locked memory is checked not to have been freed.
        let out = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, length) };
        self.device.read(from, out)
    }

    /// Bytes of page-locked memory, if the range is within one such allocation.
    pub(super) fn pinned_bytes(&self, from: usize, length: usize) -> Option<Vec<u8>> {
        self.is_pinned(from, length).then(|| {
            // SAFETY: the range is within memory that `pinned` holds. The host may write it
            // meanwhile only from another thread, which is an error of the program under test.
            unsafe { std::slice::from_raw_parts(from as *const u8, length) }.to_vec()
        })
    }

    pub(super) fn is_pinned(&self, address: usize, length: usize) -> bool {
        self.pinned.range(..=address).next_back().is_some_and(|(&start, (_, size))| {
            address - start <= *size && length <= size - (address - start)
        })
    }

    /// Complains if queued work may touch device memory that the host is about to use.
    pub(super) fn check_queued(&mut self, address: u64, action: &str) {
        if !self.device.checks().synchronization {
            return;
        }
        let Some(allocation) = self.device.memory.allocation_of(address) else { return };
        let of = |address: u64| self.device.memory.allocation_of(address);
        let touched = self
            .streams
            .values()
            .flat_map(|stream| &stream.queue)
            .find(|(_, work)| work.touches(allocation, &of));
        let what = touched.map(|(_, work)| match work {
            Work::Launch { kernel, .. } => format!("kernel {}", kernel.name()),
            _ => "a copy".to_owned(),
        });
        if let Some(what) = what {
            let message = format!("{action} at {address:#x} while {what} is queued on it");
            self.complain(FaultKind::MissingSynchronization, message);
        }
    }

    /// Complains if queued copies write host memory that is about to be used, from other streams.
    pub(super) fn check_host(&mut self, address: usize, length: usize, stream: Option<u64>) {
        if !self.device.checks().synchronization {
            return;
        }
        let overlaps = |work: &Work| match work {
            Work::Download { to, length: bytes, .. } => {
                *to < address.saturating_add(length) && address < to.saturating_add(*bytes)
            }
            _ => false,
        };
        let streams = self.streams.iter().filter(|(handle, _)| Some(**handle) != stream);
        let hit = streams.flat_map(|(_, stream)| &stream.queue).any(|(_, work)| overlaps(work));
        if hit {
            let message =
                format!("host memory at {address:#x} is used while a copy to it is queued");
            self.complain(FaultKind::MissingSynchronization, message);
        }
    }
}

fn freed_pinned(address: usize) -> Report {
    Report {
        kind: FaultKind::MissingSynchronization,
        message: format!("page-locked memory at {address:#x} was freed before its copy ran"),
        kernel: String::new(),
        place: None,
    }
}
