//! `j1 check`: the engine against PyTorch's dumps.

use std::process::ExitCode;

use engine::tensor::Device;
use serde_json::json;
use trainer::check::{Finding, check};

use crate::{
    Failure,
    args::Check,
    machine,
    output::{print, table},
};

pub(crate) fn run(args: &Check) -> Result<ExitCode, Failure> {
    let device = Device::new(machine::cpu(args.threads));
    let mut findings = Vec::new();
    for directory in &args.directories {
        findings.extend(check(directory, &device)?);
    }
    let passed = findings.iter().all(Finding::passes);
    if args.json {
        let rows: Vec<_> = findings.iter().map(to_json).collect();
        print(&format!("{:#}\n", json!({ "passed": passed, "findings": rows })))?;
    } else {
        let heading = ["case", "adapter", "quantity", "values", "largest error", "bound", ""];
        let mut rows = vec![heading.map(String::from).to_vec()];
        rows.extend(findings.iter().map(to_row));
        print(&table(&rows))?;
        let failed = findings.iter().filter(|finding| !finding.passes()).count();
        match failed {
            0 => print(&format!("all {} within their bounds\n", findings.len()))?,
            _ => print(&format!("{failed} of {} out of bounds\n", findings.len()))?,
        }
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn to_row(finding: &Finding) -> Vec<String> {
    let Finding { case, variant, quantity, count, error, bound } = finding;
    let number = |x: f64| if x == 0.0 { "0".to_string() } else { format!("{x:.1e}") };
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
