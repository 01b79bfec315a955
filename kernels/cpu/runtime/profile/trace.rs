//! The trace as a document: Chrome's Trace Event Format, with complete events ("ph": "X") in
//! microseconds and metadata events that name the process and its rows. Of its two forms it is the
//! array, whose end readers do not miss where a process was killed.

use std::io::{self, Write};
use std::time::Instant;

use super::{Event, Kind, Shape};

/// A document that is being written.
pub(super) struct Trace {
    /// Of the recording.
    pub(super) number: u32,
    out: Box<dyn Write + Send>,
    start: Instant,
    process: u32,
    /// What was not handed to `out` yet.
    text: Vec<u8>,
    slices: u64,
    /// The first error; nothing is written after it.
    error: Option<io::Error>,
}

impl Trace {
    pub(super) fn new(number: u32, name: &str, out: Box<dyn Write + Send>) -> Trace {
        let (start, process) = (Instant::now(), std::process::id());
        let (text, slices, error) = (Vec::new(), 0, None);
        let mut trace = Trace { number, out, start, process, text, slices, error };
        trace.text.extend_from_slice(b"[\n");
        trace.metadata("process_name", 0, &string(name));
        trace
    }

    /// Names a row, and has it stand where its name's number says: kernel-1, kernel-2, the others
    /// before them.
    pub(super) fn thread(&mut self, row: usize, name: &str) {
        self.text.extend_from_slice(b",\n");
        self.metadata("thread_name", row, &string(name));
        let number = name.rsplit('-').next().and_then(|end| end.parse::<u32>().ok());
        self.text.extend_from_slice(b",\n");
        let (process, row) = (self.process, self.process as usize + row);
        let order = number.unwrap_or(0);
        self.add(format_args!(
            "{{\"ph\":\"M\",\"name\":\"thread_sort_index\",\"pid\":{process},\"tid\":{row},\
             \"args\":{{\"sort_index\":{order}}}}}"
        ));
    }

    fn metadata(&mut self, what: &str, row: usize, name: &str) {
        // The row of a process's first thread has its number, as on Linux.
        let (process, row) = (self.process, self.process as usize + row);
        self.add(format_args!(
            "{{\"ph\":\"M\",\"name\":\"{what}\",\"pid\":{process},\"tid\":{row},\
             \"args\":{{\"name\":{name}}}}}"
        ));
    }

    /// Adds the events of a row. An error, of now or of before, is kept for [`Trace::finish`].
    pub(super) fn write(&mut self, row: usize, events: &[Event]) -> Result<(), ()> {
        if self.error.is_some() {
            return Err(());
        }
        for event in events {
            self.event(self.process as usize + row, event);
        }
        self.slices += events.len() as u64;
        if let Err(error) = self.out.write_all(&self.text) {
            self.error = Some(error);
            return Err(());
        }
        self.text.clear();
        Ok(())
    }

    fn event(&mut self, row: usize, event: &Event) {
        let Event { name, kind, start, end, work, shape } = event;
        let category = match kind {
            Kind::Kernel => "kernel",
            Kind::Part => "part",
            Kind::Phase => "phase",
        };
        let from_ns = start.saturating_duration_since(self.start).as_nanos() as u64;
        let took_ns = end.saturating_duration_since(*start).as_nanos() as u64;
        let process = self.process;
        self.add(format_args!(
            ",\n{{\"ph\":\"X\",\"name\":\"{name}\",\"cat\":\"{category}\",\"pid\":{process},\
             \"tid\":{row},\"ts\":{}.{:03},\"dur\":{}.{:03}",
            from_ns / 1000,
            from_ns % 1000,
            took_ns / 1000,
            took_ns % 1000,
        ));
        let Shape { sizes, dimensions } = shape;
        let sizes = &sizes[..usize::from(*dimensions)];
        if *kind == Kind::Kernel || !sizes.is_empty() {
            self.text.extend_from_slice(b",\"args\":{\"shape\":\"");
            for (index, size) in sizes.iter().enumerate() {
                self.add(format_args!("{}{size}", if index > 0 { " x " } else { "" }));
            }
            self.text.push(b'"');
            if *kind == Kind::Kernel {
                // Operations or bytes per nanosecond are billions per second.
                let rate = |amount: u64| amount as f64 / took_ns.max(1) as f64;
                self.add(format_args!(
                    ",\"flops\":{},\"bytes\":{},\"GFLOP/s\":{:.3},\"GB/s\":{:.3}",
                    work.flops,
                    work.bytes,
                    rate(work.flops),
                    rate(work.bytes),
                ));
            }
            self.text.push(b'}');
        }
        self.text.push(b'}');
    }

    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("memory takes all that is written");
    }

    /// Completes the document; the number of slices in it.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.text.extend_from_slice(b"\n]\n");
        self.out.write_all(&self.text)?;
        self.out.flush()?;
        Ok(self.slices)
    }
}

/// A JSON string.
fn string(text: &str) -> String {
    let mut json = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => json.extend(['\\', character]),
            control if control < ' ' => json += &format!("\\u{:04x}", control as u32),
            other => json.push(other),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        assert_eq!(string("a \"b\\\" \n é"), r#""a \"b\\\" \u000a é""#);
    }
}
