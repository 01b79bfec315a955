//! A device without a driver: memory, modules and launches that run at once. The driver's functions
//! are built on it; tests of instructions use it directly.

use std::collections::HashMap;
use std::sync::Arc;

use crate::checks::{Checks, limits};
use crate::counters::KernelCounters;
use crate::fault::{FaultKind, LoadError, Report};
use crate::lower;
use crate::machine::{self, Launch};
use crate::memory::{Memory, Refused};
use crate::program::Program;
use crate::ptx;

/// An emulated A100.
pub struct Device {
    pub(crate) memory: Memory,
    checks: Checks,
    threads: usize,
    counters: Vec<KernelCounters>,
}

/// PTX that was loaded onto a device.
pub struct Module {
    programs: Vec<Arc<Program>>,
    files: Arc<HashMap<u32, String>>,
    /// Name, address and size of each variable.
    variables: Vec<(String, u64, u64)>,
}

/// A kernel of a module.
#[derive(Clone)]
pub struct Kernel {
    pub(crate) program: Arc<Program>,
    files: Arc<HashMap<u32, String>>,
    variables: Arc<Vec<u64>>,
}

/// Shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
}

impl Shape {
    /// `blocks` blocks of `threads` threads, without dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Shape {
        Shape { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
    }
}

impl Kernel {
    /// Its name in the PTX.
    pub fn name(&self) -> &str {
        &self.program.name
    }

    /// Offset and size of each parameter.
    pub fn parameters(&self) -> &[(usize, usize)] {
        &self.program.parameters
    }

    /// Bytes of all parameters.
    pub(crate) fn parameter_bytes(&self) -> usize {
        self.program.parameter_bytes
    }

    /// 32-bit slots that the kernel's registers take.
    pub(crate) fn registers(&self) -> usize {
        self.program.words + 2 * self.program.longs
    }
}

impl Device {
    /// An empty device.
    pub fn new(checks: Checks) -> Device {
        let threads = std::env::var("EMULATOR_THREADS").ok().and_then(|text| text.parse().ok());
        let all = || std::thread::available_parallelism().map_or(1, |count| count.get());
        Device {
            memory: Memory::new(),
            checks,
            threads: threads.unwrap_or_else(all),
            counters: Vec::new(),
        }
    }

    /// The checks that are on.
    pub fn checks(&self) -> Checks {
        self.checks
    }

    /// Threads of the host that blocks run on. Results do not depend on it unless the kernel's own
    /// atomics do.
    pub fn set_threads(&mut self, threads: usize) {
        self.threads = threads.max(1);
    }

    /// Loads PTX; its variables are allocated.
    pub fn load(&mut self, source: &str) -> Result<Module, LoadError> {
        let parsed = ptx::parse::parse(source)?;
        let mut programs = Vec::with_capacity(parsed.kernels.len());
        for kernel in &parsed.kernels {
            programs.push(Arc::new(lower::lower(kernel, &parsed)?));
        }
        let mut variables = Vec::with_capacity(parsed.variables.len());
        for variable in &parsed.variables {
            let size = variable.size.max(1) as u64;
            let full = || LoadError::Device("out of device memory for variables".to_owned());
            let address = self.memory.allocate(size, &self.checks).ok_or_else(full)?;
            let mut bytes = variable.initial.clone();
            bytes.resize(size as usize, 0);
            let written = self.memory.write(address, &bytes);
            debug_assert!(written.is_ok(), "a new allocation of this size");
            variables.push((variable.name.clone(), address, variable.size as u64));
        }
        Ok(Module { programs, files: Arc::new(parsed.files), variables })
    }

    /// Frees a module's variables.
    pub fn unload(&mut self, module: &Module) {
        for (_, address, _) in &module.variables {
            self.memory.free(*address);
        }
    }

    /// Allocates device memory; `None` if it is full.
    pub fn allocate(&mut self, bytes: u64) -> Option<u64> {
        self.memory.allocate(bytes, &self.checks)
    }

    /// Frees device memory; whether the address was that of an allocation.
    pub fn free(&mut self, address: u64) -> bool {
        self.memory.free(address)
    }

    /// Copies to the host.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Report> {
        self.memory.read(address, out).map_err(|refused| host_report(refused, address, out.len()))
    }

    /// Copies from the host.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Report> {
        let length = bytes.len();
        self.memory.write(address, bytes).map_err(|refused| host_report(refused, address, length))
    }

    /// Repeats a pattern.
    pub fn fill(&mut self, address: u64, pattern: &[u8], count: usize) -> Result<(), Report> {
        let length = pattern.len().saturating_mul(count);
        self.memory
            .fill(address, pattern, count)
            .map_err(|refused| host_report(refused, address, length))
    }

    /// Copies within the device.
    pub fn copy(&mut self, to: u64, from: u64, length: usize) -> Result<(), Report> {
        self.memory.copy(to, from, length).map_err(|refused| host_report(refused, from, length))
    }

    /// Address and size of everything that is allocated.
    pub fn allocations(&self) -> Vec<(u64, u64)> {
        self.memory.allocations()
    }

    /// Whether a launch of this shape is within the limits of device and kernel; `opted_in` is the
    /// most dynamic shared memory the kernel was set to.
    pub fn check_shape(
        &self,
        kernel: &Kernel,
        shape: &Shape,
        opted_in: usize,
    ) -> Result<(), Report> {
        let program = &kernel.program;
        let refuse = |message: String| {
            Err(Report {
                kind: FaultKind::LaunchLimits,
                message,
                kernel: program.name.clone(),
                place: None,
            })
        };
        let within = |size: [u32; 3], most: [u32; 3]| {
            size.iter().zip(most).all(|(&size, most)| size > 0 && size <= most)
        };
        if !within(shape.grid, limits::GRID) {
            return refuse(format!("grid {:?} is not within {:?}", shape.grid, limits::GRID));
        }
        if !within(shape.block, limits::BLOCK) {
            return refuse(format!("block {:?} is not within {:?}", shape.block, limits::BLOCK));
        }
        let threads: u32 = shape.block.iter().product();
        let most = program.max_threads.unwrap_or(limits::THREADS_PER_BLOCK);
        if threads > most.min(limits::THREADS_PER_BLOCK) {
            return refuse(format!("{threads} threads per block, of at most {most}"));
        }
        if let Some(required) = program.required_threads
            && required != shape.block
        {
            return refuse(format!("block {:?}, but it requires {required:?}", shape.block));
        }
        let all = if shape.shared_bytes == 0 {
            program.static_shared
        } else {
            program.dynamic_base.saturating_add(shape.shared_bytes)
        };
        let opted_in = opted_in.max(limits::SHARED_PER_BLOCK - program.static_shared);
        if shape.shared_bytes > opted_in || all > limits::SHARED_PER_BLOCK_OPT_IN {
            return refuse(format!(
                "{} bytes of dynamic shared memory (and {} static); the kernel was set to {opted_in}, \
                 the device has {}",
                shape.shared_bytes,
                program.static_shared,
                limits::SHARED_PER_BLOCK_OPT_IN
            ));
        }
        Ok(())
    }

    /// Runs a kernel. The dynamic shared memory counts as opted in.
    pub fn launch(
        &mut self,
        kernel: &Kernel,
        shape: Shape,
        arguments: &[u8],
    ) -> Result<(), Report> {
        self.check_shape(kernel, &shape, limits::SHARED_PER_BLOCK_OPT_IN)?;
        let program = &kernel.program;
        if arguments.len() != program.parameter_bytes {
            return Err(Report {
                kind: FaultKind::LaunchLimits,
                message: format!(
                    "{} bytes of arguments, not {}",
                    arguments.len(),
                    program.parameter_bytes
                ),
                kernel: program.name.clone(),
                place: None,
            });
        }
        let blocks: u64 = shape.grid.iter().map(|&size| u64::from(size)).product();
        let shadow = self.checks.shadow();
        let first_number = if shadow { self.memory.actor_numbers(blocks + 1) } else { None };
        let regions = self.memory.regions();
        let memory = &self.memory;
        let launch = Launch {
            program,
            grid: shape.grid,
            block: shape.block,
            dynamic_shared: shape.shared_bytes,
            arguments,
            variables: &kernel.variables,
            files: &kernel.files,
            regions: &regions,
            is_freed: &|address| memory.is_freed(address),
            checks: self.checks,
            threads: self.threads,
            first_number,
        };
        let (counts, report) = machine::run(&launch);
        if let Some(report) = report {
            return Err(report);
        }
        if self.checks.counters {
            let touched = regions.iter().map(|region| region.start).zip(&counts.touched);
            let unique = first_number.map(|first| {
                let words =
                    touched.map(|(start, range)| self.memory.touched_words(start, *range, first));
                words.fold((0, 0), |(read, written), (r, w)| (read + 4 * r, written + 4 * w))
            });
            let counters = self.counters_of(&program.name);
            counters.add(program, &counts);
            counters.threads_per_block = shape.block.iter().product();
            counters.shared_bytes = (program.static_shared + shape.shared_bytes) as u64;
            if let Some((read, written)) = unique {
                counters.unique_read_bytes += read;
                counters.unique_written_bytes += written;
            }
        }
        Ok(())
    }

    fn counters_of(&mut self, name: &str) -> &mut KernelCounters {
        let found = self.counters.iter().position(|counters| counters.name == name);
        let index = found.unwrap_or_else(|| {
            self.counters
                .push(KernelCounters { name: name.to_owned(), ..KernelCounters::default() });
            self.counters.len() - 1
        });
        &mut self.counters[index]
    }

    /// Counters of every kernel that ran.
    pub fn counters(&self) -> &[KernelCounters] {
        &self.counters
    }

    /// Starts counting again.
    pub fn reset_counters(&mut self) {
        self.counters.clear();
    }
}

impl Module {
    /// A kernel by its name.
    pub fn kernel(&self, name: &str) -> Option<Kernel> {
        let program = self.programs.iter().find(|program| program.name == name)?;
        Some(Kernel {
            program: program.clone(),
            files: self.files.clone(),
            variables: Arc::new(self.variables.iter().map(|(_, address, _)| *address).collect()),
        })
    }

    pub(crate) fn variable_addresses(&self) -> impl Iterator<Item = u64> {
        self.variables.iter().map(|(_, address, _)| *address)
    }

    /// Address and size of a variable.
    pub fn variable(&self, name: &str) -> Option<(u64, u64)> {
        let found = self.variables.iter().find(|(variable, _, _)| variable == name)?;
        Some((found.1, found.2))
    }
}

fn host_report(refused: Refused, address: u64, length: usize) -> Report {
    let (kind, what) = match refused {
        Refused::OutOfBounds => (FaultKind::OutOfBounds, "are not within one allocation"),
        Refused::Freed => (FaultKind::UseAfterFree, "were freed"),
    };
    let message = format!("{length} bytes at {address:#x} {what}");
    Report { kind, message, kernel: String::new(), place: None }
}
