//! What the machine has.

use engine::{device::DeviceError, model::Model, tensor::Device, weights::Packing};
use kernels::cpu::Cpu;
use trainer::settings::Weights;

use crate::{
    Failure,
    args::{DeviceArg, DtypeArg, WeightsArg},
};

/// The device that is asked for; the CPU has `threads` threads, or as many as there are cores.
pub(crate) fn device(
    device: DeviceArg,
    dtype: DtypeArg,
    threads: Option<u16>,
) -> Result<Device, Failure> {
    let cpu = || cpu(threads);
    match device {
        DeviceArg::Cpu => Ok(Device::new(cpu())),
        DeviceArg::Cuda(_) if dtype == DtypeArg::F32 => {
            Err("--device cuda computes in bf16; leave --dtype f32 out, or use --device cpu".into())
        }
        DeviceArg::Cuda(ordinal) => Ok(Device::cuda(ordinal, cpu())?),
        DeviceArg::Auto if dtype == DtypeArg::F32 => Ok(Device::new(cpu())),
        DeviceArg::Auto => match Device::cuda(0, cpu()) {
            Ok(device) => Ok(device),
            // Nothing to run on is what "auto" is for; a GPU that is there and fails is not.
            Err(DeviceError::Disabled | DeviceError::NoDriver | DeviceError::OldDevice { .. }) => {
                Ok(Device::new(cpu()))
            }
            Err(error) => Err(error.into()),
        },
    }
}

/// The CPU, with `threads` threads or all cores.
pub(crate) fn cpu(threads: Option<u16>) -> Cpu {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Cpu::new(threads.map_or(cores, usize::from))
}

/// What decides the bits of a result, beside its settings: the CPU's instruction set, or that it is a GPU.
pub(crate) fn instructions(device: &Device) -> &'static str {
    match device {
        Device::Cpu(_) => device.cpu().isa().name(),
        Device::Cuda(_) => "cuda",
    }
}

/// Memory that can be taken without swapping, in bytes; unknown on systems without /proc.
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Lets `model` read its weights as `--weights` says; on a GPU, takes them there. What came of it: mapped, or packed
/// sooner or later; a GPU reads the map once.
pub(crate) fn place_weights(model: &mut Model, weights: WeightsArg) -> Result<Weights, Failure> {
    if model.device().is_cuda() {
        model.upload()?;
        return Ok(Weights::Mapped);
    }
    let packing = match weights {
        WeightsArg::Mapped => Packing::Mapped,
        // For a while the copy stands beside what was read of the files.
        WeightsArg::Auto
            if available_memory().is_none_or(|free| free / 2 > model.weights_bytes()) =>
        {
            Packing::WhenReused
        }
        WeightsArg::Auto => Packing::Mapped,
        WeightsArg::Packed if model.can_pack() => Packing::AtOnce,
        WeightsArg::Packed => {
            return Err(
                "--weights packed needs bf16 weights, --dtype bf16 and a CPU with AVX-512 \
                        BF16; use --weights auto"
                    .into(),
            );
        }
    };
    model.set_packing(packing);
    Ok(match packing {
        Packing::WhenReused | Packing::AtOnce if model.can_pack() => Weights::Packed,
        _ => Weights::Mapped,
    })
}

/// Memory for keys and values where the user names none: a quarter of what is free, of a GPU half.
pub(crate) fn default_cache_bytes(device: &Device) -> u64 {
    match device {
        Device::Cpu(_) => quarter_of_memory(),
        Device::Cuda(cuda) => {
            cuda.gpu().memory().map_or(UNKNOWN / 4, |(free, _)| (free as u64 / 2).max(64 << 20))
        }
    }
}

/// What a machine has whose system does not say.
const UNKNOWN: u64 = 8 << 30;

/// A quarter of the memory that is free.
pub(crate) fn quarter_of_memory() -> u64 {
    (available_memory().unwrap_or(UNKNOWN) / 4).max(64 << 20)
}

/// Makes the peak of resident memory count from now on. Whether the system did: Linux does, where /proc is not
/// read-only.
pub(crate) fn reset_peak_memory() -> bool {
    // proc(5): 5 resets the peak resident set size to the current one.
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}
