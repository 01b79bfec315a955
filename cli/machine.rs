//! What the machine has.

use engine::{model::Model, tensor::Device, weights::Packing};
use kernels::cpu::Cpu;
use trainer::settings::Weights;

use crate::{Failure, args::WeightsArg};

/// A device of `threads` threads, or of all cores.
pub(crate) fn device(threads: Option<u16>) -> Device {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Device::new(Cpu::new(threads.map_or(cores, usize::from)))
}

/// Memory that can be taken without swapping, in bytes; unknown on systems without /proc.
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Lets `model` read its weights as `--weights` says. What came of it: mapped, or packed sooner or later.
pub(crate) fn place_weights(model: &mut Model, weights: WeightsArg) -> Result<Weights, Failure> {
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

/// Memory for keys and values where the user names none: a quarter of what is free.
pub(crate) fn default_cache_bytes() -> u64 {
    const UNKNOWN: u64 = 8 << 30;
    (available_memory().unwrap_or(UNKNOWN) / 4).max(64 << 20)
}

/// Makes the peak of resident memory count from now on. Whether the system did: Linux does, where /proc is not
/// read-only.
pub(crate) fn reset_peak_memory() -> bool {
    // proc(5): 5 resets the peak resident set size to the current one.
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}
