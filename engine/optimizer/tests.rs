//! AdamW by hand, against PyTorch's own steps, and through a checkpoint.

use std::{collections::BTreeMap, path::Path};

use safetensors::SafeTensors;
use serde_json::Value;

use super::*;
use crate::shared::shared;

type Slices = BTreeMap<String, Vec<f32>>;

/// All f32 tensors of a file, flat.
fn slices(path: &Path) -> Slices {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| {
        data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    file.iter().map(|(name, tensor)| (name.to_string(), values(tensor.data()))).collect()
}

/// The tensors under `prefix`, without it.
fn under(tensors: &Slices, prefix: &str) -> Slices {
    let of = |(name, values): (&String, &Vec<f32>)| {
        Some((name.strip_prefix(prefix)?.to_string(), values.clone()))
    };
    tensors.iter().filter_map(of).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn settings(of: &Value, max_norm: Option<f64>) -> AdamWSettings {
    AdamWSettings {
        beta1: of["betas"][0].as_f64().unwrap(),
        beta2: of["betas"][1].as_f64().unwrap(),
        epsilon: of["eps"].as_f64().unwrap(),
        weight_decay: of["weight_decay"].as_f64().unwrap(),
        max_norm,
    }
}

fn optimizer(settings: AdamWSettings, weights: &Slices) -> AdamW {
    AdamW::new(settings, weights.iter().map(|(name, values)| (name.as_str(), values.len())))
}

fn take_step(adamw: &mut AdamW, cpu: &Cpu, lr: f64, w: &mut Slices, dw: &Slices) -> StepOutcome {
    let mut parameters: Vec<Parameter> = w
        .iter_mut()
        .map(|(name, values)| Parameter { name, values, gradient: &dw[name] })
        .collect();
    adamw.step(cpu, lr, &mut parameters)
}

/// Asserts that weights agree within three units in the last place of the larger of the weight and
/// the rate: a step is a handful of operations, each of which PyTorch may fuse or not, on terms of
/// at most those sizes.
fn assert_agrees(got: &Slices, want: &Slices, lr: f64, case: &str) {
    assert_eq!(got.len(), want.len(), "{case}");
    for (name, want) in want {
        for (i, (got, want)) in got[name].iter().zip(want).enumerate() {
            let size = want.abs().max(lr as f32);
            let ulp = f64::from(size.next_up()) - f64::from(size);
            let error = (f64::from(*got) - f64::from(*want)).abs();
            assert!(error <= 3.0 * ulp, "{case}: {name}[{i}]: {got} for {want}");
        }
    }
}

/// Same bits of the state, too.
fn bits(adamw: &AdamW) -> Vec<(String, Vec<u32>)> {
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
    let state = adamw.state().unwrap().into_iter();
    state.map(|(name, values)| (name, bits(&values))).collect()
}

#[test]
fn a_first_step_by_hand() {
    let settings = AdamWSettings { weight_decay: 0.5, ..AdamWSettings::default() };
    let mut adamw = AdamW::new(settings, [("w", 3)]);
    let (mut w, dw) = ([1.0, -2.0, 3.0], [4.0, -0.25, 0.0]);
    let mut parameters = [Parameter { name: "w", values: &mut w, gradient: &dw }];
    let outcome = adamw.step(&Cpu::new(1), 0.1, &mut parameters);
    // At step 1 corrected m is g and corrected v is g²: the step is lr·g/(|g| + ε), after w·(1 - lr·λ).
    for (w, want) in w.iter().zip([0.95 - 0.1, -1.9 + 0.1, 2.85]) {
        assert!((w - want).abs() < 1e-6, "{w} for {want}");
    }
    assert_eq!(outcome, StepOutcome::Updated { norm: 16.0625f64.sqrt(), scale: 1.0 });
    let state = adamw.state().unwrap();
    assert_eq!((state[0].0.as_str(), state[1].0.as_str()), ("first.w", "second.w"));
    assert!((state[0].1[0] - 0.4).abs() < 1e-6 && (state[1].1[0] - 0.016).abs() < 1e-6);
}

#[test]
fn the_norm_is_that_of_all_gradients_and_is_clipped_to_its_limit() {
    let cpu = Cpu::new(2);
    assert_eq!(gradient_norm(&cpu, [&[3.0f32, 0.0][..], &[], &[-4.0]]), 5.0);
    assert_eq!(gradient_norm(&cpu, []), 0.0);
    assert_eq!(clip_scale(5.0, None), 1.0);
    assert_eq!(clip_scale(0.5, Some(1.0)), 1.0);
    assert_eq!(clip_scale(0.0, Some(1.0)), 1.0);
    assert_eq!(clip_scale(5.0, Some(0.1)), (0.1 / 5.000_001f64) as f32);
    // Clipping to 0 is allowed: only the decay is left.
    assert_eq!(clip_scale(5.0, Some(0.0)), 0.0);
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut adamw = AdamW::new(AdamWSettings::default(), [("a", 2), ("b", 1)]);
        let cpu = Cpu::new(1);
        let mut w = Slices::from([("a".into(), vec![1.0, 2.0]), ("b".into(), vec![3.0])]);
        let good = Slices::from([("a".into(), vec![0.5, 0.1]), ("b".into(), vec![-1.0])]);
        assert!(matches!(
            take_step(&mut adamw, &cpu, 0.1, &mut w, &good),
            StepOutcome::Updated { scale: 1.0, .. }
        ));
        let (before, state, steps) = (w.clone(), bits(&adamw), adamw.steps());
        let mut dw = good.clone();
        dw.get_mut("b").unwrap()[0] = bad;
        let outcome = take_step(&mut adamw, &cpu, 0.1, &mut w, &dw);
        assert!(matches!(outcome, StepOutcome::NotFinite { .. }), "{outcome:?}");
        assert!(!outcome.norm().is_finite());
        assert_eq!((w, bits(&adamw), adamw.steps()), (before, state, steps));
    }
}

#[test]
fn a_state_goes_through_a_checkpoint_bit_for_bit() {
    let weights = |seed: u32| -> Slices {
        let value = |i: u32| ((i * 37 + seed) % 101) as f32 / 50.0 - 1.0;
        let named = |name: &str, len| (name.to_string(), (0..len).map(value).collect());
        Slices::from([named("a", 40), named("b", 7)])
    };
    let settings =
        AdamWSettings { weight_decay: 0.1, max_norm: Some(0.3), ..AdamWSettings::default() };
    let run = |threads: usize, restart_at: Option<u32>| {
        let cpu = Cpu::new(threads);
        let mut w = weights(0);
        let mut adamw = optimizer(settings, &w);
        for step in 0..20 {
            if restart_at == Some(step) {
                let state = adamw.state().unwrap().into_iter();
                let saved: BTreeMap<String, Vec<f32>> =
                    state.map(|(name, values)| (name, values.into_owned())).collect();
                let steps = adamw.steps();
                adamw = optimizer(settings, &w);
                let slice = |name: &str| saved.get(name).map(Vec::as_slice);
                adamw.restore(steps, saved.len(), slice).unwrap();
            }
            let outcome = take_step(&mut adamw, &cpu, 1e-2, &mut w, &weights(step + 1));
            assert!(matches!(outcome, StepOutcome::Updated { .. }));
        }
        (bits(&adamw), w)
    };
    let whole = run(1, None);
    for (threads, restart_at) in [(1, Some(10)), (2, Some(0)), (2, None), (5, Some(13))] {
        assert_eq!(run(threads, restart_at), whole, "{threads} {restart_at:?}");
    }
}

#[test]
fn a_state_of_another_adapter_is_refused_whole() {
    let mut adamw = AdamW::new(AdamWSettings::default(), [("a", 2), ("b", 1)]);
    let before = bits(&adamw);
    let two = [1.0f32, 2.0];
    let missing = adamw.restore(3, 4, |name| (name != "second.b").then_some(&two[..1]));
    let length = StateError::Length { name: "first.a".into(), expected: 2, found: 1 };
    assert_eq!(missing, Err(length));
    let fits = |name: &str| if name.ends_with('a') { &two[..] } else { &two[..1] };
    let missing = adamw.restore(3, 4, |name| (name != "second.b").then(|| fits(name)));
    assert_eq!(missing, Err(StateError::Missing { name: "second.b".into() }));
    let count = adamw.restore(3, 6, |name| Some(fits(name)));
    assert!(count.unwrap_err().to_string().contains("has 6 tensors, this adapter needs 4"));
    assert_eq!((bits(&adamw), adamw.steps()), (before, 0));
    adamw.restore(3, 4, |name| Some(fits(name))).unwrap();
    assert_eq!(adamw.steps(), 3);
}

#[test]
#[should_panic(expected = "parameters are in another order")]
fn the_order_is_checked() {
    let mut adamw = AdamW::new(AdamWSettings::default(), [("a", 1)]);
    let mut parameters = [Parameter { name: "b", values: &mut [0.0], gradient: &[0.0] }];
    let _ = adamw.step(&Cpu::new(1), 0.1, &mut parameters);
}

#[test]
fn three_steps_are_pytorchs() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let tensors = slices(&golden.join("learning.safetensors"));
    let info = &json(&golden.join("learning.json"))["adamw"];
    let lr = info["lr"].as_f64().unwrap();
    for (prefix, max_norm) in [("step", None), ("clipped", info["max_norm"].as_f64())] {
        let mut w = under(&tensors, "start.");
        let mut adamw = optimizer(settings(info, max_norm), &w);
        for k in 1..=3 {
            let dw = under(&tensors, &format!("grad{k}."));
            let outcome = take_step(&mut adamw, &Cpu::new(2), lr, &mut w, &dw);
            let norm = info["norms"][k - 1].as_f64().unwrap();
            assert!((outcome.norm() / norm - 1.0).abs() < 1e-6, "{outcome:?} {norm}");
            let case = format!("{prefix}{k}");
            assert_agrees(&w, &under(&tensors, &format!("{case}.")), lr, &case);
        }
    }
}

/// The large dumps beside a checkout in development; absent elsewhere.
#[test]
fn the_shared_dumps_steps_are_pytorchs() {
    for case in ["tied-s0", "untied-s0"] {
        let Some(directory) = shared(&format!("golden/{case}")) else { continue };
        let info = json(&directory.join("case.json"));
        let lr = info["adamw"]["lr"].as_f64().unwrap();
        let start = slices(&directory.join("adapter/adapter_model.safetensors"));
        let tensors = slices(&directory.join("adamw.safetensors"));
        let gradient = slices(&directory.join("grads.safetensors"));
        let cpu = Cpu::new(2);

        let (mut w, mut adamw) = (start.clone(), optimizer(settings(&info["adamw"], None), &start));
        let outcome = take_step(&mut adamw, &cpu, lr, &mut w, &gradient);
        let norm = info["clip_total_norm_before"].as_f64().unwrap();
        assert!((outcome.norm() / norm - 1.0).abs() < 1e-6, "{outcome:?} {norm}");
        assert_agrees(&w, &under(&tensors, "step1."), lr, case);
        let outcome = take_step(&mut adamw, &cpu, lr, &mut w, &under(&tensors, "grad2."));
        assert!(matches!(outcome, StepOutcome::Updated { scale: 1.0, .. }));
        assert_agrees(&w, &under(&tensors, "step2."), lr, case);

        let clipped = settings(&info["adamw"], info["clip_max_norm"].as_f64());
        let (mut w, mut adamw) = (start.clone(), optimizer(clipped, &start));
        let outcome = take_step(&mut adamw, &cpu, lr, &mut w, &gradient);
        assert!(matches!(outcome, StepOutcome::Updated { scale: 0.4999..0.5, .. }), "{outcome:?}");
        assert_agrees(&w, &under(&tensors, "clip1."), lr, case);
    }
}
