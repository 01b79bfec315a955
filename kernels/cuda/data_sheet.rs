//! Peaks of GPUs by NVIDIA's data sheets, for products without sparsity. Nothing here was measured.

/// Peaks of one GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DataSheet {
    /// Floating-point operations per second of products of bf16 that sum in f32.
    pub bf16_flops: f64,
    /// Bytes per second from memory.
    pub bytes_per_second: f64,
}

/// The data sheet of a GPU by the name that its driver gives; `None` for one that is not listed, and for an emulated
/// one.
pub fn data_sheet(name: &str) -> Option<DataSheet> {
    /// Words of the name, TFLOP/s, GB/s. The first that fits counts.
    const SHEETS: &[(&[&str], f64, f64)] = &[
        (&["NVIDIA A100", "SXM4", "80GB"], 312.0, 2039.0),
        (&["NVIDIA A100", "80GB", "PCIe"], 312.0, 1935.0),
        (&["NVIDIA A100", "40GB"], 312.0, 1555.0),
        (&["NVIDIA H100", "80GB HBM3"], 989.0, 3350.0),
        (&["NVIDIA H100 PCIe"], 756.0, 2000.0),
        (&["NVIDIA H200"], 989.0, 4800.0),
    ];
    let fits = |words: &[&str]| words.iter().all(|word| name.contains(word));
    let (_, teraflops, gigabytes) = SHEETS.iter().find(|(words, ..)| fits(words))?;
    Some(DataSheet { bf16_flops: teraflops * 1e12, bytes_per_second: gigabytes * 1e9 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_known_by_its_drivers_name() {
        for (name, teraflops, gigabytes) in [
            ("NVIDIA A100-SXM4-80GB", 312.0, 2039.0),
            ("NVIDIA A100 80GB PCIe", 312.0, 1935.0),
            ("NVIDIA A100-SXM4-40GB", 312.0, 1555.0),
            ("NVIDIA A100-PCIE-40GB", 312.0, 1555.0),
            ("NVIDIA H100 80GB HBM3", 989.0, 3350.0),
            ("NVIDIA H100 PCIe", 756.0, 2000.0),
            ("NVIDIA H200", 989.0, 4800.0),
        ] {
            let sheet = data_sheet(name).unwrap();
            assert_eq!(
                (sheet.bf16_flops, sheet.bytes_per_second),
                (teraflops * 1e12, gigabytes * 1e9)
            );
        }
        for name in ["Emulated A100-SXM4-80GB", "NVIDIA GeForce RTX 3090", ""] {
            assert_eq!(data_sheet(name), None);
        }
    }
}
