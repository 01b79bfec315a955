//! Errors tensor by tensor, and what each may be.

use super::{BOUND, Finding};

/// The largest relative error of rounding to bf16, which keeps 8 bits.
pub(super) const ROUNDING: f64 = 1.0 / 256.0;

/// Bound of an error.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// On every device: of bits and tokens, and of what is computed in f32 everywhere.
    Fixed(f64),
    /// Bound of a GPU's results with inputs rounded to bf16.
    Rounded {
        /// The bound in f32.
        f32: f64,
        /// What rounding the result, or what it is made of, to bf16 once may change.
        rounding: f64,
    },
    /// Bound of a GPU's results from logits.
    OfLogits {
        /// The bound in f32.
        f32: f64,
        /// How far it goes when every logit is off by one, at most.
        sensitivity: f64,
    },
}

/// Bound of logits.
pub(super) const LOGITS: &str = "logits";

impl Bound {
    /// In f32, unless it was replaced by [`Errors::bounded_by`].
    fn value(self) -> f64 {
        match self {
            Bound::Fixed(bound)
            | Bound::Rounded { f32: bound, .. }
            | Bound::OfLogits { f32: bound, .. } => bound,
        }
    }
}

/// The error of one tensor.
#[derive(Debug)]
struct Comparison {
    quantity: String,
    count: usize,
    error: f64,
    bound: Bound,
}

/// All errors of a variant, in the order in which they were computed.
#[derive(Debug, Default)]
pub(super) struct Errors(Vec<Comparison>);

impl Errors {
    /// Compares two tensors of the same length.
    pub(super) fn values(&mut self, quantity: &str, ours: &[f32], reference: &[f32]) {
        let rounding = ROUNDING * largest(reference);
        let bound = Bound::Rounded { f32: BOUND, rounding };
        self.add(quantity, ours.len(), largest_difference(ours, reference), bound);
    }

    /// Compares entropies of rows of logits.
    pub(super) fn entropies(
        &mut self,
        quantity: &str,
        ours: &[f32],
        reference: &[f32],
        logits: &[f32],
    ) {
        let vocab = logits.len() / reference.len().max(1);
        let rows = logits.chunks_exact(vocab.max(1));
        let sensitivity = rows.map(entropy_sensitivity).fold(0.0, f64::max);
        let bound = Bound::OfLogits { f32: BOUND, sensitivity };
        self.add(quantity, ours.len(), largest_difference(ours, reference), bound);
    }

    /// Counts what differs of `count` bits or tokens, none of which may.
    pub(super) fn count(&mut self, quantity: &str, count: usize, differing: usize) {
        self.add(quantity, count, differing as f64, Bound::Fixed(0.0));
    }

    pub(super) fn add(&mut self, quantity: &str, count: usize, error: f64, bound: Bound) {
        self.0.push(Comparison { quantity: quantity.to_owned(), count, error, bound });
    }

    /// The same with every bound on what is rounded to bf16 made of `other`'s largest error of the quantity (the
    /// few values of one tensor say little): twice that, and one rounding. What is computed of logits may be off by
    /// what their bounds allow.
    ///
    /// # Panics
    /// If `other` compared other tensors.
    pub(super) fn bounded_by(mut self, other: &Errors) -> Errors {
        assert_eq!(self.0.len(), other.0.len(), "other comparisons");
        for (own, same) in self.0.iter_mut().zip(&other.0) {
            assert_eq!(own.quantity, same.quantity, "another order");
            if let Bound::Rounded { rounding, .. } = own.bound {
                let all = other.0.iter().filter(|other| other.quantity == own.quantity);
                let error = worst(all.map(|other| other.error));
                own.bound = Bound::Fixed(2.0 * error + rounding);
            }
        }
        let bounds = self.0.iter().filter(|own| own.quantity == LOGITS);
        let logits = worst(bounds.map(|own| own.bound.value()));
        for own in &mut self.0 {
            if let Bound::OfLogits { sensitivity, .. } = own.bound {
                own.bound = Bound::Fixed(sensitivity * logits);
            }
        }
        self
    }

    /// A finding a quantity: all its values, and the error that is largest beside its bound.
    pub(super) fn findings(self, case: &str, variant: &'static str) -> Vec<Finding> {
        let mut findings: Vec<Finding> = Vec::new();
        for Comparison { quantity, count, error, bound } in self.0 {
            let bound = bound.value();
            match findings.iter_mut().find(|finding| finding.quantity == quantity) {
                Some(finding) => {
                    finding.count += count;
                    let (new, old) = (share(error, bound), share(finding.error, finding.bound));
                    // An error that is not a number stays.
                    if new.is_nan() || new > old || (new == old && error > finding.error) {
                        (finding.error, finding.bound) = (error, bound);
                    }
                }
                None => {
                    findings.push(Finding {
                        case: case.to_owned(),
                        variant,
                        quantity,
                        count,
                        error,
                        bound,
                    });
                }
            }
        }
        findings
    }
}

/// How far the entropy H of a row goes, to first order, when every logit is off by one, in the worst
/// direction: dH = −Σ p·(ln p + H)·dz, at most Σ p·|ln p + H|.
fn entropy_sensitivity(logits: &[f32]) -> f64 {
    let most = logits.iter().fold(f64::NEG_INFINITY, |most, z| most.max((*z).into()));
    let sum: f64 = logits.iter().map(|z| (f64::from(*z) - most).exp()).sum();
    let log_probs = logits.iter().map(|z| f64::from(*z) - most - sum.ln());
    let entropy: f64 = log_probs.clone().map(|log_p| -log_p.exp() * log_p).sum();
    log_probs.map(|log_p| log_p.exp() * (log_p + entropy).abs()).sum()
}

/// How much of what it may be an error is; above 1 it is too large.
fn share(error: f64, bound: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / bound }
}

/// The largest absolute value.
pub(super) fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |largest: f64, x| largest.max(f64::from(x.abs())))
}

/// The largest absolute difference; NaN if there is one, infinite for lengths that differ.
pub(super) fn largest_difference(ours: &[f32], reference: &[f32]) -> f64 {
    if ours.len() != reference.len() {
        return f64::INFINITY;
    }
    let differences =
        ours.iter().zip(reference).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    worst(differences)
}

/// The largest; NaN if there is one.
fn worst(errors: impl Iterator<Item = f64>) -> f64 {
    errors.fold(0.0, |worst: f64, e| if e.is_nan() || e > worst { e } else { worst })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(all: &[(&str, f64, Bound)]) -> Errors {
        let mut errors = Errors::default();
        all.iter().for_each(|(quantity, error, bound)| errors.add(quantity, 2, *error, *bound));
        errors
    }

    #[test]
    fn bounds_are_twice_the_others_error_and_one_rounding() {
        let rounded = |rounding| Bound::Rounded { f32: 1e-5, rounding };
        let (fine, coarse) = (rounded(0.5), rounded(2.0));
        let ours = [("x", 1.9, coarse), ("bits", 0.0, Bound::Fixed(0.0)), ("x", 0.9, fine)];
        let others = [("x", 0.1, coarse), ("bits", 0.0, Bound::Fixed(0.0)), ("x", 0.05, fine)];
        let findings = errors(&ours).bounded_by(&errors(&others)).findings("case", "lora");
        let [x, bits] = findings.as_slice() else { panic!("{findings:?}") };
        // 0.9 of 0.7 is worse than 1.9 of 2.2.
        assert_eq!((x.count, x.error, x.bound, x.passes()), (4, 0.9, 0.7, false));
        assert!(bits.passes());
        assert!(!errors(&ours).findings("case", "lora")[0].passes(), "f32's bound without it");
    }

    #[test]
    fn entropies_may_be_off_by_what_their_logits_may() {
        // p = 1/4, 3/4; |ln p + H| = 3/4·ln 3, 1/4·ln 3.
        let logits = [0.0, 3.0_f32.ln()];
        assert!((entropy_sensitivity(&logits) - 0.375 * 3.0_f64.ln()).abs() < 1e-7);
        assert!(entropy_sensitivity(&[2.0; 8]).abs() < 1e-12, "the largest entropy");
        let rounded = Bound::Rounded { f32: 1e-5, rounding: 0.5 };
        let mut ours = errors(&[(LOGITS, 0.1, rounded)]);
        ours.entropies("entropies", &[0.5], &[1.0], &logits);
        assert_eq!(ours.0[1].bound.value(), BOUND, "in f32");
        let others = errors(&[(LOGITS, 0.25, rounded), ("entropies", 0.0, Bound::Fixed(0.0))]);
        let bounded = ours.bounded_by(&others);
        let bound = bounded.0[1].bound.value();
        assert!((bound - 0.375 * 3.0_f64.ln()).abs() < 1e-7, "a logit may be off by 1: {bound}");
    }

    #[test]
    fn the_worst_error_of_a_quantity_is_found() {
        let fixed = |bound: f64| Bound::Fixed(bound);
        let of = |all: &[(&str, f64, Bound)]| {
            let finding = errors(all).findings("case", "base").remove(0);
            (finding.error, finding.passes())
        };
        assert_eq!(of(&[("x", 0.0, fixed(0.0)), ("x", 3.0, fixed(0.0))]), (3.0, false));
        assert_eq!(of(&[("x", 3.0, fixed(0.0)), ("x", 5.0, fixed(9.0))]), (3.0, false));
        assert_eq!(of(&[("x", 0.0, fixed(0.0)), ("x", 9.0, fixed(8.0))]), (9.0, false));
        assert_eq!(of(&[("x", 1.0, fixed(9.0)), ("x", 5.0, fixed(9.0))]), (5.0, true));
        assert!(!of(&[("x", f64::NAN, fixed(1.0)), ("x", 5.0, fixed(9.0))]).1);
        assert!(!of(&[("x", 5.0, fixed(9.0)), ("x", f64::NAN, fixed(1.0))]).1);
        assert!(largest_difference(&[1.0, f32::NAN], &[1.0, 2.0]).is_nan());
        assert_eq!(largest_difference(&[1.0], &[]), f64::INFINITY);
    }
}
