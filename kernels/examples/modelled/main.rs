//! The time that kernels would take on an A100 80GB, modelled from the emulator's counts. It was measured nowhere.
//!
//! ```sh
//! cargo run -p kernels --features cuda --example modelled -- DATE      # from the repository's root
//! ```
//!
//! Runs every kernel on the emulator at sizes that end in seconds, follows its counts to the shapes of Qwen3
//! (`counts.rs`: exactly, and asserted by one run more than the rule needs) and writes
//! `benches/record/DATE-a100-modelled.csv` and `benches/MODELLED.md`.

mod attention;
mod counts;
mod model;
mod products;
mod report;
mod rows;

use counts::{Figure, Lab};
use kernels::cuda::Error;
use model::{LAYERS, MODELS, Model, Part, TOKENS, VOCAB};
use report::{Claim, Report, Section};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let date = std::env::args().nth(1).ok_or("usage: modelled DATE, as 2026-11-25")?;
    let begun = std::time::Instant::now();
    let lab = Lab::open()?;
    let mut report = Report::new(date);
    training(&lab, &mut report)?;
    attention(&lab, &mut report)?;
    by_rows(&lab, &mut report)?;
    decoding(&lab, &mut report)?;
    for (model, names, goal) in [(&MODELS[0], "j1-nano", 6.0), (&MODELS[1], "j1-micro", 12.0)] {
        report.step(names, model.name, goal, model::training_step(&lab, model)?);
    }
    report.write()?;
    eprintln!("modelled: {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

fn figures(parts: Vec<Part>) -> Vec<Figure> {
    parts.into_iter().map(|part| part.figure).collect()
}

/// Products of both models' training passes.
fn training(lab: &Lab, report: &mut Report) -> Result<(), Error> {
    let mut large: Vec<Figure> = Vec::new();
    let mut small: Vec<Figure> = Vec::new();
    for model in &MODELS {
        let title = |what: &str| format!("{what}, {}, {TOKENS} tokens", model.name);
        let forward = figures(model::forward_products(lab, model, TOKENS, true)?.0);
        let backward = figures(model::backward_products(lab, model, TOKENS)?.0);
        let [head, head_backward] = model::head(lab, model, TOKENS)?;
        let of_head = [figures(head.0), figures(head_backward.0)].concat();
        let of_head = of_head.into_iter().filter(|figure| figure.products > 0);
        let [dl, factors] = model::gradients(lab, model, TOKENS)?;
        let hidden = [figures(model::low_rank(lab, model, TOKENS)?.0), figures(dl.0)].concat();
        let factors = figures(factors.0);
        large.extend(forward.iter().chain(&backward).cloned().chain(of_head.clone()));
        small.extend(hidden.iter().chain(&factors).filter(|figure| figure.products > 0).cloned());
        report.section(Section::new("gemm-forward", title("Products, forward"), forward));
        report.section(Section::new("gemm-dx", title("Products, gradients of inputs"), backward));
        report.section(Section::new(
            "gemm-head",
            title("Products of the head, a part of 2,048 tokens"),
            of_head.collect(),
        ));
        report.section(Section::new("lora", title("LoRA: x Aᵀ, dy B"), hidden));
        report.section(Section::new("lora-gradient", title("LoRA: gradients of factors"), factors));
    }
    report.claim(Claim::tensor_bound(
        "Training GEMMs of both models at 4,096 tokens: forward, dx, head",
        large,
    ));
    // No kernel could make tensor cores their bound: a product of x by 16 rows does 16 multiply-adds for
    // each element of x that it reads. So their bytes count.
    report.claim(Claim::fewest_bytes("LoRA's products of rank 16", &small));
    report.claim(Claim::tensor_bound(
        "LoRA's products of rank 16 bound by tensor cores, as training GEMMs",
        small,
    ));
    Ok(())
}

fn attention(lab: &Lab, report: &mut Report) -> Result<(), Error> {
    for [d, rows] in [[128, 2048], [128, TOKENS], [64, 2048], [64, TOKENS]] {
        let forward = attention::forward(lab, rows, d)?;
        let backward = attention::backward(lab, rows, d)?;
        let title = format!("Attention, 16 heads over 8, head_dim {d}, one sequence of {rows}");
        let all: Vec<Figure> = std::iter::once(forward).chain(backward).collect();
        report.claim(Claim::attention(rows, d, &all));
        report.section(Section::new("attention", title, all));
    }
    Ok(())
}

fn by_rows(lab: &Lab, report: &mut Report) -> Result<(), Error> {
    let mut bound_by_memory: Vec<Figure> = Vec::new();
    for model in &MODELS {
        let Model { hidden, ffn, adapter, .. } = *model;
        let mut all = vec![
            rows::embedding(lab, TOKENS, hidden)?,
            rows::rms_norm(lab, TOKENS, hidden)?,
            rows::rms_norm_backward(lab, TOKENS, hidden)?,
            rows::swiglu(lab, TOKENS * ffn)?,
            rows::swiglu_backward(lab, TOKENS * ffn)?,
            rows::round(lab, TOKENS * hidden)?,
            rows::add(lab, TOKENS * hidden)?,
            rows::dropout(lab, TOKENS * hidden)?,
            rows::adamw(lab, adapter)?,
            rows::norm(lab, adapter)?,
        ];
        if hidden == 1024 {
            // The same for both models.
            all.extend([
                rows::rope_norm(lab, TOKENS, false)?,
                rows::rope_norm(lab, TOKENS, true)?,
                rows::append(lab, TOKENS)?,
            ]);
            for heads in [attention::HEADS, attention::KV_HEADS] {
                all.push(rows::rope_backward(lab, TOKENS, heads)?);
                all.push(rows::qk_norm_backward(lab, TOKENS * heads)?);
            }
            all.extend(rows::log_prob(lab, TOKENS)?);
        }
        bound_by_memory.extend(all.iter().cloned());
        let title = format!("Rows and elements, {}, {TOKENS} tokens", model.name);
        report.section(Section::new("rows", title, all));
    }
    report.claim(Claim::fewest_bytes("Kernels by rows and elements", &bound_by_memory));
    Ok(())
}

fn decoding(lab: &Lab, report: &mut Report) -> Result<(), Error> {
    const CONTEXT: usize = 1024;
    for model in &MODELS {
        for batch in [1, 16, 64] {
            let step = model::decode(lab, model, batch, CONTEXT)?;
            let spent = step.iter().map(|(what, parts)| (*what, model::seconds(&parts.0)));
            let name = format!("{} batch {batch}", model.name);
            report.decode(name, spent.collect());
            if batch == 64 {
                let weights = &step[0].1.0;
                report.claim(Claim::reads_once(model, weights, &step[2].1.0, batch, CONTEXT));
            }
            let title =
                format!("A decoding step, {}, batch {batch}, context {CONTEXT}", model.name);
            let all = step.into_iter().flat_map(|(_, parts)| parts.0);
            report.section(Section::counted("decode", title, all.collect()));
        }
    }
    report.note(format!("A decoding step has {LAYERS} layers and a head of {VOCAB} tokens."));
    Ok(())
}
