//! Tiles pass through shared memory without bank conflicts. A swizzle that is lost on both sides gives right
//! results, slowly: only the counts show it.

use super::{gpu, must_pass, rounded, values};
use crate::cpu::attention::Tree;
use crate::cuda::self_test::Comparisons;
use crate::cuda::self_test::attention::{Case, SHAPES};
use crate::cuda::{AttentionSaved, Gpu, Operands};
use emulator::Category;

/// Asserts that the kernels whose names begin so took as few passes through the banks as accesses of their widths
/// can; all that ran so far count. Says nothing on a real GPU.
fn assert_no_conflicts(gpu: &Gpu, prefix: &str, kernels: usize) {
    gpu.synchronize().unwrap();
    if std::env::var_os("CUDA_DRIVER_LIB").is_some() {
        return;
    }
    let counters = emulator::counters();
    let with_tiles = counters.iter().filter(|c| c.name.starts_with(prefix) && c.mma_products > 0);
    let mut seen = 0;
    for kernel in with_tiles {
        seen += 1;
        let matrices = 4 * kernel.warps(Category::LoadMatrix);
        assert_eq!(kernel.matrix_wavefronts, matrices, "ldmatrix of {}", kernel.name);
        // Copies have 16 bytes per lane, other stores 8 at most.
        let fewest =
            4 * kernel.warps(Category::CopyAsync) + 2 * kernel.warps(Category::SharedStore);
        let stores = kernel.shared_store.wavefronts;
        assert!(stores <= fewest, "{}: {stores} passes to store, not {fewest}", kernel.name);
    }
    assert!(seen >= kernels, "{seen} kernels {prefix}");
}

#[test]
fn products_have_no_bank_conflicts() {
    let Some(gpu) = gpu() else { return };
    let (n, k) = (136, 200);
    let w = gpu.upload(&rounded(&values(2, n * k))).unwrap();
    for m in [5, 40, 140] {
        let x = gpu.upload(&rounded(&values(1, m * k))).unwrap();
        let mut y = gpu.zeros(m * n).unwrap();
        let product = [Operands { x: &x, w: &w, first_row: 0, k }];
        gpu.matmul(&mut y, &product, [m, n], false).unwrap();
        gpu.matmul_backward(&mut y, &product, [m, n], false).unwrap();
    }
    assert_no_conflicts(&gpu, "matmul_", 4);
}

#[test]
fn attention_has_no_bank_conflicts() {
    let Some(gpu) = gpu() else { return };
    for shape in SHAPES {
        let case = Case::new(&gpu, &[(70, 40), (130, 2)], shape).unwrap();
        case.run(&mut Comparisons::new(&gpu, "bank conflicts", &mut must_pass), shape, 0).unwrap();
        let trees = [Tree::of_prompt(0, 37, &[5, 40])];
        let plan = gpu.backward_plan(&trees, shape).unwrap();
        let rows = 37 + 5 + 40;
        let q_len = rows * shape.heads * shape.head_dim;
        let k_len = rows * shape.kv_heads * shape.head_dim;
        let q = gpu.zeros::<u16>(q_len).unwrap();
        let [k, v] = [(); 2].map(|()| gpu.zeros::<u16>(k_len).unwrap());
        let [y, dy, mut dq] = [(); 3].map(|()| gpu.zeros::<f32>(q_len).unwrap());
        let [mut dk, mut dv] = [(); 2].map(|()| gpu.zeros::<f32>(k_len).unwrap());
        let log_sums = gpu.zeros::<f32>(rows * shape.heads).unwrap();
        let saved = AttentionSaved { q: &q, k: &k, v: &v, y: &y, log_sums: &log_sums };
        gpu.attention_backward([&mut dq, &mut dk, &mut dv], &dy, saved, &plan).unwrap();
    }
    assert_no_conflicts(&gpu, "attention_", 8);
}
