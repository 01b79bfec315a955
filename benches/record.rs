//! Records of benches: a CSV file per machine and day, a line per measurement.

/// First line of a record.
pub(crate) const HEADER: &str = "id,median_ns,rate,unit,share,peak_bytes";

/// A measurement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// `device/kernel/shape`.
    pub(crate) id: String,
    /// Median time of one run in nanoseconds; none for a peak.
    pub(crate) median_ns: Option<f64>,
    /// What was done in a second.
    pub(crate) rate: f64,
    /// Of the rate: `GB/s`, `GFLOP/s`, `TFLOP/s`, `tokens/s`.
    pub(crate) unit: String,
    /// The least time the machine's peaks allow, over the time taken.
    pub(crate) share: Option<f64>,
    /// Most memory the process had, in bytes.
    pub(crate) peak_bytes: Option<u64>,
}

/// The rows of a record's text.
pub(crate) fn parse(text: &str) -> Result<Vec<Row>, String> {
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Err(format!("a record begins with the line {HEADER}"));
    }
    lines
        .map(|line| parse_row(line).ok_or_else(|| format!("not a row of a record: {line}")))
        .collect()
}

fn parse_row(line: &str) -> Option<Row> {
    fn optional<T: std::str::FromStr>(text: &str) -> Option<Option<T>> {
        if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
    }
    let fields: Vec<&str> = line.split(',').collect();
    let [id, median_ns, rate, unit, share, peak_bytes] = fields[..] else { return None };
    Some(Row {
        id: id.to_owned(),
        median_ns: optional(median_ns)?,
        rate: rate.parse().ok()?,
        unit: unit.to_owned(),
        share: optional(share)?,
        peak_bytes: optional(peak_bytes)?,
    })
}

/// What tables show of a row: id, median time, rate, share of the peak, memory.
pub(crate) fn cells(row: &Row) -> [String; 5] {
    [
        row.id.clone(),
        row.median_ns.map_or(String::new(), time),
        format!("{} {}", number(row.rate), row.unit),
        row.share.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
        row.peak_bytes.map_or(String::new(), |bytes| {
            format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
        }),
    ]
}

/// Three digits and a unit.
fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ..1e3 => (ns, "ns"),
        ..1e6 => (ns / 1e3, "µs"),
        ..1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", number(value))
}

fn number(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
