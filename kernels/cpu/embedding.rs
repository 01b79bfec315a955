//! Embedding: y[i] = table[ids[i]], widened to f32.

use super::{Cpu, Matrix};

/// Writes row `ids[i]` of `table` [vocab, n] to row i of `y` [ids.len(), n].
///
/// # Panics
/// If an id is not below vocab.
pub fn forward(cpu: &Cpu, y: &mut [f32], ids: &[u32], table: Matrix<'_>, n: usize) {
    assert!(n > 0, "rows of the table are empty");
    assert_eq!(table.len() % n, 0, "a table of {} is not rows of {n}", table.len());
    assert_eq!(y.len(), ids.len() * n, "y is not [{}, {n}]", ids.len());
    let _ = cpu;
    let vocab = table.len() / n;
    for (y, &id) in y.chunks_exact_mut(n).zip(ids) {
        let id = id as usize;
        assert!(id < vocab, "id {id} in a table of {vocab} rows");
        let row = id * n..(id + 1) * n;
        match table {
            Matrix::Bf16(table) => {
                y.iter_mut().zip(&table[row]).for_each(|(y, x)| *y = x.to_f32());
            }
            Matrix::F16(table) => {
                y.iter_mut().zip(&table[row]).for_each(|(y, x)| *y = x.to_f32());
            }
            Matrix::F32(table) => y.copy_from_slice(&table[row]),
        }
    }
}
