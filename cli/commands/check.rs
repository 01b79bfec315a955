//! `j1 check`: the engine against PyTorch's dumps, a GPU's kernels against the CPU's.

mod self_test;

use std::process::ExitCode;

use serde_json::json;
use trainer::check::{Finding, check};

use crate::{
    Failure,
    args::{Check, DeviceArg, DtypeArg},
    machine,
    output::{print, table},
};
use self_test::SelfTest;

pub(crate) fn run(args: &Check) -> Result<ExitCode, Failure> {
    let self_test = args.self_test.then(|| SelfTest::run(args)).transpose()?;
    let mut findings = Vec::new();
    if !args.directories.is_empty() {
        let wanted = args.device.unwrap_or(DeviceArg::Cpu);
        let device = machine::device(wanted, DtypeArg::Auto, args.threads)?;
        for directory in &args.directories {
            findings.extend(check(directory, &device)?);
        }
    }
    let passed =
        findings.iter().all(Finding::passes) && self_test.as_ref().is_none_or(SelfTest::passes);
    if args.json {
        let rows: Vec<_> = findings.iter().map(to_json).collect();
        let mut report = json!({ "passed": passed, "findings": rows });
        if let Some(self_test) = &self_test {
            report["self"] = self_test.json();
        }
        print(&format!("{report:#}\n"))?;
    } else {
        if let Some(self_test) = &self_test {
            print(&self_test.text())?;
        }
        if !args.directories.is_empty() {
            print(&text(&findings))?;
        }
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The table of dumps, and a last line.
fn text(findings: &[Finding]) -> String {
    let heading = ["case", "adapter", "quantity", "values", "largest error", "bound", ""];
    let mut rows = vec![heading.map(String::from).to_vec()];
    rows.extend(findings.iter().map(to_row));
    let failed = findings.iter().filter(|finding| !finding.passes()).count();
    let all = findings.len();
    table(&rows)
        + &match failed {
            0 => format!("all {all} within their bounds\n"),
            _ => format!("{failed} of {all} out of bounds\n"),
        }
}

/// An error or a bound.
fn number(x: f64) -> String {
    if x == 0.0 { "0".to_string() } else { format!("{x:.1e}") }
}

fn to_row(finding: &Finding) -> Vec<String> {
    let Finding { case, variant, quantity, count, error, bound } = finding;
    let verdict = if finding.passes() { "ok" } else { "FAILED" };
    let adapter = if *variant == "lora" { "on" } else { "off" };
    vec![
        case.clone(),
        adapter.to_string(),
        quantity.clone(),
        count.to_string(),
        number(*error),
        number(*bound),
        verdict.to_string(),
    ]
}

fn to_json(finding: &Finding) -> serde_json::Value {
    json!({
        "case": finding.case,
        "adapter": finding.variant == "lora",
        "quantity": finding.quantity,
        "values": finding.count,
        // JSON has no NaN: such an error is null, and not passed.
        "error": finding.error,
        "bound": finding.bound,
        "passed": finding.passes(),
    })
}
