//! `j1 check --self`: every CUDA kernel against its CPU reference, one row per kernel.

use std::collections::BTreeMap;

use engine::tensor::Device;
use kernels::cuda::Comparison;
use serde_json::{Value, json};

use super::number;
use crate::{
    Failure,
    args::{Check, DeviceArg, DtypeArg},
    machine,
    output::table,
};

/// Results of all comparisons on a GPU.
pub(super) struct SelfTest {
    device: String,
    kernels: BTreeMap<&'static str, Kernel>,
    failed: Vec<Comparison>,
}

/// One kernel's comparisons.
struct Kernel {
    comparisons: usize,
    values: usize,
    /// That whose error is the largest beside its bound.
    worst: Comparison,
}

impl SelfTest {
    /// Runs it on the GPU that `--device` names, else on the first.
    pub(super) fn run(args: &Check) -> Result<SelfTest, Failure> {
        let wanted = match args.device {
            None | Some(DeviceArg::Auto) => DeviceArg::Cuda(0),
            Some(DeviceArg::Cpu) => {
                return Err(
                    "--self compares a GPU's kernels with the CPU's; use --device cuda".into()
                );
            }
            Some(gpu) => gpu,
        };
        let device = machine::device(wanted, DtypeArg::Auto, args.threads)?;
        let mut test = SelfTest {
            device: format!("{device:?}"),
            kernels: BTreeMap::new(),
            failed: Vec::new(),
        };
        if let Device::Cuda(cuda) = &device {
            cuda.gpu().self_test(&mut |comparison| test.add(comparison))?;
        }
        Ok(test)
    }

    fn add(&mut self, comparison: Comparison) {
        for &name in &comparison.kernels {
            let kernel = self.kernels.entry(name).or_insert_with(|| Kernel {
                comparisons: 0,
                values: 0,
                worst: comparison.clone(),
            });
            kernel.comparisons += 1;
            kernel.values += comparison.values;
            if nearness(&comparison) > nearness(&kernel.worst) {
                kernel.worst = comparison.clone();
            }
        }
        if !comparison.passes() {
            self.failed.push(comparison);
        }
    }

    pub(super) fn passes(&self) -> bool {
        self.failed.is_empty()
    }

    /// The table, what is out of bounds, and a last line.
    pub(super) fn text(&self) -> String {
        let heading = ["kernel", "comparisons", "values", "largest error", "bound", ""];
        let mut rows = vec![heading.map(String::from).to_vec()];
        rows.extend(self.kernels.iter().map(|(name, kernel)| {
            let Kernel { comparisons, values, worst } = kernel;
            let verdict = if worst.passes() { "ok" } else { "FAILED" };
            vec![
                (*name).to_string(),
                comparisons.to_string(),
                values.to_string(),
                number(worst.error),
                number(worst.bound),
                verdict.to_string(),
            ]
        }));
        let mut text = format!("{}\n\n{}", self.device, table(&rows));
        for Comparison { check, case, kernels, error, bound, .. } in &self.failed {
            let (error, bound) = (number(*error), number(*bound));
            let kernels = kernels.join(", ");
            text += &format!("FAILED {kernels}: {check}, {case}: error {error}, bound {bound}\n");
        }
        let count = self.kernels.len();
        text + &match self.kernels.values().filter(|kernel| !kernel.worst.passes()).count() {
            0 => format!("all {count} kernels within their bounds\n"),
            failed => format!("{failed} of {count} kernels out of bounds\n"),
        }
    }

    pub(super) fn json(&self) -> Value {
        let kernels = self.kernels.iter().map(|(name, Kernel { comparisons, values, worst })| {
            json!({
                "kernel": name,
                "comparisons": comparisons,
                "values": values,
                // JSON has no infinity: such an error is null, and not passed.
                "error": worst.error,
                "bound": worst.bound,
                "check": worst.check,
                "case": worst.case,
                "passed": worst.passes(),
            })
        });
        json!({ "device": self.device, "kernels": kernels.collect::<Vec<_>>() })
    }
}

/// The error over its bound: above 1 out of bounds.
fn nearness(comparison: &Comparison) -> f64 {
    let Comparison { error, bound, .. } = *comparison;
    match error / bound {
        _ if error == 0.0 => 0.0,
        share if share.is_nan() => f64::INFINITY,
        share => share,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(comparisons: &[(&[&'static str], f64, f64)]) -> SelfTest {
        let mut test =
            SelfTest { device: "cuda:0".to_string(), kernels: BTreeMap::new(), failed: Vec::new() };
        for &(kernels, error, bound) in comparisons {
            let kernels = kernels.to_vec();
            let case = "[2, 3]".to_string();
            test.add(Comparison { check: "rows::add", case, kernels, values: 6, error, bound });
        }
        test
    }

    #[test]
    fn a_kernel_is_as_good_as_its_worst_comparison() {
        let good = test(&[(&["a", "b"], 0.5, 1.0), (&["a"], 0.0, 0.0), (&["a"], 3.0, 4.0)]);
        assert!(good.passes());
        let text = good.text();
        assert!(text.ends_with("all 2 kernels within their bounds\n"), "{text}");
        let json = good.json();
        assert_eq!(json["kernels"][0]["error"], 3.0);
        assert_eq!(
            (&json["kernels"][0]["comparisons"], &json["kernels"][0]["values"]),
            (&json!(3), &json!(18))
        );
        for (error, bound) in [(2.0, 1.0), (f64::NAN, 1.0), (f64::INFINITY, 1.0), (1e-9, 0.0)] {
            let bad = test(&[(&["a"], 0.5, 1.0), (&["a"], error, bound), (&["b"], 0.0, 0.0)]);
            assert!(!bad.passes());
            let text = bad.text();
            assert!(text.contains("FAILED a: rows::add, [2, 3]: error"), "{text}");
            assert!(text.ends_with("1 of 2 kernels out of bounds\n"), "{text}");
            assert_eq!(bad.json()["kernels"][0]["passed"], false);
        }
    }
}
