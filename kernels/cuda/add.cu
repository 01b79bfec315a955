// Sums of tensors, element by element; reference: cpu/add.rs.
// Layout: f32, lengths multiples of 4. Launch: 256 threads per block, four elements each. Bound: bytes.
#include "common.cuh"

DEV float4 sum(float4 a, float4 b) {
    a.x = a.x + b.x, a.y = a.y + b.y, a.z = a.z + b.z, a.w = a.w + b.w;
    return a;
}

// y += x.
extern "C" __global__ void __launch_bounds__(256) add_accumulate(float* y, const float* x, u32 vectors) {
    const u32 i = BLOCK_X * 256 + THREAD;
    if (i >= vectors) return;
    float4* to = (float4*)y + i;
    *to = sum(*to, ((const float4*)x)[i]);
}

// y = x[0] + x[1] + .. of `count` slices, in this order, added to what is there if `add` is not 0.
extern "C" __global__ void __launch_bounds__(256) add_slices(float* y, const float* x, u32 vectors, u32 count, u32 add) {
    const u32 i = BLOCK_X * 256 + THREAD;
    if (i >= vectors) return;
    float4 v = ((const float4*)x)[i];
    for (u32 slice = 1; slice < count; ++slice) v = sum(v, ((const float4*)x)[(u64)slice * vectors + i]);
    float4* to = (float4*)y + i;
    *to = add ? sum(*to, v) : v;
}
