// RMSNorm over rows of n: y = x r w, r = (mean(x^2) + eps)^-1/2, reference: cpu/rms_norm.rs: the sum and r in f64,
// y rounded once (then to bf16, where it goes into a product).
// Layout: x, y [rows, n], w [n], n a multiple of 4 and at most 4096 (narrow: 256). With `heads`, QK-norm: rows are
// rows * heads and n is head_dim.
// Launch: wide, one block of 256 threads per row; narrow, one warp per row, four rows per block.
// Bound: bytes. x is read once and kept in registers; backward reads dy too.
#include "common.cuh"

constexpr int WIDE = 256, NARROW = 128;

// A row in registers, four values per vector, `step` threads side by side.
template <int VECTORS> struct Row {
    float4 v[VECTORS];
    DEV void load(const float* x, int n, int thread, int step) {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            const int at = 4 * (thread + i * step);
            if (at < n) v[i] = *(const float4*)(x + at);
            else v[i].x = v[i].y = v[i].z = v[i].w = 0.0f;
        }
    }
    DEV double sum_of_squares() const {
        double sum = 0.0;
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            const double a = v[i].x, b = v[i].y, c = v[i].z, d = v[i].w;
            sum = fused(a, a, sum), sum = fused(b, b, sum), sum = fused(c, c, sum), sum = fused(d, d, sum);
        }
        return sum;
    }
};

DEV void store(float* y, float4 v) { *(float4*)y = v; }
DEV void store(u16* y, float4 v) { *(uint2*)y = pack_bf16(v); }

DEV float normalized(float x, double r, float w) { return (float)((double)x * r * (double)w); }

template <int VECTORS, class Y>
DEV void write_row(Y* y, const Row<VECTORS>& x, const float* w, double r, int n, int thread, int step) {
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const int at = 4 * (thread + i * step);
        if (at >= n) break;
        const float4 s = *(const float4*)(w + at);
        float4 out;
        out.x = normalized(x.v[i].x, r, s.x), out.y = normalized(x.v[i].y, r, s.y);
        out.z = normalized(x.v[i].z, r, s.z), out.w = normalized(x.v[i].w, r, s.w);
        store(y + at, out);
    }
}

DEV double inverse_root(double sum, int n, float eps) { return 1.0 / square_root(sum / n + (double)eps); }

template <class Y> DEV void wide(Y* y, const float* x, const float* w, int n, float eps) {
    __shared__ double shared[WIDE / 32];
    const u64 first = (u64)BLOCK_X * n;
    Row<4> row;
    row.load(x + first, n, THREAD, WIDE);
    const double r = inverse_root(block_sum<WIDE / 32>(row.sum_of_squares(), shared), n, eps);
    write_row(y + first, row, w, r, n, THREAD, WIDE);
}

template <class Y> DEV void narrow(Y* y, const float* x, const float* w, int rows, int n, float eps) {
    const int index = BLOCK_X * (NARROW / 32) + WARP;
    if (index >= rows) return;
    const u64 first = (u64)index * n;
    Row<2> row;
    row.load(x + first, n, LANE, 32);
    const double r = inverse_root(warp_sum(row.sum_of_squares()), n, eps);
    write_row(y + first, row, w, r, n, LANE, 32);
}

extern "C" __global__ void __launch_bounds__(WIDE) rms_norm_wide_f32(float* y, const float* x, const float* w, u32 n, float eps) {
    wide(y, x, w, n, eps);
}
extern "C" __global__ void __launch_bounds__(WIDE) rms_norm_wide_bf16(u16* y, const float* x, const float* w, u32 n, float eps) {
    wide(y, x, w, n, eps);
}
extern "C" __global__ void __launch_bounds__(NARROW) rms_norm_narrow_f32(float* y, const float* x, const float* w, u32 rows, u32 n, float eps) {
    narrow(y, x, w, rows, n, eps);
}
extern "C" __global__ void __launch_bounds__(NARROW) rms_norm_narrow_bf16(u16* y, const float* x, const float* w, u32 rows, u32 n, float eps) {
    narrow(y, x, w, rows, n, eps);
}

// dx = r w dy - x (r^3 / n) sum(dy w x), added to dx if `add` is not 0 (the gradient that passes by on the residual).
// w is frozen: no dw.
template <int VECTORS> DEV double dot(const Row<VECTORS>& x, const float* dy, const float* w, int n, int thread, int step) {
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const int at = 4 * (thread + i * step);
        if (at >= n) break;
        const float4 g = *(const float4*)(dy + at), s = *(const float4*)(w + at);
        sum = fused((double)g.x * s.x, (double)x.v[i].x, sum), sum = fused((double)g.y * s.y, (double)x.v[i].y, sum);
        sum = fused((double)g.z * s.z, (double)x.v[i].z, sum), sum = fused((double)g.w * s.w, (double)x.v[i].w, sum);
    }
    return sum;
}

template <int VECTORS>
DEV void write_gradient(float* dx, const Row<VECTORS>& x, const float* dy, const float* w, float r, float c, int n, int thread, int step, bool add) {
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const int at = 4 * (thread + i * step);
        if (at >= n) break;
        const float4 g = *(const float4*)(dy + at), s = *(const float4*)(w + at);
        float4 out;
        out.x = g.x * s.x * r - x.v[i].x * c, out.y = g.y * s.y * r - x.v[i].y * c;
        out.z = g.z * s.z * r - x.v[i].z * c, out.w = g.w * s.w * r - x.v[i].w * c;
        if (add) {
            const float4 old = *(const float4*)(dx + at);
            out.x = old.x + out.x, out.y = old.y + out.y, out.z = old.z + out.z, out.w = old.w + out.w;
        }
        *(float4*)(dx + at) = out;
    }
}

DEV float coefficient(double r, double sum, int n) { return (float)(r * r * r / n * sum); }

extern "C" __global__ void __launch_bounds__(WIDE) rms_norm_wide_backward(float* dx, const float* dy, const float* x, const float* w, u32 n, float eps, u32 add) {
    __shared__ double shared[2][WIDE / 32];
    const u64 first = (u64)BLOCK_X * n;
    Row<4> row;
    row.load(x + first, n, THREAD, WIDE);
    const double r = inverse_root(block_sum<WIDE / 32>(row.sum_of_squares(), shared[0]), n, eps);
    const double sum = block_sum<WIDE / 32>(dot(row, dy + first, w, n, THREAD, WIDE), shared[1]);
    write_gradient(dx + first, row, dy + first, w, (float)r, coefficient(r, sum, n), n, THREAD, WIDE, add);
}
extern "C" __global__ void __launch_bounds__(NARROW) rms_norm_narrow_backward(float* dx, const float* dy, const float* x, const float* w, u32 rows, u32 n, float eps, u32 add) {
    const int index = BLOCK_X * (NARROW / 32) + WARP;
    if (index >= rows) return;
    const u64 first = (u64)index * n;
    Row<2> row;
    row.load(x + first, n, LANE, 32);
    const double r = inverse_root(warp_sum(row.sum_of_squares()), n, eps);
    const double sum = warp_sum(dot(row, dy + first, w, n, LANE, 32));
    write_gradient(dx + first, row, dy + first, w, (float)r, coefficient(r, sum, n), n, LANE, 32, add);
}
