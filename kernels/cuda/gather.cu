// Rows of a matrix, some of them several times, and back: y[i] = x[rows[i]]; dx[r] = sum of dy[i] where rows[i] = r, in
// the order of i. Reference: cpu/gather.rs, bit for bit.
// Layout: x [.., n], y [rows, n] f32, n a multiple of 4. Row numbers were checked. Backward's lists are cpu/gather.rs's.
// Launch: one block of 128 threads per row that is written; a thread takes four elements at a time. Bound: bytes.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(128) gather_forward(float* y, const float* x, const u32* rows, u32 n) {
    const float4* from = (const float4*)(x + (u64)rows[BLOCK_X] * n);
    float4* to = (float4*)(y + (u64)BLOCK_X * n);
    for (int i = THREAD; i < n / 4; i += 128) to[i] = from[i];
}

extern "C" __global__ void __launch_bounds__(128) gather_backward(float* dx, const float* dy, const u32* starts, const u32* sources, u32 n) {
    const u32 first = starts[BLOCK_X], end = starts[BLOCK_X + 1];
    float4* to = (float4*)(dx + (u64)BLOCK_X * n);
    for (int i = THREAD; i < n / 4; i += 128) {
        float4 sum;
        sum.x = 0.0f, sum.y = 0.0f, sum.z = 0.0f, sum.w = 0.0f;
        for (u32 source = first; source < end; ++source) {
            const float4 v = ((const float4*)(dy + (u64)sources[source] * n))[i];
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        to[i] = sum;
    }
}
