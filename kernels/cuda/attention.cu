// Causal attention with grouped query heads, forward; twin of cpu/attention.rs. attention_backward.cu has the gradients.
// For the query of head h at position p, kv head g = h / (heads / kv_heads):
//   out = sum over j <= p of softmax_j(q k_j / sqrt(d)) v_j,   log_sum = ln sum_j e^(q k_j / sqrt(d))
//
// One order for every row, in a prefill, in training and in decoding: keys go by blocks of 64 absolute positions,
// blocks form partitions of 512. Within a partition the maximum runs along and sums are rescaled to it (Dao et al.
// 2022); partitions start anew and are joined in ascending order. So a partition can be a block of threads of its own
// (decoding: attention_part, then attention_join) or one of several a block takes in turn (attention_rows), with the
// same function for a warp's 16 query vectors and 64 keys, and the same function to join: the same bits.
// Probabilities e^(s - max) are rounded to bf16 before they meet values; the sum that normalizes is of them before.
//
// A partition that sees no key adds nothing and changes no bit, so a recorded launch may have some to spare.
//
// Layout: q [rows, heads, d] bf16, out [rows, heads d] bf16 and, where backward needs it, f32; log_sums [rows, heads] f32; keys and values
// [pages, kv_heads, 32, d] bf16; a work item is {first row, rows, position of the first row, its sequence's place in
// `tables`, partition}. Query vectors of an item are row by row, the group's heads side by side.
// Launch: attention_rows, (items, kv_heads), four warps of 16 vectors; attention_part one warp. K and V blocks
// take turns: one is multiplied while the other arrives. Joined sums of attention_rows lie in shared memory.
// Bound: tensor cores; attention_part: bytes of keys and values.
#include "common.cuh"

constexpr int PAGE = 32, KEYS = 64, BLOCKS = 8;  // of a partition

// ---- keys and values to pages

// k and v [rows, kv_heads, d] f32 to their slots (page * PAGE + place), rounded; four elements a thread.
extern "C" __global__ void __launch_bounds__(256) attention_append(u16* keys, u16* values, const float* k, const float* v, const u32* slots, u32 rows, u32 kv_heads, u32 d) {
    const u64 i = (u64)BLOCK_X * 256 + THREAD;
    const u32 width = kv_heads * d / 4;
    const u32 row = (u32)(i / width), column = (u32)(i % width) * 4;
    if (row >= rows) return;
    const u32 slot = slots[row], head = column / d;
    const u64 to = (((u64)(slot / PAGE) * kv_heads + head) * PAGE + slot % PAGE) * d + column % d;
    const u64 from = (u64)row * kv_heads * d + column;
    *(uint2*)(keys + to) = pack_bf16(*(const float4*)(k + from));
    *(uint2*)(values + to) = pack_bf16(*(const float4*)(v + from));
}

// ---- one warp: 16 query vectors

extern __shared__ __attribute__((aligned(128))) u8 shared_memory[];

// Bytes from a tile's start to chunk c (of 8 elements) of row r, rows of D.
template <int D> DEV int place(int r, int c) { return (r * (D / 8) + (c ^ (r & (D < 64 ? D / 8 - 1 : 7)))) * 16; }

// Sums of 16 vectors, as an mma leaves them: lane l has vectors l/4 and l/4 + 8, of D columns 2(l%4) + 8i and the
// next; of maximum and sum the lane's own columns' share.
template <int D> struct Sums {
    float out[D / 8][4], max[2], sum[2];
    DEV void start() {
#pragma unroll
        for (int i = 0; i < D / 8; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
        max[0] = max[1] = NEGATIVE_INFINITY, sum[0] = sum[1] = 0.0f;
    }
};

// s = q k^T for 64 keys.
template <int D> DEV void scores(float (&s)[KEYS / 8][4], const u32 (&q)[D / 16][4], u32 keys) {
#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk)
#pragma unroll
        for (int j = 0; j < KEYS / 16; ++j) {
            u32 b[4];
            load_matrices(b, keys + place<D>(j * 16 + (LANE & 7) + ((LANE >> 4) << 3), kk * 2 + ((LANE >> 3) & 1)));
            multiply_add(s[2 * j], q[kk], b[0], b[1]);
            multiply_add(s[2 * j + 1], q[kk], b[2], b[3]);
        }
}

// Scores to probabilities around the new maximum, in bf16, as the left side of the product with values. A vector sees
// `seen` keys of the block. scale is log2(e) / sqrt(d).
template <int D> DEV void soften(u32 (&p)[KEYS / 16][4], Sums<D>& sums, float (&s)[KEYS / 8][4], const int (&seen)[2], float scale) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float max = sums.max[h];
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& score = s[j][h * 2 + e];
                if (j * 8 + (LANE & 3) * 2 + e >= seen[h]) score = NEGATIVE_INFINITY;
                max = larger(max, score);
            }
        max = larger(max, shuffle_xor(max, 1));
        max = larger(max, shuffle_xor(max, 2));
        // Where nothing was seen yet, around 0: everything is e^-inf = 0.
        const float around = max == NEGATIVE_INFINITY ? 0.0f : max * scale;
        // Exactly 1 where the maximum stays.
        const float rescale = exp2_fast((sums.max[h] - (max == NEGATIVE_INFINITY ? 0.0f : max)) * scale);
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& score = s[j][h * 2 + e];
                score = exp2_fast(fused(score, scale, -around));
                sum = sum + score;
            }
        sums.sum[h] = fused(sums.sum[h], rescale, sum);
        sums.max[h] = max;
#pragma unroll
        for (int i = 0; i < D / 8; ++i) sums.out[i][h * 2] *= rescale, sums.out[i][h * 2 + 1] *= rescale;
    }
#pragma unroll
    for (int j = 0; j < KEYS / 16; ++j) {
        p[j][0] = pack_bf16(s[2 * j][0], s[2 * j][1]);
        p[j][1] = pack_bf16(s[2 * j][2], s[2 * j][3]);
        p[j][2] = pack_bf16(s[2 * j + 1][0], s[2 * j + 1][1]);
        p[j][3] = pack_bf16(s[2 * j + 1][2], s[2 * j + 1][3]);
    }
}

// out += p v.
template <int D> DEV void weigh(Sums<D>& sums, const u32 (&p)[KEYS / 16][4], u32 values) {
#pragma unroll
    for (int j = 0; j < KEYS / 16; ++j)
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
            u32 b[4];
            load_matrices_transposed(b, values + place<D>(j * 16 + (LANE & 15), i * 2 + (LANE >> 4)));
            multiply_add(sums.out[2 * i], p[j], b[0], b[1]);
            multiply_add(sums.out[2 * i + 1], p[j], b[2], b[3]);
        }
}

// ---- joining partitions

// Factors of what is there and of what is added, and the new maximum and sum. Maxima are of unscaled scores.
struct Join { float there, added; };
DEV Join join(float& max, float& sum, float other_max, float other_sum, float scale) {
    const float new_max = larger(max, other_max), around = new_max == NEGATIVE_INFINITY ? 0.0f : new_max;
    Join f;
    f.there = exp2_fast((max - around) * scale);
    f.added = exp2_fast((other_max - around) * scale);
    sum = sum * f.there + other_sum * f.added;
    max = new_max;
    return f;
}
DEV float joined(Join f, float there, float added) { return there * f.there + added * f.added; }

// The four lanes' shares of a vector's sum.
DEV float whole(float sum) {
    sum = sum + shuffle_xor(sum, 1);
    return sum + shuffle_xor(sum, 2);
}

DEV float log_sum_of(float max, float sum, float scale) { return (max * scale + log2_fast(sum)) * 0.693147181f; }

// ---- a block of threads

struct Item { int first_row, rows, first_position, table, partition; };

struct Call {
    const u16 *q, *keys, *values;
    const u32 *tables, *items;
    int kv_heads, group;
    float scale;
    DEV Item item() const {
        const u32* from = items + 5 * (u64)BLOCK_X;
        return {(int)from[0], (int)from[1], (int)from[2], (int)from[3], (int)from[4]};
    }
};

// Copies keys [first, first + KEYS) below `len` of a sequence: two pages.
template <int D, int THREADS> DEV void load(u32 to, const u16* pages, const Call& c, const Item& item, int first, int len) {
    // More at once would spill: 64-bit addresses.
#pragma unroll 2
    for (int i = 0; i < KEYS * D / 8 / THREADS; ++i) {
        const int id = THREAD + i * THREADS, r = id / (D / 8), chunk = id % (D / 8), key = first + r;
        const bool there = key < len;
        const u64 page = there ? c.tables[item.table + key / PAGE] : 0;
        copy16(to + place<D>(r, chunk), pages + ((page * c.kv_heads + BLOCK_Y) * PAGE + key % PAGE) * D + chunk * 8, there);
    }
}

// Query vectors of the item's head, to registers through shared memory; those it does not have are zeros.
template <int D, int WARPS> DEV void load_queries(u32 (&q)[D / 16][4], u32 shared, const Call& c, const Item& item) {
    const int width = c.kv_heads * c.group;
#pragma unroll
    for (int i = 0; i < 16 * D / 8 / 32; ++i) {
        const int id = THREAD + i * WARPS * 32, r = id / (D / 8), chunk = id % (D / 8), row = r / c.group;
        const bool there = row < item.rows;
        const u64 at = there ? ((u64)(item.first_row + row) * width + BLOCK_Y * c.group + r % c.group) * D : 0;
        copy16(shared + place<D>(r, chunk), c.q + at + chunk * 8, there);
    }
    copies_commit();
    copies_wait<0>();
    sync_block();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) load_matrices(q[i], shared + place<D>(WARP * 16 + (LANE & 15), i * 2 + (LANE >> 4)));
    sync_block();
}

// Takes a partition's blocks of keys; those of the first are under way in `k` and `v`, two groups of copies, and on
// return those of the next partition are. len is that of the keys any vector of the block sees.
template <int D, int WARPS>
DEV void partition(Sums<D>& sums, const u32 (&q)[D / 16][4], u32 k, u32 v, const Call& c, const Item& item, int index, int len) {
    const int first = index * BLOCKS * KEYS, blocks = smaller(BLOCKS, (len - first + KEYS - 1) / KEYS);
    for (int b = 0; b < blocks; ++b) {
        const int key = first + b * KEYS;
        float s[KEYS / 8][4];
        u32 p[KEYS / 16][4];
        copies_wait<1>();
        sync_block();
        scores<D>(s, q, k);
        sync_block();
        if (key + KEYS < len) load<D, WARPS * 32>(k, c.keys, c, item, key + KEYS, len);
        copies_commit();
        int seen[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) seen[h] = item.first_position + (WARP * 16 + (LANE >> 2) + h * 8) / c.group + 1 - key;
        soften<D>(p, sums, s, seen, c.scale);
        copies_wait<1>();
        sync_block();
        weigh<D>(sums, p, v);
        sync_block();
        if (key + KEYS < len) load<D, WARPS * 32>(v, c.values, c, item, key + KEYS, len);
        copies_commit();
    }
}

template <int D> DEV void rows(u16* out, float* exact, float* log_sums, const Call& c) {
    constexpr int TILE = KEYS * D * 2;
    const u32 k = shared_address(shared_memory), v = k + TILE;
    // What partitions so far gave; every thread has its own places.
    float* totals = (float*)(shared_memory + 2 * TILE) + THREAD;
    const Item item = c.item();
    const int len = item.first_position + item.rows;
    u32 q[D / 16][4];
    load_queries<D, 4>(q, k, c, item);
    load<D, 128>(k, c.keys, c, item, 0, len);
    copies_commit();
    load<D, 128>(v, c.values, c, item, 0, len);
    copies_commit();
    const int partitions = (len + BLOCKS * KEYS - 1) / (BLOCKS * KEYS);
    float max[2], sum[2];
    for (int index = 0; index < partitions; ++index) {
        Sums<D> sums;
        sums.start();
        partition<D, 4>(sums, q, k, v, c, item, index, len);
        sums.sum[0] = whole(sums.sum[0]), sums.sum[1] = whole(sums.sum[1]);
        if (index > 0) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const Join f = join(max[h], sum[h], sums.max[h], sums.sum[h], c.scale);
#pragma unroll
                for (int i = 0; i < D / 8; ++i)
#pragma unroll
                    for (int e = h * 2; e < h * 2 + 2; ++e) sums.out[i][e] = joined(f, totals[(i * 4 + e) * 128], sums.out[i][e]);
            }
        } else {
            max[0] = sums.max[0], max[1] = sums.max[1], sum[0] = sums.sum[0], sum[1] = sums.sum[1];
        }
#pragma unroll
        for (int i = 0; i < D / 8; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) totals[(i * 4 + e) * 128] = sums.out[i][e];
    }
    copies_wait<0>();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int vector = WARP * 16 + (LANE >> 2) + h * 8, row = vector / c.group;
        if (row >= item.rows) continue;
        const u64 at = (u64)(item.first_row + row) * c.kv_heads * c.group + BLOCK_Y * c.group + vector % c.group;
        const float inverse = 1.0f / sum[h];
#pragma unroll
        for (int i = 0; i < D / 8; ++i) {
            const float* from = totals + (i * 4 + h * 2) * 128;
            const u64 to = at * D + i * 8 + (LANE & 3) * 2;
            float2 pair;
            pair.x = from[0] * inverse, pair.y = from[128] * inverse;
            *(u32*)(out + to) = pack_bf16(pair.x, pair.y);
            if (exact) *(float2*)(exact + to) = pair;
        }
        if (log_sums && (LANE & 3) == 0) log_sums[at] = log_sum_of(max[h], sum[h], c.scale);
    }
}

// One partition of at most 16 vectors: sums to parts [item, kv_head, 16, D], maximum and sum to ends [.., 16, 2].
template <int D> DEV void part(float* parts, float* ends, const Call& c) {
    constexpr int TILE = KEYS * D * 2;
    const u32 k = shared_address(shared_memory), v = k + TILE;
    const Item item = c.item();
    // The last partition ends with the keys, any other with itself.
    const int len = smaller(item.first_position + item.rows, (item.partition + 1) * BLOCKS * KEYS);
    u32 q[D / 16][4];
    load_queries<D, 1>(q, k, c, item);
    load<D, 32>(k, c.keys, c, item, item.partition * BLOCKS * KEYS, len);
    copies_commit();
    load<D, 32>(v, c.values, c, item, item.partition * BLOCKS * KEYS, len);
    copies_commit();
    Sums<D> sums;
    sums.start();
    partition<D, 1>(sums, q, k, v, c, item, item.partition, len);
    copies_wait<0>();
    const u64 base = ((u64)BLOCK_X * c.kv_heads + BLOCK_Y) * 16;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int vector = (LANE >> 2) + h * 8;
        const float sum = whole(sums.sum[h]);
        if (vector >= item.rows * c.group) continue;
        float* to = parts + (base + vector) * D + (LANE & 3) * 2;
#pragma unroll
        for (int i = 0; i < D / 8; ++i) {
            float2 pair;
            pair.x = sums.out[i][h * 2], pair.y = sums.out[i][h * 2 + 1];
            *(float2*)(to + i * 8) = pair;
        }
        if ((LANE & 3) == 0) ends[(base + vector) * 2] = sums.max[h], ends[(base + vector) * 2 + 1] = sum;
    }
}

#define CALL const u16 *q, const u16 *keys, const u16 *values, const u32 *tables, const u32 *items, u32 kv_heads, u32 group, float scale
#define GIVEN_CALL {q, keys, values, tables, items, (int)kv_heads, (int)group, scale}
#define KERNEL extern "C" __global__ void __launch_bounds__
KERNEL(128, 2) attention_rows_16(u16* out, float* exact, float* log_sums, CALL) { rows<16>(out, exact, log_sums, GIVEN_CALL); }
KERNEL(128, 2) attention_rows_32(u16* out, float* exact, float* log_sums, CALL) { rows<32>(out, exact, log_sums, GIVEN_CALL); }
KERNEL(128, 2) attention_rows_64(u16* out, float* exact, float* log_sums, CALL) { rows<64>(out, exact, log_sums, GIVEN_CALL); }
KERNEL(128, 2) attention_rows_128(u16* out, float* exact, float* log_sums, CALL) { rows<128>(out, exact, log_sums, GIVEN_CALL); }
KERNEL(32, 4) attention_part_16(float* parts, float* ends, CALL) { part<16>(parts, ends, GIVEN_CALL); }
KERNEL(32, 4) attention_part_32(float* parts, float* ends, CALL) { part<32>(parts, ends, GIVEN_CALL); }
KERNEL(32, 4) attention_part_64(float* parts, float* ends, CALL) { part<64>(parts, ends, GIVEN_CALL); }
KERNEL(32, 4) attention_part_128(float* parts, float* ends, CALL) { part<128>(parts, ends, GIVEN_CALL); }

// Joins the partitions of a run of rows: {first row, rows, its first item, items}, which lie one after the other.
// A block a (run, kv_head), a thread a column of D, vector by vector.
KERNEL(128) attention_join(u16* out, float* exact, float* log_sums, const float* parts, const float* ends, const u32* runs, u32 kv_heads, u32 group, u32 d, float scale) {
    const u32* run = runs + 4 * (u64)BLOCK_X;
    const u32 first_row = run[0], vectors = run[1] * group, first = run[2], count = run[3];
    if (THREAD >= d) return;
    for (u32 vector = 0; vector < vectors; ++vector) {
        float max = 0.0f, sum = 0.0f, total = 0.0f;
        for (u32 i = 0; i < count; ++i) {
            const u64 at = ((u64)(first + i) * kv_heads + BLOCK_Y) * 16 + vector;
            const float other = parts[at * d + THREAD], other_max = ends[2 * at], other_sum = ends[2 * at + 1];
            if (i == 0) {
                max = other_max, sum = other_sum, total = other;
            } else {
                const Join f = join(max, sum, other_max, other_sum, scale);
                total = joined(f, total, other);
            }
        }
        const u64 at = (u64)(first_row + vector / group) * kv_heads * group + BLOCK_Y * group + vector % group;
        const float inverse = 1.0f / sum;
        out[at * d + THREAD] = to_bf16(total * inverse);
        if (exact) exact[at * d + THREAD] = total * inverse;
        if (log_sums && THREAD == 0) log_sums[at] = log_sum_of(max, sum, scale);
    }
}
