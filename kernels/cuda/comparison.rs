//! What a comparison of a CUDA kernel with its CPU reference found.

/// Results of one kernel, or of a few that only make sense together, against what they should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// What was checked.
    pub check: &'static str,
    /// Shape, and which of the results.
    pub case: String,
    /// Symbols of the kernels whose results these are: those that ran since the check's comparison before, or where
    /// none did, that comparison's.
    pub kernels: Vec<&'static str>,
    /// Values compared.
    pub values: usize,
    /// Largest error of a value; infinite for a NaN that should be none. Of values that are no numbers, how many differ.
    pub error: f64,
    /// What it may be; 0 where bits must be the same.
    pub bound: f64,
}

impl Comparison {
    /// Whether the error is within its bound.
    pub fn passes(&self) -> bool {
        self.error <= self.bound
    }
}
