//! Errors tensor by tensor, and what each may be.

use super::{BOUND, Finding};

/// What rounding to bf16, which keeps 8 bits, may change in a value, relative to it.
pub(super) const ROUNDING: f64 = 1.0 / 256.0;

/// What an error may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// On every device: of bits and tokens, and of what is computed in f32 everywhere.
    Fixed(f64),
    /// Of what a GPU computes with inputs rounded to bf16.
    Rounded {
        /// In f32.
        f32: f64,
        /// What rounding the result, or what it is made of, to bf16 once may change.
        rounding: f64,
    },
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

    /// Counts what differs of `count` bits or tokens, none of which may.
    pub(super) fn count(&mut self, quantity: &str, count: usize, differing: usize) {
        self.add(quantity, count, differing as f64, Bound::Fixed(0.0));
    }

    pub(super) fn add(&mut self, quantity: &str, count: usize, error: f64, bound: Bound) {
        self.0.push(Comparison { quantity: quantity.to_owned(), count, error, bound });
    }

    /// The same with every bound on what is rounded to bf16 made of `other`'s largest error of the same
    /// quantity: twice that, and one rounding. The quantity's, as few values say little of how large errors are.
    pub(super) fn bounded_by(mut self, other: &Errors) -> Errors {
        for own in &mut self.0 {
            if let Bound::Rounded { rounding, .. } = own.bound {
                let same = other.0.iter().filter(|other| other.quantity == own.quantity);
                let largest = worst(same.map(|other| other.error));
                own.bound = Bound::Fixed(2.0 * largest + rounding);
            }
        }
        self
    }

    /// A finding a quantity: all its values, and the error that is largest beside its bound.
    pub(super) fn findings(self, case: &str, variant: &'static str) -> Vec<Finding> {
        let mut findings: Vec<Finding> = Vec::new();
        for Comparison { quantity, count, error, bound } in self.0 {
            let bound = match bound {
                Bound::Fixed(bound) | Bound::Rounded { f32: bound, .. } => bound,
            };
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
        let rounded = Bound::Rounded { f32: 1e-5, rounding: 0.5 };
        let coarse = Bound::Rounded { f32: 1e-5, rounding: 2.0 };
        let ours = [("x", 1.9, coarse), ("bits", 0.0, Bound::Fixed(0.0)), ("x", 0.9, rounded)];
        let other = errors(&[("x", 0.1, coarse), ("x", 0.1, rounded), ("y", 9.0, rounded)]);
        let findings = errors(&ours).bounded_by(&other).findings("case", "lora");
        let [x, bits] = findings.as_slice() else { panic!("{findings:?}") };
        // 0.9 of 0.7 is worse than 1.9 of 2.2.
        assert_eq!((x.count, x.error, x.bound, x.passes()), (4, 0.9, 0.7, false));
        assert!(bits.passes());
        assert!(!errors(&ours).findings("case", "lora")[0].passes(), "f32's bound without it");
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
