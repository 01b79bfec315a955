// One AdamW step, fused; reference: cpu/adamw.rs, bit for bit: the same operations in the same order, none contracted.
// Layout: masters w, moments m and v, gradients dw, all f32, lengths multiples of 4.
// Launch: 256 threads per block, four elements each. Bound: bytes, 28 per element.
#include "common.cuh"

struct Step { float scale, decay, first_weight, second_decay, second_weight, correction, epsilon, step_size; };

DEV void update(float& w, float& m, float& v, float dw, const Step& s) {
    const float g = dw * s.scale;
    w = w * s.decay;
    m = m + s.first_weight * (g - m);
    v = v * s.second_decay;
    v = v + s.second_weight * g * g;
    w = w - s.step_size * m / (square_root(v) / s.correction + s.epsilon);
}

extern "C" __global__ void __launch_bounds__(256) adamw_step(float* w, float* m, float* v, const float* dw, u32 vectors, float scale, float decay, float first_weight,
                                      float second_decay, float second_weight, float correction, float epsilon, float step_size) {
    const u32 i = BLOCK_X * 256 + THREAD;
    if (i >= vectors) return;
    const Step s = {scale, decay, first_weight, second_decay, second_weight, correction, epsilon, step_size};
    float4 a = ((float4*)w)[i], b = ((float4*)m)[i], c = ((float4*)v)[i];
    const float4 g = ((const float4*)dw)[i];
    update(a.x, b.x, c.x, g.x, s);
    update(a.y, b.y, c.y, g.y, s);
    update(a.z, b.z, c.z, g.z, s);
    update(a.w, b.w, c.w, g.w, s);
    ((float4*)w)[i] = a, ((float4*)m)[i] = b, ((float4*)v)[i] = c;
}
