// What attention.cu and attention_backward.cu share: tiles of rows of D in shared memory, and a warp's fragments of them.
#pragma once
#include "common.cuh"

extern __shared__ __attribute__((aligned(256))) u8 shared_memory[];

// Bytes from a tile's start to chunk c (of 8 elements) of row r, rows of D. Eight consecutive rows of one chunk, as ldmatrix
// reads them, lie in different banks.
template <int D> DEV int place(int r, int c) {
    const int s = D < 64 ? r / (D < 64 ? 64 / D : 1) & (D / 8 - 1) : r & 7;
    return (r * (D / 8) + (c ^ s)) * 16;
}

// A tile begins at a multiple of its rows' bytes. So the lane's place among the columns 16 i to 16 i + 15 is that among the
// first with bits flipped (along), and 16 rows on is a fixed distance: one address serves a whole tile.
template <int D> constexpr int SIXTEEN = 16 * D * 2;
template <int I> DEV u32 along(u32 at) { return at ^ (I * 32); }
// As the left side of an mma: 16 rows. With load_matrices_transposed also 16 k of a right side.
template <int D> DEV u32 rows_at(u32 tile, int row) { return tile + place<D>(row + (LANE & 15), LANE >> 4); }
// As the right side: two n8 tiles.
template <int D> DEV u32 columns_at(u32 tile, int row) { return tile + place<D>(row + (LANE & 7) + ((LANE >> 4) << 3), (LANE >> 3) & 1); }

template <int N> DEV void clear(float (&sums)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
}
