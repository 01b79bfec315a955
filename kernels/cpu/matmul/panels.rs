//! Weights as panels: a copy of a bf16 matrix in the order in which the product reads it.
//!
//! Panel p holds rows 32p .. 32p + 32 of w `[n, k]`, as pairs along k: `[k / 2][32 rows]` of
//! (w[row, 2i], w[row, 2i + 1]). Missing rows and the second half of a last odd pair are 0. Panels
//! lie one after the other in 2 MiB pages where the system has them, so that decoding reads one
//! stream of memory per thread from end to end.

use half::bf16;

use super::pack;
use crate::cpu::arena::Arena;
use crate::cpu::pool::Disjoint;
use crate::cpu::{Cpu, Isa};

/// Rows of w in a panel.
pub(crate) const PANEL_ROWS: usize = 32;

/// A packed copy of weights `[n, k]`.
#[derive(Debug)]
pub struct Panels {
    memory: Arena<u32>,
    n: usize,
    k: usize,
}

/// Whole panels of [`Panels`], and the rows of w that they hold.
#[derive(Clone, Copy, Debug)]
pub struct PanelSlice<'a> {
    pub(super) data: &'a [u32],
    pub(super) n: usize,
    pub(super) k: usize,
}

impl Panels {
    /// Whether products on `cpu` can take panels: they are pairs for AVX-512 BF16.
    pub fn suit(cpu: &Cpu) -> bool {
        cpu.isa() == Isa::Avx512Bf16
    }

    /// Bytes that panels of a matrix `[n, k]` take.
    pub fn len_bytes(n: usize, k: usize) -> usize {
        n.next_multiple_of(PANEL_ROWS) * k.div_ceil(2) * size_of::<u32>()
    }

    /// Copies `w` `[n, k]` on all threads. Fails if the system has no memory for it. `copied` is called
    /// with each part of w (a range of elements) that is not needed any more.
    ///
    /// # Panics
    /// If [`Panels::suit`] does not hold.
    pub fn pack(
        cpu: &Cpu,
        w: &[bf16],
        [n, k]: [usize; 2],
        copied: &dyn Fn(std::ops::Range<usize>),
    ) -> std::io::Result<Panels> {
        /// Elements of a part: 16 MiB.
        const PART: usize = 8 << 20;
        assert!(Panels::suit(cpu), "panels on {}", cpu.isa());
        assert_eq!(Some(w.len()), n.checked_mul(k), "w is not [{n}, {k}]");
        let mut memory = Arena::zeroed(Panels::len_bytes(n, k) / size_of::<u32>())?;
        let panel = PANEL_ROWS * k.div_ceil(2);
        let out = Disjoint::new(&mut memory[..]);
        let part = (PART / (PANEL_ROWS * k.max(1))).max(1);
        for start in (0..n.div_ceil(PANEL_ROWS)).step_by(part) {
            let part = part.min(n.div_ceil(PANEL_ROWS) - start);
            cpu.for_rows(part, panel, &|first, count| {
                for index in start + first..start + first + count {
                    // SAFETY: panels do not overlap.
                    let out = unsafe { out.part(index * panel, panel) };
                    pack::pack_panel(cpu, out, w, [n, k], index);
                }
            });
            copied(start * PANEL_ROWS * k..n.min((start + part) * PANEL_ROWS) * k);
        }
        Ok(Panels { memory, n, k })
    }

    /// All panels.
    pub fn whole(&self) -> PanelSlice<'_> {
        PanelSlice { data: &self.memory, n: self.n, k: self.k }
    }
}

impl<'a> PanelSlice<'a> {
    /// Rows and columns of w.
    pub fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    /// Bytes of the panels.
    pub(crate) fn len_bytes(&self) -> usize {
        size_of_val(self.data)
    }

    /// A range of rows: whole panels, except at the end of the matrix.
    ///
    /// # Panics
    /// If `rows` starts or ends inside a panel.
    pub fn rows(self, rows: std::ops::Range<usize>) -> PanelSlice<'a> {
        let whole = |row: usize| row.is_multiple_of(PANEL_ROWS) || row == self.n;
        assert!(whole(rows.start) && whole(rows.end) && rows.end <= self.n, "{rows:?} of panels");
        let row = self.k.div_ceil(2);
        let data = &self.data[rows.start * row..rows.end.next_multiple_of(PANEL_ROWS) * row];
        PanelSlice { data, n: rows.len(), k: self.k }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reference::values;

    #[test]
    fn every_weight_has_its_place_and_the_rest_is_zero() {
        if !Isa::Avx512Bf16.is_available() {
            crate::shared::skipped("this CPU has no AVX-512 BF16");
            return;
        }
        for [n, k] in [[1, 1], [31, 7], [32, 32], [33, 64], [70, 33], [64, 65], [100, 90]] {
            let w: Vec<bf16> = values(1, n * k).into_iter().map(bf16::from_f32).collect();
            let cpu = Cpu::with_isa(2, Isa::Avx512Bf16);
            let panels = Panels::pack(&cpu, &w, [n, k], &|_| ()).expect("memory");
            let pairs = k.div_ceil(2);
            let PanelSlice { data, .. } = panels.whole();
            assert_eq!(data.len(), n.next_multiple_of(PANEL_ROWS) * pairs);
            let at = |row: usize, column: usize| match row < n && column < k {
                true => u32::from(w[row * k + column].to_bits()),
                false => 0,
            };
            for (index, pair) in data.iter().enumerate() {
                let (panel, rest) = (index / (PANEL_ROWS * pairs), index % (PANEL_ROWS * pairs));
                let (i, row) = (rest / PANEL_ROWS, panel * PANEL_ROWS + rest % PANEL_ROWS);
                let want = at(row, 2 * i) | at(row, 2 * i + 1) << 16;
                assert_eq!(*pair, want, "[{n}, {k}]: row {row}, pair {i}");
            }
        }
    }
}
