//! Queuing a kernel: loads its module when it is first needed, checks the arguments against the table.

use std::ffi::c_void;

use cust::module::{Module, ModuleJitOption, OptLevel};

use super::driver::{Function, check};
use super::entries::{Entry, Param};
use super::{Buffer, Element, Error, Gpu, Opened, lock};

/// One argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    /// Address of a buffer's first element, or 0 for none.
    Address(u64),
    U32(u32),
    F32(f32),
    F64(f64),
}

impl<T: Element> From<&Buffer<T>> for Arg {
    fn from(buffer: &Buffer<T>) -> Arg {
        Arg::Address(buffer.address())
    }
}

impl<T: Element> From<&mut Buffer<T>> for Arg {
    fn from(buffer: &mut Buffer<T>) -> Arg {
        Arg::Address(buffer.address())
    }
}

impl<T: Element> From<Option<&Buffer<T>>> for Arg {
    fn from(buffer: Option<&Buffer<T>>) -> Arg {
        Arg::Address(buffer.map_or(0, Buffer::address))
    }
}

impl From<usize> for Arg {
    fn from(value: usize) -> Arg {
        Arg::U32(value.try_into().expect("sizes that kernels take fit 32 bits"))
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Arg {
        Arg::U32(value)
    }
}

impl From<bool> for Arg {
    fn from(value: bool) -> Arg {
        Arg::U32(value.into())
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Arg {
        Arg::F32(value)
    }
}

impl From<f64> for Arg {
    fn from(value: f64) -> Arg {
        Arg::F64(value)
    }
}

/// The type of a kernel's results: f32, or bf16 where a product comes next.
pub trait Output: Element {
    /// The entry point that writes this type, of those for f32 and bf16.
    fn pick(f32: &'static Entry, bf16: &'static Entry) -> &'static Entry;
}

impl Output for f32 {
    fn pick(f32: &'static Entry, _: &'static Entry) -> &'static Entry {
        f32
    }
}

impl Output for u16 {
    fn pick(_: &'static Entry, bf16: &'static Entry) -> &'static Entry {
        bf16
    }
}

/// An argument list; every element becomes an [`Arg`].
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::cuda::launch::Arg::from($value)),*] };
}
pub(super) use args;

/// How many threads run, and with how much shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) blocks: [usize; 3],
    pub(super) threads: usize,
    /// Dynamic shared memory of a block.
    pub(super) shared_bytes: usize,
}

impl Grid {
    pub(super) fn new(blocks: usize, threads: usize) -> Grid {
        Grid { blocks: [blocks, 1, 1], threads, shared_bytes: 0 }
    }

    /// The same blocks, of `threads` threads.
    pub(super) fn threads(self, threads: usize) -> Grid {
        Grid { threads, ..self }
    }

    /// Enough blocks of `threads` for `count` elements, `each` per thread.
    pub(super) fn over(count: usize, each: usize, threads: usize) -> Grid {
        Grid::new(count.div_ceil(each * threads), threads)
    }
}

impl Gpu {
    /// Queues a kernel. A grid without blocks does nothing.
    ///
    /// # Safety
    /// The addresses among `args` are valid for what the kernel does with them, on this grid.
    pub(super) unsafe fn launch(
        &self,
        entry: &'static Entry,
        grid: Grid,
        args: &[Arg],
    ) -> Result<(), Error> {
        let Grid { blocks, threads, shared_bytes } = grid;
        assert_eq!(args.len(), entry.params.len(), "arguments of {}", entry.symbol);
        let mut pointers = [std::ptr::null_mut::<c_void>(); 32];
        for ((pointer, arg), param) in pointers.iter_mut().zip(args).zip(entry.params) {
            let (kind, value) = match arg {
                Arg::Address(value) => (Param::U64, std::ptr::from_ref(value).cast::<c_void>()),
                Arg::U32(value) => (Param::U32, std::ptr::from_ref(value).cast()),
                Arg::F32(value) => (Param::F32, std::ptr::from_ref(value).cast()),
                Arg::F64(value) => (Param::F64, std::ptr::from_ref(value).cast()),
            };
            assert_eq!(kind, *param, "an argument of {}", entry.symbol);
            *pointer = value.cast_mut();
        }
        if blocks.contains(&0) {
            return Ok(());
        }
        let limit = |index: usize| if index == 0 { i32::MAX as usize } else { u16::MAX as usize };
        let fits = blocks.iter().enumerate().all(|(index, blocks)| *blocks <= limit(index));
        assert!(fits, "{} on a grid of {blocks:?}", entry.symbol);
        let Some(opened) = &self.0.opened else { return Ok(()) };
        let _entered = self.0.enter()?;
        let function = opened.function(entry, shared_bytes)?;
        let stream = opened.stream.as_inner();
        *lock(&self.0.last) = entry.symbol;
        let params = &mut pointers[..args.len()];
        let blocks = blocks.map(|blocks| blocks as u32);
        // SAFETY: number and types are the table's by the asserts above, and the table's are the kernel's
        // (entries.rs); of the addresses the caller says so.
        let result = unsafe {
            function.launch(entry.symbol, blocks, threads as u32, shared_bytes, stream, params)
        };
        self.0.count(|queued| queued.kernels += 1);
        result.map_err(|error| self.0.in_capture(error))
    }

    /// Number of 4-vectors; asserts that the length is a multiple of 4.
    pub(super) fn vectors(&self, x: &Buffer<f32>) -> usize {
        x.check_owner(self);
        assert!(x.len().is_multiple_of(4), "{} elements: not a multiple of 4", x.len());
        x.len() / 4
    }

    /// Symbols of the kernels that were launched since the last call, sorted. It empties the table of loaded functions, so
    /// that a launch has nothing to record: the next one loads its function again.
    pub(crate) fn take_launched(&self) -> Vec<&'static str> {
        let Some(opened) = &self.0.opened else { return Vec::new() };
        let mut symbols: Vec<_> = lock(&opened.functions).drain().map(|(name, _)| name).collect();
        symbols.sort_unstable();
        symbols
    }
}

impl Opened {
    /// The loaded kernel, which may use `shared_bytes` of shared memory.
    fn function(&self, entry: &'static Entry, shared_bytes: usize) -> Result<Function, Error> {
        /// Shared memory that any kernel may use without opting in.
        const FREE: usize = 48 << 10;
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.get(entry.symbol) {
            return Ok(*function);
        }
        let mut modules = lock(&self.modules);
        if !modules.contains_key(entry.stem) {
            let options = [ModuleJitOption::OptLevel(OptLevel::O4)];
            let what = format!("compiling {}.cu's PTX", entry.stem);
            let module = check(&what, Module::from_ptx(ptx(entry), &options))?;
            modules.insert(entry.stem, module);
        }
        let function =
            Function::new(&check(entry.symbol, modules[entry.stem].get_function(entry.symbol))?);
        if shared_bytes > FREE {
            function.allow_shared(entry.symbol, shared_bytes)?;
        }
        functions.insert(entry.symbol, function);
        Ok(function)
    }
}

#[cfg(not(test))]
fn ptx(entry: &Entry) -> &str {
    entry.module
}

/// `J1_TEST_PTX=STEM=FILE` has tests run another compilation of one stem: that of a seeded fault.
#[cfg(test)]
fn ptx(entry: &Entry) -> std::borrow::Cow<'static, str> {
    let given = std::env::var("J1_TEST_PTX").ok();
    match given.as_deref().and_then(|given| given.split_once('=')) {
        Some((stem, file)) if stem == entry.stem => {
            std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}")).into()
        }
        _ => entry.module.into(),
    }
}

/// Asserts that a buffer is this device's and has `len` elements.
pub(super) fn expect<T: Element>(gpu: &Gpu, name: &str, buffer: &Buffer<T>, shape: &[usize]) {
    buffer.check_owner(gpu);
    let len = shape.iter().try_fold(1usize, |len, size| len.checked_mul(*size));
    assert_eq!(Some(buffer.len()), len, "{name} is not {shape:?}");
}
