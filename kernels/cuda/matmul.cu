// Matrix products of bf16 with f32 sums, on the tensor cores; reference: cpu/matmul.rs.
//   nt  y[m,n] = x[m,k] w[n,k]^T     forward
//   nn  y[m,n] = x[m,k] w[k,n]       dx = dy w
//   tn  y[m,n] = x[k,m]^T w[k,n]     LoRA's gradients, over chunks of k that are added afterwards
//   few nt for few rows: decoding
// nt and nn take up to three pairs (x, w, k) whose products are added: w and LoRA's factors, or gate's and up's.
//
// Every element of y is one chain of m16n8k16 steps over k in ascending order, pairs one after the other, x as the
// mma's left side and w as its right, in every kernel here: a row has the same bits in any batch, tile and kernel.
// Missing k are zeros, which change no sum. LoRA's x A^T (narrow) alone has few columns and so few blocks of threads: its
// k are cut into parts of 256, one chain each, which are added in order, by blocks of their own or by one for all.
//
// Layout: row-major, k and n multiples of 8. Tiles of x and w go through a ring of four stages of 32 k in shared
// memory (cp.async), 16-byte chunks swizzled so that neither writing nor ldmatrix conflicts. A warp's tile is 64x64:
// at 64x32 reading shared memory takes as long as multiplying. Results pass through shared memory once more, so
// that each thread stores 16 bytes and an epilogue sees whole rows.
// Launch: one block of four warps per 128x128 tile of y (narrow 128x32, or 16x32 for few rows; tn 32x128), tiles in groups of eight rows of
// tiles for the second-level cache. Two blocks per multiprocessor. few: a warp for each 8 columns.
// Bound: tensor cores; few: bytes of w.
#include "common.cuh"

constexpr int STEP = 32;   // k of a stage
constexpr int STAGES = 4;

// Where chunk c (of 8 elements) of row r lies in a tile of WIDTH chunks per row, in bytes.
template <int WIDTH> DEV int place(int r, int c) {
    // Eight consecutive rows of one chunk, as ldmatrix reads them, lie in different banks.
    const int s = WIDTH == 4 ? (r >> 1) & 3 : r & 7;
    return (r * WIDTH + (c ^ s)) * 16;
}

// A tile of an operand: SIZE rows of the product, STEP of k; in memory row by row ([rows, k]) or, if COLUMNS, k by k.
template <int SIZE, int THREADS, bool COLUMNS> struct Operand {
    static constexpr int BYTES = SIZE * STEP * 2;
    static constexpr int WIDTH = (COLUMNS ? SIZE : STEP) / 8;
    static constexpr int CHUNKS = SIZE * STEP / 8;

    // Copies rows [first, first + SIZE) below `rows` and k [k0, k0 + STEP) below `k`. `stride` lies between
    // neighbours of the slower index. With `half`, rows from SIZE / 2 on are taken `half` further on.
    DEV static void load(u32 to, const u16* from, int first, int rows, int k0, int k, int stride, int half) {
#pragma unroll
        for (int i = 0; i < CHUNKS / THREADS; ++i) {
            const int id = THREAD + i * THREADS, r = id / WIDTH, c = id % WIDTH;
            int row = first + (COLUMNS ? c * 8 : half ? r % (SIZE / 2) : r);
            const int at = k0 + (COLUMNS ? r : c * 8);
            const bool there = row < rows && at < k;
            if (half && r >= SIZE / 2) row += half;
            const u64 offset = COLUMNS ? (u64)at * stride + row : (u64)row * stride + at;
            copy16(to + place<WIDTH>(r, c), from + (there ? offset : 0), there);
        }
    }
    // Fragments of 16 rows from `row`, for k16 step `kk`, as the left side of an mma.
    DEV static void left(u32 (&f)[4], u32 tile, int row, int kk) {
        if (COLUMNS) load_matrices_transposed(f, tile + place<WIDTH>(kk * 16 + (LANE & 7) + ((LANE >> 4) << 3), row / 8 + ((LANE >> 3) & 1)));
        else load_matrices(f, tile + place<WIDTH>(row + (LANE & 15), kk * 2 + (LANE >> 4)));
    }
    // The same as the right side: two n8 tiles.
    DEV static void right(u32 (&f)[4], u32 tile, int row, int kk) {
        if (COLUMNS) load_matrices_transposed(f, tile + place<WIDTH>(kk * 16 + (LANE & 15), row / 8 + (LANE >> 4)));
        else load_matrices(f, tile + place<WIDTH>(row + (LANE & 7) + ((LANE >> 4) << 3), kk * 2 + ((LANE >> 3) & 1)));
    }
};

// Products to be added: x [m, k] w [n, k]^T and so on, in this order.
struct Pairs {
    const u16 *x0, *w0, *x1, *w1, *x2, *w2;
    int k0, k1, k2;
};

extern __shared__ __attribute__((aligned(128))) u8 shared_memory[];

// Epilogues take a 4-vector of a row of y, and where it is: row * n + column.

struct StoreF32 {
    static constexpr bool HALVES = false;
    float* y;
    const float* added;
    DEV void operator()(u64 at, float4 v, float4) const {
        if (added) {
            const float4 a = *(const float4*)(added + at);
            v.x = a.x + v.x, v.y = a.y + v.y, v.z = a.z + v.z, v.w = a.w + v.w;
        }
        *(float4*)(y + at) = v;
    }
};

// y = silu(gate) up; gate and up are kept where backward needs them.
struct Swiglu {
    static constexpr bool HALVES = true;
    u16* y;
    float *gate, *up;
    DEV void operator()(u64 at, float4 g, float4 u) const {
        if (gate) *(float4*)(gate + at) = g, *(float4*)(up + at) = u;
        float4 v;
        v.x = silu(g.x) * u.x, v.y = silu(g.y) * u.y, v.z = silu(g.z) * u.z, v.w = silu(g.w) * u.w;
        *(uint2*)(y + at) = pack_bf16(v);
    }
};

// Gradients of gate and up, given that of y.
struct SwigluBackward {
    static constexpr bool HALVES = false;
    u16 *dgate, *dup;
    const float *gate, *up;
    DEV void operator()(u64 at, float4 d, float4) const {
        const float4 g = *(const float4*)(gate + at), u = *(const float4*)(up + at);
        const float2 a = swiglu_gradient(d.x, g.x, u.x), b = swiglu_gradient(d.y, g.y, u.y);
        const float2 c = swiglu_gradient(d.z, g.z, u.z), e = swiglu_gradient(d.w, g.w, u.w);
        float4 of_gate, of_up;
        of_gate.x = a.x, of_gate.y = b.x, of_gate.z = c.x, of_gate.w = e.x;
        of_up.x = a.y, of_up.y = b.y, of_up.z = c.y, of_up.w = e.y;
        *(uint2*)(dgate + at) = pack_bf16(of_gate);
        *(uint2*)(dup + at) = pack_bf16(of_up);
    }
};

// Takes a tile of sums [ROWS, COLUMNS], in shared memory with rows of COLUMNS + 8, to the epilogue. n is that of y.
template <int ROWS, int COLUMNS, int THREADS, class Epilogue>
DEV void finish(const float* sums, int m0, int n0, int m, int n, const Epilogue& epilogue) {
    constexpr int WIDE = Epilogue::HALVES ? COLUMNS / 2 : COLUMNS, VECTORS = WIDE / 4, STRIDE = THREADS / VECTORS;
    static_assert(THREADS % VECTORS == 0, "a thread keeps to its columns");
    const int r0 = THREAD / VECTORS, c = THREAD % VECTORS * 4, rows = smaller(ROWS, m - m0);
    if (n0 + c >= n) return;
    const float* from = sums + r0 * (COLUMNS + 8) + c;
    u64 at = (u64)(m0 + r0) * n + n0 + c;
#pragma unroll 4
    for (int r = r0; r < rows; r += STRIDE) {
        const float4 v = *(const float4*)from, other = Epilogue::HALVES ? *(const float4*)(from + WIDE) : v;
        epilogue(at, v, other);
        from += STRIDE * (COLUMNS + 8), at += (u64)STRIDE * n;
    }
}

// A lane's part of a 16x8 tile of sums.
DEV void stage(float* to, int width, const float (&sum)[4]) {
    float2 v;
    v.x = sum[0], v.y = sum[1];
    *(float2*)(to + (LANE >> 2) * width + (LANE & 3) * 2) = v;
    v.x = sum[2], v.y = sum[3];
    *(float2*)(to + ((LANE >> 2) + 8) * width + (LANE & 3) * 2) = v;
}

// `stride`, if not 0, is that of rows of x, and of w where it lies row by row. With PART, every PART steps of k are a
// chain of their own.
template <int ROWS, int COLUMNS, int WARP_ROWS, int WARP_COLUMNS, bool X_COLUMNS, bool W_COLUMNS, int PART = 0, class Epilogue>
DEV void product(const Pairs& pairs, int m, int n, int stride, int first_k, const Epilogue& epilogue) {
    constexpr int ACROSS = COLUMNS / WARP_COLUMNS, THREADS = ROWS / WARP_ROWS * ACROSS * 32;
    typedef Operand<ROWS, THREADS, X_COLUMNS> X;
    typedef Operand<COLUMNS, THREADS, W_COLUMNS> W;
    constexpr int I = WARP_ROWS / 16, J = WARP_COLUMNS / 8;
    const u32 tiles = shared_address(shared_memory);

    constexpr int OWN = Epilogue::HALVES ? COLUMNS / 2 : COLUMNS;  // columns of y
    constexpr int GROUP = 8;
    const int down = (m + ROWS - 1) / ROWS, across = (n + OWN - 1) / OWN;
    const int group = BLOCK_X / (GROUP * across), tall = smaller(down - group * GROUP, GROUP), rest = BLOCK_X % (GROUP * across);
    const int m0 = (group * GROUP + rest % tall) * ROWS, n0 = rest / tall * OWN;

    const int t0 = (pairs.k0 + STEP - 1) / STEP, t1 = (pairs.k1 + STEP - 1) / STEP, t2 = (pairs.k2 + STEP - 1) / STEP;
    const int count = t0 + t1 + t2;
    auto load = [&](int stage, int t) {
        const u16 *x = pairs.x0, *w = pairs.w0;
        int k = pairs.k0, at = t;
        if (t >= t0) x = pairs.x1, w = pairs.w1, k = pairs.k1, at = t - t0;
        if (t >= t0 + t1) x = pairs.x2, w = pairs.w2, k = pairs.k2, at = t - t0 - t1;
        const u32 to = tiles + stage * (X::BYTES + W::BYTES);
        const int end = first_k + k, k0 = first_k + at * STEP;
        X::load(to, x, m0, m, k0, end, stride ? stride : k, 0);
        W::load(to + X::BYTES, w, n0, n, k0, end, W_COLUMNS ? n : stride ? stride : k, Epilogue::HALVES ? n : 0);
    };

    float sums[I][J][4], parts[PART ? I : 1][PART ? J : 1][4];
    auto clear = [](auto& sums) {
        for (auto& row : sums)
            for (auto& sum : row) sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
    };
    clear(sums);
    if (PART) clear(parts);
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < count) load(s, s);
        copies_commit();
    }
    const int row = WARP / ACROSS * WARP_ROWS, column = WARP % ACROSS * WARP_COLUMNS;
    for (int t = 0; t < count; ++t) {
        copies_wait<STAGES - 2>();
        sync_block();
        if (t + STAGES - 1 < count) load((t + STAGES - 1) % STAGES, t + STAGES - 1);
        copies_commit();
        const u32 x = tiles + t % STAGES * (X::BYTES + W::BYTES), w = x + X::BYTES;
#pragma unroll
        for (int kk = 0; kk < STEP / 16; ++kk) {
            u32 a[I][4], b[J / 2][4];
#pragma unroll
            for (int i = 0; i < I; ++i) X::left(a[i], x, row + i * 16, kk);
#pragma unroll
            for (int j = 0; j < J / 2; ++j) W::right(b[j], w, column + j * 16, kk);
#pragma unroll
            for (int i = 0; i < I; ++i)
#pragma unroll
                for (int j = 0; j < J; ++j) multiply_add(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
        if constexpr (PART > 0) {
            if ((t + 1) % PART == 0 || t + 1 == count) {
#pragma unroll
                for (int i = 0; i < I; ++i)
#pragma unroll
                    for (int j = 0; j < J; ++j)
#pragma unroll
                        for (int e = 0; e < 4; ++e) parts[i][j][e] = parts[i][j][e] + sums[i][j][e];
                clear(sums);
            }
        }
    }
    copies_wait<0>();
    sync_block();
    float* staged = (float*)shared_memory;
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
        for (int j = 0; j < J; ++j) stage(staged + (row + i * 16) * (COLUMNS + 8) + column + j * 8, COLUMNS + 8, PART ? parts[PART ? i : 0][PART ? j : 0] : sums[i][j]);
    sync_block();
    finish<ROWS, COLUMNS, THREADS>(staged, m0, n0, m, n, epilogue);
}

#define PAIRS const u16 *x0, const u16 *w0, u32 k0, const u16 *x1, const u16 *w1, u32 k1, const u16 *x2, const u16 *w2, u32 k2
#define GIVEN_PAIRS {x0, w0, x1, w1, x2, w2, (int)k0, (int)k1, (int)k2}
#define KERNEL extern "C" __global__ void __launch_bounds__

KERNEL(128, 2) matmul_nt_f32(float* y, const float* added, PAIRS, u32 m, u32 n) {
    product<128, 128, 64, 64, false, false>(GIVEN_PAIRS, m, n, 0, 0, StoreF32{y, added});
}
// w has gate's n rows, then up's.
KERNEL(128, 2) matmul_nt_swiglu(u16* y, float* gate, float* up, PAIRS, u32 m, u32 n) {
    product<128, 128, 64, 64, false, false>(GIVEN_PAIRS, m, n, 0, 0, Swiglu{y, gate, up});
}
// The z-th slice of k, one part or all of them, goes to the z-th [m, n] of y.
template <int ROWS, int WARP_ROWS, int WARP_COLUMNS> DEV void narrow(float* y, const u16* x, const u16* w, int m, int n, int k, int slice) {
    constexpr int PART = 256;
    const int first = BLOCK_Z * slice, own = smaller(k - first, slice);
    product<ROWS, 32, WARP_ROWS, WARP_COLUMNS, false, false, PART / STEP>({x, w, nullptr, nullptr, nullptr, nullptr, own, 0, 0}, m, n, k, first,
                                                                          StoreF32{y + (u64)BLOCK_Z * m * n, nullptr});
}
KERNEL(128, 4) matmul_nt_narrow(float* y, const u16* x, const u16* w, u32 m, u32 n, u32 k, u32 slice) { narrow<128, 32, 32>(y, x, w, m, n, k, slice); }
KERNEL(64, 8) matmul_few_narrow(float* y, const u16* x, const u16* w, u32 m, u32 n, u32 k, u32 slice) { narrow<16, 16, 16>(y, x, w, m, n, k, slice); }
KERNEL(128, 2) matmul_nn_f32(float* y, const float* added, PAIRS, u32 m, u32 n) {
    product<128, 128, 64, 64, false, true>(GIVEN_PAIRS, m, n, 0, 0, StoreF32{y, added});
}
KERNEL(128, 2) matmul_nn_swiglu_backward(u16* dgate, u16* dup, const float* gate, const float* up, PAIRS, u32 m, u32 n) {
    product<128, 128, 64, 64, false, true>(GIVEN_PAIRS, m, n, 0, 0, SwigluBackward{dgate, dup, gate, up});
}
// The z-th chunk of k goes to the z-th [m, n] of y. Rows of x are x_stride apart.
KERNEL(128, 4) matmul_tn(float* y, const u16* x, const u16* w, u32 m, u32 n, u32 k, u32 x_stride, u32 chunk) {
    const int first = BLOCK_Z * chunk, own = smaller(k - first, chunk);
    product<32, 128, 32, 32, true, true>({x, w, nullptr, nullptr, nullptr, nullptr, own, 0, 0}, m, n, x_stride, first,
                                         StoreF32{y + (u64)BLOCK_Z * m * n, nullptr});
}

// ---- few rows

constexpr int FEW_STEP = 128;

// TILES tiles of 16 rows of x, COLUMNS rows of w, a warp for each 8 of them.
template <int TILES, int COLUMNS, class Epilogue>
DEV void few(const Pairs& pairs, int m, int n, const Epilogue& epilogue) {
    constexpr int THREADS = COLUMNS * 4, ROWS = TILES * 16, WIDTH = FEW_STEP / 8;
    constexpr int X_BYTES = ROWS * FEW_STEP * 2, W_BYTES = COLUMNS * FEW_STEP * 2;
    constexpr int OWN = Epilogue::HALVES ? COLUMNS / 2 : COLUMNS;
    const u32 tiles = shared_address(shared_memory);
    const int n0 = BLOCK_X * OWN, m0 = BLOCK_Y * ROWS;
    const int t0 = (pairs.k0 + FEW_STEP - 1) / FEW_STEP, t1 = (pairs.k1 + FEW_STEP - 1) / FEW_STEP, t2 = (pairs.k2 + FEW_STEP - 1) / FEW_STEP;
    const int count = t0 + t1 + t2;
    auto load = [&](int stage, int t) {
        const u16 *x = pairs.x0, *w = pairs.w0;
        int k = pairs.k0, at = t;
        if (t >= t0) x = pairs.x1, w = pairs.w1, k = pairs.k1, at = t - t0;
        if (t >= t0 + t1) x = pairs.x2, w = pairs.w2, k = pairs.k2, at = t - t0 - t1;
        const u32 to = tiles + stage * (X_BYTES + W_BYTES);
#pragma unroll
        for (int i = 0; i < COLUMNS * WIDTH / THREADS; ++i) {
            const int id = THREAD + i * THREADS, r = id / WIDTH, c = id % WIDTH, from = at * FEW_STEP + c * 8;
            int row = n0 + r % OWN;
            const bool there = row < n && from < k;
            if (r >= OWN) row += n;
            copy16(to + X_BYTES + place<WIDTH>(r, c), w + (there ? (u64)row * k + from : 0), there);
        }
#pragma unroll
        for (int i = 0; i < ROWS * WIDTH / THREADS; ++i) {
            const int id = THREAD + i * THREADS, r = id / WIDTH, c = id % WIDTH, from = at * FEW_STEP + c * 8;
            const bool there = m0 + r < m && from < k;
            copy16(to + place<WIDTH>(r, c), x + (there ? (u64)(m0 + r) * k + from : 0), there);
        }
    };
    float sums[TILES][4];
#pragma unroll
    for (int i = 0; i < TILES; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < count) load(s, s);
        copies_commit();
    }
    for (int t = 0; t < count; ++t) {
        copies_wait<STAGES - 2>();
        sync_block();
        if (t + STAGES - 1 < count) load((t + STAGES - 1) % STAGES, t + STAGES - 1);
        copies_commit();
        const u32 x = tiles + t % STAGES * (X_BYTES + W_BYTES), w = x + X_BYTES;
#pragma unroll
        for (int kk = 0; kk < FEW_STEP / 32; ++kk) {
            u32 b[4];
            load_matrices(b, w + place<WIDTH>(WARP * 8 + (LANE & 7), kk * 4 + (LANE >> 3)));
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    u32 a[4];
                    load_matrices(a, x + place<WIDTH>(i * 16 + (LANE & 15), kk * 4 + half * 2 + (LANE >> 4)));
                    multiply_add(sums[i], a, b[half * 2], b[half * 2 + 1]);
                }
        }
    }
    copies_wait<0>();
    sync_block();
    float* staged = (float*)shared_memory;
#pragma unroll
    for (int i = 0; i < TILES; ++i) stage(staged + i * 16 * (COLUMNS + 8) + WARP * 8, COLUMNS + 8, sums[i]);
    sync_block();
    finish<ROWS, COLUMNS, THREADS>(staged, m0, n0, m, n, epilogue);
}

#define FEW(name, TILES, COLUMNS) \
    KERNEL(COLUMNS * 4) matmul_few_f32_##name(float* y, const float* added, PAIRS, u32 m, u32 n) { \
        few<TILES, COLUMNS>(GIVEN_PAIRS, m, n, StoreF32{y, added}); \
    } \
    KERNEL(COLUMNS * 4) matmul_few_swiglu_##name(u16* y, float* gate, float* up, PAIRS, u32 m, u32 n) { \
        few<TILES, COLUMNS>(GIVEN_PAIRS, m, n, Swiglu{y, gate, up}); \
    }
FEW(16x16, 1, 16)
FEW(16x32, 1, 32)
FEW(64x16, 4, 16)
FEW(64x32, 4, 32)

// ---- LoRA's factors

// LoRA's factors are f32. A product of f32 is that of its parts in bf16, high + low (the rest, below 2^-16, is
// dropped with low times low): l b = high high + low high + high low, one pair of products with three times the rank.

DEV void parts(float v, u16& high, u16& low) {
    high = to_bf16(v);
    low = to_bf16(v - from_bf16(high));
}

// Factor [rank, n] -> [3 rank, n]: high, high, low, row by row. The last two thirds are the factor's parts.
KERNEL(256) matmul_split_rows(u16* y, const float* x, u32 rank, u32 n) {
    const int i = BLOCK_X * 256 + THREAD, all = rank * n;
    if (i >= all) return;
    u16 high, low;
    parts(x[i], high, low);
    y[i] = y[all + i] = high;
    y[2 * all + i] = low;
}
// Factor [rank, n] -> [n, 3 rank]: the same, transposed.
KERNEL(256) matmul_split_columns(u16* y, const float* x, u32 rank, u32 n) {
    const int i = BLOCK_X * 256 + THREAD, r = i % rank, c = i / rank;
    if (c >= n) return;
    u16 high, low;
    parts(x[(u64)r * n + c], high, low);
    u16* to = y + (u64)c * 3 * rank + r;
    to[0] = to[rank] = high;
    to[2 * rank] = low;
}
// What x [m, k] gave with the factor's parts, slices of [m, 2 rank] -> their sum times `scale`, [m, 3 rank]: high, low, high.
KERNEL(256) matmul_lora_hidden(u16* y, const float* x, float scale, u32 m, u32 rank, u32 slices) {
    const int i = BLOCK_X * 256 + THREAD, r = i / rank, c = i % rank;
    if (r >= m) return;
    const float* from = x + (u64)r * 2 * rank + c;
    float of_high = 0.0f, of_low = 0.0f;
#pragma unroll 4
    for (int slice = 0; slice < slices; ++slice) {
        of_high = of_high + from[0], of_low = of_low + from[rank];
        from += (u64)m * 2 * rank;
    }
    u16 high, low;
    parts((of_high + of_low) * scale, high, low);
    u16* to = y + (u64)r * 3 * rank + c;
    to[0] = to[2 * rank] = high;
    to[rank] = low;
}
// x to bf16, four elements per thread.
KERNEL(256) matmul_round(u16* y, const float* x, u32 vectors) {
    const int i = BLOCK_X * 256 + THREAD;
    if (i < vectors) *(uint2*)(y + 4 * (u64)i) = pack_bf16(*(const float4*)(x + 4 * (u64)i));
}
