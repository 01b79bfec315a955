// Gradients of attention over sequences that share their prompt; twin of cpu/attention/backward.rs. With the saved
// L = ln sum e^s of each query vector, s = q k / sqrt(d), probabilities are computed again, block by block:
//   p = e^(s - L)   delta = dy y   dv = sum p dy   ds = p (dy v - delta) / sqrt(d)   dq = sum ds k   dk = sum ds q
// p, ds and dy are rounded to bf16 where they enter a product.
//
// Two passes without atomics, each sum in one order: attention_backward_keys has a block of threads for 64 keys, which
// takes the queries that see them in the order of rows; attention_backward_queries one for 64 query vectors, which
// takes their keys in order. Seven products instead of five, and the same bits every time.
//
// Layout: q, dy [rows, heads, d] and k, v [rows, kv_heads, d] bf16, rows of a tree one after the other: prompt, branches.
// Then a query sees those keys of its range that do not lie behind it. L and delta [rows, heads] f32; dq, dk, dv f32.
// Items: keys {first row, rows, end of the rows that see them}; queries {first row, rows, the prompt's first row,
// its rows (0 in the prompt itself), the segment's first row}.
// Launch: (items, kv_heads), four warps of 16 keys, or vectors. Bound: tensor cores.
#include "common.cuh"

constexpr int TILE = 64, OTHERS = 32;  // what a block has, and takes at a time

extern __shared__ __attribute__((aligned(128))) u8 shared_memory[];

template <int D> DEV int place(int r, int c) { return (r * (D / 8) + (c ^ (r & (D < 64 ? D / 8 - 1 : 7)))) * 16; }

// delta = dy y, in f64 as the twin, and dy to bf16. A warp a (row, head).
template <int D> DEV void deltas(float* delta, u16* rounded, const float* dy, const float* y, u32 vectors) {
    const u32 vector = BLOCK_X * 4 + WARP;
    if (vector >= vectors) return;
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < (D + 63) / 64; ++i) {
        if (D < 64 && LANE * 2 >= D) break;
        const u64 at = (u64)vector * D + i * 64 + LANE * 2;
        const float2 a = *(const float2*)(dy + at), b = *(const float2*)(y + at);
        sum = fused((double)a.x, (double)b.x, sum), sum = fused((double)a.y, (double)b.y, sum);
        *(u32*)(rounded + at) = pack_bf16(a.x, a.y);
    }
    sum = warp_sum(sum);
    if (LANE == 0) delta[vector] = (float)sum;
}

struct Call {
    const u16 *q, *k, *v, *dy;
    const float *log_sums, *delta;
    const u32* items;
    int kv_heads, group;
    float scale;
};

// Copies rows [first, first + SIZE) below `end` of this block's kv head.
template <int D, int SIZE> DEV void load_keys(u32 to, const u16* from, const Call& c, int first, int end) {
#pragma unroll 2
    for (int i = 0; i < (SIZE * D / 8 + 127) / 128; ++i) {
        const int id = THREAD + i * 128, r = id / (D / 8), chunk = id % (D / 8);
        if (SIZE * D / 8 < 128 && r >= SIZE) break;
        const bool there = first + r < end;
        copy16(to + place<D>(r, chunk), from + (there ? ((u64)(first + r) * c.kv_heads + BLOCK_Y) * D + chunk * 8 : 0), there);
    }
}

// Where vector `vector` after row `first` lies among [rows, heads].
DEV u64 vector_at(const Call& c, int first, int vector) {
    return (u64)(first + vector / c.group) * c.kv_heads * c.group + BLOCK_Y * c.group + vector % c.group;
}

// Copies vectors [vector, vector + SIZE) after row `first`, of rows below `end`.
template <int D, int SIZE> DEV void load_vectors(u32 to, const u16* from, const Call& c, int first, int vector, int end) {
#pragma unroll 2
    for (int i = 0; i < (SIZE * D / 8 + 127) / 128; ++i) {
        const int id = THREAD + i * 128, r = id / (D / 8), chunk = id % (D / 8);
        if (SIZE * D / 8 < 128 && r >= SIZE) break;
        const bool there = first + (vector + r) / c.group < end;
        copy16(to + place<D>(r, chunk), from + (there ? vector_at(c, first, vector + r) * D + chunk * 8 : 0), there);
    }
}

// sums = a b^T: 16 rows of a against OTHERS rows of b.
template <int D> DEV void against(float (&sums)[OTHERS / 8][4], u32 a, int row, u32 b) {
#pragma unroll
    for (int j = 0; j < OTHERS / 8; ++j) sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0.0f;
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        u32 left[4];
        load_matrices(left, a + place<D>(row + (LANE & 15), kk * 2 + (LANE >> 4)));
#pragma unroll
        for (int j = 0; j < OTHERS / 16; ++j) {
            u32 right[4];
            load_matrices(right, b + place<D>(j * 16 + (LANE & 7) + ((LANE >> 4) << 3), kk * 2 + ((LANE >> 3) & 1)));
            multiply_add(sums[2 * j], left, right[0], right[1]);
            multiply_add(sums[2 * j + 1], left, right[2], right[3]);
        }
    }
}

// sums += w b: 16 rows of weights for OTHERS rows of b.
template <int D> DEV void weigh(float (&sums)[D / 8][4], const float (&w)[OTHERS / 8][4], u32 b) {
#pragma unroll
    for (int j = 0; j < OTHERS / 16; ++j) {
        const u32 left[4] = {pack_bf16(w[2 * j][0], w[2 * j][1]), pack_bf16(w[2 * j][2], w[2 * j][3]),
                             pack_bf16(w[2 * j + 1][0], w[2 * j + 1][1]), pack_bf16(w[2 * j + 1][2], w[2 * j + 1][3])};
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
            u32 right[4];
            load_matrices_transposed(right, b + place<D>(j * 16 + (LANE & 15), i * 2 + (LANE >> 4)));
            multiply_add(sums[2 * i], left, right[0], right[1]);
            multiply_add(sums[2 * i + 1], left, right[2], right[3]);
        }
    }
}

template <int D> DEV void clear(float (&sums)[D / 8][4]) {
#pragma unroll
    for (int i = 0; i < D / 8; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
}

constexpr float LOG2_E = 1.44269504f;

DEV float probability(float s, float log_sum, float scale) { return exp2_fast((s * scale - log_sum) * LOG2_E); }

// dk and dv of 64 keys: scores are taken as k q^T, so that probabilities are the left side of what they weigh.
template <int D> DEV void keys(float* dk, float* dv, const Call& c) {
    const u32* item = c.items + 3 * (u64)BLOCK_X;
    const int first = item[0], count = item[1], end = item[2];
    constexpr int OWN = TILE * D * 2, OTHER = OTHERS * D * 2;
    const u32 k = shared_address(shared_memory), v = k + OWN, ring = v + OWN;
    // L and delta of the vectors of a stage.
    float* numbers = (float*)(shared_memory + 2 * OWN + 4 * OTHER);
    load_keys<D, TILE>(k, c.k, c, first, first + count);
    load_keys<D, TILE>(v, c.v, c, first, first + count);
    const int vectors = (end - first) * c.group, tiles = (vectors + OTHERS - 1) / OTHERS;
    auto load = [&](int t) {
        const u32 to = ring + (t & 1) * 2 * OTHER;
        load_vectors<D, OTHERS>(to, c.q, c, first, t * OTHERS, end);
        load_vectors<D, OTHERS>(to + OTHER, c.dy, c, first, t * OTHERS, end);
        if (THREAD < OTHERS) {
            const int vector = t * OTHERS + THREAD;
            const bool there = vector < vectors;
            const u64 at = there ? vector_at(c, first, vector) : 0;
            numbers[(t & 1) * 2 * OTHERS + THREAD] = there ? c.log_sums[at] : 0.0f;
            numbers[((t & 1) * 2 + 1) * OTHERS + THREAD] = there ? c.delta[at] : 0.0f;
        }
    };
    load(0);
    copies_commit();
    float of_keys[D / 8][4], of_values[D / 8][4];
    clear<D>(of_keys), clear<D>(of_values);
    for (int t = 0; t < tiles; ++t) {
        if (t + 1 < tiles) load(t + 1);
        copies_commit();
        copies_wait<1>();
        sync_block();
        const u32 q = ring + (t & 1) * 2 * OTHER, dy = q + OTHER;
        const float* log_sums = numbers + (t & 1) * 2 * OTHERS;
        float p[OTHERS / 8][4], ds[OTHERS / 8][4];
        against<D>(p, k, WARP * 16, q);
        against<D>(ds, v, WARP * 16, dy);
#pragma unroll
        for (int j = 0; j < OTHERS / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int key = WARP * 16 + (LANE >> 2) + (e >> 1) * 8, other = j * 8 + (LANE & 3) * 2 + (e & 1);
                const int vector = t * OTHERS + other;
                const bool sees = vector < vectors && key < count && vector / c.group >= key;
                p[j][e] = sees ? probability(p[j][e], log_sums[other], c.scale) : 0.0f;
                ds[j][e] = sees ? p[j][e] * ((ds[j][e] - log_sums[OTHERS + other]) * c.scale) : 0.0f;
            }
        weigh<D>(of_values, p, dy);
        weigh<D>(of_keys, ds, q);
        sync_block();
    }
    copies_wait<0>();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int key = WARP * 16 + (LANE >> 2) + h * 8;
        if (key >= count) continue;
        const u64 at = ((u64)(first + key) * c.kv_heads + BLOCK_Y) * D + (LANE & 3) * 2;
#pragma unroll
        for (int i = 0; i < D / 8; ++i) {
            float2 pair;
            pair.x = of_keys[i][h * 2], pair.y = of_keys[i][h * 2 + 1];
            *(float2*)(dk + at + i * 8) = pair;
            pair.x = of_values[i][h * 2], pair.y = of_values[i][h * 2 + 1];
            *(float2*)(dv + at + i * 8) = pair;
        }
    }
}

// dq of 64 vectors.
template <int D> DEV void queries(float* dq, const Call& c) {
    const u32* item = c.items + 5 * (u64)BLOCK_X;
    const int first = item[0], count = item[1], prompt_first = item[2], prompt = item[3], segment = item[4];
    constexpr int OWN = TILE * D * 2, OTHER = OTHERS * D * 2;
    const u32 q = shared_address(shared_memory), dy = q + OWN, ring = dy + OWN;
    const int end = first + count;
    load_vectors<D, TILE>(q, c.q, c, first, 0, end);
    load_vectors<D, TILE>(dy, c.dy, c, first, 0, end);
    const int of_prompt = (prompt + OTHERS - 1) / OTHERS, tiles = of_prompt + (end - segment + OTHERS - 1) / OTHERS;
    auto first_key = [&](int t) { return t < of_prompt ? prompt_first + t * OTHERS : segment + (t - of_prompt) * OTHERS; };
    auto end_of = [&](int t) { return t < of_prompt ? prompt_first + prompt : end; };
    auto load = [&](int t) {
        const u32 to = ring + (t & 1) * 2 * OTHER;
        load_keys<D, OTHERS>(to, c.k, c, first_key(t), end_of(t));
        load_keys<D, OTHERS>(to + OTHER, c.v, c, first_key(t), end_of(t));
    };
    load(0);
    copies_commit();
    float log_sum[2], delta[2];
    int row[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int vector = WARP * 16 + (LANE >> 2) + h * 8;
        const bool there = vector / c.group < count;
        const u64 at = there ? vector_at(c, first, vector) : 0;
        row[h] = there ? first + vector / c.group : -1;
        log_sum[h] = c.log_sums[at], delta[h] = c.delta[at];
    }
    float sums[D / 8][4];
    clear<D>(sums);
    for (int t = 0; t < tiles; ++t) {
        if (t + 1 < tiles) load(t + 1);
        copies_commit();
        copies_wait<1>();
        sync_block();
        const u32 k = ring + (t & 1) * 2 * OTHER, v = k + OTHER;
        float p[OTHERS / 8][4], ds[OTHERS / 8][4];
        against<D>(p, q, WARP * 16, k);
        against<D>(ds, dy, WARP * 16, v);
        const int key0 = first_key(t), key_end = end_of(t);
#pragma unroll
        for (int j = 0; j < OTHERS / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int key = key0 + j * 8 + (LANE & 3) * 2 + (e & 1);
                const bool sees = key < key_end && key <= row[e >> 1];
                const float probable = probability(p[j][e], log_sum[e >> 1], c.scale);
                ds[j][e] = sees ? probable * ((ds[j][e] - delta[e >> 1]) * c.scale) : 0.0f;
            }
        weigh<D>(sums, ds, k);
        sync_block();
    }
    copies_wait<0>();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        if (row[h] < 0) continue;
        float* to = dq + vector_at(c, first, WARP * 16 + (LANE >> 2) + h * 8) * D + (LANE & 3) * 2;
#pragma unroll
        for (int i = 0; i < D / 8; ++i) {
            float2 pair;
            pair.x = sums[i][h * 2], pair.y = sums[i][h * 2 + 1];
            *(float2*)(to + i * 8) = pair;
        }
    }
}

#define CALL const u16 *q, const u16 *k, const u16 *v, const u16 *dy, const float *log_sums, const float *delta, const u32 *items, u32 kv_heads, u32 group, float scale
#define GIVEN_CALL {q, k, v, dy, log_sums, delta, items, (int)kv_heads, (int)group, scale}
#define KERNEL extern "C" __global__ void __launch_bounds__
KERNEL(128) attention_backward_deltas_16(float* delta, u16* rounded, const float* dy, const float* y, u32 vectors) { deltas<16>(delta, rounded, dy, y, vectors); }
KERNEL(128) attention_backward_deltas_32(float* delta, u16* rounded, const float* dy, const float* y, u32 vectors) { deltas<32>(delta, rounded, dy, y, vectors); }
KERNEL(128) attention_backward_deltas_64(float* delta, u16* rounded, const float* dy, const float* y, u32 vectors) { deltas<64>(delta, rounded, dy, y, vectors); }
KERNEL(128) attention_backward_deltas_128(float* delta, u16* rounded, const float* dy, const float* y, u32 vectors) { deltas<128>(delta, rounded, dy, y, vectors); }
KERNEL(128, 2) attention_backward_keys_16(float* dk, float* dv, CALL) { keys<16>(dk, dv, GIVEN_CALL); }
KERNEL(128, 2) attention_backward_keys_32(float* dk, float* dv, CALL) { keys<32>(dk, dv, GIVEN_CALL); }
KERNEL(128, 2) attention_backward_keys_64(float* dk, float* dv, CALL) { keys<64>(dk, dv, GIVEN_CALL); }
KERNEL(128, 2) attention_backward_keys_128(float* dk, float* dv, CALL) { keys<128>(dk, dv, GIVEN_CALL); }
KERNEL(128, 2) attention_backward_queries_16(float* dq, CALL) { queries<16>(dq, GIVEN_CALL); }
KERNEL(128, 2) attention_backward_queries_32(float* dq, CALL) { queries<32>(dq, GIVEN_CALL); }
KERNEL(128, 2) attention_backward_queries_64(float* dq, CALL) { queries<64>(dq, GIVEN_CALL); }
KERNEL(128, 2) attention_backward_queries_128(float* dq, CALL) { queries<128>(dq, GIVEN_CALL); }
