//! A new adapter, as PEFT initializes one by default (`init_lora_weights=True`): B is zero, so that the model starts as its base,
//! and A is drawn by PyTorch's `kaiming_uniform_(a=sqrt(5))`, which for A [r, in] is uniform in ±1/sqrt(in).
//!
//! Element i (row-major) of the A of a projection is draw i of the sequence `7 layer + projection` of
//! [`Stream::ADAPTER`]. So it does not depend on the other projections of the adapter, and a larger r begins with the rows of a
//! smaller one.

use kernels::cpu::philox::{RngKey, Stream};

use super::modules::{MAX_ALPHA, Patterns};
use super::{Adapter, AdapterError, LoraFactors, MAX_RANK, Projection};
use crate::checkpoint::config::Config;

/// Settings of a new adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    /// r
    pub rank: usize,
    /// lora_alpha
    pub alpha: f64,
    /// Whether the scale is alpha / sqrt(r).
    pub rank_stabilized: bool,
    /// Dropout on A's input in training.
    pub dropout: f64,
    /// The projections of every layer that it changes.
    pub targets: Vec<Projection>,
}

impl Adapter {
    /// A new adapter for a model of this configuration, which changes nothing yet. `base_model` is `None`; set it for the file.
    pub fn initialize(
        config: &Config,
        settings: &AdapterSettings,
        seed: u64,
    ) -> Result<Adapter, AdapterError> {
        settings.check()?;
        let AdapterSettings { rank, alpha, rank_stabilized, dropout, .. } = *settings;
        let layers = config.num_hidden_layers;
        let mut adapter = Adapter {
            rank,
            alpha,
            rank_stabilized,
            dropout,
            base_model: None,
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            unknown_keys: Vec::new(),
            layers: std::iter::repeat_with(Default::default).take(layers).collect(),
        };
        let scale = adapter.scale(rank, alpha);
        for layer in 0..layers {
            for &projection in &settings.targets {
                let [outputs, inputs] = projection.shape(config);
                let sequence = (layer * Projection::ALL.len() + projection as usize) as u64;
                let key = RngKey::new(seed, sequence, Stream::ADAPTER);
                // A position is a word of 32 bits.
                let elements = u32::try_from(rank * inputs).map_err(|_| AdapterError::Setting {
                    name: "rank",
                    got: rank.to_string(),
                    expected: "factors of fewer than 2^32 elements",
                })?;
                let bound = (inputs as f64).sqrt().recip();
                let draw = |position| ((2.0 * key.uniform_f64(position) - 1.0) * bound) as f32;
                let a = (0..elements).map(draw).collect();
                let b = vec![0.0; outputs * rank];
                adapter.set_factors(layer, projection, LoraFactors { a, b, rank, scale });
            }
        }
        Ok(adapter)
    }
}

impl AdapterSettings {
    /// Settings are refused that could not be read back, or would not train.
    fn check(&self) -> Result<(), AdapterError> {
        let AdapterSettings { rank, alpha, dropout, ref targets, .. } = *self;
        let wrong = |name, got: &dyn std::fmt::Debug, expected| {
            Err(AdapterError::Setting { name, got: format!("{got:?}"), expected })
        };
        if !(1..=MAX_RANK).contains(&rank) {
            return wrong("rank", &rank, "a whole number from 1 to 16384");
        }
        if !(alpha > 0.0 && alpha <= MAX_ALPHA) {
            return wrong("alpha", &alpha, "a positive number up to 1000000");
        }
        if !(0.0..1.0).contains(&dropout) {
            return wrong("dropout", &dropout, "a number from 0 to below 1");
        }
        if targets.is_empty() {
            return wrong("targets", targets, "at least one projection");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    fn settings(rank: usize, targets: &[Projection]) -> AdapterSettings {
        let targets = targets.to_vec();
        AdapterSettings { rank, alpha: 16.0, rank_stabilized: false, dropout: 0.1, targets }
    }

    #[test]
    fn a_is_uniform_and_b_zero() {
        let rank = 2000;
        let adapter = Adapter::initialize(&config(), &settings(rank, &Projection::ALL), 3).unwrap();
        assert_eq!(adapter.factors(0, Projection::Up).unwrap().scale, (16.0 / 2000.0) as f32);
        for layer in 0..2 {
            for projection in Projection::ALL {
                let LoraFactors { a, b, .. } = adapter.factors(layer, projection).unwrap();
                let [outputs, inputs] = projection.shape(&config());
                assert_eq!((a.len(), b.len()), (rank * inputs, outputs * rank));
                assert!(b.iter().all(|b| b.to_bits() == 0));
                let bound = (inputs as f32).sqrt().recip();
                assert!(a.iter().all(|a| a.abs() <= bound), "{projection:?}");
                // Of uniform draws in ±c: mean 0 with standard error c/sqrt(3n), mean square c²/3 with 2c²/sqrt(45n); six of each.
                let (n, c) = (a.len() as f64, f64::from(bound));
                let mean = a.iter().map(|a| f64::from(*a)).sum::<f64>() / n;
                let square = a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>() / n;
                assert!(mean.abs() < 6.0 * c / (3.0 * n).sqrt(), "{mean}");
                let error = (square - c * c / 3.0).abs();
                assert!(error < 12.0 * c * c / (45.0 * n).sqrt(), "{error}");
            }
        }
    }

    #[test]
    fn draws_depend_on_the_seed_and_the_matrix_alone() {
        let all = Adapter::initialize(&config(), &settings(4, &Projection::ALL), 5).unwrap();
        let one = Adapter::initialize(&config(), &settings(2, &[Projection::Up]), 5).unwrap();
        let other = Adapter::initialize(&config(), &settings(4, &Projection::ALL), 6).unwrap();
        let a = |adapter: &Adapter, layer, projection| {
            adapter.factors(layer, projection).unwrap().a.clone()
        };
        let up = a(&all, 1, Projection::Up);
        assert!(up.starts_with(&a(&one, 1, Projection::Up)), "the first rows of a larger rank");
        assert!(one.factors(1, Projection::Gate).is_none());
        assert_ne!(up, a(&all, 0, Projection::Up));
        assert_ne!(up, a(&all, 1, Projection::Gate));
        assert_ne!(up, a(&other, 1, Projection::Up));
    }

    #[test]
    fn settings_that_cannot_be_are_named() {
        let good = settings(4, &[Projection::Query]);
        for (name, bad) in [
            ("rank", AdapterSettings { rank: 0, ..good.clone() }),
            ("rank", AdapterSettings { rank: MAX_RANK + 1, ..good.clone() }),
            ("alpha", AdapterSettings { alpha: 0.0, ..good.clone() }),
            ("alpha", AdapterSettings { alpha: f64::NAN, ..good.clone() }),
            ("alpha", AdapterSettings { alpha: f64::INFINITY, ..good.clone() }),
            ("dropout", AdapterSettings { dropout: 1.0, ..good.clone() }),
            ("dropout", AdapterSettings { dropout: -0.1, ..good.clone() }),
            ("targets", AdapterSettings { targets: Vec::new(), ..good.clone() }),
        ] {
            let error = Adapter::initialize(&config(), &bad, 0).unwrap_err();
            assert!(
                matches!(error, AdapterError::Setting { name: wrong, .. } if wrong == name),
                "{error}"
            );
        }
    }
}
