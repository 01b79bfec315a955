// Log-probability of a token and entropy from rows of logits that come a part of the vocabulary at a time (the product
// with the head goes to a part-sized buffer that stays in the second-level cache), and the gradient of such a part;
// reference: cpu/log_prob.rs, bit for bit.
// Layout: logits [rows, stride] f32, of which `width` are tokens, the first of them `first`; stride a multiple of 8, width
// of 2048 unless it is the last;
// sums [rows, 3] f64: max, S, W; distributions [rows, 4] f64: max, S, ln S, H; chosen [rows]: the token's logit.
// Launch: log_prob_join and log_prob_backward one block of 256 threads per row, log_prob_finish one thread per row.
// Bound: bytes of logits.
#include "log_prob.cuh"

constexpr int HALF_WARPS = 16;

extern "C" __global__ void __launch_bounds__(256) log_prob_join(double* sums, float* chosen, const float* logits, const u32* tokens, u32 width, u32 stride, u32 first, float inverse) {
    __shared__ Block blocks[HALF_WARPS];
    const float* z = logits + (u64)BLOCK_X * stride;
    const int half = THREAD >> 4, count = (width + VOCAB_BLOCK - 1) / VOCAB_BLOCK;
    double* of_row = sums + 3 * (u64)BLOCK_X;
    Joined joined;
    joined.start();
    if (first > 0) joined.max = (float)of_row[0], joined.sum = of_row[1], joined.weighted = of_row[2];
    for (int done = 0; done < count; done += HALF_WARPS) {
        const int at = (done + half) * VOCAB_BLOCK;
        float lane_max;
        // A half warp beyond the end has a block of nothing; shuffles need it all the same.
        const Block b = block_sums(z + at, larger(0, smaller(VOCAB_BLOCK, (int)width - at)), inverse, lane_max);
        if ((LANE & 15) == 0) blocks[half] = b;
        sync_block();
        if (THREAD == 0)
            for (int i = 0; i < smaller(HALF_WARPS, count - done); ++i) joined.join(blocks[i], inverse);
        sync_block();
    }
    if (THREAD == 0) {
        of_row[0] = joined.max, of_row[1] = joined.sum, of_row[2] = joined.weighted;
        const u32 token = tokens[BLOCK_X];
        if (token >= first && token - first < width) chosen[BLOCK_X] = z[token - first];
    }
}

// Writes [rows, 2]: log-probability and entropy; the row's distribution; and 0 or what is wrong with its logits.
extern "C" __global__ void __launch_bounds__(128) log_prob_finish(float* out, double* distributions, u32* status, const double* sums, const float* chosen, u32 rows, float inverse) {
    const u32 row = BLOCK_X * 128 + THREAD;
    if (row >= rows) return;
    Joined joined;
    joined.max = (float)sums[3 * row], joined.sum = sums[3 * row + 1], joined.weighted = sums[3 * row + 2];
    const u32 wrong = joined.status();
    status[row] = wrong;
    const double log_sum = wrong ? 0.0 : ln_exact(joined.sum), entropy = log_sum - joined.weighted / joined.sum;
    double* d = distributions + 4 * (u64)row;
    d[0] = joined.max, d[1] = joined.sum, d[2] = log_sum, d[3] = entropy;
    out[2 * row] = (float)((double)((chosen[row] - joined.max) * inverse) - log_sum);
    out[2 * row + 1] = (float)entropy;
}

// dz = -p (g + h (log p + H)) / T, and g / T more for the token, rounded to bf16 for the product with the head;
// 0 behind the tokens. gradients [rows, 2]: g and h, those of the log-probability and of the entropy.
extern "C" __global__ void __launch_bounds__(256) log_prob_backward(u16* dz, const float* logits, const double* distributions, const float* gradients, const u32* tokens, u32 width, u32 stride, u32 first, float inverse) {
    const double* d = distributions + 4 * (u64)BLOCK_X;
    const float max = (float)d[0], scale = (float)(1.0 / d[1]), log_sum = (float)d[2], entropy = (float)d[3];
    const float g = gradients[2 * BLOCK_X], h = gradients[2 * BLOCK_X + 1], of_token = g * inverse;
    const u32 token = tokens[BLOCK_X] - first;
    const float4* z = (const float4*)(logits + (u64)BLOCK_X * stride);
    uint2* to = (uint2*)(dz + (u64)BLOCK_X * stride);
    auto gradient = [&](float logit, u32 index) {
        float d = (logit - max) * inverse;
        const float p = exp_lanes(d) * scale;
        if (d < EXP_LOWEST) d = EXP_LOWEST;
        const float all = -p * (g + h * (d - log_sum + entropy)) * inverse;
        return index >= width ? 0.0f : index == token ? all + of_token : all;
    };
    for (u32 i = THREAD; i < stride / 4; i += 256) {
        float4 v = z[i];
        v.x = gradient(v.x, 4 * i), v.y = gradient(v.y, 4 * i + 1), v.z = gradient(v.z, 4 * i + 2), v.w = gradient(v.w, 4 * i + 3);
        to[i] = pack_bf16(v);
    }
}
