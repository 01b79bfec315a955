//! Memory, graphs, errors, and that builds without the feature have the same functions.

use super::{gpu, rounded, values};
use crate::cuda::{Buffer, Error, Gpu, Operands, Queued};

#[test]
fn what_is_written_is_read_and_dropped_memory_is_used_again() {
    let Some(gpu) = gpu() else { return };
    // Through several halves of the pinned memory, and at odd places.
    let data: Vec<u32> = (0..(5 << 20) / 2).collect();
    let mut buffer = gpu.zeros::<u32>(data.len() + 3).unwrap();
    gpu.write(&mut buffer, 3, &data).unwrap();
    let all = gpu.download(&buffer).unwrap();
    assert_eq!((&all[..3], &all[3..]), (&[0; 3][..], &data[..]));
    // Small ones side by side, enough that both halves have had their turn.
    let small: Vec<_> = (0..40_000u32).map(|i| gpu.upload(&[i; 65]).unwrap()).collect();
    for (i, buffer) in small.iter().enumerate().step_by(997) {
        assert_eq!(gpu.download(buffer).unwrap(), [i as u32; 65]);
    }
    let mut part = [0; 5];
    gpu.read(&buffer, 1_000_000, &mut part).unwrap();
    assert_eq!(part[0], 999_997);
    let mut other = gpu.zeros::<u32>(10).unwrap();
    gpu.copy(&mut other, 2, &buffer, 3, 4).unwrap();
    assert_eq!(gpu.download(&other).unwrap(), [0, 0, 0, 1, 2, 3, 0, 0, 0, 0]);
    assert!(gpu.download(&gpu.upload::<f32>(&[]).unwrap()).unwrap().is_empty());
    assert!(gpu.memory().unwrap().0 > 0 && gpu.memory_in_use().0 >= all.len() * 4);
}

#[test]
fn a_part_of_a_buffer_is_copied_within_it() {
    let Some(gpu) = gpu() else { return };
    let mut x = gpu.upload(&[1u32, 2, 3, 4, 5, 6]).unwrap();
    gpu.copy_within(&mut x, 3, 0, 2).unwrap();
    assert_eq!(gpu.download(&x).unwrap(), [1, 2, 3, 1, 2, 6]);
}

#[test]
fn a_graph_repeats_what_was_captured_on_what_its_buffers_hold_now() {
    // A stream of its own: what other tests queue is not to be captured.
    let Some(gpu) = gpu().map(|_| Gpu::open(0).unwrap()) else { return };
    let (m, n, k) = (3, 16, 40);
    let (mut x, w) = (rounded(&values(1, m * k)), rounded(&values(2, n * k)));
    let mut dx = gpu.upload(&x).unwrap();
    let dw = gpu.upload(&w).unwrap();
    let mut y = gpu.zeros::<f32>(m * n).unwrap();
    let step = |y: &mut Buffer<f32>, x: &Buffer<u16>| {
        // With memory that is taken and dropped on the way.
        let mut part = gpu.uninitialized::<f32>(m * n)?;
        gpu.matmul(&mut part, &[Operands { x, w: &dw, first_row: 0, k }], [m, n], false)?;
        gpu.add(y, &part)
    };
    let mut want = gpu.zeros::<f32>(m * n).unwrap();
    step(&mut want, &dx).unwrap();
    let workspace = gpu.workspace().unwrap();
    let mut graph = gpu.capture("a step", &workspace, || step(&mut y, &dx)).unwrap();
    assert!(gpu.download(&y).unwrap().iter().all(|y| *y == 0.0), "capturing runs nothing");
    let before = gpu.queued();
    graph.launch().unwrap();
    assert_eq!(gpu.queued(), Queued { graphs: before.graphs + 1, ..before });
    assert_eq!(gpu.download(&y).unwrap(), gpu.download(&want).unwrap());
    x.reverse();
    gpu.write(&mut dx, 0, &x).unwrap();
    graph.launch().unwrap();
    step(&mut want, &dx).unwrap();
    assert_eq!(gpu.download(&y).unwrap(), gpu.download(&want).unwrap());
    assert!(gpu.timer().unwrap().stop().unwrap() >= 0.0);
}

#[test]
fn what_a_capture_takes_stays_its_own() {
    let Some(gpu) = gpu().map(|_| Gpu::open(0).unwrap()) else { return };
    let len = 1000;
    let x = gpu.upload(&values(1, len)).unwrap();
    let mut y = gpu.zeros::<f32>(len).unwrap();
    // Takes memory, writes to it, and drops it.
    let mut work = || {
        let mut part = gpu.uninitialized::<f32>(len)?;
        gpu.copy(&mut part, 0, &x, 0, len)?;
        gpu.add(&mut y, &part)
    };
    // Memory that waits, which the capture takes.
    drop(gpu.zeros::<f32>(len).unwrap());
    let workspace = gpu.workspace().unwrap();
    let mut first = gpu.capture("the first", &workspace, &mut work).unwrap();
    let in_use = gpu.memory_in_use().0;
    let mut second = gpu.capture("the second", &workspace, &mut work).unwrap();
    assert_eq!(gpu.memory_in_use().0, in_use, "graphs of a workspace share it");
    let others: Vec<Buffer<f32>> = (0..4).map(|_| gpu.zeros(len).unwrap()).collect();
    gpu.trim().unwrap();
    first.launch().unwrap();
    second.launch().unwrap();
    for other in &others {
        assert!(gpu.download(other).unwrap().iter().all(|x| *x == 0.0), "overwritten");
    }
    let twice: Vec<f32> = values(1, len).iter().map(|x| x + x).collect();
    assert_eq!(gpu.download(&y).unwrap(), twice);
    drop((first, workspace));
    let before = gpu.memory_in_use().0;
    drop(second);
    assert!(gpu.memory_in_use().0 < before, "the last graph ends the workspace");
}

#[test]
fn what_cannot_be_captured_is_a_typed_error_and_the_device_goes_on() {
    let Some(gpu) = gpu().map(|_| Gpu::open(0).unwrap()) else { return };
    let workspace = gpu.workspace().unwrap();
    let mut buffer = gpu.zeros::<u32>(4).unwrap();
    let mut errors = vec![
        gpu.capture("a step", &workspace, || gpu.write(&mut buffer, 0, &[1])).unwrap_err(),
        gpu.capture("a step", &workspace, || gpu.download(&buffer).map(drop)).unwrap_err(),
        gpu.capture("a step", &workspace, || gpu.synchronize()).unwrap_err(),
    ];
    for error in errors.drain(..) {
        assert!(matches!(error, Error::Driver { .. }), "{error}");
        assert!(error.to_string().contains("while capturing a step"), "{error}");
    }
    let too_much = || gpu.zeros::<u32>(1 << 40).map(drop);
    let error = gpu.capture("a step", &workspace, too_much).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    let panicking = std::panic::AssertUnwindSafe(|| {
        let _ = gpu.capture("a step", &workspace, || panic!("within a capture"));
    });
    assert!(std::panic::catch_unwind(panicking).is_err());
    gpu.write(&mut buffer, 0, &[7]).unwrap();
    assert_eq!(gpu.download(&buffer).unwrap(), [7, 0, 0, 0]);
}

#[test]
fn other_threads_get_into_no_capture() {
    let Some(gpu) = gpu().map(|_| Gpu::open(0).unwrap()) else { return };
    let workspace = gpu.workspace().unwrap();
    let mut counted = gpu.zeros::<f32>(4).unwrap();
    let one = gpu.upload(&[1.0f32; 4]).unwrap();
    let (go, started) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let (gpu, counted, one) = (&gpu, &mut counted, &one);
        let other = scope.spawn(move || {
            started.recv().unwrap();
            gpu.add(counted, one).unwrap();
        });
        let captured = gpu.capture("nothing", &workspace, || {
            go.send(()).unwrap();
            // Time to get in, were it not kept out.
            (0..10_000).for_each(|_| std::thread::yield_now());
            assert!(!other.is_finished());
            Ok(())
        });
        let mut graph = captured.unwrap();
        other.join().unwrap();
        graph.launch().unwrap();
        graph.launch().unwrap();
    });
    assert_eq!(gpu.download(&counted).unwrap(), [1.0; 4]);
}

#[test]
fn what_cannot_be_opened_is_a_typed_error() {
    match gpu() {
        Some(gpu) => match Gpu::open(99) {
            Err(Error::NoDevice { ordinal: 99, count }) => assert!(count > gpu.ordinal()),
            other => panic!("{other:?}"),
        },
        None => {
            let error = Gpu::open(0).unwrap_err();
            assert_eq!(error, Error::NoDriver);
            assert!(error.to_string().contains("libcuda.so.1"), "{error}");
        }
    }
}

#[test]
#[should_panic(expected = "y is not [3, 16]")]
fn shapes_are_checked() {
    let Some(gpu) = gpu() else {
        panic!("y is not [3, 16]: without a driver there is nothing to check")
    };
    let [x, w] = [3 * 8, 16 * 8].map(|len| gpu.zeros::<u16>(len).unwrap());
    let mut y = gpu.zeros(47).unwrap();
    let _ = gpu.matmul(&mut y, &[Operands { x: &x, w: &w, first_row: 0, k: 8 }], [3, 16], false);
}
