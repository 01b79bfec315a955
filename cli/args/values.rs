//! Values of flags that are more than a number or a name.

use engine::checkpoint::config::MAX_STOP_BYTES;

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceArg {
    /// The CPU.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
    /// The first GPU, or the CPU.
    Auto,
}

/// A device by its name.
pub(super) fn parse_device(text: &str) -> Result<DeviceArg, String> {
    match text {
        "cpu" => Ok(DeviceArg::Cpu),
        "auto" => Ok(DeviceArg::Auto),
        "cuda" => Ok(DeviceArg::Cuda(0)),
        _ => {
            let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
            let unknown = || "not a device; write cpu, cuda, cuda:1 or auto".to_string();
            number.map(DeviceArg::Cuda).ok_or_else(unknown)
        }
    }
}

/// A checkpoint of a run by its step, as its directory is called.
pub(super) fn parse_step(text: &str) -> Result<u64, String> {
    let name = text.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let step = name.strip_prefix("step-").unwrap_or(name).parse();
    step.map_err(|_| "not a checkpoint; write step-N, as it is called in checkpoints/".to_string())
}

/// A share below 1.
pub(super) fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err("not a share; write a number from 0 to below 1, such as 0.2".to_string()),
    }
}

/// A text that ends a judgement, as long as generation_config.json may have one; or an empty one.
pub(super) fn parse_stop(text: &str) -> Result<String, String> {
    match text.len() {
        ..=MAX_STOP_BYTES => Ok(text.to_string()),
        long => Err(format!("{long} bytes; write {MAX_STOP_BYTES} at most")),
    }
}

/// Bytes from `512MB`, `8GB`, `1.5GiB` or a plain number.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: f64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("unknown unit {other}; write 512MB, 8GB or 8GiB")),
    };
    match digits.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number * unit < 1e18 => Ok((number * unit) as u64),
        _ => Err("not a size; write 512MB, 8GB or 8GiB".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints() {
        for text in ["step-12", "12", "runs/x/checkpoints/step-12", "checkpoints/step-12/"] {
            assert_eq!(parse_step(text), Ok(12), "{text}");
        }
        for text in ["", "step-", "step-1.5", "-3", "last", "step-12/adapter"] {
            assert!(parse_step(text).is_err(), "{text}");
        }
    }

    #[test]
    fn devices() {
        for (text, device) in [
            ("cpu", DeviceArg::Cpu),
            ("cuda", DeviceArg::Cuda(0)),
            ("cuda:3", DeviceArg::Cuda(3)),
            ("auto", DeviceArg::Auto),
        ] {
            assert_eq!(parse_device(text), Ok(device));
        }
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(parse_device(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512MB"), Ok(512_000_000));
        assert_eq!(parse_size("1.5GiB"), Ok(1_610_612_736));
        assert_eq!(parse_size("17"), Ok(17));
        for bad in ["", "GB", "-1GB", "12XB", "1e30GB", "nan", "inf"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
