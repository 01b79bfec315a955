//! Tests of recordings.

use super::*;
use crate::cpu::{ComputeDtype, Cpu, Matrix, add, matmul, norm, product, rms_norm, swiglu};
use serde_json::Value;
use std::sync::MutexGuard;

/// Held by tests that record, and by those that must not be recorded: a recording covers the whole process.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    lock(&ALONE)
}

/// A file in memory.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is recorded while `f` runs: the events of the trace. Other tests' kernels may be among them.
fn recorded(f: impl FnOnce()) -> Vec<Value> {
    let file = Shared::default();
    start("a \"test\"", Box::new(file.clone()));
    f();
    let slices = finish().unwrap();
    let document: Value = serde_json::from_slice(&lock(&file.0)).unwrap();
    let events = document.as_array().unwrap().clone();
    assert_eq!(events.iter().filter(|event| event["ph"] == "X").count() as u64, slices);
    events
}

/// Names of this test's thread's row and of others.
fn row_name(events: &[Value], row: &Value) -> String {
    let names = |event: &&Value| event["name"] == "thread_name" && event["tid"] == *row;
    let event = events.iter().find(names).expect("every row has a name");
    event["args"]["name"].as_str().unwrap().to_string()
}

/// The slices of this thread, by name.
fn own<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    let this = thread::current().name().unwrap().to_string();
    let slices = events.iter().filter(|event| event["ph"] == "X" && event["name"] == name);
    slices.filter(|event| row_name(events, &event["tid"]) == this).collect()
}

/// Start and end in nanoseconds.
fn interval(event: &Value) -> (f64, f64) {
    let (start, took) = (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
    ((start * 1e3).round(), ((start + took) * 1e3).round())
}

fn contains(outer: &Value, inner: &Value) -> bool {
    let ((start, end), (first, last)) = (interval(outer), interval(inner));
    start <= first && last <= end
}

#[test]
fn spans_nest_and_work_is_counted_once() {
    let _alone = alone();
    let events = recorded(|| {
        let _phase = phase("nesting: phase", [7]);
        let _outer = span("nesting: outer", [2, 3], || Work { flops: 5_000, bytes: 70 });
        for _ in 0..2 {
            drop(span("nesting: inner", [1], || Work { flops: 1, bytes: 1 }));
        }
    });
    let [phase, outer] = ["nesting: phase", "nesting: outer"].map(|name| own(&events, name)[0]);
    let inner = own(&events, "nesting: inner");
    assert_eq!(inner.len(), 2);
    assert!(contains(phase, outer) && inner.iter().all(|inner| contains(outer, inner)));
    assert!(interval(inner[0]).1 <= interval(inner[1]).0);
    let categories = [phase, outer, inner[0]].map(|event| event["cat"].as_str().unwrap());
    assert_eq!(categories, ["phase", "kernel", "part"]);
    assert_eq!(phase["args"], serde_json::json!({ "shape": "7" }));
    assert_eq!(inner[0]["args"], serde_json::json!({ "shape": "1" }));
    let args = &outer["args"];
    assert!(args["shape"] == "2 x 3" && args["flops"] == 5_000 && args["bytes"] == 70, "{args}");
    let (start, end) = interval(outer);
    let rate = 5_000.0 / (end - start);
    assert!((args["GFLOP/s"].as_f64().unwrap() - rate).abs() < 1e-3 * (1.0 + rate), "{outer}");
    let process = events.iter().find(|event| event["name"] == "process_name").unwrap();
    assert_eq!(process["args"]["name"], "a \"test\"");
}

#[test]
fn every_thread_of_a_pool_has_its_row() {
    let _alone = alone();
    let events = recorded(|| {
        let pool = crate::cpu::Pool::new(3);
        let _span = span("rows: op", [], Work::default);
        pool.run(&|_| thread::sleep(std::time::Duration::from_millis(1)));
    });
    let op = own(&events, "rows: op")[0];
    let parts: Vec<&Value> = events
        .iter()
        .filter(|event| event["name"] == "rows: op" && event["cat"] == "part")
        .collect();
    let mut names: Vec<_> = parts.iter().map(|part| row_name(&events, &part["tid"])).collect();
    names.sort();
    assert_eq!(names, ["kernel-1", "kernel-2"]);
    for part in parts {
        assert!(contains(op, part), "{op} {part}");
        let (start, end) = interval(part);
        assert!(end - start >= 1e6, "a part is as long as the thread's share takes: {part}");
        let order = events
            .iter()
            .find(|event| event["name"] == "thread_sort_index" && event["tid"] == part["tid"]);
        let number = row_name(&events, &part["tid"]).replace("kernel-", "");
        assert_eq!(order.unwrap()["args"]["sort_index"].to_string(), number);
    }
    assert!(own(&events, WAITING).iter().any(|wait| contains(op, wait)));
}

#[test]
fn kernels_say_what_they_have_to_do() {
    let _alone = alone();
    let (m, n, k) = (3, 37, 65);
    let (x, w) = (vec![1.0; m * k], vec![half::bf16::ONE; n * k]);
    let (mut y, mut dx) = (vec![0.0; m * n], vec![0.0; m * k]);
    let (weights, shape) = (Matrix::Bf16(&w), [m, n, k]);
    let events = recorded(|| {
        let cpu = Cpu::new(2);
        matmul::forward(&cpu, &mut y, &x, weights, shape, ComputeDtype::Bf16, false);
        matmul::backward(&cpu, &mut dx, &y, weights, shape, ComputeDtype::Bf16, true, None);
        product::accumulate(&cpu, &mut dx, &y, product::Left::Rows, &vec![0.5; n * k], [m, k, n]);
        rms_norm::forward(&cpu, &mut dx, &x, &x[..k], 1e-6);
        swiglu::forward(&cpu, &mut dx, swiglu::Inputs::F32([&x, &x]));
        add::accumulate(&cpu, &mut dx, &x);
        norm::sum_of_squares(&cpu, &x);
    });
    let products = 2 * m * n * k;
    for (name, shape, flops, bytes) in [
        ("matmul", "3 x 37 x 65", products, 4 * m * k + 2 * n * k + 4 * m * n),
        ("matmul backward", "3 x 37 x 65", products, 4 * m * n + 2 * n * k + 8 * m * k),
        ("product", "3 x 65 x 37", products, 4 * m * n + 4 * n * k + 8 * m * k),
        ("rms_norm", "3 x 65", 4 * m * k, 8 * m * k + 4 * k),
        ("swiglu", "195", 5 * m * k, 12 * m * k),
        ("add", "195", m * k, 12 * m * k),
        ("norm", "195", 2 * m * k, 4 * m * k),
    ] {
        let args = &own(&events, name)[0]["args"];
        assert_eq!(args["shape"], shape, "{name}");
        assert_eq!((&args["flops"], &args["bytes"]), (&flops.into(), &bytes.into()), "{name}");
    }
}

#[test]
fn full_buffers_are_written_as_they_fill() {
    let _alone = alone();
    let (spans, file) = (3 * BUFFERED, Shared::default());
    start("filling", Box::new(file.clone()));
    let mut largest = 0;
    for _ in 0..spans {
        drop(phase("filling: phase", []));
        THREAD.with(|thread| {
            largest = largest.max(lock(thread.buffer.get().unwrap()).events.capacity());
        });
    }
    let early = lock(&file.0).iter().filter(|byte| **byte == b'\n').count();
    finish().unwrap();
    let document: Value = serde_json::from_slice(&lock(&file.0)).unwrap();
    let events = document.as_array().unwrap();
    assert_eq!(own(events, "filling: phase").len(), spans);
    assert!(own(events, WRITING).len() >= 2);
    assert!(early > 2 * BUFFERED && largest < 2 * BUFFERED, "{early} lines, {largest} in memory");
}

#[test]
fn what_is_not_recorded_leaves_nothing() {
    let _alone = alone();
    drop(span("nothing: before", [1], || panic!("work is asked for nobody")));
    let open = std::cell::RefCell::new(None);
    let events = recorded(|| *open.borrow_mut() = Some(phase("nothing: still open", [])));
    // It ends in another recording than its own.
    let later = recorded(|| drop(open.take()));
    drop(phase("nothing: after", []));
    for events in [&events, &later] {
        let text = format!("{events:?}");
        assert!(!text.contains("nothing: "), "{text}");
    }
    assert_eq!(finish().unwrap(), 0);
}

#[test]
fn the_first_error_ends_the_recording_and_is_told() {
    /// Takes one write.
    struct Full(bool);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match std::mem::replace(&mut self.0, true) {
                false => Ok(bytes.len()),
                true => Err(io::ErrorKind::StorageFull.into()),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let _alone = alone();
    start("full", Box::new(Full(false)));
    for _ in 0..3 * BUFFERED {
        drop(phase("full: phase", []));
    }
    assert_eq!(RECORDING.load(Ordering::Relaxed), 0);
    assert_eq!(finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(own(&recorded(|| ()), "full: phase").is_empty());
}
