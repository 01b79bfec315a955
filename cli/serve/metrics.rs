//! What happened so far, in Prometheus' text form, by vLLM's names where it has them.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::worker::State;

/// Writing to a `String` cannot fail.
const TO_MEMORY: &str = "a string grows";
/// Upper bounds of the histograms' buckets, in seconds.
const BOUNDS: [f64; 17] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0,
    600.0,
];

/// A number that grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Seconds, by how many there are up to each bound.
#[derive(Debug, Default)]
pub(super) struct Histogram(Mutex<([u64; BOUNDS.len()], u64, f64)>);

impl Histogram {
    pub(super) fn observe(&self, seconds: f64) {
        let mut state = self.0.lock().expect("no panic under the lock");
        let (buckets, count, sum) = &mut *state;
        for (bucket, bound) in buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
        *count += 1;
        *sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let (buckets, count, sum) = *self.0.lock().expect("no panic under the lock");
        head(out, name, help, "histogram");
        for (bucket, bound) in buckets.iter().zip(BOUNDS) {
            writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {bucket}").expect(TO_MEMORY);
        }
        writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}").expect(TO_MEMORY);
        writeln!(out, "{name}_sum {sum}\n{name}_count {count}").expect(TO_MEMORY);
    }
}

/// All that is counted.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Requests by path and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Samples that ended, by reason.
    ended: Mutex<BTreeMap<&'static str, u64>>,
    pub(super) cancelled: Counter,
    pub(super) refused: Counter,
    pub(super) engine_failures: Counter,
    pub(super) prompt_tokens: Counter,
    pub(super) time_to_first_token: Histogram,
    pub(super) inter_token_latency: Histogram,
    pub(super) request_latency: Histogram,
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").expect(TO_MEMORY);
}

impl Metrics {
    /// Counts an answer. `path` is one of the server's own.
    pub(super) fn answered(&self, path: &'static str, status: u16) {
        let mut requests = self.requests.lock().expect("no panic under the lock");
        *requests.entry((path, status)).or_default() += 1;
    }

    /// Counts a sample that ended.
    pub(super) fn sample_ended(&self, reason: &'static str) {
        *self.ended.lock().expect("no panic under the lock").entry(reason).or_default() += 1;
    }

    /// The text that GET /metrics answers.
    pub(super) fn to_text(&self, state: State, waiting: usize) -> String {
        let mut out = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: f64| {
            head(&mut out, name, help, kind);
            writeln!(out, "{name} {value}").expect(TO_MEMORY);
        };
        let stats = state.stats;
        one(
            "vllm:num_requests_running",
            "gauge",
            "Sequences that are decoded.",
            state.running as f64,
        );
        one("vllm:num_requests_waiting", "gauge", "Sequences that wait.", state.waiting as f64);
        one(
            "vllm:kv_cache_usage_perc",
            "gauge",
            "Share of the memory for keys and values in use, 1 is all.",
            state.cache_usage,
        );
        let computed = stats.prompt_tokens + stats.shared_tokens;
        one(
            "vllm:prefix_cache_queries_total",
            "counter",
            "Prompt tokens that were looked for in the cache.",
            computed as f64,
        );
        one(
            "vllm:prefix_cache_hits_total",
            "counter",
            "Prompt tokens that were found in it.",
            stats.shared_tokens as f64,
        );
        one(
            "vllm:prompt_tokens_total",
            "counter",
            "Prompt tokens of requests.",
            self.prompt_tokens.get() as f64,
        );
        one(
            "vllm:generation_tokens_total",
            "counter",
            "Tokens that were generated.",
            stats.generated_tokens as f64,
        );
        one(
            "vllm:num_preemptions_total",
            "counter",
            "Sequences that had to give their memory back for a while.",
            stats.preemptions as f64,
        );
        one(
            "j1:requests_cancelled_total",
            "counter",
            "Requests whose client went before their end.",
            self.cancelled.get() as f64,
        );
        one(
            "j1:requests_refused_total",
            "counter",
            "Requests that found the queue full.",
            self.refused.get() as f64,
        );
        one(
            "j1:engine_failures_total",
            "counter",
            "Failures of the device.",
            self.engine_failures.get() as f64,
        );
        one(
            "j1:wait_seconds",
            "gauge",
            "Estimated wait of a sequence that comes now.",
            state.wait_seconds(waiting),
        );
        let name = "vllm:request_success_total";
        head(&mut out, name, "Samples that ended, by reason.", "counter");
        for (reason, count) in self.ended.lock().expect("no panic under the lock").iter() {
            writeln!(out, "{name}{{finished_reason=\"{reason}\"}} {count}").expect(TO_MEMORY);
        }
        let name = "j1:http_requests_total";
        head(&mut out, name, "Answers by path and status.", "counter");
        for ((path, status), count) in self.requests.lock().expect("no panic under the lock").iter()
        {
            writeln!(out, "{name}{{path=\"{path}\",status=\"{status}\"}} {count}")
                .expect(TO_MEMORY);
        }
        for (histogram, name, help) in [
            (
                &self.time_to_first_token,
                "vllm:time_to_first_token_seconds",
                "Seconds from a request to its first token.",
            ),
            (
                &self.inter_token_latency,
                "vllm:inter_token_latency_seconds",
                "Seconds between tokens of a request.",
            ),
            (
                &self.request_latency,
                "vllm:e2e_request_latency_seconds",
                "Seconds from a request to the end of its answer.",
            ),
        ] {
            histogram.write(&mut out, name, help);
        }
        out
    }
}
