// Embedding: y[i] = table[ids[i]], widened to f32; reference: cpu/embedding.rs.
// Layout: table [vocab, n] bf16, y [ids, n] f32, n a multiple of 8. Ids were checked against vocab.
// Launch: one block of 128 threads per row; a thread takes eight elements at a time. Bound: bytes.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(128) embedding_forward(float* y, const u32* ids, const u16* table, u32 n) {
    const uint4* from = (const uint4*)(table + (u64)ids[BLOCK_X] * n);
    float4* to = (float4*)(y + (u64)BLOCK_X * n);
    for (int i = THREAD; i < n / 8; i += 128) {
        const uint4 b = from[i];
        uint2 low, high;
        low.x = b.x, low.y = b.y, high.x = b.z, high.y = b.w;
        to[2 * i] = from_bf16(low);
        to[2 * i + 1] = from_bf16(high);
    }
}
