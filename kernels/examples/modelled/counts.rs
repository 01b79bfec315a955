//! Counts of runs on the emulator, and what follows from them for larger shapes: exactly, or not at all.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use emulator::KernelCounters;
use emulator::model::{A100, Modelled, Resource, modelled};
use half::bf16;
use kernels::cuda::{Buffer, Error, Gpu};

/// The emulated device, and the runs that were made on it.
pub(crate) struct Lab {
    pub(crate) gpu: Gpu,
    runs: RefCell<HashMap<String, Rc<Runs>>>,
}

impl Lab {
    pub(crate) fn open() -> Result<Lab, Error> {
        // Refused once it is in use, which is all the same.
        let _ = cuda_driver::set_resolver(emulator::resolve);
        let gpu = Gpu::open(0)?;
        assert_eq!(gpu.multiprocessors() as u64, A100.multiprocessors, "not the emulated A100");
        Ok(Lab { gpu, runs: RefCell::default() })
    }

    /// Counts of the kernels that `work` queues.
    pub(crate) fn count(
        &self,
        work: impl FnOnce(&Gpu) -> Result<(), Error>,
    ) -> Result<Vec<KernelCounters>, Error> {
        self.gpu.synchronize()?;
        emulator::reset_counters();
        work(&self.gpu)?;
        self.gpu.synchronize()?;
        let reports = emulator::take_reports();
        assert!(reports.is_empty(), "the emulator complains: {reports:?}");
        Ok(emulator::counters())
    }

    /// The runs of this name, made now if there are none: `degree + 2` sizes, from `first` on, `spacing` apart.
    pub(crate) fn runs(
        &self,
        name: String,
        degree: usize,
        first: usize,
        spacing: usize,
        work: impl Fn(usize) -> Result<Vec<KernelCounters>, Error>,
    ) -> Result<Rc<Runs>, Error> {
        if let Some(runs) = self.runs.borrow().get(&name) {
            return Ok(runs.clone());
        }
        eprintln!("modelled: {name}");
        let sizes = (0..degree + 2).map(|index| first + index * spacing);
        let counted = sizes.map(work).collect::<Result<Vec<_>, _>>()?;
        let runs = Rc::new(Runs { name: name.clone(), degree, first, spacing, counted });
        self.runs.borrow_mut().insert(name, runs.clone());
        Ok(runs)
    }

    /// Numbers between -0.5 and 0.5.
    pub(crate) fn floats(&self, len: usize) -> Result<Buffer<f32>, Error> {
        self.gpu.upload(&numbers(len).collect::<Vec<_>>())
    }

    /// The same in bf16.
    pub(crate) fn halves(&self, len: usize) -> Result<Buffer<u16>, Error> {
        let halves = numbers(len).map(|x| bf16::from_f32(x).to_bits());
        self.gpu.upload(&halves.collect::<Vec<_>>())
    }
}

fn numbers(len: usize) -> impl Iterator<Item = f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5)
}

/// Runs of equally spaced sizes, whose counts are polynomials of the size.
pub(crate) struct Runs {
    name: String,
    degree: usize,
    first: usize,
    spacing: usize,
    /// By size, then by kernel.
    counted: Vec<Vec<KernelCounters>>,
}

impl Runs {
    fn of(&self, kernel: &str, run: usize) -> &KernelCounters {
        let found = self.counted[run].iter().find(|counters| counters.name == kernel);
        found.unwrap_or_else(|| panic!("{}: {kernel} did not run", self.name))
    }

    /// Counts of a kernel at `size`, by Newton's forward differences, which are integers. One run more than the
    /// degree asks for was made: its difference must vanish, or the rule is wrong.
    pub(crate) fn at(&self, kernel: &str, size: usize) -> KernelCounters {
        let beyond = size as i128 - self.first as i128;
        assert_eq!(beyond % self.spacing as i128, 0, "{}: size {size}", self.name);
        let steps = beyond / self.spacing as i128;
        let mut rows: Vec<Vec<i128>> =
            (0..self.counted.len()).map(|run| fields(self.of(kernel, run))).collect();
        let mut sums = rows[0].clone();
        let mut binomial = 1;
        for order in 1..=self.degree + 1 {
            rows = rows.windows(2).map(|pair| difference(&pair[1], &pair[0])).collect();
            if order == self.degree + 1 {
                let rest = &rows[0];
                assert!(
                    rest.iter().all(|rest| *rest == 0),
                    "{}: {kernel} is no polynomial of degree {}: {rest:?}",
                    self.name,
                    self.degree
                );
                break;
            }
            binomial = binomial * (steps - order as i128 + 1) / order as i128;
            sums.iter_mut().zip(&rows[0]).for_each(|(sum, row)| *sum += row * binomial);
        }
        from_fields(self.of(kernel, 0), &sums)
    }

    /// Asserts that `bytes` (read, written) are the different ones that every run touched.
    pub(crate) fn check_bytes(&self, kernel: &str, bytes: impl Fn(usize) -> [usize; 2]) {
        for run in 0..self.counted.len() {
            let counters = self.of(kernel, run);
            let counted = [counters.unique_read_bytes, counters.unique_written_bytes];
            let bytes = bytes(self.first + run * self.spacing).map(|bytes| bytes as u64);
            assert_eq!(counted, bytes, "{}: bytes of {kernel}", self.name);
        }
    }
}

fn difference(a: &[i128], b: &[i128]) -> Vec<i128> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// The same kernel on `blocks` blocks that do what these do on average.
pub(crate) fn scaled(counters: &KernelCounters, blocks: usize) -> KernelCounters {
    let (of, to) = (counters.blocks as i128, blocks as i128);
    let more = fields(counters).into_iter().map(|count| {
        assert_eq!(count * to % of, 0, "{}: blocks differ: {count} of {of}", counters.name);
        count * to / of
    });
    from_fields(counters, &more.collect::<Vec<_>>())
}

/// Asserts that blocks of two grids count the same, but for the bytes that they share.
pub(crate) fn assert_same_blocks(a: &[KernelCounters], b: &[KernelCounters], kernel: &str) {
    let [a, b] = [a, b].map(|counted| {
        let mut counters =
            counted.iter().find(|counters| counters.name == kernel).expect("it ran").clone();
        (counters.unique_read_bytes, counters.unique_written_bytes) = (0, 0);
        counters
    });
    assert_eq!(
        fields(&scaled(&a, b.blocks as usize)),
        fields(&b),
        "{kernel}: blocks of another grid count otherwise"
    );
}

/// Everything that adds up over blocks.
fn fields(c: &KernelCounters) -> Vec<i128> {
    let mut all = c.warp_instructions.to_vec();
    for traffic in [c.load, c.store] {
        all.extend([traffic.requests, traffic.sectors, traffic.bytes]);
    }
    for shared in [c.shared_load, c.shared_store] {
        all.extend([shared.requests, shared.wavefronts]);
    }
    all.extend([c.blocks, c.lane_instructions, c.unique_read_bytes, c.unique_written_bytes]);
    all.extend([c.matrix_wavefronts, c.mma_products, c.copied_bytes, c.barriers]);
    all.into_iter().map(i128::from).collect()
}

/// The reverse; the name and what a launch looks like are those of `like`.
fn from_fields(like: &KernelCounters, fields: &[i128]) -> KernelCounters {
    let mut c = KernelCounters { launches: 1, ..like.clone() };
    let mut next = fields.iter().map(|count| u64::try_from(*count).expect("counts are positive"));
    let mut take = || next.next().expect("as many as fields() gave");
    c.warp_instructions.iter_mut().for_each(|count| *count = take());
    for traffic in [&mut c.load, &mut c.store] {
        (traffic.requests, traffic.sectors, traffic.bytes) = (take(), take(), take());
    }
    for shared in [&mut c.shared_load, &mut c.shared_store] {
        (shared.requests, shared.wavefronts) = (take(), take());
    }
    (c.blocks, c.lane_instructions) = (take(), take());
    (c.unique_read_bytes, c.unique_written_bytes) = (take(), take());
    (c.matrix_wavefronts, c.mma_products, c.copied_bytes, c.barriers) =
        (take(), take(), take(), take());
    c.busiest_blocks = c.blocks.div_ceil(A100.multiprocessors);
    c
}

/// Resources that ptxas cannot relieve: it keeps every mma, every access of shared and of global memory.
pub(crate) const EXACT: [Resource; 4] =
    [Resource::Tensor, Resource::Shared, Resource::L2, Resource::Memory];

/// A kernel at a shape, and what the model makes of its counts.
#[derive(Clone)]
pub(crate) struct Figure {
    pub(crate) shape: String,
    pub(crate) counters: KernelCounters,
    /// Bytes that the operation must read and write: each input once, each result once.
    pub(crate) fewest_bytes: usize,
    /// Multiply-adds of the operation itself; 0 if it is no product.
    pub(crate) products: u64,
    pub(crate) modelled: Modelled,
}

impl Figure {
    pub(crate) fn new(
        shape: String,
        counters: KernelCounters,
        fewest_bytes: usize,
        products: usize,
    ) -> Figure {
        let modelled = modelled(&counters, &A100);
        Figure { shape, counters, fewest_bytes, products: products as u64, modelled }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.modelled.time_seconds
    }

    /// Seconds that a resource needs.
    pub(crate) fn of(&self, resource: Resource) -> f64 {
        let found = self.modelled.seconds.iter().find(|(of, _)| *of == resource);
        found.expect("the model knows all resources").1
    }

    /// Share of the tensor cores' peak that the operation's own multiply-adds reach in the modelled time.
    pub(crate) fn tensor_share(&self) -> f64 {
        let peak = A100.tensor_products * A100.multiprocessors as f64 * A100.clock_hz;
        self.products as f64 / peak / self.seconds()
    }

    pub(crate) fn unique_bytes(&self) -> u64 {
        self.counters.unique_read_bytes + self.counters.unique_written_bytes
    }

    /// Different bytes that a launch touches, over the fewest.
    pub(crate) fn unique_ratio(&self) -> f64 {
        self.unique_bytes() as f64 / self.fewest_bytes as f64
    }

    pub(crate) fn sectors(&self) -> u64 {
        self.counters.load.sectors + self.counters.store.sectors
    }

    /// Bytes of all sectors that requests touch, over the fewest: what a device without caches would move.
    pub(crate) fn request_ratio(&self) -> f64 {
        (self.sectors() * 32) as f64 / self.fewest_bytes as f64
    }

    /// Seconds of the busiest resource whose count does not depend on what ptxas makes of PTX.
    pub(crate) fn exact_seconds(&self) -> f64 {
        EXACT.map(|resource| self.of(resource)).into_iter().fold(0.0, f64::max)
    }

    /// The busiest resource but tensor cores, and its time over theirs.
    pub(crate) fn next_to_tensor(&self) -> (Resource, f64) {
        let tensor = self.of(Resource::Tensor);
        let mut others = self.modelled.seconds.iter().filter(|(of, _)| *of != Resource::Tensor);
        let (resource, seconds) = others.next().expect("there are other resources");
        (*resource, seconds / tensor)
    }
}
