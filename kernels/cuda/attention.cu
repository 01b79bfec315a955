// Causal attention with grouped query heads, forward; reference: cpu/attention.rs. attention_backward.cu has the gradients.
// For the query of head h at position p, kv head g = h / (heads / kv_heads):
//   out = sum over j <= p of softmax_j(q k_j / sqrt(d)) v_j,   log_sum = ln sum_j e^(q k_j / sqrt(d))
//
// One order for every row, in a prefill, in training and in decoding: keys are taken in blocks of 64 absolute positions,
// blocks form partitions of 512. Within a partition the maximum runs along and sums are rescaled to it (Dao et al.
// 2022); partitions start anew and are joined in ascending order. So a partition can be a block of threads of its own
// (decoding: attention_part, then attention_join) or one of several a block takes in turn (attention_rows), with the
// same operations on a tile of 16 query vectors and 64 keys, and the same function to join: the same bits.
// Probabilities e^(s - max) are rounded to bf16 before they meet values; the sum that normalizes is of them before.
//
// A partition that sees no key adds nothing and changes no bit, so a captured launch may have some to spare.
//
// Layout: q [rows, heads, d] bf16, out [rows, heads d] bf16 and in exact f32, kept if log_sums [rows, heads] f32 are; keys and values
// [pages, kv_heads, 32, d] bf16; a work item is {first row, rows, position of the first row, its sequence's place in
// `tables`, partition}. Query vectors of an item are row by row, the group's heads side by side.
// Launch: attention_rows, (items, kv_heads), four warps of 32 vectors, so that a fragment of keys or values serves two
// tiles; attention_part one warp of 16. Keys and values take turns: one is multiplied while the other arrives. Sums of
// partitions so far wait in `exact`, which is the result's place where it is kept.
// Bound: tensor cores; attention_part: bytes of keys and values.
#include "attention.cuh"

constexpr int PAGE = 32, KEYS = 64, BLOCKS = 8;  // of a partition

// ---- keys and values to pages

// k and v [rows, kv_heads, d] f32 to their slots (page * PAGE + place), rounded; four elements per thread.
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

// ---- one warp: I tiles of 16 query vectors

// Sums of 16 I vectors, as an mma leaves them: lane l has vectors l/4 and l/4 + 8 of a tile, of D columns 2(l%4) + 8i and the
// next; of maximum and sum the lane's own columns' share.
template <int D, int I> struct Sums {
    float out[I][D / 8][4], max[I][2], sum[I][2];
    DEV void start() {
#pragma unroll
        for (int i = 0; i < I; ++i) {
            clear(out[i]);
            max[i][0] = max[i][1] = NEGATIVE_INFINITY, sum[i][0] = sum[i][1] = 0.0f;
        }
    }
};

// s = q k^T for 64 keys; of the tiles the lane's places. Each fragment of keys serves all tiles of vectors.
template <int D, int I> DEV void scores(float (&s)[I][KEYS / 8][4], u32 q, u32 keys) {
#pragma unroll
    for (int i = 0; i < I; ++i) clear(s[i]);
    each<D / 16>([&](auto k) {
        const u32 q_at = along<NUMBER(k)>(q), keys_at = along<NUMBER(k)>(keys);
        u32 a[I][4];
        each<I>([&](auto i) { load_matrices<NUMBER(i) * SIXTEEN<D>>(a[NUMBER(i)], q_at); });
        each<KEYS / 16>([&](auto number) {
            constexpr int j = NUMBER(number);
            u32 b[4];
            load_matrices<j * SIXTEEN<D>>(b, keys_at);
#pragma unroll
            for (int i = 0; i < I; ++i) multiply_add(s[i][2 * j], a[i], b[0], b[1]), multiply_add(s[i][2 * j + 1], a[i], b[2], b[3]);
        });
    });
}

// Takes away what a vector does not see: all from `seen` on of the block's keys.
DEV void mask(float (&s)[KEYS / 8][4], int half, int seen) {
    seen -= (LANE & 3) * 2;
#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
            if (j * 8 + e >= seen) s[j][half * 2 + e] = NEGATIVE_INFINITY;
}

// Scores of a tile to probabilities around the new maximum, in bf16, as the left side of the product with values. scale is
// log2(e) / sqrt(d).
template <int D> DEV void soften(u32 (&p)[KEYS / 16][4], float (&out)[D / 8][4], float (&maxima)[2], float (&total)[2], float (&s)[KEYS / 8][4], float scale) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float max = maxima[h];
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) max = larger(larger(max, s[j][h * 2]), s[j][h * 2 + 1]);
        max = larger(max, shuffle_xor(max, 1));
        max = larger(max, shuffle_xor(max, 2));
        // Where nothing was seen yet, around 0: everything is e^-inf = 0.
        const float seen = max == NEGATIVE_INFINITY ? 0.0f : max, around = seen * scale;
        // Exactly 1 where the maximum stays.
        const float rescale = exp2_fast((maxima[h] - seen) * scale);
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& score = s[j][h * 2 + e];
                score = exp2_fast(fused(score, scale, -around));
                sum = sum + score;
            }
        total[h] = fused(total[h], rescale, sum);
        maxima[h] = max;
#pragma unroll
        for (int i = 0; i < D / 8; ++i) out[i][h * 2] *= rescale, out[i][h * 2 + 1] *= rescale;
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
template <int D, int I> DEV void weigh(Sums<D, I>& sums, const u32 (&p)[I][KEYS / 16][4], u32 values) {
    each<D / 16>([&](auto number) {
        constexpr int c = NUMBER(number);
        const u32 at = along<c>(values);
        each<KEYS / 16>([&](auto number) {
            constexpr int j = NUMBER(number);
            u32 b[4];
            load_matrices_transposed<j * SIXTEEN<D>>(b, at);
#pragma unroll
            for (int i = 0; i < I; ++i) multiply_add(sums.out[i][2 * c], p[i][j], b[0], b[1]), multiply_add(sums.out[i][2 * c + 1], p[i][j], b[2], b[3]);
        });
    });
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

// Where the two pages of a block of keys lie, counted in pages of one head.
struct Pages { u32 at[KEYS / PAGE]; };
DEV Pages pages_of(const Call& c, int table, int first, int len) {
    Pages pages;
#pragma unroll
    for (int i = 0; i < KEYS / PAGE; ++i)
        pages.at[i] = first + i * PAGE < len ? c.tables[table + first / PAGE + i] * c.kv_heads + BLOCK_Y : 0;
    return pages;
}

// Copies keys (or values) [first, first + KEYS) below `len` of a sequence to the tile at `tiles` + TO. A thread has a chunk
// of every STRIDE-th row.
template <int D, int THREADS, int TO> DEV void load(u32 tiles, const u16* from, const Pages& pages, int first, int len) {
    constexpr int ACROSS = D / 8, STRIDE = THREADS / ACROSS, ROWS = STRIDE < PAGE ? STRIDE : PAGE;
    const int chunk = THREAD % ACROSS, row = THREAD / ACROSS, r = row % PAGE;
    const u32 to = tiles + place<D>(r, chunk);
    const u16* lane = from + (r * D + chunk * 8);
    const bool all = first + KEYS <= len;
    each<KEYS / PAGE>([&](auto number) {
        constexpr int page = NUMBER(number);
        if (STRIDE > PAGE && row / PAGE != page) return;
        const u16* at = lane + (u64)pages.at[page] * (PAGE * D);
        if (ROWS % 8 == 0 && all) {
            each<PAGE / ROWS>([&](auto number) {
                constexpr int i = NUMBER(number) * ROWS;
                copy16_on<TO + (page * PAGE + i) * D * 2, i * D * 2>(to, at);
            });
        } else {
#pragma unroll 2
            for (int i = 0; i < PAGE; i += ROWS) {
                const bool there = first + page * PAGE + i + r < len;
                copy16(tiles + TO + place<D>(page * PAGE + i + r, chunk), there ? at + i * D : from, there);
            }
        }
    });
}

// Copies the item's query vectors of the block's head; those it does not have are zeros.
template <int D, int THREADS, int VECTORS> DEV void load_queries(u32 to, const Call& c, const Item& item) {
    const int width = c.kv_heads * c.group;
#pragma unroll 2
    for (int id = THREAD; id < VECTORS * D / 8; id += THREADS) {
        const int r = id / (D / 8), chunk = id % (D / 8), row = r / c.group;
        const bool there = row < item.rows;
        const u64 at = there ? ((u64)(item.first_row + row) * width + BLOCK_Y * c.group + r % c.group) * D : 0;
        copy16(to + place<D>(r, chunk), c.q + at + chunk * 8, there);
    }
}

// What a block of threads works on: WARPS times 16 I query vectors, and 64 keys and values at a time.
template <int D, int WARPS, int I> struct Block {
    static constexpr int VECTORS = WARPS * I * 16, TILE = KEYS * D * 2;
    const Call& c;
    // Of the item no more than the loop needs: registers are full.
    const int table, first_position;
    // Keys that any vector of the block sees end here.
    const int len;
    // The tiles: keys, values, queries.
    const u32 k;
    Pages pages;

    DEV Block(const Call& c, const Item& item, int first, int len) : c(c), table(item.table), first_position(item.first_position), len(len), k(shared_address(shared_memory)) {
        load_queries<D, WARPS * 32, VECTORS>(k + 2 * TILE, c, item);
        pages = pages_of(c, table, first, len);
        load<D, WARPS * 32, 0>(k, c.keys, pages, first, len);
        copies_commit();
    }

    DEV int vector(int i, int h) const { return (WARP * I + i) * 16 + (LANE >> 2) + h * 8; }

    // Takes a partition's blocks of keys. The first keys are under way, and on return those of the next partition are.
    DEV void partition(Sums<D, I>& sums, int index) {
        const int first = index * BLOCKS * KEYS, blocks = smaller(BLOCKS, (len - first + KEYS - 1) / KEYS);
        const u32 q_at = rows_at<D>(k + 2 * TILE, WARP * I * 16), k_at = columns_at<D>(k, 0), v_at = rows_at<D>(k + TILE, 0);
        const int least = first_position + WARP * I * 16 / c.group, most = first_position + (WARP * I * 16 + I * 16 - 1) / c.group;
        for (int b = 0; b < blocks; ++b) {
            const int key = first + b * KEYS;
            float s[I][KEYS / 8][4];
            u32 p[I][KEYS / 16][4];
            // The keys are here, and no warp needs the values before.
            copies_wait<0>();
            sync_block();
            load<D, WARPS * 32, TILE>(k, c.values, pages, key, len);
            copies_commit();
            if (key + KEYS < len) pages = pages_of(c, table, key + KEYS, len);
            // Of vectors that see none of these keys no sum would change.
            const bool any = key <= most;
            if (any) {
                scores<D, I>(s, q_at, k_at);
                if (key + KEYS > least + 1)
#pragma unroll
                    for (int i = 0; i < I; ++i)
#pragma unroll
                        for (int h = 0; h < 2; ++h) mask(s[i], h, first_position + vector(i, h) / c.group + 1 - key);
#pragma unroll
                for (int i = 0; i < I; ++i) soften<D>(p[i], sums.out[i], sums.max[i], sums.sum[i], s[i], c.scale);
            }
            copies_wait<0>();
            sync_block();
            if (key + KEYS < len) load<D, WARPS * 32, 0>(k, c.keys, pages, key + KEYS, len);
            copies_commit();
            if (any) weigh<D, I>(sums, p, v_at);
        }
#pragma unroll
        for (int i = 0; i < I; ++i) sums.sum[i][0] = whole(sums.sum[i][0]), sums.sum[i][1] = whole(sums.sum[i][1]);
    }
};

template <int D> DEV void rows(u16* out, float* exact, float* log_sums, const Call& c) {
    constexpr int I = 2;
    Block<D, 4, I> block = [&] {
        const Item item = c.item();
        return Block<D, 4, I>(c, item, 0, item.first_position + item.rows);
    }();
    const int partitions = (block.len + BLOCKS * KEYS - 1) / (BLOCKS * KEYS);
    // Maxima and sums of partitions so far, every lane's own: registers are full.
    float* ends = (float*)(shared_memory + (2 * KEYS + block.VECTORS) * D * 2) + THREAD;
    for (int index = 0; index < partitions; ++index) {
        Sums<D, I> sums;
        sums.start();
        block.partition(sums, index);
        const bool last = index + 1 == partitions;
        const Item item = c.item();
#pragma unroll
        for (int i = 0; i < I; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int vector = block.vector(i, h), row = vector / c.group;
                if (row >= item.rows) continue;
                const u64 at = (u64)(item.first_row + row) * c.kv_heads * c.group + BLOCK_Y * c.group + vector % c.group;
                u16* rounded = out + at * D + (LANE & 3) * 2;
                // What partitions so far gave waits in the result's place.
                float* kept = exact + at * D + (LANE & 3) * 2;
                Join f;
                float* end = ends + (i * 2 + h) * 256;
                float max = sums.max[i][h], sum = sums.sum[i][h];
                if (index > 0) {
                    max = end[0], sum = end[128];
                    f = join(max, sum, sums.max[i][h], sums.sum[i][h], c.scale);
                }
                end[0] = max, end[128] = sum;
                const float inverse = 1.0f / sum;
#pragma unroll
                for (int j = 0; j < D / 8; ++j) {
                    float2 pair;
                    pair.x = sums.out[i][j][h * 2], pair.y = sums.out[i][j][h * 2 + 1];
                    if (index > 0) {
                        const float2 before = *(const float2*)(kept + j * 8);
                        pair.x = joined(f, before.x, pair.x), pair.y = joined(f, before.y, pair.y);
                    }
                    if (last) {
                        pair.x *= inverse, pair.y *= inverse;
                        *(u32*)(rounded + j * 8) = pack_bf16(pair.x, pair.y);
                    }
                    if (!last || log_sums) *(float2*)(kept + j * 8) = pair;
                }
                if (last && log_sums && (LANE & 3) == 0) log_sums[at] = log_sum_of(max, sum, c.scale);
            }
    }
    copies_wait<0>();
}

// One partition of at most 16 vectors: sums to parts [item, kv_head, 16, D], maximum and sum to ends [.., 16, 2].
template <int D> DEV void part(float* parts, float* ends, const Call& c) {
    const Item item = c.item();
    // The last partition ends with the keys, any other with itself.
    const int len = smaller(item.first_position + item.rows, (item.partition + 1) * BLOCKS * KEYS);
    Block<D, 1, 1> block(c, item, item.partition * BLOCKS * KEYS, len);
    Sums<D, 1> sums;
    sums.start();
    block.partition(sums, item.partition);
    copies_wait<0>();
    const u64 base = ((u64)BLOCK_X * c.kv_heads + BLOCK_Y) * 16;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int vector = block.vector(0, h);
        if (vector >= item.rows * c.group) continue;
        float* to = parts + (base + vector) * D + (LANE & 3) * 2;
#pragma unroll
        for (int i = 0; i < D / 8; ++i) {
            float2 pair;
            pair.x = sums.out[0][i][h * 2], pair.y = sums.out[0][i][h * 2 + 1];
            *(float2*)(to + i * 8) = pair;
        }
        if ((LANE & 3) == 0) ends[(base + vector) * 2] = sums.max[0][h], ends[(base + vector) * 2 + 1] = sums.sum[0][h];
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
// One block per (run, kv_head), one thread per column of D, vector by vector.
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
