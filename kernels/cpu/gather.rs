//! Rows of a matrix, some of them several times: `y[i] = x[rows[i]]`, and back: `dx[r]` = Σ `dy[i]` over the i
//! with `rows[i] = r`, in their order. Bound: bytes.

use super::pool::Disjoint;
use super::profile::{self, Work};
use super::{Cpu, elements};

/// Writes row `rows[i]` of `x` `[.., n]` to row i of `y` `[rows.len(), n]`.
///
/// # Panics
/// If a row is beyond x.
pub fn forward(cpu: &Cpu, y: &mut [f32], x: &[f32], rows: &[u32], n: usize) {
    assert_eq!(y.len(), elements([rows.len(), n]), "y is not [{}, {n}]", rows.len());
    check(rows, x.len() / n.max(1));
    let _span =
        profile::span("gather", [rows.len(), n], || Work::default().and_bytes(8 * rows.len() * n));
    let y = Disjoint::new(y);
    cpu.for_rows(rows.len(), n, &|first, count| {
        for (i, &row) in (first..).zip(&rows[first..first + count]) {
            // SAFETY: rows of y do not overlap.
            unsafe { y.part(i * n, n) }.copy_from_slice(&x[row as usize * n..][..n]);
        }
    });
}

/// Writes the gradient `dx` `[from, n]` of x, given that of y, `[rows, n]`, and where its rows went.
pub fn backward(cpu: &Cpu, dx: &mut [f32], dy: &[f32], places: &Places, n: usize) {
    assert!(!places.starts.is_empty(), "places without an end");
    let from = places.starts.len() - 1;
    assert_eq!(dx.len(), elements([from, n]), "dx is not [{from}, {n}]");
    let to = places.sources.len();
    assert_eq!(dy.len(), elements([to, n]), "dy is not [{to}, {n}]");
    let _span = profile::span("gather backward", [to, n], || Work::each(dy.len(), 1, 8));
    let dx = Disjoint::new(dx);
    cpu.for_rows(from, n, &|first, count| {
        for row in first..first + count {
            // SAFETY: rows of dx do not overlap.
            let dx = unsafe { dx.part(row * n, n) };
            dx.fill(0.0);
            let [start, end] = [row, row + 1].map(|row| places.starts[row] as usize);
            for &source in &places.sources[start..end] {
                let dy = &dy[source as usize * n..][..n];
                dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy);
            }
        }
    });
}

/// For each row of x, the rows of y that it went to.
#[derive(Debug)]
pub struct Places {
    /// Where in `sources` the list of each row of x begins, and at the end their number: one more than rows.
    pub starts: Vec<u32>,
    /// Rows of y, ascending for each row of x.
    pub sources: Vec<u32>,
}

impl Places {
    /// Of `rows`, which lie below `from`, the number of rows of x.
    ///
    /// # Panics
    /// If one does not.
    pub fn new(rows: &[u32], from: usize) -> Places {
        check(rows, from);
        let mut starts = vec![0u32; from + 1];
        rows.iter().for_each(|&row| starts[row as usize + 1] += 1);
        for row in 0..from {
            starts[row + 1] += starts[row];
        }
        let mut next = starts.clone();
        let mut sources = vec![0; rows.len()];
        for (i, &row) in rows.iter().enumerate() {
            sources[next[row as usize] as usize] = i as u32;
            next[row as usize] += 1;
        }
        Places { starts, sources }
    }
}

/// Asserts that all rows exist.
pub fn check(rows: &[u32], from: usize) {
    for &row in rows {
        assert!((row as usize) < from, "row {row} of {from}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reference::{assert_same_bits, contexts, values};

    #[test]
    fn rows_are_copied_and_their_gradients_added() {
        let from = 9;
        for n in [1, 33, 1030] {
            let x = values(1, from * n);
            for rows in [vec![], vec![8, 0, 7, 7], (0..100).map(|i| i * 5 % 8).collect()] {
                let dy = values(2, rows.len() * n);
                let mut want = vec![0.0; from * n];
                for (i, row) in rows.iter().enumerate() {
                    for j in 0..n {
                        want[*row as usize * n + j] += dy[i * n + j];
                    }
                }
                for cpu in contexts() {
                    let mut y = vec![f32::NAN; rows.len() * n];
                    forward(&cpu, &mut y, &x, &rows, n);
                    let taken = rows.iter().flat_map(|row| &x[*row as usize * n..][..n]);
                    assert!(y.iter().eq(taken));
                    let mut dx = vec![f32::NAN; from * n];
                    backward(&cpu, &mut dx, &dy, &Places::new(&rows, from), n);
                    assert_same_bits(&dx, &want, "dx");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "beyond any memory")]
    fn a_shape_that_wraps_is_refused() {
        // Four times 2^62 elements are none, modulo 2^64.
        forward(&Cpu::new(1), &mut [], &[0.0; 8], &[0; 4], 1 << 62);
    }

    #[test]
    #[should_panic(expected = "row 4 of 4")]
    fn rows_are_checked() {
        forward(&Cpu::new(1), &mut [0.0; 2], &[0.0; 8], &[4], 2);
    }
}
