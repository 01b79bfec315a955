// Gradients of attention over sequences that share their prompt; reference: cpu/attention/backward.rs. With the saved
// L = ln sum e^s of each query vector, s = q k / sqrt(d), probabilities are computed again, block by block:
//   p = e^(s - L)   delta = dy y   dv = sum p dy   ds = p (dy v - delta) / sqrt(d)   dq = sum ds k   dk = sum ds q
// p, ds and dy are rounded to bf16 where they enter a product; the factor 1 / sqrt(d) comes last.
//
// Five products, no atomics, each sum in one order: attention_backward_keys has a block of threads for 64 keys, which
// takes the queries that see them in the order of rows and leaves ds in memory; attention_backward_queries one for 128
// query vectors, which takes the ds of their keys in order. ds grows with the square of the rows, so the host has both work
// on some of the keys at a time; dq then goes on from what it was, with the same bits.
//
// Layout: q, dy [rows, heads, d] and k, v [rows, kv_heads, d] bf16, rows of a tree one after the other: prompt, branches.
// Then a query sees those keys of its range that do not lie behind it. numbers [rows, heads, 2] f32: L log2(e) and delta;
// dq, dk, dv f32. A tree's query vectors of a kv head (row by row, the group's heads side by side) are counted from its first
// row, in tiles of 32. table: of 64 keys {first row, rows, the tree's first row, end of the rows that see them, tiles of ds
// before}. ds: a tile of 64 keys and 32 vectors is 8 x 4 blocks of 8 x 8, each as a warp has it: a row of 16 bytes per key.
// Items: keys, a place in the table; queries {the tree's first row, first tile, the tree's vectors, ranges of the table: two
// bounds of the prompt's keys, two of others, 1 if sums begin with 0 plus 2 if they end}.
// Launch: (items, kv_heads), four warps of 16 keys (d of 128) or two of 32, whose keys and values stay in registers;
// four warps of 32 vectors.
// Bound: tensor cores or, with 16 keys per warp, shared memory; bytes of ds.
#include "attention.cuh"

constexpr int KEYS = 64, VECTORS = 32, DS_TILE = KEYS * VECTORS;

constexpr float LOG2_E = 1.44269504f;
constexpr int EVERY = -0x7fffffff - 1;

// delta = dy y, in f64 as the reference, and dy to bf16. One warp per (row, head).
template <int D> DEV void deltas(float2* numbers, u16* rounded, const float* dy, const float* y, const float* log_sums, u32 vectors) {
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
    float2 pair;
    pair.x = log_sums[vector] * LOG2_E, pair.y = (float)sum;
    if (LANE == 0) numbers[vector] = pair;
}

struct Call {
    const u16 *q, *k, *v, *dy;
    const float2* numbers;
    const u32 *table, *items;
    int kv_heads, group, tiles;
    float scale;
};

// A block of keys: its rows; the row of its tree's first query; and counted from that, the query whose own key is the first
// (negative or less than `least` where keys have no queries), the first that may see any, and the end of those that do.
struct Keys {
    int first, count, tree, diagonal, least, end, tiles_before;
    DEV Keys(const Call& c, int index) {
        const u32* from = c.table + 7 * (u64)index;
        first = from[0], count = from[1], tree = from[2], diagonal = (int)from[3], least = from[4], end = from[5], tiles_before = from[6];
    }
    // The first query that sees key `row` of the block.
    DEV int seen_from(int row) const { return larger(diagonal + row, least); }
    DEV int first_tile(const Call& c) const { return seen_from(0) * c.group / VECTORS; }
    DEV int end_tile(const Call& c) const { return (end * c.group + VECTORS - 1) / VECTORS; }
    // Where ds of tile `tile` lies.
    DEV u64 ds(const Call& c, int tile) const { return ((u64)BLOCK_Y * c.tiles + tiles_before + tile - first_tile(c)) * DS_TILE; }
};

// Copies 64 rows of keys or values of the block's kv head; those from `count` on are zeros.
template <int D, int THREADS> DEV void load_keys(u32 to, const u16* from, const Call& c, int first, int count) {
    constexpr int ACROSS = D / 8, STRIDE = THREADS / ACROSS;
    const int chunk = THREAD % ACROSS, r = THREAD / ACROSS;
    const u16* at = from + ((u64)(first + r) * c.kv_heads + BLOCK_Y) * D + chunk * 8;
    const u64 step = (u64)STRIDE * c.kv_heads * D;
#pragma unroll
    for (int i = 0; i < KEYS; i += STRIDE) {
        const bool there = r + i < count;
        copy16(to + place<D>(r, chunk) + i * D * 2, there ? at : from, there);
        at += step;
    }
}

// Tiles of 16 keys that a warp has: as many as its registers have room for.
template <int D> constexpr int KEY_TILES = D > 64 ? 1 : 2;

// dk and dv of 64 keys, and ds: scores are taken as k q^T, so that probabilities are the left side of what they weigh.
template <int D> DEV void keys(float* dk, float* dv, u16* ds, const Call& c) {
    const Keys own(c, c.items[BLOCK_X]);
    constexpr int T = KEY_TILES<D>, THREADS = KEYS / 16 / T * 32;
    constexpr int TILE = VECTORS * D * 2, STAGE = 2 * TILE + VECTORS * 8;
    const u32 memory = shared_address(shared_memory);
    load_keys<D, THREADS>(memory, c.k, c, own.first, own.count);
    load_keys<D, THREADS>(memory + 2 * TILE, c.v, c, own.first, own.count);
    copies_commit();
    copies_wait<0>();
    sync_block();
    u32 k[T][D / 16][4], v[T][D / 16][4];
    each<D / 16>([&](auto number) {
        constexpr int i = NUMBER(number);
        each<T>([&](auto number) {
            constexpr int t = NUMBER(number);
            load_matrices<t * SIXTEEN<D>>(k[t][i], along<i>(rows_at<D>(memory, WARP * T * 16)));
            load_matrices<t * SIXTEEN<D> + 2 * TILE>(v[t][i], along<i>(rows_at<D>(memory, WARP * T * 16)));
        });
    });
    sync_block();

    // Vectors see keys that do not lie behind them and are theirs.
    const int limit = own.end * c.group, last_tile = own.end_tile(c), first_tile = own.first_tile(c);
    const int key = WARP * T * 16 + (LANE >> 2), rows = own.count - key, from = (own.diagonal + key) * c.group;
    // From this vector on all see all of the warp's keys.
    const int full = own.count < KEYS ? limit : own.seen_from((WARP + 1) * T * 16 - 1) * c.group;

    // Vector i is in row i / group: the upper half of 2 i times 2^31 / group, rounded up, for i below 2^27.
    const u32 inverse = 0x7fffffffu / c.group + 1;
    const int heads = c.kv_heads * c.group;
    // Vectors of queries before `least`, which only the first tile may have, are zeros and so change no sum: a register less than a mask.
    auto load = [&](int tile, int least) {
        constexpr int ACROSS = D / 8, STRIDE = THREADS / ACROSS, ROWS = STRIDE < VECTORS ? STRIDE : VECTORS;
        const int chunk = THREAD % ACROSS, r = THREAD / ACROSS;
        const u32 to = memory + (tile & 1) * STAGE;
        const u64 base = (u64)own.tree * heads + BLOCK_Y * c.group;
        // Elements of [rows, heads] from the tree's first on fit 32 bits.
        auto at = [&](int vector) { return vector + multiply_high(2 * vector, inverse) * (heads - c.group); };
        if (STRIDE <= VECTORS || r < VECTORS)
#pragma unroll
            for (int i = 0; i < VECTORS; i += ROWS) {
                const int vector = tile * VECTORS + i + r;
                const bool there = vector >= least && vector < limit;
                const u64 offset = (base + (there ? at(vector) : 0)) * D + chunk * 8;
                const u32 place_of = to + place<D>(r, chunk) + i * D * 2;
                copy16(place_of, c.q + offset, there);
                copy16(place_of + TILE, c.dy + offset, there);
            }
        if (THREAD < VECTORS) {
            const int vector = tile * VECTORS + THREAD;
            const bool there = vector >= least && vector < limit;
            copy8(to + 2 * TILE + THREAD * 8, c.numbers + base + (there ? at(vector) : 0), there);
        }
        copies_commit();
    };
    float of_keys[T][D / 8][4], of_values[T][D / 8][4];
#pragma unroll
    for (int t = 0; t < T; ++t) clear(of_keys[t]), clear(of_values[t]);
    u32* out = (u32*)(ds + own.ds(c, first_tile)) + WARP * T * 256 + LANE;
    const float scale = c.scale * LOG2_E;
    load(first_tile, own.least * c.group);
    for (int tile = first_tile; tile < last_tile; ++tile) {
        copies_wait<0>();
        // All are past the stage that is loaded next.
        sync_block();
        if (tile + 1 < last_tile) load(tile + 1, EVERY);
        u32 q_columns = columns_at<D>(memory + (tile & 1) * STAGE, 0), q_rows = rows_at<D>(memory + (tile & 1) * STAGE, 0);
        const float* numbers = (const float*)(shared_memory + (tile & 1) * STAGE + 2 * TILE) + (LANE & 3) * 4;
        const bool all = tile * VECTORS >= full && (tile + 1) * VECTORS <= limit;
        // Unrolled, it would not fit the registers.
#pragma unroll 1
        for (int vector = tile * VECTORS + (LANE & 3) * 2, end = vector + VECTORS; vector < end; vector += 16) {
            float p[T][2][4], d[T][2][4];
#pragma unroll
            for (int t = 0; t < T; ++t) clear(p[t]), clear(d[t]);
            each<D / 16>([&](auto number) {
                constexpr int i = NUMBER(number);
                u32 b[4];
                load_matrices(b, along<i>(q_columns));
#pragma unroll
                for (int t = 0; t < T; ++t) multiply_add(p[t][0], k[t][i], b[0], b[1]), multiply_add(p[t][1], k[t][i], b[2], b[3]);
                load_matrices<TILE>(b, along<i>(q_columns));
#pragma unroll
                for (int t = 0; t < T; ++t) multiply_add(d[t][0], v[t][i], b[0], b[1]), multiply_add(d[t][1], v[t][i], b[2], b[3]);
            });
            u32 of_p[T][4], of_d[T][4];
#pragma unroll
            for (int t = 0; t < T; ++t) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    // L and delta of the lane's two vectors.
                    const float4 two = *(const float4*)(numbers + j * 16);
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        p[t][j][e] = exp2_fast(fused(p[t][j][e], scale, -(e & 1 ? two.z : two.x)));
                        d[t][j][e] = p[t][j][e] * (d[t][j][e] - (e & 1 ? two.w : two.y));
                    }
                    if (!all)
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            const int other = vector + j * 8 + (e & 1), row = t * 16 + (e >> 1) * 8;
                            if (other < from + row * c.group || other >= limit || row >= rows) p[t][j][e] = d[t][j][e] = 0.0f;
                        }
                    of_p[t][2 * j] = pack_bf16(p[t][j][0], p[t][j][1]), of_p[t][2 * j + 1] = pack_bf16(p[t][j][2], p[t][j][3]);
                    of_d[t][2 * j] = pack_bf16(d[t][j][0], d[t][j][1]), of_d[t][2 * j + 1] = pack_bf16(d[t][j][2], d[t][j][3]);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) out[t * 256 + ((i & 1) * 4 + (i >> 1)) * 32] = of_d[t][i];
            }
            each<D / 16>([&](auto number) {
                constexpr int i = NUMBER(number);
                u32 b[4];
                load_matrices_transposed<TILE>(b, along<i>(q_rows));
#pragma unroll
                for (int t = 0; t < T; ++t) multiply_add(of_values[t][2 * i], of_p[t], b[0], b[1]), multiply_add(of_values[t][2 * i + 1], of_p[t], b[2], b[3]);
                load_matrices_transposed(b, along<i>(q_rows));
#pragma unroll
                for (int t = 0; t < T; ++t) multiply_add(of_keys[t][2 * i], of_d[t], b[0], b[1]), multiply_add(of_keys[t][2 * i + 1], of_d[t], b[2], b[3]);
            });
            q_columns += SIXTEEN<D>, q_rows += SIXTEEN<D>, numbers += 32, out += 64;
        }
        out += DS_TILE / 2 - 128;
    }
    // Read again: registers are full.
    const Keys again(c, c.items[BLOCK_X]);
#pragma unroll
    for (int t = 0; t < T; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = key + t * 16 + h * 8;
            if (row >= again.count) continue;
            const u64 at = ((u64)(again.first + row) * c.kv_heads + BLOCK_Y) * D + (LANE & 3) * 2;
#pragma unroll
            for (int i = 0; i < D / 8; ++i) {
                float2 pair;
                pair.x = of_keys[t][i][h * 2] * c.scale, pair.y = of_keys[t][i][h * 2 + 1] * c.scale;
                *(float2*)(dk + at + i * 8) = pair;
                pair.x = of_values[t][i][h * 2], pair.y = of_values[t][i][h * 2 + 1];
                *(float2*)(dv + at + i * 8) = pair;
            }
        }
}

// dq of 128 vectors: a warp has a tile.
template <int D> DEV void queries(float* dq, const u16* ds, const u32* seen, const Call& c) {
    const u32* item = c.items + 6 * (u64)BLOCK_X;
    const int tree = item[0], tile = item[1] + WARP, vectors = item[2], count = item[4], ends = item[5];
    seen += item[3];
    constexpr int TILE = KEYS * D * 2, OWN = DS_TILE * 2, STAGE = TILE + 4 * OWN;
    const u32 memory = shared_address(shared_memory);
    auto keys_of = [&](int index) { return Keys(c, seen[index]); };
    auto sees = [&](const Keys& keys) { return tile >= keys.first_tile(c) && tile < keys.end_tile(c); };
    auto load = [&](int index, const Keys& keys) {
        const u32 to = memory + (index & 1) * STAGE;
        load_keys<D, 128>(to, c.k, c, keys.first, keys.count);
        if (sees(keys)) {
            const u16* from = ds + keys.ds(c, tile) + LANE * 8;
            each<OWN / 512>([&](auto number) { copy16_on<NUMBER(number) * 512 + TILE, NUMBER(number) * 512>(to + WARP * OWN + LANE * 16, from); });
        }
        copies_commit();
    };
    // The lane's vectors, and where they lie.
    auto vector = [&](int i, int h) { return tile * VECTORS + i * 16 + (LANE >> 2) + h * 8; };
    auto at = [&](int vector) {
        const u64 of_row = (u64)(tree + vector / c.group) * c.kv_heads * c.group;
        return dq + (of_row + BLOCK_Y * c.group + vector % c.group) * D + (LANE & 3) * 2;
    };
    float sums[2][D / 8][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        clear(sums[i]);
        if ((ends & 1) == 0)
#pragma unroll
            for (int h = 0; h < 2; ++h)
                if (vector(i, h) < vectors)
#pragma unroll
                    for (int j = 0; j < D / 8; ++j) {
                        const float2 before = *(const float2*)(at(vector(i, h)) + j * 8);
                        sums[i][j][h * 2] = before.x, sums[i][j][h * 2 + 1] = before.y;
                    }
    }
    Keys keys = keys_of(0);
    load(0, keys);
    for (int index = 0; index < count; ++index) {
        const bool any = sees(keys);
        copies_wait<0>();
        sync_block();
        if (index + 1 < count) {
            keys = keys_of(index + 1);
            load(index + 1, keys);
        }
        if (!any) continue;
        const u32 k = rows_at<D>(memory + (index & 1) * STAGE, 0);
        const u32 left = memory + (index & 1) * STAGE + WARP * OWN + (LANE >> 4) * 512 + ((LANE >> 3) & 1) * 128 + (LANE & 7) * 16;
        each<KEYS / 16>([&](auto number) {
            constexpr int step = NUMBER(number);
            u32 a[2][4];
            load_matrices_transposed<TILE + step * 1024>(a[0], left);
            load_matrices_transposed<TILE + step * 1024 + 256>(a[1], left);
            each<D / 16>([&](auto number) {
                constexpr int i = NUMBER(number);
                u32 b[4];
                load_matrices_transposed<step * SIXTEEN<D>>(b, along<i>(k));
                multiply_add(sums[0][2 * i], a[0], b[0], b[1]), multiply_add(sums[0][2 * i + 1], a[0], b[2], b[3]);
                multiply_add(sums[1][2 * i], a[1], b[0], b[1]), multiply_add(sums[1][2 * i + 1], a[1], b[2], b[3]);
            });
        });
    }
    const float factor = ends & 2 ? c.scale : 1.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (vector(i, h) >= vectors) continue;
            float* to = at(vector(i, h));
#pragma unroll
            for (int j = 0; j < D / 8; ++j) {
                float2 pair;
                pair.x = sums[i][j][h * 2] * factor, pair.y = sums[i][j][h * 2 + 1] * factor;
                *(float2*)(to + j * 8) = pair;
            }
        }
}

#define CALL const u16 *q, const u16 *k, const u16 *v, const u16 *dy, const float2 *numbers, const u32 *table, const u32 *items, u32 kv_heads, u32 group, u32 tiles, float scale
#define GIVEN_CALL {q, k, v, dy, numbers, table, items, (int)kv_heads, (int)group, (int)tiles, scale}
#define KERNEL extern "C" __global__ void __launch_bounds__
#define OF_WIDTH(D) \
    KERNEL(128) attention_backward_deltas_##D(float2* numbers, u16* rounded, const float* dy, const float* y, const float* log_sums, u32 vectors) { \
        deltas<D>(numbers, rounded, dy, y, log_sums, vectors); \
    } \
    KERNEL(128 / KEY_TILES<D>, 2 * KEY_TILES<D>) attention_backward_keys_##D(float* dk, float* dv, u16* ds, CALL) { keys<D>(dk, dv, ds, GIVEN_CALL); } \
    KERNEL(128, 2) attention_backward_queries_##D(float* dq, const u16* ds, const u32* seen, CALL) { queries<D>(dq, ds, seen, GIVEN_CALL); }
OF_WIDTH(16)
OF_WIDTH(32)
OF_WIDTH(64)
OF_WIDTH(128)
