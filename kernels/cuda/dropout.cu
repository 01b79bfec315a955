// Dropout: y = x m / (1 - p), m drawn by element; reference: cpu/dropout.rs, bit for bit. Masks are never stored.
// Layout: f32 in, f32 or bf16 out, or bf16 in and out (one more rounding), lengths multiples of 4: a thread's four elements take the four words of a position.
// Launch: 256 threads per block. Bound: the generator (about 60 integer instructions per element).
#include "common.cuh"

DEV float4 load(const float* x, u32 i) { return ((const float4*)x)[i]; }
DEV float4 load(const u16* x, u32 i) { return from_bf16(((const uint2*)x)[i]); }

template <class Y, class X> DEV void forward(Y* y, const X* x, u32 vectors, u32 key0, u32 key1, u32 stream, u32 sequence0, u32 sequence1, u32 threshold, float scale) {
    const u32 i = BLOCK_X * 256 + THREAD;
    if (i >= vectors) return;
    u32 words[4] = {i, stream, sequence0, sequence1};
    philox(words, key0, key1);
    float4 v = load(x, i);
    v.x = words[0] < threshold ? 0.0f : v.x * scale, v.y = words[1] < threshold ? 0.0f : v.y * scale;
    v.z = words[2] < threshold ? 0.0f : v.z * scale, v.w = words[3] < threshold ? 0.0f : v.w * scale;
    if (sizeof(Y) == 4) ((float4*)y)[i] = v;
    else ((uint2*)y)[i] = pack_bf16(v);
}

#define MASK u32 key0, u32 key1, u32 stream, u32 sequence0, u32 sequence1, u32 threshold, float scale
extern "C" __global__ void __launch_bounds__(256) dropout_f32(float* y, const float* x, u32 vectors, MASK) {
    forward(y, x, vectors, key0, key1, stream, sequence0, sequence1, threshold, scale);
}
extern "C" __global__ void __launch_bounds__(256) dropout_bf16(u16* y, const float* x, u32 vectors, MASK) {
    forward(y, x, vectors, key0, key1, stream, sequence0, sequence1, threshold, scale);
}
extern "C" __global__ void __launch_bounds__(256) dropout_rounded(u16* y, const u16* x, u32 vectors, MASK) {
    forward(y, x, vectors, key0, key1, stream, sequence0, sequence1, threshold, scale);
}
