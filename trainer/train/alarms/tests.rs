//! Runs of made-up metrics, and what goes off in them.

use super::*;
use crate::train::settings::{Preset, Settings};

/// A step whose metrics are what `of` gives for their names.
fn step(of: impl Fn(&str) -> Option<f64>) -> Vec<(String, f64)> {
    NAMES.iter().filter_map(|name| Some((name.to_string(), of(name)?))).collect()
}

/// What goes off at each step of a run whose metric takes these values; other metrics are sound.
fn run(name: &str, values: &[f64]) -> Vec<(u64, AlarmKind)> {
    let mut alarms = Alarms::new(100);
    let mut found = Vec::new();
    for (number, &value) in (1..).zip(values) {
        let metric = |asked: &str| match asked {
            _ if asked == name => Some(value),
            REWARD => Some(0.5),
            REWARD_STD => Some(0.4),
            _ => None,
        };
        let begun = alarms.after(number, &step(metric));
        found.extend(begun.into_iter().map(|alarm| (number, alarm.kind)));
    }
    found
}

/// `count` times each value.
fn times(parts: &[(usize, f64)]) -> Vec<f64> {
    parts.iter().flat_map(|&(count, value)| std::iter::repeat_n(value, count)).collect()
}

#[test]
fn a_reward_that_falls_goes_off_once() {
    // Of five steps, three are at 0.01: (2·0.3 + 3·0.01) / 5 = 0.126 < 0.15.
    assert_eq!(run(REWARD, &times(&[(5, 0.3), (10, 0.01)])), [(8, AlarmKind::Reward)]);
    // A slow decline to a little above half, and one below it.
    assert_eq!(run(REWARD, &times(&[(5, 0.4), (20, 0.21)])), []);
    assert_eq!(run(REWARD, &times(&[(5, 0.4), (5, 0.25), (5, 0.19)])), [(15, AlarmKind::Reward)]);
    // Sampling explains it: four standard errors are 4·0.4 / √(5·100) = 0.072.
    assert_eq!(run(REWARD, &times(&[(5, 0.07), (10, 0.0)])), []);
    assert_eq!(run(REWARD, &times(&[(5, 0.08), (10, 0.0)])), [(10, AlarmKind::Reward)]);
    // Costs: from -0.1 to below -0.2.
    assert_eq!(run(REWARD, &times(&[(5, -0.1), (5, -0.19)])), []);
    assert_eq!(run(REWARD, &times(&[(5, -0.1), (5, -0.9)])), [(6, AlarmKind::Reward)]);
    // It recovers for ten steps of means above half, and falls again.
    let twice = times(&[(5, 0.3), (5, 0.0), (14, 0.3), (5, 0.0)]);
    assert_eq!(run(REWARD, &twice), [(8, AlarmKind::Reward), (27, AlarmKind::Reward)]);
    // A shorter recovery is the same episode.
    let once = times(&[(5, 0.3), (5, 0.0), (6, 0.3), (5, 0.0)]);
    assert_eq!(run(REWARD, &once), [(8, AlarmKind::Reward)]);
    assert_eq!(run(REWARD, &[f64::NAN; 30]), []);
}

#[test]
fn shares_above_nine_tenths_go_off_after_three_steps() {
    for (name, kind) in [(TRUNCATED, AlarmKind::Truncation), (UNPARSED, AlarmKind::Verdicts)] {
        assert_eq!(run(name, &[1.0, 1.0, 1.0, 1.0]), [(3, kind)]);
        // (1 + 0.65 + 1) / 3 is 0.88.
        assert_eq!(run(name, &[0.0, 1.0, 1.0, 0.65, 1.0, 1.0, 1.0]), [(7, kind)]);
        assert_eq!(run(name, &[0.9; 30]), []);
    }
}

#[test]
fn a_slot_that_has_nearly_all_verdicts_goes_off() {
    let of = |share_of_a: &[f64], tied: f64, unparsed: f64| {
        let mut alarms = Alarms::new(100);
        let mut found = Vec::new();
        for (number, &share) in (1..).zip(share_of_a) {
            let metric = |name: &str| match name {
                SHARE_OF_A => Some(share),
                TIED => Some(tied),
                UNPARSED => Some(unparsed),
                _ => None,
            };
            let begun = alarms.after(number, &step(metric));
            found.extend(begun.into_iter().map(|alarm| (number, alarm.kind)));
        }
        found
    };
    assert_eq!(of(&[0.95; 4], 0.0, 0.0), [(3, AlarmKind::Slots)]);
    assert_eq!(of(&[0.5, 0.05, 0.05, 0.02], 0.0, 0.0), [(4, AlarmKind::Slots)]);
    assert_eq!(of(&[0.89; 9], 0.0, 0.0), []);
    // The share is of those that are no ties.
    assert_eq!(of(&[0.95; 3], 0.4, 0.0), [(3, AlarmKind::Slots)]);
    assert_eq!(of(&[0.6; 9], 0.4, 0.0), []);
    // Few verdicts, or mostly ties, say nothing of slots.
    assert_eq!(of(&[1.0; 9], 0.0, 0.6), []);
    assert_eq!(of(&[1.0; 9], 0.7, 0.0), []);
}

#[test]
fn a_slot_that_has_the_held_out_verdicts_goes_off_although_samples_swing() {
    // Evaluated after steps 4, 8, ..: judgements, share of A, ties and unparsed.
    let of = |evaluations: &[[f64; 4]]| {
        let mut alarms = Alarms::new(32);
        let mut found = Vec::new();
        for number in 1..=4 * evaluations.len() as u64 {
            let evaluation = number.is_multiple_of(4).then(|| evaluations[number as usize / 4 - 1]);
            let metric = |name: &str| match name {
                SHARE_OF_A => Some([0.3, 0.8][number as usize % 2]),
                TIED | UNPARSED => Some(0.1),
                HELD_OUT => evaluation.map(|of| of[0]),
                HELD_OUT_SHARE_OF_A => evaluation.map(|of| of[1]),
                HELD_OUT_TIES => evaluation.map(|of| of[2]),
                HELD_OUT_UNPARSED => evaluation.map(|of| of[3]),
                _ => None,
            };
            for alarm in alarms.after(number, &step(metric)) {
                assert_eq!(alarm.kind, AlarmKind::Slots);
                assert!(alarm.message.contains("verdicts on held-out pairs"), "{alarm:?}");
                found.push((number, alarm.message.split(", and").next().unwrap().to_owned()));
            }
        }
        found
    };
    let a = "100 % of verdicts on held-out pairs are for slot A".to_owned();
    let b = "95 % of verdicts on held-out pairs are for slot B".to_owned();
    // Once, for as long as it lasts: 32 steps later it is the same collapse.
    assert_eq!(of(&[[138.0, 0.6, 0.0, 0.0], [138.0, 1.0, 0.1, 0.1]]), [(8, a.clone())]);
    assert_eq!(of(&[[138.0, 1.0, 0.1, 0.1]; 8]), [(4, a)]);
    assert_eq!(of(&[[24.0, 0.05, 0.1, 0.0]]), [(4, b)]);
    // Few judgements, mostly ties, and mostly unread say nothing.
    assert_eq!(of(&[[18.0, 1.0, 0.0, 0.0]; 4]), []);
    assert_eq!(of(&[[138.0, 1.0, 0.6, 0.0]; 4]), []);
    assert_eq!(of(&[[138.0, 1.0, 0.2, 0.4]; 4]), []);
    assert_eq!(of(&[[138.0, 0.89, 0.0, 0.0]; 4]), []);
}

#[test]
fn entropy_is_held_against_the_first_steps() {
    let of = |values: &[f64]| run(ENTROPY, values);
    assert_eq!(of(&times(&[(5, 0.5), (5, 0.051)])), []);
    assert_eq!(of(&times(&[(5, 0.5), (5, 0.049)])), [(10, AlarmKind::EntropyCollapse)]);
    assert_eq!(of(&times(&[(5, 0.5), (5, 1.51)])), [(10, AlarmKind::EntropyExplosion)]);
    assert_eq!(of(&times(&[(5, 0.5), (5, 1.49)])), []);
    // Three times very little is little.
    assert_eq!(of(&times(&[(5, 0.01), (5, 0.05)])), []);
    // Not before there are ten steps: the first would be held against themselves.
    assert_eq!(of(&times(&[(5, 0.5), (4, 0.0)])), []);
}

#[test]
fn a_step_without_a_number_is_left_out() {
    let mut alarms = Alarms::new(10);
    let mut found = Vec::new();
    for number in 1..=20 {
        // Every second step had no token that was trained on.
        let value = if number <= 10 { 0.5 } else { 0.01 };
        let metric = |name: &str| (name == ENTROPY && number % 2 == 0).then_some(value);
        let begun = alarms.after(number, &step(metric));
        found.extend(begun.into_iter().map(|alarm| (number, alarm.kind)));
    }
    assert_eq!(found, [(20, AlarmKind::EntropyCollapse)]);
}

#[test]
fn divergence_length_and_gradients() {
    assert_eq!(run(KL, &times(&[(5, 0.9), (20, 1.05)])), [(9, AlarmKind::Divergence)]); // (0.9 + 4·1.05) / 5 = 1.02
    assert_eq!(run(KL, &[1.0; 20]), []);
    assert_eq!(run(LENGTH, &times(&[(5, 400.0), (5, 99.0)])), [(10, AlarmKind::Short)]);
    assert_eq!(run(LENGTH, &times(&[(5, 400.0), (5, 101.0)])), []);
    assert_eq!(run(LENGTH, &times(&[(5, 100.0), (5, 401.0)])), [(10, AlarmKind::Long)]);
    let usual = times(&[(20, 0.1), (3, 1.1)]);
    assert_eq!(run(GRADIENT, &usual), [(23, AlarmKind::Gradient)]);
    assert_eq!(run(GRADIENT, &times(&[(20, 0.1), (3, 0.9)])), []);
    // One spike of thirty times: (0.1 + 0.1 + 3.1) / 3 = 1.1.
    assert_eq!(run(GRADIENT, &times(&[(20, 0.1), (1, 3.1)])), [(21, AlarmKind::Gradient)]);
    // Steps without a gradient are not usual ones; nor is the start.
    assert_eq!(run(GRADIENT, &times(&[(20, 0.0), (10, 1.0)])), []);
    assert_eq!(run(GRADIENT, &times(&[(5, 0.1), (5, 5.0)])), []);
}

#[test]
fn a_length_that_pays_is_no_collapse() {
    let mut alarms = Alarms::new(100);
    for number in 1..=20 {
        let (length, reward) = if number <= 5 { (2000.0, 0.1) } else { (300.0, 0.6) };
        let metric = |name: &str| match name {
            LENGTH => Some(length),
            REWARD => Some(reward),
            REWARD_STD => Some(0.3),
            _ => None,
        };
        assert_eq!(alarms.after(number, &step(metric)), [], "step {number}");
    }
}

#[test]
fn every_alarm_says_what_to_try() {
    let collapsed = |name: &str| match name {
        REWARD => Some(0.0),
        REWARD_STD => Some(0.0),
        TRUNCATED | UNPARSED => Some(1.0),
        KL => Some(3.0),
        LENGTH => Some(2048.0),
        GRADIENT => Some(50.0),
        _ => Some(4.0),
    };
    let sound = |name: &str| match name {
        REWARD => Some(0.5),
        REWARD_STD => Some(0.3),
        LENGTH => Some(200.0),
        ENTROPY => Some(0.5),
        GRADIENT => Some(0.1),
        // One slot all the time is a collapse from the third step on.
        SHARE_OF_A => Some(1.0),
        _ => Some(0.0),
    };
    let mut alarms = Alarms::new(64);
    let mut said = Vec::new();
    for number in 1..=60 {
        let metrics = if number <= 30 { step(sound) } else { step(collapsed) };
        said.extend(alarms.after(number, &metrics));
    }
    let mut kinds: Vec<AlarmKind> = said.iter().map(|alarm| alarm.kind).collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [
            AlarmKind::Reward,
            AlarmKind::Truncation,
            AlarmKind::Verdicts,
            AlarmKind::Slots,
            AlarmKind::EntropyExplosion,
            AlarmKind::Divergence,
            AlarmKind::Long,
            AlarmKind::Gradient
        ]
    );
    // What is named is there to be set, and takes the value.
    let settings = Settings::preset(Preset::J1Nano);
    let keys = settings.values();
    let sections = ["model.", "data.", "rollout.", "reward.", "loss.", "optimizer.", "train."];
    for alarm in said {
        let words = alarm.message.split([' ', '(', ')', ',', ';', ':']);
        let words = words.map(|word| word.trim_end_matches('.'));
        let named = words.filter(|word| sections.iter().any(|section| word.starts_with(section)));
        let named: Vec<&str> = named.collect();
        assert!(!named.is_empty(), "{alarm:?}");
        for name in named {
            match name.contains('=') {
                true => assert!(settings.with(name).is_ok(), "{name}: {alarm:?}"),
                false => assert!(keys.contains_key(name), "{name}: {alarm:?}"),
            }
        }
    }
}
