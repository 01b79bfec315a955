//! The learning rate of each step: constant, linear or cosine, after a linear warm-up.
//!
//! The formulas of Hugging Face's `get_scheduler` (transformers, optimization.py), as factors of the
//! peak rate. With w warm-up steps of S in all, step s (the number of steps taken before) has
//!
//! ```text
//! s < w       s / w                                  the first step of a warm-up has rate 0
//! constant    1
//! linear      (S - s) / (S - w)
//! cosine      (1 + cos(π (s - w) / (S - w))) / 2     half a period
//! ```
//!
//! From step S on, linear and cosine are 0 (Hugging Face's cosine would rise again).

use serde::{Deserialize, Serialize};

/// The shape of the rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// The peak rate.
    Constant,
    /// A straight line down to 0.
    Linear,
    /// Half a cosine down to 0.
    #[default]
    Cosine,
}

/// A learning rate for each step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The rate at the end of the warm-up.
    pub peak: f64,
    /// The shape after the warm-up.
    pub shape: Shape,
    /// Steps of the warm-up; may be 0.
    pub warmup_steps: u64,
    /// Steps of the whole run, the warm-up included.
    pub total_steps: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        self.peak * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        let (warmup, total) = (self.warmup_steps, self.total_steps);
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let decay_steps = total.saturating_sub(warmup).max(1) as f64;
        match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => total.saturating_sub(step) as f64 / decay_steps,
            Shape::Cosine if step >= total => 0.0,
            Shape::Cosine => {
                let progress = (step - warmup) as f64 / decay_steps;
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(shape: Shape, warmup_steps: u64, total_steps: u64, steps: u64) -> Vec<f64> {
        let schedule = Schedule { peak: 1.0, shape, warmup_steps, total_steps };
        (0..steps).map(|step| schedule.rate(step)).collect()
    }

    #[test]
    fn shapes_by_hand() {
        assert_eq!(rates(Shape::Constant, 0, 3, 4), [1.0; 4]);
        assert_eq!(rates(Shape::Constant, 2, 9, 4), [0.0, 0.5, 1.0, 1.0]);
        assert_eq!(rates(Shape::Linear, 0, 4, 6), [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]);
        assert_eq!(rates(Shape::Linear, 2, 6, 7), [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
        let cosine = rates(Shape::Cosine, 2, 6, 8);
        let root = 0.5f64.sqrt();
        let want = [0.0, 0.5, 1.0, (1.0 + root) / 2.0, 0.5, (1.0 - root) / 2.0, 0.0, 0.0];
        assert!(cosine.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-15), "{cosine:?}");
    }

    #[test]
    fn the_original_recipe() {
        // lr 1e-4, 5 warm-up steps, cosine to 0 over 100 steps.
        let schedule =
            Schedule { peak: 1e-4, shape: Shape::Cosine, warmup_steps: 5, total_steps: 100 };
        assert_eq!(schedule.rate(0), 0.0);
        assert!((schedule.rate(3) - 6e-5).abs() < 1e-20);
        assert_eq!(schedule.rate(5), 1e-4);
        let middle = 1e-4 / 2.0 * (1.0 + (std::f64::consts::PI * 45.0 / 95.0).cos());
        assert!((schedule.rate(50) - middle).abs() < 1e-20);
    }

    #[test]
    fn rates_are_those_of_get_scheduler() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/learning.json");
        let json: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let golden = &json["schedule"];
        for shape in [Shape::Constant, Shape::Linear, Shape::Cosine] {
            let schedule = Schedule {
                peak: golden["peak"].as_f64().unwrap(),
                shape,
                warmup_steps: golden["warmup_steps"].as_u64().unwrap(),
                total_steps: golden["total_steps"].as_u64().unwrap(),
            };
            let name = serde_json::to_value(shape).unwrap();
            let rates = golden["rates"][name.as_str().unwrap()].as_array().unwrap();
            assert_eq!(rates.len(), 41);
            for (step, rate) in rates.iter().enumerate() {
                let (got, want) = (schedule.rate(step as u64), rate.as_f64().unwrap());
                assert!((got - want).abs() < 1e-19, "{shape:?} {step}: {got} for {want}");
            }
        }
    }

    #[test]
    fn a_warm_up_longer_than_the_run_never_ends() {
        assert_eq!(rates(Shape::Linear, 8, 4, 6), [0.0, 0.125, 0.25, 0.375, 0.5, 0.625]);
        assert_eq!(rates(Shape::Cosine, 0, 0, 2), [0.0, 0.0]);
    }
}
