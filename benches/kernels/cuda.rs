//! The GPU that ids of `cuda/` run on, timed by events on its stream.

use std::ops::Deref;

use half::{bf16, slice::HalfFloatSliceExt as _};
use kernels::cuda::{Buffer, DataSheet, Error, Gpu, data_sheet};

use super::{
    copies,
    measure::{Limits, Report, words},
};

/// A kernel on its operands, ready to be queued.
pub(crate) type Run<'c> = Box<dyn FnMut() -> Result<(), Error> + 'c>;

/// The GPU, and whether ids on it are timed.
#[derive(Clone, Copy)]
pub(crate) struct Cuda<'c> {
    pub(crate) gpu: &'c Gpu,
    pub(crate) timed: bool,
}

/// The first GPU, or why no id runs on one.
pub(crate) fn open(timed: bool) -> Result<Gpu, String> {
    let gpu = Gpu::open(0).map_err(|error| match error {
        Error::Disabled => {
            "this build has no CUDA kernels; give cargo bench --features cuda".into()
        }
        Error::NoDriver => "there is no CUDA driver, or it finds no GPU".into(),
        error => error.to_string(),
    })?;
    if timed && is_emulated(&gpu) {
        let name = gpu.name();
        return Err(format!(
            "{name}: times of an emulator say nothing about a GPU; check results with -- --test"
        ));
    }
    Ok(gpu)
}

fn is_emulated(gpu: &Gpu) -> bool {
    gpu.name().starts_with("Emulated")
}

/// For results of this GPU, beside its data sheet.
pub(crate) fn report(gpu: &Gpu) -> Report {
    let sheet = data_sheet(gpu.name());
    // Of a GPU that is not known the A100 decides whether operations or bytes are counted.
    let DataSheet { bf16_flops, bytes_per_second } =
        sheet.or(data_sheet("NVIDIA A100-SXM4-80GB")).expect("the A100 has a data sheet");
    match sheet {
        Some(_) => println!(
            "{gpu:?}: {} TFLOP/s and {} GB/s by its data sheet",
            bf16_flops / 1e12,
            bytes_per_second / 1e9
        ),
        None => println!("{gpu:?}: its data sheet is not known, so no share of a peak is stated"),
    }
    Report::within(Limits {
        device: format!("gpu-{}", words(gpu.name())),
        // Products of f32 are made of bf16 parts.
        f32: bf16_flops,
        bf16: bf16_flops,
        read: bytes_per_second,
        unit: ("TFLOP/s", 1e12),
        known: sheet.is_some(),
    })
}

impl Cuda<'_> {
    /// `x` rounded to bf16, on the device.
    pub(crate) fn rounded(&self, x: &[f32]) -> Result<Buffer<u16>, Error> {
        let bits: Vec<u16> = x.iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
        self.upload(&bits)
    }

    /// Copies of `x` for as many layers as [`copies`] says; one where nothing is timed.
    pub(crate) fn layers(&self, x: &[bf16]) -> Result<Vec<Buffer<u16>>, Error> {
        let count = self.copies(size_of_val(x));
        (0..count).map(|_| self.upload(x.reinterpret_cast())).collect()
    }

    /// See [`copies`].
    pub(crate) fn copies(&self, bytes: usize) -> usize {
        if self.timed { copies(bytes) } else { 1 }
    }

    /// Waits for a result of bf16 and brings it to the host, as f32.
    pub(crate) fn widened(&self, x: &Buffer<u16>) -> Result<Vec<f32>, Error> {
        Ok(self.download(x)?.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect())
    }
}

impl Deref for Cuda<'_> {
    type Target = Gpu;

    fn deref(&self) -> &Gpu {
        self.gpu
    }
}
