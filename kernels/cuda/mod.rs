//! CUDA kernels (`cuda/*.cu`) and the host code that launches them, through crate cust.
//!
//! [`Gpu`] is one device with one stream. Work is queued and runs in order. A call returns before its work is done,
//! unless it brings results to the host. Every entry point of [`crate::cuda::entries`] has one safe function here,
//! which asserts the shapes that make its memory accesses valid.
//!
//! The reference of each kernel is the CPU kernel of its name: same formula, same rounding. Where the CPU takes f32
//! and rounds it to bf16 before a product, the device has bf16 (`u16`), rounded by the kernel that made it.
//!
//! Batch invariance holds here too: a row's bits depend on that row alone.

// The device.
mod args;
mod buffer;
mod comparison;
mod data_sheet;
mod driver;
pub mod entries;
mod error;
mod graph;
mod launch;
mod self_test;

// One file of functions per kernel, beside the kernel.
mod adamw;
mod add;
mod attention;
mod attention_backward;
mod dropout;
mod embedding;
mod gather;
mod log_prob;
mod matmul;
mod norm;
mod repetition_penalty;
mod rms_norm;
mod rope;
mod sample;
mod swiglu;
#[cfg(all(test, feature = "cuda"))]
mod tests;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use cust::context::Context;
use cust::device::{Device, DeviceAttribute};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};

pub use args::{Queued, SampleRequest};
pub use attention::AttentionPlan;
pub use attention_backward::{AttentionSaved, BackwardPlan, attention_backward_bytes};
pub use buffer::{Buffer, Element};
pub use comparison::Comparison;
pub use data_sheet::{DataSheet, data_sheet};
pub use driver::Timer;
pub use error::Error;
pub use graph::{Graph, Workspace};
pub use launch::Output;
pub use log_prob::{Distributions, Head, logits_columns, padded_vocab};
pub use matmul::{FEW_ROWS, Factor, Operands};
pub use repetition_penalty::Penalties;
pub use rope::RopeBuffer;

use crate::lock;
use buffer::Pool;
use driver::{check, describe};

/// One device, its stream, its memory, its kernels. Clones are the same device.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    ordinal: usize,
    name: String,
    multiprocessors: usize,
    pool: Mutex<Pool>,
    /// The kernel that was queued last. If work fails, this kernel or one before it failed.
    last: Mutex<&'static str>,
    queued: Mutex<Queued>,
    /// Read-locked while something is queued, write-locked during a capture: both use the one stream.
    capturing: RwLock<()>,
    /// `None` of a device that only counts.
    opened: Option<Opened>,
}

/// The driver's objects of a device. Dropped in this order, the context last.
struct Opened {
    /// Functions by symbol. They live as long as their modules.
    functions: Mutex<HashMap<&'static str, driver::Function>>,
    staging: Mutex<Option<driver::Staging>>,
    modules: Mutex<HashMap<&'static str, Module>>,
    stream: Stream,
    context: Context,
}

impl Gpu {
    /// Opens a device. Kernels are compiled for it when first launched.
    ///
    /// # Errors
    /// [`Error::Disabled`] in a build without the kernels' PTX; else what the driver says.
    pub fn open(ordinal: usize) -> Result<Gpu, Error> {
        if !cfg!(feature = "cuda") {
            return Err(Error::Disabled);
        }
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
        let opened = Opened {
            functions: Mutex::default(),
            staging: Mutex::default(),
            modules: Mutex::default(),
            stream,
            context,
        };
        Ok(Gpu::of(ordinal, name, multiprocessors, Some(opened)))
    }

    /// A device that counts memory, with or without a GPU in the machine (PyTorch's *meta* device): buffers are taken
    /// from the pool and given back, shapes are checked, and nothing runs. What is read from it is zeros.
    pub fn counting(multiprocessors: usize) -> Gpu {
        Gpu::of(0, "a device that counts".into(), multiprocessors, None)
    }

    fn of(ordinal: usize, name: String, multiprocessors: usize, opened: Option<Opened>) -> Gpu {
        Gpu(Arc::new(Inner {
            ordinal,
            name,
            multiprocessors,
            pool: Mutex::default(),
            last: Mutex::new("nothing"),
            queued: Mutex::default(),
            capturing: RwLock::new(()),
            opened,
        }))
    }

    /// Whether the device only counts, and nothing runs on it (see [`Gpu::counting`]).
    pub fn counts(&self) -> bool {
        self.0.opened.is_none()
    }

    /// Number of the device in this machine.
    pub fn ordinal(&self) -> usize {
        self.0.ordinal
    }

    /// The name that the driver gives.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Number of multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    /// Counts of what the host has queued so far.
    pub fn queued(&self) -> Queued {
        *lock(&self.0.queued)
    }

    /// Waits for all queued work. Fails if a kernel failed.
    pub fn synchronize(&self) -> Result<(), Error> {
        let _entered = self.0.enter()?;
        self.0.refuse_in_capture("waiting")?;
        self.0.finish("waiting")
    }
}

thread_local! {
    /// What this thread captures: the device, and the name of the graph.
    static CAPTURING: Cell<Option<(*const Inner, &'static str)>> = const { Cell::new(None) };
}

/// Held while something is being queued, so that no thread's work gets into another thread's capture.
#[must_use]
struct Entered<'a>(#[allow(dead_code)] Option<RwLockReadGuard<'a, ()>>); // held, not read

impl Inner {
    /// Makes the context current on the calling thread, and waits for the end of another thread's capture.
    fn enter(&self) -> Result<Entered<'_>, Error> {
        if let Some(opened) = &self.opened {
            driver::enter(&opened.context)?;
        }
        let others = || self.capturing.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Entered(self.captured().is_none().then(others)))
    }

    /// The driver's objects. Fails on a counting device, which cannot do what `doing` says.
    fn opened(&self, doing: &str) -> Result<&Opened, Error> {
        let counts =
            || Error::Driver { what: doing.into(), result: "the device only counts".into() };
        self.opened.as_ref().ok_or_else(counts)
    }

    /// The name of the graph that this thread captures on this device.
    fn captured(&self) -> Option<&'static str> {
        CAPTURING.get().filter(|(inner, _)| std::ptr::eq(*inner, self)).map(|(_, name)| name)
    }

    /// Fails within a capture of this thread.
    fn refuse_in_capture(&self, doing: &str) -> Result<(), Error> {
        let Some(name) = self.captured() else { return Ok(()) };
        let result = "the host takes no part in a CUDA graph".into();
        Err(Error::Driver { what: format!("{doing} while capturing {name}"), result })
    }

    /// The error, with the graph that was being captured.
    fn in_capture(&self, error: Error) -> Error {
        match (self.captured(), error) {
            (Some(name), Error::Driver { what, result }) => {
                Error::Driver { what: format!("{what} while capturing {name}"), result }
            }
            (_, error) => error,
        }
    }

    /// Counts what is queued, unless it is captured.
    fn count(&self, add: impl FnOnce(&mut Queued)) {
        if self.captured().is_none() {
            add(&mut lock(&self.queued));
        }
    }

    /// Waits for the stream; `doing` is said of an error.
    fn finish(&self, doing: &str) -> Result<(), Error> {
        let Some(opened) = &self.opened else { return Ok(()) };
        opened.stream.synchronize().map_err(|error| Error::Driver {
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

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use super::*;

    #[test]
    fn opening_a_device_says_how_to_get_one() {
        let error = Gpu::open(0).unwrap_err();
        assert_eq!(error, Error::Disabled);
        assert!(error.to_string().contains("feature cuda"), "{error}");
    }
}
