//! The driver's state: one device, its streams whose work waits for a synchronization, events, graphs
//! and handles. A handle is a number that is looked up, never a pointer that is followed.

pub mod api;
mod queue;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_void};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::checks::Checks;
use crate::counters::KernelCounters;
use crate::device::{Device, Kernel, Module};
use crate::fault::{FaultKind, Report};
use queue::{Stream, Work};

/// Result codes of the driver (`CUresult`).
pub(crate) mod code {
    pub(crate) const SUCCESS: u32 = 0;
    pub(crate) const INVALID_VALUE: u32 = 1;
    pub(crate) const OUT_OF_MEMORY: u32 = 2;
    pub(crate) const NOT_INITIALIZED: u32 = 3;
    pub(crate) const INVALID_DEVICE: u32 = 101;
    pub(crate) const INVALID_IMAGE: u32 = 200;
    pub(crate) const NO_BINARY: u32 = 209;
    pub(crate) const INVALID_PTX: u32 = 218;
    pub(crate) const INVALID_HANDLE: u32 = 400;
    pub(crate) const NOT_FOUND: u32 = 500;
    pub(crate) const NOT_READY: u32 = 600;
    pub(crate) const NOT_SUPPORTED: u32 = 801;
    pub(crate) const CAPTURE_UNSUPPORTED: u32 = 900;
    pub(crate) const CAPTURE_INVALIDATED: u32 = 901;
}

/// A function of the driver by its name, for whoever forwards to it; null where it is not emulated.
pub fn resolve(name: &CStr) -> *const c_void {
    api::table(name)
}

/// Everything reported since the last call. Reports also go to stderr.
pub fn take_reports() -> Vec<Report> {
    with(|runtime| std::mem::take(&mut runtime.reports))
}

/// Counters of every kernel that ran. Work that is queued has not run.
pub fn counters() -> Vec<KernelCounters> {
    with(|runtime| runtime.device.counters().to_vec())
}

/// Starts counting again.
pub fn reset_counters() {
    with(|runtime| runtime.device.reset_counters());
}

/// A report for each allocation that has not been freed; pending frees are carried out first.
pub fn leaks() -> Vec<Report> {
    with(|runtime| {
        runtime.drain_all();
        let variables: Vec<u64> = runtime.module_variables();
        let allocations = runtime.device.allocations().into_iter();
        allocations
            .filter(|(address, _)| !variables.contains(address))
            .map(|(address, size)| Report {
                kind: FaultKind::Leak,
                message: format!("{size} bytes at {address:#x} were never freed"),
                kernel: String::new(),
                place: None,
            })
            .collect()
    })
}

/// Forgets a fault, which a real device would not: so that a test can provoke another.
pub fn clear_sticky_error() {
    with(|runtime| runtime.sticky = code::SUCCESS);
}

/// A new device: all handles and device memory of the old one are gone.
pub fn reset() {
    let mut guard = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pinned = guard.take().map(|runtime| runtime.pinned);
    // The host may still hold its pinned memory.
    *guard = Some(Runtime { pinned: pinned.unwrap_or_default(), ..Runtime::new() });
}

static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

fn with<T>(f: impl FnOnce(&mut Runtime) -> T) -> T {
    let mut guard = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    f(guard.get_or_insert_with(Runtime::new))
}

struct Runtime {
    initialized: bool,
    device: Device,
    /// The first fault's code: every later call returns it too.
    sticky: u32,
    reports: Vec<Report>,
    next_handle: u64,
    next_ticket: u64,
    modules: HashMap<u64, Module>,
    functions: HashMap<u64, Function>,
    /// Stream 0 is the legacy default stream.
    streams: HashMap<u64, Stream>,
    events: HashMap<u64, Event>,
    graphs: HashMap<u64, Vec<Work>>,
    executables: HashMap<u64, Vec<Work>>,
    /// Page-locked host memory by its address; its length in bytes.
    pinned: BTreeMap<usize, (Vec<u128>, usize)>,
}

#[derive(Clone)]
struct Function {
    kernel: Kernel,
    module: u64,
    opted_in: usize,
}

struct Event {
    /// Stream and ticket of the last time that it was recorded.
    recorded: Option<(u64, u64)>,
    completed: Option<Instant>,
    timed: bool,
}

impl Runtime {
    fn new() -> Runtime {
        // The shipped binary has no other way to say so: it does not know of an emulator.
        let checks = match std::env::var("EMULATOR_CHECKS").as_deref() {
            Ok("off") => Checks::none(),
            _ => Checks::default(),
        };
        Runtime {
            initialized: false,
            device: Device::new(checks),
            sticky: code::SUCCESS,
            reports: Vec::new(),
            next_handle: 1,
            next_ticket: 1,
            modules: HashMap::new(),
            functions: HashMap::new(),
            streams: HashMap::from([(0, Stream::new(true))]),
            events: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            pinned: BTreeMap::new(),
        }
    }

    /// A new handle. Not canonical as an address, so that following it faults.
    fn handle(&mut self) -> u64 {
        self.next_handle += 1;
        0x00c0_0000_0000_0000 + self.next_handle * 16
    }

    fn report(&mut self, report: Report) {
        eprintln!("emulator: {report}");
        self.reports.push(report);
    }

    /// Reports a kernel's fault; the device is unusable from now on.
    fn fail(&mut self, report: Report) -> u32 {
        let code = report.kind.driver_code();
        self.report(report);
        self.sticky = code;
        code
    }

    /// Reports what the host did wrong, which the device survives.
    fn complain(&mut self, kind: FaultKind, message: String) {
        self.report(Report { kind, message, kernel: String::new(), place: None });
    }

    fn module_variables(&self) -> Vec<u64> {
        self.modules.values().flat_map(Module::variable_addresses).collect()
    }

    /// What must hold before any call does its work.
    fn ready(&self) -> Result<(), u32> {
        if !self.initialized {
            return Err(code::NOT_INITIALIZED);
        }
        match self.sticky {
            code::SUCCESS => Ok(()),
            sticky => Err(sticky),
        }
    }
}
