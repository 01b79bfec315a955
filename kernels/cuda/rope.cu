// Rotary position embedding, rotate-half; reference: cpu/rope.rs: y[i] = x[i] cos a - x[i+h] sin a,
// y[i+h] = x[i+h] cos a + x[i] sin a, h = head_dim / 2; each product and sum is rounded.
// Layout: x, y [rows, heads, head_dim] f32 (y bf16 where a product comes next), head_dim a multiple of 8; the table
// [positions, head_dim] has a position's h cosines, then its h sines, made (and scaled) on the host. y may be x.
// Launch: 256 threads per block, four pairs each. Bound: bytes.
#include "common.cuh"

DEV void store(float* y, float4 v) { store_whole(y, v); }
DEV void store(u16* y, float4 v) { store_whole(y, pack_bf16(v)); }

// `direction` is 1, or -1 for the gradient.
template <class Y>
DEV void turn(Y* y, const float* x, const u32* positions, const float* table, u32 rows, u32 heads, u32 head_dim, float direction) {
    const u32 h = head_dim / 2, a_head = h / 4;
    const u64 i = (u64)BLOCK_X * 256 + THREAD;
    if (i >= (u64)rows * heads * a_head) return;
    const u32 row = (u32)(i / (heads * a_head)), pair = (u32)(i % a_head) * 4;
    const u64 at = i / a_head * head_dim + pair;
    const float* angles = table + (u64)positions[row] * head_dim + pair;
    const float4 a = *(const float4*)(x + at), b = *(const float4*)(x + at + h);
    const float4 cos = *(const float4*)angles;
    float4 sin = *(const float4*)(angles + h), low, high;
    sin.x = sin.x * direction, sin.y = sin.y * direction, sin.z = sin.z * direction, sin.w = sin.w * direction;
    low.x = a.x * cos.x - b.x * sin.x, low.y = a.y * cos.y - b.y * sin.y;
    low.z = a.z * cos.z - b.z * sin.z, low.w = a.w * cos.w - b.w * sin.w;
    high.x = b.x * cos.x + a.x * sin.x, high.y = b.y * cos.y + a.y * sin.y;
    high.z = b.z * cos.z + a.z * sin.z, high.w = b.w * cos.w + a.w * sin.w;
    store(y + at, low);
    store(y + at + h, high);
}

extern "C" __global__ void __launch_bounds__(256) rope_f32(float* y, const float* x, const u32* positions, const float* table, u32 rows, u32 heads, u32 head_dim, float direction) {
    turn(y, x, positions, table, rows, heads, head_dim, direction);
}
extern "C" __global__ void __launch_bounds__(256) rope_bf16(u16* y, const float* x, const u32* positions, const float* table, u32 rows, u32 heads, u32 head_dim, float direction) {
    turn(y, x, positions, table, rows, heads, head_dim, direction);
}

// QK-norm and then the rotation, in one pass: y = rope(rms_norm(x)), the norm of each head as rms_norm.cu has it (reference:
// cpu/rms_norm.rs and cpu/rope.rs in turn). w [head_dim], head_dim 64 or 128.
// Launch: one warp per head, four per block; a lane has pairs i = lane * PAIRS and the next.
DEV void take(float (&v)[1], const float* from) { v[0] = *from; }
DEV void take(float (&v)[2], const float* from) { const float2 pair = *(const float2*)from; v[0] = pair.x, v[1] = pair.y; }
DEV void put(float* to, const float (&v)[1]) { *to = v[0]; }
DEV void put(u16* to, const float (&v)[1]) { *to = to_bf16(v[0]); }
DEV void put(u16* to, const float (&v)[2]) { *(u32*)to = pack_bf16(v[0], v[1]); }
DEV void put(float* to, const float (&v)[2]) { float2 pair; pair.x = v[0], pair.y = v[1]; *(float2*)to = pair; }

template <int PAIRS, class Y>
DEV void norm_and_turn(Y* y, const float* x, const float* w, const u32* positions, const float* table, u32 rows, u32 heads, float eps) {
    constexpr int H = 32 * PAIRS, D = 2 * H;
    const u32 vector = BLOCK_X * 4 + WARP;
    if (vector >= rows * heads) return;
    const u64 at = (u64)vector * D + LANE * PAIRS;
    const float* angles = table + (u64)positions[vector / heads] * D + LANE * PAIRS;
    float a[PAIRS], b[PAIRS], of_a[PAIRS], of_b[PAIRS], cos[PAIRS], sin[PAIRS];
    take(a, x + at), take(b, x + at + H);
    take(of_a, w + LANE * PAIRS), take(of_b, w + H + LANE * PAIRS);
    take(cos, angles), take(sin, angles + H);
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) sum = fused((double)a[i], (double)a[i], sum), sum = fused((double)b[i], (double)b[i], sum);
    const double r = 1.0 / square_root(warp_sum(sum) / D + (double)eps);
    float low[PAIRS], high[PAIRS];
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
        const float p = (float)((double)a[i] * r * (double)of_a[i]);
        const float q = (float)((double)b[i] * r * (double)of_b[i]);
        low[i] = p * cos[i] - q * sin[i], high[i] = q * cos[i] + p * sin[i];
    }
    put(y + at, low), put(y + at + H, high);
}

#define NORM(name, PAIRS, Y) \
    extern "C" __global__ void __launch_bounds__(128) rope_norm_##name(Y* y, const float* x, const float* w, const u32* positions, const float* table, u32 rows, u32 heads, float eps) { \
        norm_and_turn<PAIRS>(y, x, w, positions, table, rows, heads, eps); \
    }
NORM(64_f32, 1, float)
NORM(64_bf16, 1, u16)
NORM(128_f32, 2, float)
NORM(128_bf16, 2, u16)
