//! Row by row and element by element.

use super::{Comparisons, all, rounded, uploaded, values, widened};
use crate::cpu::adamw::Step;
use crate::cpu::dropout::Mask;
use crate::cpu::philox::{RngKey, Stream};
use crate::cpu::{self, Cpu};
use crate::cuda::Error;

pub(crate) fn rms_norm_equals_its_reference(on: &mut Comparisons<'_>) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    let eps = 1e-6;
    for (rows, n) in [(0, 8), (1, 4), (5, 36), (9, 128), (3, 1024), (2, 1028), (1, 4096)] {
        let (x, w, dy) = (values(1, rows * n), values(2, n), values(3, rows * n));
        let mut want = vec![0.0; rows * n];
        cpu::rms_norm::forward(&cpu, &mut want, &x, &w, eps);
        let [dx, dw, ddy] = uploaded(gpu, [&x, &w, &dy])?;

        let mut y = gpu.uninitialized::<f32>(rows * n)?;
        gpu.rms_norm(&mut y, &dx, &dw, eps)?;
        // Both round an f64 once; the sums' orders differ in their last bits only.
        on.same_bits(&gpu.download(&y)?, &want, &format!("[{rows}, {n}]"));
        let mut y = gpu.uninitialized::<u16>(rows * n)?;
        gpu.rms_norm(&mut y, &dx, &dw, eps)?;
        on.same_rounded(&gpu.download(&y)?, &rounded(&want), &format!("[{rows}, {n}] in bf16"));

        let mut gradient = vec![0.0; rows * n];
        cpu::rms_norm::backward(&cpu, &mut gradient, &dy, &x, &w, eps);
        for add in [false, true] {
            let old = values(4, rows * n);
            let mut to = gpu.upload(&old)?;
            gpu.rms_norm_backward(&mut to, &ddy, &dx, &dw, eps, add)?;
            let want: Vec<f32> =
                gradient.iter().zip(&old).map(|(g, old)| if add { old + g } else { *g }).collect();
            let exact: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
            // The coefficient of x is rounded to f32 from sums that may differ in their last bit.
            on.close(&gpu.download(&to)?, &want, &exact, 1e-6, "gradient");
        }
    }
    Ok(())
}

pub(crate) fn rope_equals_its_reference_bit_for_bit(on: &mut Comparisons<'_>) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for (rows, heads, head_dim, scale) in [
        (0, 2, 8, 1.0),
        (1, 1, 8, 1.0),
        (5, 3, 64, 1.0),
        (33, 2, 128, 1.0),
        (7, 2, 64, 1.138_629_4),
    ] {
        let inv_freq: Vec<f32> =
            (0..head_dim / 2).map(|i| 1e6f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let positions: Vec<u32> = (0..rows as u32).map(|i| (i * 37 + 255) % 500).collect();
        let x = values(1, rows * heads * head_dim);
        let table = cpu::rope::RopeTable::new(&inv_freq, scale, 500);
        let on_gpu = gpu.rope_table(&inv_freq, scale, 500)?;
        let at = gpu.upload(&positions)?;
        let [mut there, mut back] = [(); 2].map(|()| x.clone());
        cpu::rope::forward(&cpu, &mut there, &positions, &table, heads);
        cpu::rope::backward(&cpu, &mut back, &positions, &table, heads);
        for (direction, want) in [(false, &there), (true, &back)] {
            let mut y = gpu.upload(&x)?;
            gpu.rope(&mut y, &at, &on_gpu, direction)?;
            on.same_bits(&gpu.download(&y)?, want, "rope");
        }
        {
            let w = values(7, head_dim);
            let mut want = vec![0.0; x.len()];
            cpu::rms_norm::forward(&cpu, &mut want, &x, &w, 1e-6);
            cpu::rope::forward(&cpu, &mut want, &positions, &table, heads);
            let [x, w] = uploaded(gpu, [&x, &w])?;
            let mut y = gpu.zeros::<f32>(want.len())?;
            gpu.rope_norm(&mut y, &x, &w, 1e-6, &at, &on_gpu)?;
            on.same_bits(&gpu.download(&y)?, &want, "norm and rope");
            let mut y = gpu.zeros::<u16>(want.len())?;
            gpu.rope_norm(&mut y, &x, &w, 1e-6, &at, &on_gpu)?;
            on.same_rounded(&gpu.download(&y)?, &rounded(&want), "norm and rope to bf16");
        }
        let mut y = gpu.zeros(x.len())?;
        gpu.rope_into(&mut y, &gpu.upload(&x)?, &at, &on_gpu)?;
        on.same_rounded(&gpu.download(&y)?, &rounded(&there), "rope to bf16");
    }
    Ok(())
}

pub(crate) fn swiglu_equals_its_reference(on: &mut Comparisons<'_>) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for n in [0, 4, 36, 1028, 5000] {
        let [mut gate, up, dy] = [1, 2, 3].map(|seed| values(seed, n));
        gate.iter_mut().for_each(|x| *x *= 20.0);
        if n > 8 {
            gate[..4].copy_from_slice(&[f32::NEG_INFINITY, -200.0, 88.0, f32::INFINITY]);
        }
        let mut want = vec![0.0; n];
        let inputs = cpu::swiglu::Inputs::F32([&gate, &up]);
        cpu::swiglu::forward(&cpu, &mut want, inputs);
        let [g, u, d] = uploaded(gpu, [&gate, &up, &dy])?;
        let mut y = gpu.zeros::<f32>(n)?;
        gpu.swiglu(&mut y, &g, &u)?;
        let got = gpu.download(&y)?;
        close_or_equal(on, &got, &want, "y");
        let mut y = gpu.zeros::<u16>(n)?;
        gpu.swiglu(&mut y, &g, &u)?;
        on.same_rounded(&gpu.download(&y)?, &rounded(&got), "rounding comes last");

        let [mut dgate, mut dup] = [(); 2].map(|()| vec![0.0; n]);
        cpu::swiglu::backward(&cpu, [&mut dgate, &mut dup], &dy, inputs);
        let [mut a, mut b] = all([(); 2].map(|()| gpu.zeros::<f32>(n)))?;
        gpu.swiglu_backward([&mut a, &mut b], &d, &g, &u)?;
        close_or_equal(on, &gpu.download(&a)?, &dgate, "dgate");
        close_or_equal(on, &gpu.download(&b)?, &dup, "dup");
    }
    Ok(())
}

/// Within four units in the last place (both take exponentials within two), or the same special value.
fn close_or_equal(on: &mut Comparisons<'_>, got: &[f32], want: &[f32], case: &str) {
    let errors = got.iter().zip(want).map(|(got, want)| {
        let same = got == want || (got.is_nan() && want.is_nan());
        let error = (f64::from(*got) - f64::from(*want)).abs();
        let bound = 4.0 * f64::from(f32::EPSILON) * (f64::from(*want).abs() + 1.0);
        match same {
            true => (0.0, 0.0),
            // Nothing else is near what is infinite.
            false => (error, if bound.is_finite() { bound } else { 0.0 }),
        }
    });
    on.within(errors, case);
}

pub(crate) fn embedding_add_and_dropout_equal_their_twins_bit_for_bit(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for (rows, n) in [(0, 8), (3, 8), (7, 1032)] {
        let table = rounded(&values(1, 11 * n));
        let ids: Vec<u32> = (0..rows as u32).map(|i| i * 5 % 11).collect();
        let mut y = gpu.zeros(rows * n)?;
        let (dids, dtable) = (gpu.upload(&ids)?, gpu.upload(&table)?);
        gpu.embedding(&mut y, &dids, &dtable, n)?;
        let as_bf16: Vec<half::bf16> = table.iter().map(|b| half::bf16::from_bits(*b)).collect();
        let mut want = vec![0.0; rows * n];
        let matrix = cpu::Matrix::Bf16(&as_bf16);
        cpu::embedding::forward(&cpu, &mut want, &ids, matrix, n);
        on.same_bits(&gpu.download(&y)?, &want, "embedding");

        let x = values(2, rows * n);
        let dx = gpu.upload(&x)?;
        gpu.add(&mut y, &dx)?;
        cpu::add::accumulate(&cpu, &mut want, &x);
        on.same_bits(&gpu.download(&y)?, &want, "add");
        let slices = values(3, 3 * rows * n);
        gpu.add_slices(&mut y, &gpu.upload(&slices)?, true)?;
        let [a, b, c] = [0, 1, 2].map(|i| &slices[i * rows * n..(i + 1) * rows * n]);
        for i in 0..rows * n {
            want[i] += a[i] + b[i] + c[i];
        }
        if rows > 0 {
            on.same_bits(&gpu.download(&y)?, &want, "add_slices");
        }

        let key = RngKey::new(7 << 33, 3 << 32 | 5, Stream::DROPOUT);
        let mask = Mask { key, probability: 0.1 };
        cpu::dropout::forward(&cpu, &mut want, &x, mask);
        gpu.dropout(&mut y, &dx, mask)?;
        on.same_bits(&gpu.download(&y)?, &want, "dropout");
        let mut y = gpu.zeros::<u16>(rows * n)?;
        gpu.dropout(&mut y, &dx, mask)?;
        on.same_rounded(&gpu.download(&y)?, &rounded(&want), "dropout to bf16");
        let coarse = rounded(&x);
        cpu::dropout::forward(&cpu, &mut want, &widened(&coarse), mask);
        gpu.dropout_rounded(&mut y, &gpu.upload(&coarse)?, mask)?;
        on.same_rounded(&gpu.download(&y)?, &rounded(&want), "dropout of bf16");
    }
    Ok(())
}

pub(crate) fn adamw_equals_its_reference_bit_for_bit_and_norms_to_the_order_of_sums(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    // The last is more than all threads of the sum of squares take at once: they go round.
    for n in [0, 4, 1028, 70_000, 300_000] {
        let [mut w, mut m] = [1, 2].map(|seed| values(seed, n));
        let mut v: Vec<f32> = values(3, n).iter().map(|v| v * v).collect();
        let [mut dw, mut dm, mut dv] = uploaded(gpu, [&w, &m, &v])?;
        for t in 1..=2 {
            let step = Step {
                scale: 0.37,
                decay: 1.0 - 1e-3 * 0.1,
                first_weight: 0.1,
                second_decay: 0.99,
                second_weight: 0.01,
                correction: (1.0 - 0.99f64.powi(t)).sqrt() as f32,
                epsilon: 1e-8,
                step_size: (1e-3 / (1.0 - 0.9f64.powi(t))) as f32,
            };
            let gradient = values(9 + t as u64, n);
            cpu::adamw::step(&cpu, &mut w, &mut m, &mut v, &gradient, &step);
            let gradient = gpu.upload(&gradient)?;
            gpu.adamw(&mut dw, &mut dm, &mut dv, &gradient, &step)?;
        }
        for (got, want) in [(&dw, &w), (&dm, &m), (&dv, &v)] {
            on.same_bits(&gpu.download(got)?, want, "adamw");
        }
        let mut sums = gpu.zeros::<f64>(3)?;
        gpu.sum_of_squares(&mut sums, 1, &dw)?;
        let want = cpu::norm::sum_of_squares(&cpu, &w);
        let got = gpu.download(&sums)?;
        let allowed = [0.0, want * f64::EPSILON * n as f64, 0.0];
        let errors = got.iter().zip([0.0, want, 0.0]).map(|(got, want)| (got - want).abs());
        on.within(errors.zip(allowed), &format!("sum of {n} squares"));
    }
    Ok(())
}

pub(crate) fn gathered_rows_equal_their_reference_bit_for_bit(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for (from, n, rows) in
        [(3, 4, vec![]), (5, 36, vec![4, 0, 4, 4, 1]), (2, 1028, vec![1]), (1, 516, vec![0, 0])]
    {
        let (x, dy) = (values(1, from * n), values(2, rows.len() * n));
        let mut want = vec![0.0; rows.len() * n];
        cpu::gather::forward(&cpu, &mut want, &x, &rows, n);
        let mut y = gpu.uninitialized(want.len())?;
        let [x, dy_there] = uploaded(gpu, [&x, &dy])?;
        gpu.gather(&mut y, &x, &gpu.upload(&rows)?, n)?;
        on.same_bits(&gpu.download(&y)?, &want, "rows");

        let places = cpu::gather::Places::new(&rows, from);
        let mut want = vec![f32::NAN; from * n];
        cpu::gather::backward(&cpu, &mut want, &dy, &places, n);
        let mut dx = gpu.uninitialized(from * n)?;
        let lists = uploaded(gpu, [&places.starts, &places.sources])?;
        gpu.gather_backward(&mut dx, &dy_there, lists.each_ref(), n)?;
        on.same_bits(&gpu.download(&dx)?, &want, "dx");
    }
    Ok(())
}
