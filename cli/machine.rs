//! Devices and memory of the machine, and the record of where a run was begun.

use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use engine::{
    checkpoint::weights::Packing,
    memory::{Room, room},
    model::Model,
    tensor::{
        Device,
        device::{Cpu, DeviceError},
    },
};
use serde_json::{Map, Value, json};
use trainer::train::settings::Weights;

use crate::{
    Failure,
    args::{DeviceArg, DtypeArg, WeightsArg},
    output::{bytes, note},
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
    let cpu = threads.map_or_else(Cpu::all_cores, |threads| Cpu::new(threads.into()));
    if let Some(asked) = threads
        && cpu.threads() < usize::from(asked)
    {
        note(&format!("the system has room for {} of {asked} threads", cpu.threads()));
    }
    cpu
}

/// What decides the bits of a result, beside its settings: the CPU's instruction set, or that it is a GPU.
pub(crate) fn instructions(device: &Device) -> &'static str {
    match device {
        Device::Cpu(_) => device.host().isa().name(),
        Device::Cuda(_) => "cuda",
    }
}

/// When, where and how the program was called, and what `names` are called: what run.json says for people, who cannot
/// read fingerprints.
pub(crate) fn about(names: &[(&str, Option<&str>)]) -> Map<String, Value> {
    let at = DateTime::<Utc>::from(SystemTime::now());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.map(|name| name.trim().to_owned()).or(std::env::var("HOSTNAME").ok());
    let command: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let mut about = Map::new();
    about.insert("at".to_owned(), json!(at.to_rfc3339_opts(SecondsFormat::Secs, true)));
    about.insert("command".to_owned(), json!(command));
    about.insert("host".to_owned(), json!(host));
    about.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
    let names = names.iter().filter_map(|(key, name)| Some(((*key).to_owned(), json!((*name)?))));
    about.extend(names);
    about
}

/// Memory that can be taken, in bytes: what is free, or what a limit leaves. Unknown on systems without /proc.
pub(crate) fn available_memory() -> Option<u64> {
    room().map(|room| room.bytes)
}

/// Applies `--weights`; on a GPU, uploads them. Returns the mode in effect: mapped or packed. A GPU reads the
/// map once.
pub(crate) fn place_weights(model: &mut Model, weights: WeightsArg) -> Result<Weights, Failure> {
    if model.device().is_cuda() {
        model.upload()?;
        return Ok(Weights::Mapped);
    }
    let packing = match weights {
        WeightsArg::Mapped => Packing::Mapped,
        // For a while the copy and the mapped pages are both in memory.
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

/// Memory for keys and values: what the user names, or a quarter of what is free, of a GPU half. A GPU's is taken at
/// once, so it must be there. A CPU's is taken as it is used, which no limit of the process may end.
pub(crate) fn cache_bytes(device: &Device, named: Option<u64>) -> Result<u64, Failure> {
    let Device::Cuda(cuda) = device else { return cpu_cache_bytes(named, room()) };
    let (free, total) = cuda.gpu().memory()?;
    gpu_cache_bytes(named, free as u64, total as u64)
}

fn cpu_cache_bytes(named: Option<u64>, room: Option<Room>) -> Result<u64, Failure> {
    let Some(named) = named else { return Ok(quarter_of(room)) };
    match room.filter(|room| room.bound.is_hard() && room.bytes < named) {
        Some(room) => Err(format!(
            "--cache-memory asks for {}, and {room}; lower it, or leave it out for a quarter of what is left",
            bytes(named)
        )
        .into()),
        None => Ok(named),
    }
}

fn gpu_cache_bytes(named: Option<u64>, free: u64, total: u64) -> Result<u64, Failure> {
    match named {
        Some(named) if named > free => Err(format!(
            "--cache-memory asks for {}, and of the GPU's {} there are {} free; lower it, or leave it out for half \
             of what is free",
            bytes(named),
            bytes(total),
            bytes(free)
        )
        .into()),
        Some(named) => Ok(named),
        None => Ok(half_of_gpu(free)),
    }
}

/// Half of a GPU's memory that is free; the other half is for activations.
pub(crate) fn half_of_gpu(free: u64) -> u64 {
    (free / 2).max(64 << 20)
}

/// Memory that is assumed where the system does not tell.
const UNKNOWN: u64 = 8 << 30;

/// A quarter of the memory that is free.
pub(crate) fn quarter_of_memory() -> u64 {
    quarter_of(room())
}

fn quarter_of(room: Option<Room>) -> u64 {
    let bytes = room.map_or(UNKNOWN, |room| room.bytes);
    // What a small model needs, if half of what is left is so much.
    (bytes / 4).max((64 << 20).min(bytes / 2))
}

/// Makes the peak of resident memory count from now on. Whether the system did: Linux does, where /proc is not
/// read-only.
pub(crate) fn reset_peak_memory() -> bool {
    // proc(5): 5 resets the peak resident set size to the current one.
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

#[cfg(test)]
mod tests {
    use engine::memory::{Bound, Room};

    use super::{cpu_cache_bytes, gpu_cache_bytes};

    #[test]
    fn a_cpus_keys_and_values_stay_within_a_limit() {
        let free = Some(Room { bytes: 20 << 30, bound: Bound::Free });
        let bound = Bound::AddressSpace(4 << 30);
        let limited = |bytes| Some(Room { bytes, bound });
        assert_eq!(cpu_cache_bytes(None, free).unwrap(), 5 << 30);
        assert_eq!(cpu_cache_bytes(None, limited(2 << 30)).unwrap(), 512 << 20);
        assert_eq!(cpu_cache_bytes(None, limited(40 << 20)).unwrap(), 20 << 20);
        // Memory that is swapped or never touched may be asked for; a limit may not be passed.
        assert_eq!(cpu_cache_bytes(Some(30 << 30), free).unwrap(), 30 << 30);
        assert_eq!(cpu_cache_bytes(Some(1 << 30), limited(2 << 30)).unwrap(), 1 << 30);
        let error = cpu_cache_bytes(Some(3 << 30), limited(2 << 30)).unwrap_err().to_string();
        for part in ["--cache-memory", "3.00 GiB", "2048 MiB", "4096 MiB", "ulimit -v", "lower it"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn keys_and_values_have_half_of_a_gpu_or_what_is_named_and_there() {
        let (free, total) = (60 << 30, 80 << 30);
        assert_eq!(gpu_cache_bytes(None, free, total).unwrap(), 30 << 30);
        assert_eq!(gpu_cache_bytes(Some(50 << 30), free, total).unwrap(), 50 << 30);
        let error = gpu_cache_bytes(Some(70 << 30), free, total).unwrap_err().to_string();
        for part in ["--cache-memory", "70.00 GiB", "80.00 GiB", "60.00 GiB", "lower it"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
