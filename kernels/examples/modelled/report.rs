//! The record and the page, and the targets of the kernels beside what the model says.

use std::{fmt::Write as _, fs};

use emulator::model::{A100, Resource};

use super::counts::{EXACT, Figure};
use super::model::{self, LAYERS, Model, Part, VOCAB};

/// A table of the page.
pub(crate) struct Section {
    id: &'static str,
    title: String,
    rows: Vec<Part>,
}

impl Section {
    pub(crate) fn new(id: &'static str, title: String, figures: Vec<Figure>) -> Section {
        let rows = different(figures).into_iter().map(|figure| Part { figure, times: 1 });
        Section { id, title, rows: rows.collect() }
    }

    /// Of kernels that run several times.
    pub(crate) fn counted(id: &'static str, title: String, rows: Vec<Part>) -> Section {
        Section { id, title, rows }
    }
}

/// Something that must hold, whether it does, and the figures.
pub(crate) struct Claim {
    what: String,
    holds: bool,
    figures: String,
}

fn name(figure: &Figure) -> String {
    format!("{} {}", figure.counters.name, figure.shape)
}

/// Each kernel and shape once.
fn different(figures: Vec<Figure>) -> Vec<Figure> {
    let mut seen = std::collections::HashSet::new();
    figures.into_iter().filter(|figure| seen.insert(name(figure))).collect()
}

impl Claim {
    /// Every product bound by the tensor cores, all else at most 85 % of their time.
    pub(crate) fn tensor_bound(what: &str, figures: Vec<Figure>) -> Claim {
        let figures = &different(figures)[..];
        let mut sorted: Vec<(&Figure, Resource, f64)> = figures
            .iter()
            .map(|figure| {
                let (resource, share) = figure.next_to_tensor();
                (figure, resource, share)
            })
            .collect();
        sorted.sort_by(|a, b| b.2.total_cmp(&a.2));
        let kept = sorted.iter().filter(|(_, _, share)| *share <= 0.85).count();
        let (worst, resource, share) = sorted[0];
        let shares = figures.iter().map(Figure::tensor_share);
        let (least, most) =
            shares.fold((f64::MAX, 0.0f64), |(a, b), share| (a.min(share), b.max(share)));
        let mut text = format!(
            "{kept} of {} shapes; the worst is {} with {resource:?} at {:.0} % of the tensor time; \
             {:.0} to {:.0} % of the tensor roof (blocks that do not divide among {} multiprocessors included)",
            figures.len(),
            name(worst),
            100.0 * share,
            100.0 * least,
            100.0 * most,
            A100.multiprocessors,
        );
        for (figure, resource, share) in
            sorted.iter().filter(|(_, _, share)| *share > 0.85).take(4).skip(1)
        {
            write!(text, "; then {}: {resource:?} {:.0} %", name(figure), 100.0 * share)
                .expect("a String grows");
        }
        let exact = figures.iter().map(|figure| {
            let others = EXACT[1..].iter().map(|resource| figure.of(*resource));
            others.fold(0.0, f64::max) / figure.of(Resource::Tensor)
        });
        let exact = exact.fold(0.0, f64::max);
        write!(
            text,
            ". Of shared memory, L2 and memory alone, whose counts ptxas cannot lower: at most {:.0} %",
            100.0 * exact
        )
        .expect("a String grows");
        Claim { what: what.to_owned(), holds: kept == figures.len(), figures: text }
    }

    /// Forward and backward at 60 % of the tensor roof; work as FlashAttention counts it.
    pub(crate) fn attention(rows: usize, d: usize, figures: &[Figure]) -> Claim {
        let peak = 2.0 * A100.tensor_products * A100.multiprocessors as f64 * A100.clock_hz;
        let rate = |figures: &[Figure]| {
            let seconds: f64 = figures.iter().map(Figure::seconds).sum();
            2.0 * figures.iter().map(|figure| figure.products as f64).sum::<f64>() / seconds
        };
        let all = rate(figures);
        let exact: f64 = figures.iter().map(Figure::exact_seconds).sum();
        let exact = all * figures.iter().map(Figure::seconds).sum::<f64>() / exact;
        let bounds: Vec<String> = figures
            .iter()
            .map(|figure| {
                let tensor = figure.of(Resource::Tensor) / figure.seconds();
                let bound = figure.modelled.bound;
                format!("{}: bound {bound:?}, tensor {:.0} %", figure.counters.name, 100.0 * tensor)
            })
            .collect();
        Claim {
            what: format!(
                "Attention, head_dim {d}, forward and backward, {rows} tokens: at least 60 % of the tensor roof"
            ),
            holds: all >= 0.6 * peak,
            figures: format!(
                "{:.0} TFLOP/s of {:.0} = {:.0} % (forward {:.0}, backward {:.0} TFLOP/s; two and five \
                 products over half of the square; {}). By tensor cores, shared memory, L2 and memory alone, whose \
                 counts ptxas cannot lower: {:.0} TFLOP/s = {:.0} %",
                all / 1e12,
                peak / 1e12,
                100.0 * all / peak,
                rate(&figures[..1]) / 1e12,
                rate(&figures[1..]) / 1e12,
                bounds.join("; "),
                exact / 1e12,
                100.0 * exact / peak,
            ),
        }
    }

    /// Kernels that memory bounds move at most 1.05 of the fewest bytes.
    pub(crate) fn fewest_bytes(what: &str, figures: &[Figure]) -> Claim {
        let mut worst: Vec<&Figure> = figures.iter().collect();
        worst.sort_by(|a, b| b.unique_ratio().total_cmp(&a.unique_ratio()));
        let holds = worst[0].unique_ratio() <= 1.05;
        let most = figures.iter().map(Figure::request_ratio).fold(0.0, f64::max);
        let mut text = format!(
            "at most {:.3} ({}), if what a block reads twice comes from a cache the second time; \
             without any cache up to {most:.2}",
            worst[0].unique_ratio(),
            name(worst[0]),
        );
        let over_tensor =
            |figure: &Figure| figure.of(Resource::Memory) / figure.of(Resource::Tensor);
        let products = figures.iter().filter(|figure| figure.products > 0);
        let least = products.map(over_tensor).fold(f64::INFINITY, f64::min);
        if least.is_finite() {
            write!(text, "; these bytes take at least {least:.1} times as long as the products")
                .expect("a String grows");
        }
        let mut others: Vec<String> = figures
            .iter()
            .filter(|figure| figure.modelled.bound != Resource::Memory)
            .map(|figure| {
                let over = figure.seconds() / figure.of(Resource::Memory);
                format!("{} ({:?}, {over:.1}x memory's time)", name(figure), figure.modelled.bound)
            })
            .collect();
        others.sort();
        others.dedup();
        if !others.is_empty() {
            write!(text, ". Not bound by memory in the model: {}", others.join(", "))
                .expect("a String grows");
        }
        Claim { what: format!("{what} move at most 1.05x the fewest bytes"), holds, figures: text }
    }

    /// A decoding step requests each weight, key and value once.
    pub(crate) fn reads_once(
        model: &Model,
        weights: &[Part],
        attention: &[Part],
        batch: usize,
        context: usize,
    ) -> Claim {
        let Model { hidden, ffn, .. } = *model;
        let layer = hidden * (2 * 2048 + 2 * 1024) + 3 * hidden * ffn;
        let of_weights = 2 * (LAYERS * layer + VOCAB * hidden);
        let kept = batch * context * 114_688;
        let read = |parts: &[Part]| -> [f64; 2] {
            let sum = |of: &dyn Fn(&Figure) -> u64| {
                parts.iter().map(|part| of(&part.figure) as f64 * part.times as f64).sum()
            };
            [
                sum(&|figure| figure.counters.unique_read_bytes),
                sum(&|figure| figure.counters.copied_bytes),
            ]
        };
        let [unique, copied] = read(weights);
        // Of attention the partitions alone read keys and values.
        let [of_attention, attention_copied] = read(&attention[..1]);
        let ratio = (unique + of_attention) / (of_weights + kept) as f64;
        Claim {
            what: format!(
                "A decoding step of {} at batch {batch} reads weights, keys and values once",
                model.name
            ),
            holds: ratio <= 1.05 && attention_copied / kept as f64 <= 1.05,
            figures: format!(
                "different bytes read {ratio:.3} of weights ({:.2} GB) and keys and values ({:.2} GB); attention copies \
                 {:.3} of the bytes of keys and values (queries included); products copy {:.2} of the weights' bytes, \
                 a column of w to one block, x to every block, from the L2",
                of_weights as f64 / 1e9,
                kept as f64 / 1e9,
                attention_copied / kept as f64,
                copied / of_weights as f64,
            ),
        }
    }
}

/// All sections that are written.
pub(crate) struct Report {
    date: String,
    sections: Vec<Section>,
    claims: Vec<Claim>,
    decodes: String,
    /// Seconds of a decoding step by its name.
    decode_seconds: Vec<(String, f64)>,
    steps: String,
    notes: String,
    csv: String,
}

const CSV: &str = "id,kernel,shape,times,tensor_us,shared_us,issue_us,l2_us,memory_us,bound,modelled_us,tensor_share,\
unique_over_fewest,requests_over_fewest,blocks,mma_products,shared_wavefronts,instructions,sectors,unique_bytes,fewest_bytes";

impl Report {
    pub(crate) fn new(date: String) -> Report {
        Report {
            date,
            sections: Vec::new(),
            claims: Vec::new(),
            decodes: String::new(),
            decode_seconds: Vec::new(),
            steps: String::new(),
            notes: String::new(),
            csv: format!("{CSV}\n"),
        }
    }

    pub(crate) fn section(&mut self, section: Section) {
        self.sections.push(section);
    }

    pub(crate) fn claim(&mut self, claim: Claim) {
        self.claims.push(claim);
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes += &note;
        self.notes.push('\n');
    }

    /// A decoding step by purpose.
    pub(crate) fn decode(&mut self, name: String, spent: Vec<(&str, f64)>) {
        let total: f64 = spent.iter().map(|(_, seconds)| seconds).sum();
        let times: Vec<String> =
            spent.iter().map(|(_, seconds)| format!("{:.3}", 1e3 * seconds)).collect();
        writeln!(self.decodes, "| {name} | {} | {:.3} |", times.join(" | "), 1e3 * total)
            .expect("a String grows");
        self.decode_seconds.push((name, total));
    }

    /// A training step by what it is spent on.
    pub(crate) fn step(&mut self, name: &str, model: &str, goal: f64, spent: Vec<(&str, f64)>) {
        let total: f64 = spent.iter().map(|(_, seconds)| seconds).sum();
        let verdict = if total < goal { "holds" } else { "MISSED" };
        // One sequence alone, from where the others ended to the longest that the recipe allows.
        let alone = format!("{model} batch 1");
        let alone = self.decode_seconds.iter().find(|(name, _)| *name == alone);
        let alone = alone.expect("decoding steps come first").1 * (2048 - model::COMPLETION) as f64;
        let out = &mut self.steps;
        write!(
            out,
            "\n### One {name} step ({model}), modelled\n\n| part | modelled s |\n| --- | ---: |\n"
        )
        .expect("a String grows");
        for (what, seconds) in spent {
            writeln!(out, "| {what} | {seconds:.3} |").expect("a String grows");
        }
        writeln!(
            out,
            "| **all, modelled** | **{total:.2}** |\n| goal, on the device itself | < {goal} ({verdict} in the model) |\n\
             | were one completion to go on alone to 2,048 tokens | {:.2} |\n\
             | the original, estimated | 11 to 45 |",
            total + alone
        )
        .expect("a String grows");
    }

    /// Writes the record and the page.
    pub(crate) fn write(mut self) -> Result<(), Box<dyn std::error::Error>> {
        let record = format!("benches/record/{}-a100-modelled.csv", self.date);
        let mut page = include_str!("page.md")
            .replace("DATE", &self.date)
            .replace("PROMPTS", &model::PROMPTS.to_string())
            .replace("RANK", &model::ADAPTER_RANK.to_string());
        let mut claims = String::new();
        for claim in &self.claims {
            let holds = if claim.holds { "holds" } else { "MISSED" };
            writeln!(claims, "- **{holds}**: {}. {}.", claim.what, claim.figures)?;
        }
        page = page.replace("<claims>\n", &claims);
        page = page.replace("<steps>\n", &self.steps).replace("<decodes>\n", &self.decodes);
        for section in std::mem::take(&mut self.sections) {
            self.table(&mut page, &section)?;
        }
        page += "\n";
        page += &self.notes;
        fs::write(record, self.csv)?;
        fs::write("benches/MODELLED.md", page)?;
        Ok(())
    }

    fn table(&mut self, page: &mut String, section: &Section) -> std::fmt::Result {
        write!(page, "\n### {}, modelled\n\n", section.title)?;
        page.push_str(
            "| kernel | shape | runs | tensor | shared | issue | L2 | memory | bound | modelled µs | of the roof | \
             bytes / fewest | G mma | M wavefronts | M sectors | MB |\n\
             | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        );
        for Part { figure, times } in &section.rows {
            let us = |resource: Resource| 1e6 * figure.of(resource);
            let resources = [
                Resource::Tensor,
                Resource::Shared,
                Resource::Issue,
                Resource::L2,
                Resource::Memory,
            ];
            let cells = resources.map(|resource| format!("{:.1}", us(resource))).join(" | ");
            let counters = &figure.counters;
            let share = match figure.products {
                0 => format!("{:.0} % memory", 100.0 * figure.modelled.memory_share),
                _ => format!("{:.0} %", 100.0 * figure.tensor_share()),
            };
            let million = |count: u64| format!("{:.2}", count as f64 / 1e6);
            writeln!(
                page,
                "| {} | {} | {times} | {cells} | {:?} | {:.1} | {share} | {:.2} | {:.2} | {} | {} | {} |",
                counters.name,
                figure.shape,
                figure.modelled.bound,
                1e6 * figure.seconds(),
                figure.unique_ratio(),
                counters.mma_products as f64 / 1e9,
                million(figure.modelled.shared_wavefronts),
                million(figure.sectors()),
                million(figure.unique_bytes()),
            )?;
            let cells = resources.map(|resource| format!("{:.3}", us(resource))).join(",");
            writeln!(
                self.csv,
                "{},{},{},{times},{cells},{:?},{:.3},{:.4},{:.4},{:.4},{},{},{},{},{},{},{}",
                format!("{}: {}", section.id, section.title).replace(',', ""),
                counters.name,
                figure.shape,
                figure.modelled.bound,
                1e6 * figure.seconds(),
                figure.tensor_share(),
                figure.unique_ratio(),
                figure.request_ratio(),
                counters.blocks,
                counters.mma_products,
                figure.modelled.shared_wavefronts,
                counters.issued(),
                figure.sectors(),
                figure.unique_bytes(),
                figure.fewest_bytes,
            )?;
        }
        Ok(())
    }
}
