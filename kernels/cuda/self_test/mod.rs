//! Every CUDA kernel against its CPU reference or a naive computation, on awkward shapes.
//!
//! `j1 check` runs it on the GPU at hand, and the tests on the emulator. A check is a function
//! that hands its results to [`Comparisons`]; what went wrong on the device is its error.

pub(crate) mod adamw;
pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod attention_backward;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod gather;
pub(crate) mod log_prob;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod repetition_penalty;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod swiglu;

use crate::cpu::values::largest_error;
pub(crate) use crate::cpu::values::values;
use crate::cuda::{Buffer, Comparison, Element, Error, Gpu};
use half::bf16;

/// Hands all checks to a macro, by file and function; the tests have the same names.
macro_rules! for_each_check {
    ($use:ident) => {
        $use! {
            rms_norm { rms_norm_equals_its_reference }
            rope { rope_equals_its_reference_bit_for_bit }
            swiglu { swiglu_equals_its_reference }
            embedding { embedding_equals_its_reference_bit_for_bit }
            gather { gathered_rows_equal_their_reference_bit_for_bit }
            add { add_equals_its_reference_bit_for_bit }
            dropout { dropout_equals_its_reference_bit_for_bit }
            adamw { adamw_equals_its_reference_bit_for_bit }
            norm { sums_of_squares_equal_their_reference_to_the_order_of_sums }
            matmul {
                forward_equals_the_naive_reference_in_every_form
                a_row_has_the_same_bits_in_any_batch_and_kernel
                a_row_of_lora_hidden_has_the_same_bits_in_any_batch
                backward_adds_the_products_of_its_pairs
                products_of_a_models_widths_equal_the_naive_reference
                swiglu_behind_a_product_is_the_two_in_turn
                rounding_is_to_nearest_even
                lora_products_are_as_good_as_f32
            }
            attention {
                keys_and_values_go_to_their_slots_and_nowhere_else
                forward_is_as_good_as_the_naive_reference
                a_row_has_the_same_bits_in_decoding_as_in_a_prefill
            }
            attention_backward { gradients_are_as_good_as_the_references }
            log_prob { log_prob_has_the_bits_of_the_reference_on_the_same_logits }
            repetition_penalty { penalized_logits_equal_their_reference_bit_for_bit }
            sample {
                tokens_are_those_of_the_reference
                rows_without_a_distribution_are_named
            }
        }
    };
}
#[cfg(all(test, feature = "cuda"))]
pub(crate) use for_each_check;

/// Compares one or some kernels with their references.
pub(crate) type Check = fn(&mut Comparisons<'_>) -> Result<(), Error>;

macro_rules! list {
    ($($file:ident { $($check:ident)* })*) => {
        &[$($((concat!(stringify!($file), "::", stringify!($check)), $file::$check as Check)),*),*]
    };
}
static CHECKS: &[(&str, Check)] = for_each_check!(list);

impl Gpu {
    /// Compares every kernel with its CPU reference, one after the other, and hands each comparison to `each` as it is
    /// made. An error is one of the device; a kernel whose results are wrong is a [`Comparison`] that does not pass.
    pub fn self_test(&self, each: &mut dyn FnMut(Comparison)) -> Result<(), Error> {
        for (name, check) in CHECKS {
            self.take_launched();
            check(&mut Comparisons::new(self, name, each))?;
        }
        Ok(())
    }
}

/// Where checks hand their results.
pub(crate) struct Comparisons<'a> {
    gpu: &'a Gpu,
    check: &'static str,
    each: &'a mut dyn FnMut(Comparison),
    /// Kernels of the last comparison: further results of theirs are compared without another launch.
    kernels: Vec<&'static str>,
}

impl<'a> Comparisons<'a> {
    pub(crate) fn new(
        gpu: &'a Gpu,
        check: &'static str,
        each: &'a mut dyn FnMut(Comparison),
    ) -> Comparisons<'a> {
        Comparisons { gpu, check, each, kernels: Vec::new() }
    }

    fn record(&mut self, values: usize, error: f64, bound: f64, case: &str) {
        let launched = self.gpu.take_launched();
        if !launched.is_empty() {
            self.kernels = launched;
        }
        let (check, case, kernels) = (self.check, case.to_string(), self.kernels.clone());
        (self.each)(Comparison { check, case, kernels, values, error, bound });
    }

    /// `got` may be twice as far from `exact` as the `naive` f32 result is, plus `floor`, in the largest error over
    /// all values.
    fn close(&mut self, got: &[f32], naive: &[f32], exact: &[f64], floor: f64, case: &str) {
        let bound = 2.0 * largest_error(naive, exact) + floor;
        self.record(got.len(), largest_error(got, exact), bound, case);
    }

    /// Every value must have the same bits.
    fn same_bits(&mut self, got: &[f32], want: &[f32], case: &str) {
        assert_eq!(got.len(), want.len(), "{case}");
        let difference = |(got, want): (&f32, &f32)| match (got - want).abs() {
            _ if got.to_bits() == want.to_bits() => 0.0,
            difference if difference.is_nan() => f64::INFINITY,
            // Zeros of two signs differ too.
            difference => f64::from(difference).max(f64::MIN_POSITIVE),
        };
        let error = got.iter().zip(want).map(difference).fold(0.0, f64::max);
        self.record(got.len(), error, 0.0, case);
    }

    /// Every bf16 value must have the same bits.
    fn same_rounded(&mut self, got: &[u16], want: &[u16], case: &str) {
        self.same_bits(&widened(got), &widened(want), case);
    }

    /// All must be equal; counts those that are not.
    fn same<T: PartialEq>(&mut self, got: &[T], want: &[T], case: &str) {
        assert_eq!(got.len(), want.len(), "{case}");
        let wrong = got.iter().zip(want).filter(|(got, want)| got != want).count();
        self.record(got.len(), wrong as f64, 0.0, case);
    }

    /// Errors with a bound each: the error that exceeds its bound by most counts.
    fn within(&mut self, errors: impl Iterator<Item = (f64, f64)>, case: &str) {
        let mut values = 0;
        let excess = |(error, bound): (f64, f64)| match error - bound {
            excess if excess.is_nan() => f64::INFINITY,
            excess => excess,
        };
        let worst = errors
            .inspect(|_| values += 1)
            .max_by(|a, b| excess(*a).total_cmp(&excess(*b)))
            .unwrap_or((0.0, 0.0));
        self.record(values, worst.0, worst.1, case);
    }
}

/// All results, or the first error.
fn all<T, const N: usize>(results: [Result<T, Error>; N]) -> Result<[T; N], Error> {
    let all: Vec<T> = results.into_iter().collect::<Result<_, _>>()?;
    let Ok(all) = all.try_into() else { unreachable!("as many as there were") };
    Ok(all)
}

/// Buffers with the values of each.
fn uploaded<T: Element, const N: usize>(
    gpu: &Gpu,
    data: [&[T]; N],
) -> Result<[Buffer<T>; N], Error> {
    all(data.map(|data| gpu.upload(data)))
}

/// Bits of `x` rounded to bf16.
pub(crate) fn rounded(x: &[f32]) -> Vec<u16> {
    x.iter().map(|x| bf16::from_f32(*x).to_bits()).collect()
}

/// The values of bf16 bits.
pub(crate) fn widened(x: &[u16]) -> Vec<f32> {
    x.iter().map(|x| bf16::from_bits(*x).to_f32()).collect()
}
