// What the kernels share: types, warp and block primitives, and the instructions C++ has no name for.
// No header of the CUDA SDK: nvcc and clang both compile it. bf16 is its 16 bits in a u16.
// The build forbids contraction of a*b + c (see build.rs); fused() is a fused multiply-add.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __clang__
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#define DEV __device__ inline __attribute__((always_inline))
#define THREAD ((int)__nvvm_read_ptx_sreg_tid_x())
#define BLOCK_X ((int)__nvvm_read_ptx_sreg_ctaid_x())
#define BLOCK_Y ((int)__nvvm_read_ptx_sreg_ctaid_y())
#define BLOCK_Z ((int)__nvvm_read_ptx_sreg_ctaid_z())
#define GRID_X ((int)__nvvm_read_ptx_sreg_nctaid_x())
DEV void sync_block() { __nvvm_barrier_sync(0); }
DEV void sync_warp() { __nvvm_bar_warp_sync(0xffffffffu); }
DEV u32 shuffle_xor_bits(u32 v, int mask) { return __nvvm_shfl_sync_bfly_i32(0xffffffffu, v, mask, 31); }
DEV u32 shuffle_bits(u32 v, int lane) { return __nvvm_shfl_sync_idx_i32(0xffffffffu, v, lane, 31); }
struct __attribute__((aligned(16))) float4 { float x, y, z, w; };
struct __attribute__((aligned(8))) float2 { float x, y; };
struct __attribute__((aligned(16))) uint4 { u32 x, y, z, w; };
struct __attribute__((aligned(8))) uint2 { u32 x, y; };
#else
#define DEV __device__ __forceinline__
#define THREAD ((int)threadIdx.x)
#define BLOCK_X ((int)blockIdx.x)
#define BLOCK_Y ((int)blockIdx.y)
#define BLOCK_Z ((int)blockIdx.z)
#define GRID_X ((int)gridDim.x)
DEV void sync_block() { __syncthreads(); }
DEV void sync_warp() { __syncwarp(); }
DEV u32 shuffle_xor_bits(u32 v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEV u32 shuffle_bits(u32 v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
#endif

#define LANE (THREAD & 31)
#define WARP (THREAD >> 5)

// f(0) to f(N - 1), each with its number as a constant, for what an instruction has no register for.
template <int N> struct Constant { static constexpr int value = N; };
template <int N, int I = 0, class F> DEV void each(const F& f) {
    if constexpr (I < N) f(Constant<I>()), each<N, I + 1>(f);
}
#define NUMBER(constant) decltype(constant)::value

// ---- bits

DEV u32 float_bits(float v) { u32 b; asm("mov.b32 %0, %1;" : "=r"(b) : "f"(v)); return b; }
DEV float bits_float(u32 b) { float v; asm("mov.b32 %0, %1;" : "=f"(v) : "r"(b)); return v; }
DEV u64 double_bits(double v) { u64 b; asm("mov.b64 %0, %1;" : "=l"(b) : "d"(v)); return b; }
DEV double bits_double(u64 b) { double v; asm("mov.b64 %0, %1;" : "=d"(v) : "l"(b)); return v; }

#define NEGATIVE_INFINITY bits_float(0xff800000u)

// bf16 to nearest even: one value, and a pair with the first in the low half.
DEV u32 pack_bf16(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
DEV u16 to_bf16(float v) { return (u16)pack_bf16(v, 0.0f); }
DEV float from_bf16(u16 b) { return bits_float((u32)b << 16); }
DEV float low_of(u32 pair) { return bits_float(pair << 16); }
DEV float high_of(u32 pair) { return bits_float(pair & 0xffff0000u); }
DEV float round_bf16(float v) { return low_of(pack_bf16(v, 0.0f)); }
DEV uint2 pack_bf16(float4 v) {
    uint2 out;
    out.x = pack_bf16(v.x, v.y);
    out.y = pack_bf16(v.z, v.w);
    return out;
}
DEV float4 from_bf16(uint2 b) {
    float4 v;
    v.x = low_of(b.x), v.y = high_of(b.x), v.z = low_of(b.y), v.w = high_of(b.y);
    return v;
}

// Whole-vector stores where the compiler would take a structure apart.
DEV void store_whole(float* to, float4 v) { asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory"); }
DEV void store_whole(u16* to, uint2 v) { asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(v.x), "r"(v.y) : "memory"); }

// ---- arithmetic

DEV float fused(float a, float b, float c) { float d; asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c)); return d; }
DEV double fused(double a, double b, double c) { double d; asm("fma.rn.f64 %0, %1, %2, %3;" : "=d"(d) : "d"(a), "d"(b), "d"(c)); return d; }
DEV float square_root(float a) { float d; asm("sqrt.rn.f32 %0, %1;" : "=f"(d) : "f"(a)); return d; }
DEV double square_root(double a) { double d; asm("sqrt.rn.f64 %0, %1;" : "=d"(d) : "d"(a)); return d; }
// 2^a within 2 units in the last place; subnormal results are 0.
DEV float exp2_fast(float a) { float d; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a)); return d; }
DEV float log2_fast(float a) { float d; asm("lg2.approx.f32 %0, %1;" : "=f"(d) : "f"(a)); return d; }
// 1 / a within 1 unit in the last place; of infinity, and of what would be subnormal, 0.
DEV float reciprocal(float a) { float d; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a)); return d; }
// Bounds that NaN passes.
DEV float at_least(float a, float bound) { float d; asm("max.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(bound)); return d; }
DEV float at_most(float a, float bound) { float d; asm("min.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(bound)); return d; }
DEV float larger(float a, float b) { float d; asm("max.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b)); return d; }
// The upper half of a b.
DEV u32 multiply_high(u32 a, u32 b) { u32 d; asm("mul.hi.u32 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b)); return d; }
DEV int smaller(int a, int b) { return a < b ? a : b; }
DEV int larger(int a, int b) { return a > b ? a : b; }

// ---- warps and blocks

DEV float shuffle_xor(float v, int mask) { return bits_float(shuffle_xor_bits(float_bits(v), mask)); }
DEV u64 shuffle_xor(u64 v, int mask) {
    const u32 low = shuffle_xor_bits((u32)v, mask), high = shuffle_xor_bits((u32)(v >> 32), mask);
    return (u64)high << 32 | low;
}
DEV double shuffle_xor(double v, int mask) { return bits_double(shuffle_xor(double_bits(v), mask)); }

// The sum of all lanes, in every lane, by halves: the order does not depend on who is there.
template <class T> DEV T warp_sum(T v) {
#pragma unroll
    for (int mask = 16; mask; mask >>= 1) v = v + shuffle_xor(v, mask);
    return v;
}

// The sum over a block of WARPS warps, in every thread. `shared` has WARPS elements; the block has passed a
// barrier since it was last used.
template <int WARPS, class T> DEV T block_sum(T v, T* shared) {
    v = warp_sum(v);
    if (WARPS == 1) return v;
    if (LANE == 0) shared[WARP] = v;
    sync_block();
    T sum = shared[0];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) sum = sum + shared[i];
    return sum;
}

// ---- asynchronous copies to shared memory

DEV u32 shared_address(const void* p) {
    u32 a;
    asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(a) : "l"(p));
    return a;
}
// 16 bytes, or zeros where `there` is false (then `from` is not read, but must be an address all the same).
DEV void copy16(u32 to, const void* from, bool there) {
    const int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// The same of 8 bytes.
DEV void copy8(u32 to, const void* from, bool there) {
    const int bytes = there ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// 16 bytes that are there, TO and FROM bytes on.
template <int TO, int FROM> DEV void copy16_on(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %3], 16;" ::"r"(to), "l"(from), "n"(TO), "n"(FROM) : "memory");
}
DEV void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last N groups have landed.
template <int N> DEV void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- tensor cores

// Four 8x8 matrices of bf16; each lane names a row of 16 bytes (lanes 8i..8i+7 those of matrix i).
template <int OFFSET = 0> DEV void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address), "n"(OFFSET) : "memory");
}
// The same, transposed.
template <int OFFSET = 0> DEV void load_matrices_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address), "n"(OFFSET) : "memory");
}
// d += a b: 16x16 by 16x8. Lane l holds of d rows l/4 and l/4 + 8, columns 2(l%4) and the next.
DEV void multiply_add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- SwiGLU; reference: cpu/swiglu.rs

// Sigmoid within 3 units in the last place, in few instructions: an epilogue shares the lanes with the product's
// addresses. 2^t has t = -x log2(e) in two parts, high + low: one part would cost 14 units at x = -20. Bounds keep
// infinities out of the parts: 1 / (2^184 + 1) is 0 and 1 / (2^-184 + 1) is 1, NaN stays.
DEV float sigmoid(float x) {
    x = at_most(at_least(x, -128.0f), 128.0f);
    const float high = x * -1.44269502f, low = fused(x, -1.92596303e-8f, fused(x, -1.44269502f, -high));
    const float e = exp2_fast(high);
    return reciprocal(e * fused(low, 0.693147181f, 1.0f) + 1.0f);
}

// A finite factor keeps -inf times 0 away.
DEV float silu(float x) { return at_least(x, -3.40282347e38f) * sigmoid(x); }

// Gradients of gate and up of y = silu(gate) up.
DEV float2 swiglu_gradient(float dy, float gate, float up) {
    gate = at_least(gate, -3.40282347e38f);
    const float s = sigmoid(gate);
    float2 d;
    d.x = dy * up * (s * fused(gate, 1.0f - s, 1.0f));
    d.y = dy * (gate * s);
    return d;
}

// ---- random numbers

// Philox4x32-10, reference: cpu/philox.rs; the counter is position, stream and sequence, low and high.
DEV void philox(u32 (&c)[4], u32 key0, u32 key1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 a = (u64)c[0] * 0xD2511F53u, b = (u64)c[2] * 0xCD9E8D57u;
        const u32 c1 = c[1], c3 = c[3];
        c[0] = (u32)(b >> 32) ^ c1 ^ key0;
        c[1] = (u32)b;
        c[2] = (u32)(a >> 32) ^ c3 ^ key1;
        c[3] = (u32)a;
        key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
    }
}
