//! What benches share: the machine's peaks, work compared with them, the table at the end, its record.
//!
//! `J1_BENCH_RECORD=DIR` puts the results into `DIR/DATE-DEVICE.csv`, in place of earlier ones of that day.

use std::{
    fmt::Write as _,
    fs, io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use kernels::cpu::{Cpu, Isa, peak::Peaks};

use crate::record::{self, HEADER, Row, cells};

/// What a run of a bench does at least.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    /// Floating-point operations of products; a multiply-add is two.
    pub(crate) flops: f64,
    /// Whether their factors are bf16.
    pub(crate) bf16: bool,
    /// Bytes read and written, each once.
    pub(crate) bytes: f64,
}

/// What a device can do at most.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Its name in that of a record.
    pub(crate) device: String,
    /// Floating-point operations per second of products of f32, and of bf16.
    pub(crate) f32: f64,
    /// See `f32`.
    pub(crate) bf16: f64,
    /// Bytes per second from memory.
    pub(crate) read: f64,
    /// Unit for operations, and how many per second it is.
    pub(crate) unit: (&'static str, f64),
    /// Whether these are this device's: no share is stated of another's.
    pub(crate) known: bool,
}

impl Work {
    /// Rate, unit and share of the peak that bounds it, where it took `seconds`. Above 1 where the data lay in a
    /// cache, which is faster than the memory of the peak.
    fn rate(self, limits: &Limits, seconds: f64) -> (f64, &'static str, f64) {
        // The least seconds it can take: for multiplying, and for memory.
        let multiply = self.flops / if self.bf16 { limits.bf16 } else { limits.f32 };
        let memory = self.bytes / limits.read;
        let (unit, scale) = limits.unit;
        match multiply > memory {
            true => (self.flops / seconds / scale, unit, multiply / seconds),
            false => (self.bytes / seconds / 1e9, "GB/s", memory / seconds),
        }
    }
}

/// The results of a bench binary on one device.
#[derive(Debug)]
pub(crate) struct Report {
    limits: Limits,
    rows: Vec<Row>,
}

impl Report {
    /// Nothing yet.
    pub(crate) fn within(limits: Limits) -> Report {
        Report { limits, rows: Vec::new() }
    }

    /// Measures the peaks.
    pub(crate) fn new(cpu: &Cpu) -> Report {
        let peaks = Peaks::measure(cpu);
        let mut report = Report::within(Limits {
            device: device(&peaks),
            f32: peaks.f32_all,
            bf16: peaks.bf16_all.unwrap_or(peaks.f32_all),
            read: peaks.read(),
            unit: ("GFLOP/s", 1e9),
            known: true,
        });
        let Peaks { isa, threads, .. } = peaks;
        let mut add = |what: &str, rate: f64, unit: &str| {
            let id = format!("cpu/peak/{what}");
            let unit = unit.to_owned();
            let row =
                Row { id, median_ns: None, rate: rate / 1e9, unit, share: None, peak_bytes: None };
            report.rows.push(row);
        };
        add(&format!("f32-{isa}-1t"), peaks.f32_one, "GFLOP/s");
        add(&format!("f32-{isa}-{threads}t"), peaks.f32_all, "GFLOP/s");
        if let (Some(one), Some(all)) = (peaks.bf16_one, peaks.bf16_all) {
            add("bf16-1t", one, "GFLOP/s");
            add(&format!("bf16-{threads}t"), all, "GFLOP/s");
        }
        add(&format!("read-4k-pages-{threads}t"), peaks.read_4k, "GB/s");
        if let Some(read) = peaks.read_2m {
            add(&format!("read-2m-pages-{threads}t"), read, "GB/s");
        }
        print!("{}", columns(&report.rows));
        report
    }

    /// Adds a median time. `counted` is what the rate counts instead of the work itself, and its unit.
    pub(crate) fn add(
        &mut self,
        id: String,
        median_ns: f64,
        work: Work,
        counted: Option<(usize, &str)>,
        peak_bytes: Option<u64>,
    ) {
        let seconds = median_ns / 1e9;
        let (rate, unit, share) = work.rate(&self.limits, seconds);
        let (rate, unit) = counted.map_or((rate, unit), |(n, unit)| (n as f64 / seconds, unit));
        let share = self.limits.known.then_some(share);
        let (median_ns, unit) = (Some(median_ns), unit.to_owned());
        self.rows.push(Row { id, median_ns, rate, unit, share, peak_bytes });
    }

    /// Prints all rows, and writes them where `J1_BENCH_RECORD` says.
    pub(crate) fn finish(self) {
        println!("\n{}", columns(&self.rows));
        let Some(directory) = std::env::var_os("J1_BENCH_RECORD") else { return };
        // Cargo starts benches in the package's root, from wherever it was called.
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        let path = directory.join(format!("{}-{}.csv", date(), self.limits.device));
        let written = fs::create_dir_all(&directory).and_then(|()| merge(&path, &self.rows));
        match written {
            Ok(()) => println!("recorded in {}", path.display()),
            Err(error) => panic!("cannot record in {}: {error}", path.display()),
        }
    }
}

/// The name of this machine with its threads: `cpu-amd-epyc-2t`; with the instruction set if it is not the best one.
fn device(peaks: &Peaks) -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map_or(std::env::consts::ARCH, |it| it.1);
    let lowered = Isa::available().last() != Some(&peaks.isa);
    let isa = if lowered { format!("-{}", peaks.isa) } else { String::new() };
    format!("cpu-{}-{}t{isa}", words(name), peaks.threads)
}

/// The words of a device's name, as file names have them: `amd-epyc`.
pub(crate) fn words(name: &str) -> String {
    let name = name.to_lowercase().replace("(r)", "").replace("(tm)", "");
    let name = name.split('@').next().unwrap_or_default();
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !["", "cpu", "processor"].contains(word)).collect();
    words.join("-")
}

/// Today's date in UTC, as 2026-11-24.
fn date() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut day = now / 86_400;
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, day + 1)
}

/// The text of a record.
fn write(rows: &[Row]) -> String {
    fn optional<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
        value.map_or(String::new(), text)
    }
    let mut out = format!("{HEADER}\n");
    for Row { id, median_ns, rate, unit, share, peak_bytes } in rows {
        let median = optional(*median_ns, |ns| format!("{ns:.0}"));
        let share = optional(*share, |share| format!("{share:.4}"));
        let bytes = optional(*peak_bytes, |bytes| bytes.to_string());
        writeln!(out, "{id},{median},{rate:.3},{unit},{share},{bytes}").expect("a String grows");
    }
    out
}

/// Puts `rows` into the record at `path`, in place of rows of the same ids; the others stay, and so do higher peaks.
fn merge(path: &Path, rows: &[Row]) -> io::Result<()> {
    let mut all = match fs::read_to_string(path) {
        Ok(text) => record::parse(&text).map_err(io::Error::other)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    for row in rows {
        match all.iter_mut().find(|old| old.id == row.id) {
            Some(old) if row.median_ns.is_none() && old.rate > row.rate => {}
            Some(old) => *old = row.clone(),
            None => all.push(row.clone()),
        }
    }
    let temporary = path.with_extension("csv.tmp");
    fs::write(&temporary, write(&all))?;
    fs::rename(temporary, path)
}

/// The rows in columns for a terminal.
fn columns(rows: &[Row]) -> String {
    let lines: Vec<[String; 5]> = rows.iter().map(cells).collect();
    let titles = ["id", "median", "rate", "of peak", "memory"].map(str::to_owned);
    let width = |column: usize| {
        let cells = lines.iter().chain([&titles]).map(|line| line[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut out = String::new();
    for [id, rest @ ..] in [&titles].into_iter().chain(&lines) {
        write!(out, "{id:<0$}", widths[0]).expect("a String grows");
        for (cell, width) in rest.iter().zip(&widths[1..]) {
            write!(out, "  {cell:>width$}").expect("a String grows");
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

/// The median of some times.
pub(crate) fn median(mut times: Vec<f64>) -> f64 {
    assert!(!times.is_empty(), "a median of nothing");
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2.0 }
}
