// Sum of squares in f64; reference: cpu/norm.rs. The order of the sum depends on the length alone.
// Layout: x f32, its length a multiple of 4; PARTS partial sums. Launch: norm_parts PARTS blocks of 256, norm_join one
// warp. Bound: bytes.
#include "common.cuh"

constexpr int PARTS = 256;

extern "C" __global__ void __launch_bounds__(256) norm_parts(double* parts, const float* x, u32 vectors) {
    __shared__ double shared[8];
    double sum = 0.0;
    for (u64 i = (u64)BLOCK_X * 256 + THREAD; i < vectors; i += PARTS * 256) {
        const float4 v = ((const float4*)x)[i];
        const double a = v.x, b = v.y, c = v.z, d = v.w;
        sum = fused(a, a, sum), sum = fused(b, b, sum), sum = fused(c, c, sum), sum = fused(d, d, sum);
    }
    sum = block_sum<8>(sum, shared);
    if (THREAD == 0) parts[BLOCK_X] = sum;
}

// Writes the sum to out[slot].
extern "C" __global__ void __launch_bounds__(32) norm_join(double* out, const double* parts, u32 slot) {
    double sum = 0.0;
    for (int i = LANE; i < PARTS; i += 32) sum = sum + parts[i];
    sum = warp_sum(sum);
    if (LANE == 0) out[slot] = sum;
}
