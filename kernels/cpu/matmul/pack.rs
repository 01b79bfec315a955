//! Panels packed on the way: from rows of weights, from their columns, from packed columns.

#![allow(clippy::needless_range_loop)] // indices of blocks in registers

use std::arch::x86_64::*;

use half::bf16;

use crate::cpu::Cpu;
use crate::cpu::matmul::panels::{PANEL_ROWS, PanelSlice, Panels};
use crate::cpu::vector::transposed;

/// Panel `index` of `w` `[n, k]`, whole, into `to`.
pub(crate) fn pack_panel(cpu: &Cpu, to: &mut [u32], w: &[bf16], shape: [usize; 2], index: usize) {
    assert!(Panels::suit(cpu), "panels on {}", cpu.isa());
    // SAFETY: the CPU has the instructions by the assert above.
    unsafe { pack_rows(to, w, shape, index * PANEL_ROWS, [0, shape[1].div_ceil(2)]) }
}

/// Pairs `start..start + count` of the 32 rows of `w` `[n, k]` from `first` on.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn pack_rows(
    to: &mut [u32],
    w: &[bf16],
    [n, k]: [usize; 2],
    first: usize,
    [start, count]: [usize; 2],
) {
    assert!(w.len() == n * k && first < n && 2 * (start + count) <= k + 1, "a panel of [{n}, {k}]");
    assert!(to.len() >= count * PANEL_ROWS, "room for a panel");
    for half in [0, 16] {
        let rows = n.saturating_sub(first + half).min(16);
        // The next sixteen rows are asked for, one after the other: sixteen streams at a time would be
        // too many for the memory, and are too short for the hardware to see.
        let mut ahead = w.as_ptr().wrapping_add((first + half + 16) * k + 2 * start);
        let lines = (count / 16).max(1);
        let to_next_row = k as isize - 32 * lines as isize;
        let mut ahead_lines = lines;
        for i in (0..count).step_by(16) {
            let columns = (k - 2 * (start + i)).min(32);
            let from = w.as_ptr().wrapping_add((first + half) * k + 2 * (start + i));
            let out = to[i * PANEL_ROWS + half..].as_mut_ptr();
            let pairs = 16.min(count - i);
            // SAFETY: rows first + half .. + rows are below n, elements 2 (start + i) .. + columns
            // below k; of the result's rows those below `count` are stored.
            unsafe {
                // The whole block in registers: loops of unknown length would keep it in memory.
                if rows == 16 && columns == 32 && pairs == 16 {
                    let mut block = [_mm512_setzero_si512(); 16];
                    for row in 0..16 {
                        block[row] = _mm512_loadu_si512(from.add(row * k).cast());
                        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                        ahead = ahead.wrapping_add(32);
                        ahead_lines -= 1;
                        if ahead_lines == 0 {
                            ahead = ahead.wrapping_offset(to_next_row);
                            ahead_lines = lines;
                        }
                    }
                    let block = transposed(block);
                    for pair in 0..16 {
                        _mm512_storeu_si512(out.add(pair * PANEL_ROWS).cast(), block[pair]);
                    }
                    continue;
                }
                let mut block = [_mm512_setzero_si512(); 16];
                let mask = u32::MAX >> (32 - columns);
                for row in 0..rows {
                    block[row] = _mm512_maskz_loadu_epi16(mask, from.add(row * k).cast());
                }
                let block = transposed(block);
                for pair in 0..pairs {
                    _mm512_storeu_si512(out.add(pair * PANEL_ROWS).cast(), block[pair]);
                }
            }
        }
    }
}

/// Row pairs `start..start + count` of the 32 columns of `w` `[rows, columns]` from `first` on: a
/// panel of its transpose.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn pack_columns(
    to: &mut [u32],
    w: &[bf16],
    [rows, columns]: [usize; 2],
    first: usize,
    [start, count]: [usize; 2],
) {
    assert!(w.len() == rows * columns && first < columns, "a panel of [{rows}, {columns}]");
    assert!(2 * (start + count) <= rows + 1, "a panel of [{rows}, {columns}]");
    assert!(to.len() >= count * PANEL_ROWS, "room for a panel");
    let mask = u32::MAX >> (32 - (columns - first).min(32));
    let low = _mm512_set_epi16(
        47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
        35, 3, 34, 2, 33, 1, 32, 0,
    );
    let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for i in 0..count {
        let row = 2 * (start + i);
        // SAFETY: row is below `rows`, the masked elements below `columns`; the second row is read
        // only if there is one.
        unsafe {
            let from = w.as_ptr().add(row * columns + first);
            let even = _mm512_maskz_loadu_epi16(mask, from.cast());
            let odd = match row + 1 < rows {
                true => _mm512_maskz_loadu_epi16(mask, from.add(columns).cast()),
                false => _mm512_setzero_si512(),
            };
            let out = to.as_mut_ptr().add(i * PANEL_ROWS);
            _mm512_storeu_si512(out.cast(), _mm512_permutex2var_epi16(even, low, odd));
            let second = _mm512_permutex2var_epi16(even, high, odd);
            _mm512_storeu_si512(out.add(16).cast(), second);
        }
    }
}

/// The same of packed weights.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pack_panel_columns(
    to: &mut [u32],
    panels: PanelSlice<'_>,
    first: usize,
    [start, count]: [usize; 2],
) {
    let [_, columns] = panels.shape();
    let pairs = columns.div_ceil(2);
    assert!(
        start.is_multiple_of(16) && first.is_multiple_of(PANEL_ROWS) && first < columns,
        "a panel of panels"
    );
    assert!(to.len() >= count * PANEL_ROWS, "room for a panel");
    for i in (0..count).step_by(16) {
        let from = column_block(panels, [(start + i) / 16, first / PANEL_ROWS]);
        let to = &mut to[i * PANEL_ROWS..][..16.min(count - i) * PANEL_ROWS];
        let here = 16.min(pairs - first / 2);
        assert!((from.wrapping_add(here * PANEL_ROWS)) <= panels.data.as_ptr_range().end);
        for half in 0..2 {
            let from = from.wrapping_add(8 * half * PANEL_ROWS);
            let out = to[16 * half..].as_mut_ptr();
            // SAFETY: this function has the features; `here` pairs of 32 are there to read by the assert above, row by row
            // sixteen elements to write in the slice.
            unsafe {
                // As in `pack_rows`, a whole block in registers.
                if here == 16 && to.len() == 16 * PANEL_ROWS {
                    let block = transposed_columns(from, 8);
                    for row in 0..16 {
                        _mm512_storeu_si512(out.add(row * PANEL_ROWS).cast(), block[row]);
                    }
                } else {
                    let block = transposed_columns(from, here.saturating_sub(8 * half).min(8));
                    for row in 0..to.len() / PANEL_ROWS {
                        _mm512_storeu_si512(out.add(row * PANEL_ROWS).cast(), block[row]);
                    }
                }
            }
        }
    }
}

/// What panel `index` of the transpose takes from the sixteen row pairs of panel `panel`: sixteen pairs of columns, 2 KiB. An
/// address of nothing where there are no such panels.
pub(super) fn column_block(panels: PanelSlice<'_>, [panel, index]: [usize; 2]) -> *const u32 {
    let [_, columns] = panels.shape();
    panels.data.as_ptr().wrapping_add((panel * columns.div_ceil(2) + index * 16) * PANEL_ROWS)
}

/// `count` pairs of columns of 32 rows, as sixteen rows of pairs of rows; the rest is zero.
///
/// # Safety
/// The CPU has AVX-512 F and BW; `count` pairs of 32, at most eight, are there to be read.
#[inline(always)]
unsafe fn transposed_columns(from: *const u32, count: usize) -> [__m512i; 16] {
    // SAFETY: the caller's promise.
    unsafe {
        let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        let low_half = _mm512_set1_epi32(0xFFFF);
        let mut block = [_mm512_setzero_si512(); 16];
        for pair in 0..count {
            let a = _mm512_loadu_si512(from.add(pair * PANEL_ROWS).cast());
            let b = _mm512_loadu_si512(from.add(pair * PANEL_ROWS + 16).cast());
            let e = _mm512_permutex2var_epi32(a, even, b);
            let o = _mm512_permutex2var_epi32(a, odd, b);
            // Columns 2 pair and 2 pair + 1, of each row pair.
            block[2 * pair] =
                _mm512_or_si512(_mm512_and_si512(e, low_half), _mm512_slli_epi32::<16>(o));
            block[2 * pair + 1] =
                _mm512_or_si512(_mm512_srli_epi32::<16>(e), _mm512_andnot_si512(low_half, o));
        }
        transposed(block)
    }
}
