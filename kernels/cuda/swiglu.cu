// SwiGLU: y = silu(gate) up, and its gradients; reference: cpu/swiglu.rs. matmul.cu has both as epilogues: here they
// are for what does not come from a product on the tensor cores.
// Layout: f32 in; f32 or, where a product comes next, bf16 out; lengths multiples of 4.
// Launch: 256 threads per block, four elements each. Bound: bytes.
#include "common.cuh"

DEV void store(float* y, u32 i, float4 v) { ((float4*)y)[i] = v; }
DEV void store(u16* y, u32 i, float4 v) { ((uint2*)y)[i] = pack_bf16(v); }

template <class Y> DEV void forward(Y* y, const float* gate, const float* up, u32 vectors) {
    const u32 i = BLOCK_X * 256 + THREAD;
    if (i >= vectors) return;
    const float4 g = ((const float4*)gate)[i], u = ((const float4*)up)[i];
    float4 v;
    v.x = silu(g.x) * u.x, v.y = silu(g.y) * u.y, v.z = silu(g.z) * u.z, v.w = silu(g.w) * u.w;
    store(y, i, v);
}

template <class Y> DEV void backward(Y* dgate, Y* dup, const float* dy, const float* gate, const float* up, u32 vectors) {
    const u32 i = BLOCK_X * 256 + THREAD;
    if (i >= vectors) return;
    const float4 d = ((const float4*)dy)[i], g = ((const float4*)gate)[i], u = ((const float4*)up)[i];
    const float2 a = swiglu_gradient(d.x, g.x, u.x), b = swiglu_gradient(d.y, g.y, u.y);
    const float2 c = swiglu_gradient(d.z, g.z, u.z), e = swiglu_gradient(d.w, g.w, u.w);
    float4 of_gate, of_up;
    of_gate.x = a.x, of_gate.y = b.x, of_gate.z = c.x, of_gate.w = e.x;
    of_up.x = a.y, of_up.y = b.y, of_up.z = c.y, of_up.w = e.y;
    store(dgate, i, of_gate);
    store(dup, i, of_up);
}

#define KERNEL extern "C" __global__ void __launch_bounds__(256)
KERNEL swiglu_f32(float* y, const float* gate, const float* up, u32 vectors) { forward(y, gate, up, vectors); }
KERNEL swiglu_bf16(u16* y, const float* gate, const float* up, u32 vectors) { forward(y, gate, up, vectors); }
KERNEL swiglu_backward_f32(float* dgate, float* dup, const float* dy, const float* gate, const float* up, u32 vectors) {
    backward(dgate, dup, dy, gate, up, vectors);
}
KERNEL swiglu_backward_bf16(u16* dgate, u16* dup, const float* dy, const float* gate, const float* up, u32 vectors) {
    backward(dgate, dup, dy, gate, up, vectors);
}
