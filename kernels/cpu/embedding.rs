//! Embedding: `y[i] = table[ids[i]]`, widened to f32. Exact. Bound: bytes.

use super::pool::Disjoint;
use super::profile::{self, Work};
use super::vector::Element;
use super::{Cpu, Matrix, elements, round};
use half::{bf16, f16};

/// Writes row `ids[i]` of `table` [vocab, n] to row i of `y` [ids.len(), n].
///
/// # Panics
/// If an id is not below vocab.
pub fn forward(cpu: &Cpu, y: &mut [f32], ids: &[u32], table: Matrix<'_>, n: usize) {
    match table {
        Matrix::Bf16(table) => copy_rows::<bf16>(cpu, y, ids, table, n),
        Matrix::F16(table) => copy_rows::<f16>(cpu, y, ids, table, n),
        Matrix::F32(table) => copy_rows::<f32>(cpu, y, ids, table, n),
        Matrix::Panels(_) => panic!("an embedding reads rows, panels have none"),
    }
}

fn copy_rows<T: Element>(cpu: &Cpu, y: &mut [f32], ids: &[u32], table: &[T], n: usize) {
    assert!(n > 0, "rows of the table are empty");
    assert_eq!(table.len() % n, 0, "a table of {} is not rows of {n}", table.len());
    assert_eq!(y.len(), elements([ids.len(), n]), "y is not [{}, {n}]", ids.len());
    let vocab = table.len() / n;
    let _span = profile::span("embedding", [ids.len(), n], || {
        Work::default().and_bytes(ids.len() * (size_of::<T>() + 4) * n)
    });
    for &id in ids {
        assert!((id as usize) < vocab, "id {id} in a table of {vocab} rows");
    }
    let y = Disjoint::new(y);
    cpu.for_rows(ids.len(), n, &|first, count| {
        for (i, &id) in (first..).zip(&ids[first..first + count]) {
            let row = id as usize * n;
            // SAFETY: rows of y do not overlap.
            round::widen_row(cpu, unsafe { y.part(i * n, n) }, &table[row..row + n]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reference::{contexts, values};

    #[test]
    fn copies_the_rows_exactly() {
        let vocab = 23;
        for n in [1, 16, 33, 1030] {
            let table = values(1, vocab * n);
            let narrow: Vec<bf16> = table.iter().map(|x| bf16::from_f32(*x)).collect();
            let half: Vec<f16> = table.iter().map(|x| f16::from_f32(*x)).collect();
            for ids in [vec![], vec![22, 0, 7, 7], (0..100).map(|i| i * 5 % 23).collect()] {
                for cpu in contexts() {
                    let mut y = vec![f32::NAN; ids.len() * n];
                    let want = |widened: &dyn Fn(usize) -> f32| -> Vec<f32> {
                        let rows = ids.iter().map(|id| *id as usize * n);
                        rows.flat_map(|row| (row..row + n).map(widened).collect::<Vec<_>>())
                            .collect()
                    };
                    forward(&cpu, &mut y, &ids, Matrix::F32(&table), n);
                    assert_eq!(y, want(&|i| table[i]));
                    forward(&cpu, &mut y, &ids, Matrix::Bf16(&narrow), n);
                    assert_eq!(y, want(&|i| narrow[i].to_f32()));
                    forward(&cpu, &mut y, &ids, Matrix::F16(&half), n);
                    assert_eq!(y, want(&|i| half[i].to_f32()));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "id 4 in a table of 4 rows")]
    fn ids_are_checked() {
        forward(&Cpu::new(1), &mut [0.0; 2], &[4], Matrix::F32(&[0.0; 8]), 2);
    }
}
