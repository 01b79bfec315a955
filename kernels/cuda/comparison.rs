//! The result of comparing a CUDA kernel with its CPU reference.

/// Results of one kernel, or of a few that only make sense together, against what they should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Name of the check.
    pub check: &'static str,
    /// Shape, and which result.
    pub case: String,
    /// Symbols of the kernels that made the results: those that ran since the check's last comparison, or the kernels of
    /// that comparison where none did.
    pub kernels: Vec<&'static str>,
    /// Number of values compared.
    pub values: usize,
    /// Largest error of a value; infinite for an unexpected NaN. For values that are not numbers, how many differ.
    pub error: f64,
    /// The largest error allowed; 0 where bits must be the same.
    pub bound: f64,
}

impl Comparison {
    /// Whether the error is within its bound.
    pub fn passes(&self) -> bool {
        self.error <= self.bound
    }
}
