//! Launching the kernels of `cuda/*.cu`, through crate cust.
//!
//! [`Gpu`] is one device with one stream: what is queued runs in order, and a call returns before its work is
//! done, but for those that bring results to the host. Every entry point of [`crate::ptx`] has one safe function
//! here, which asserts the shapes that make its memory accesses valid. Each is the twin of a CPU kernel: same
//! formula, same rounding; what the twin takes as f32 and rounds to bf16 before a product lies on the device
//! as bf16 (`u16`), rounded by the kernel that made it.
//!
//! Batch invariance holds here too: a row's bits depend on that row alone.

#[path = "cuda_host/attention.rs"]
mod attention;
#[path = "cuda_host/attention_backward.rs"]
mod attention_backward;
#[path = "cuda_host/buffer.rs"]
mod buffer;
#[path = "cuda_host/driver.rs"]
mod driver;
#[path = "cuda_host/graph.rs"]
mod graph;
#[path = "cuda_host/launch.rs"]
mod launch;
#[path = "cuda_host/log_prob.rs"]
mod log_prob;
#[path = "cuda_host/matmul.rs"]
mod matmul;
#[path = "cuda_host/optimizer.rs"]
mod optimizer;
#[path = "cuda_host/rows.rs"]
mod rows;
#[path = "cuda_host/sample.rs"]
mod sample;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use cust::context::Context;
use cust::device::{Device, DeviceAttribute};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};

pub use crate::cuda_args::{Draws, Queued, SampleRequest};
pub use crate::cuda_comparison::Comparison;
pub use crate::cuda_data_sheet::{DataSheet, data_sheet};
pub use crate::cuda_error::Error;
pub use attention::AttentionPlan;
pub use attention_backward::{AttentionSaved, BackwardPlan};
pub use buffer::{Buffer, Element};
pub use driver::Timer;
pub use graph::{Graph, Workspace};
pub use log_prob::{Distributions, Head, padded_vocab};
pub use matmul::{FEW_ROWS, Factor, Pair};
pub use rows::{Output, RopeTable};
pub use sample::Penalties;

use buffer::Pool;
use driver::{check, describe};

/// One device, its stream, its memory, its kernels. Clones are the same device.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    ordinal: usize,
    name: String,
    multiprocessors: usize,
    /// Functions by symbol. They live as long as their modules.
    functions: Mutex<HashMap<&'static str, driver::Function>>,
    pool: Mutex<Pool>,
    staging: Mutex<Option<driver::Staging>>,
    /// The kernel that was queued last: where work failed, it or one before it did.
    last: Mutex<&'static str>,
    queued: Mutex<Queued>,
    /// Held while something is queued, and alone while something is recorded: one stream is both.
    recording: RwLock<()>,
    // Dropped in this order, the context last.
    modules: Mutex<HashMap<&'static str, Module>>,
    stream: Stream,
    context: Context,
}

impl Gpu {
    /// Opens a device. Kernels are compiled for it when first launched.
    pub fn open(ordinal: usize) -> Result<Gpu, Error> {
        if !cuda_driver::is_present() {
            return Err(Error::NoDriver);
        }
        match cust::init(cust::CudaFlags::empty()) {
            Err(cust::error::CudaError::NoDevice) => return Err(Error::NoDriver),
            result => check("cuInit", result)?,
        }
        let count = check("counting devices", Device::num_devices())? as usize;
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        let device = check("opening a device", Device::get_device(ordinal as u32))?;
        let name = check("asking a device for its name", device.name())?;
        let attribute =
            |which| check("asking a device for an attribute", device.get_attribute(which));
        let major = attribute(DeviceAttribute::ComputeCapabilityMajor)?;
        let minor = attribute(DeviceAttribute::ComputeCapabilityMinor)?;
        if major < 8 {
            return Err(Error::OldDevice { name, major, minor });
        }
        let multiprocessors = attribute(DeviceAttribute::MultiprocessorCount)? as usize;
        let context = check("making a context", Context::new(device))?;
        let stream = check("making a stream", Stream::new(StreamFlags::DEFAULT, None))?;
        Ok(Gpu(Arc::new(Inner {
            ordinal,
            name,
            multiprocessors,
            functions: Mutex::default(),
            pool: Mutex::default(),
            staging: Mutex::default(),
            last: Mutex::new("nothing"),
            queued: Mutex::default(),
            recording: RwLock::new(()),
            modules: Mutex::default(),
            stream,
            context,
        })))
    }

    /// Which of the machine's devices it is.
    pub fn ordinal(&self) -> usize {
        self.0.ordinal
    }

    /// What the device calls itself.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Multiprocessors it has.
    pub fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    /// What the host has queued so far.
    pub fn queued(&self) -> Queued {
        *lock(&self.0.queued)
    }

    /// Waits for all that is queued. Where a kernel failed, this says so.
    pub fn synchronize(&self) -> Result<(), Error> {
        let _entered = self.0.enter()?;
        self.0.refuse_recording("waiting")?;
        self.0.finish("waiting")
    }
}

thread_local! {
    /// What this thread records: on which device, and what it is called.
    static RECORDED: Cell<Option<(*const Inner, &'static str)>> = const { Cell::new(None) };
}

/// Held from before something is queued until it is: what one thread queues gets into no recording of another.
#[must_use]
struct Entered<'a>(#[allow(dead_code)] Option<RwLockReadGuard<'a, ()>>); // held, not read

impl Inner {
    /// Makes the context that of the calling thread, and waits for the end of another thread's recording.
    fn enter(&self) -> Result<Entered<'_>, Error> {
        driver::enter(&self.context)?;
        let others = || self.recording.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Entered(self.recorded().is_none().then(others)))
    }

    /// What this thread records here.
    fn recorded(&self) -> Option<&'static str> {
        RECORDED.get().filter(|(inner, _)| std::ptr::eq(*inner, self)).map(|(_, name)| name)
    }

    /// Fails within a recording of this thread.
    fn refuse_recording(&self, doing: &str) -> Result<(), Error> {
        let Some(name) = self.recorded() else { return Ok(()) };
        let result = "the host takes no part in a recording".into();
        Err(Error::Driver { what: format!("{doing} while recording {name}"), result })
    }

    /// What failed, with the recording it is of.
    fn as_recorded(&self, error: Error) -> Error {
        match (self.recorded(), error) {
            (Some(name), Error::Driver { what, result }) => {
                Error::Driver { what: format!("{what} while recording {name}"), result }
            }
            (_, error) => error,
        }
    }

    /// Counts what is queued, unless it is recorded.
    fn count(&self, add: impl FnOnce(&mut Queued)) {
        if self.recorded().is_none() {
            add(&mut lock(&self.queued));
        }
    }

    /// Waits for the stream; `doing` is said of an error.
    fn finish(&self, doing: &str) -> Result<(), Error> {
        self.stream.synchronize().map_err(|error| Error::Driver {
            what: format!("{doing} after {}", *lock(&self.last)),
            result: describe(error),
        })
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{} ({})", self.0.ordinal, self.0.name)
    }
}

/// A panic elsewhere leaves what these locks hold as it was: each change is one statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
