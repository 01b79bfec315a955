// A row's distribution from its logits, in the order of cpu/log_prob.rs and with its bits: blocks of 2048 entries,
// entry i of a block in lane i % 16, a block's sums around its own maximum, blocks joined in order in f64.
// A half warp is the 16 lanes. See cpu/log_prob.rs for the formulas.
#pragma once
#include "common.cuh"

constexpr int VOCAB_BLOCK = 2048;
constexpr float EXP_LOWEST = -87.3365f;

// Reference: lanes::exp, bit for bit: nothing is fused.
DEV float exp_lanes(float x) {
    const float round = 12582912.0f, rounded = x * 1.44269504f + round, n = rounded - round;
    const float r = x - n * 0.6933594f - n * -2.1219444e-4f;
    float q = 1.9875691e-4f;
    q = q * r + 1.3981999e-3f;
    q = q * r + 8.333452e-3f;
    q = q * r + 4.1665796e-2f;
    q = q * r + 1.6666665e-1f;
    q = q * r + 0.5f;
    const float power = q * (r * r) + r + 1.0f;
    float y = bits_float(float_bits(power) + (float_bits(rounded) << 23));
    if (x < EXP_LOWEST) y = 0.0f;
    if (x > 88.72283f) y = bits_float(0x7f800000u);
    return x != x ? x : y;
}

// Reference: lanes::ln of a positive normal x, bit for bit.
DEV double ln_exact(double x) {
    const u64 bits = double_bits(x);
    int n = (int)(bits >> 52) - 1023;
    double m = bits_double((bits & ((1ull << 52) - 1)) | (1023ull << 52));
    if (m > 1.4142135623730951) m = m * 0.5, n += 1;
    const double s = (m - 1.0) / (m + 1.0), square = s * s;
    double series = 0.0;
#pragma unroll
    for (int k = 12; k >= 1; --k) series = (series + 1.0 / (2 * k + 1)) * square;
    return n * 0.6931471805599453 + 2.0 * (s + s * series);
}

struct Block { float max, sum, weighted; };

// Sums of a block of `count` logits; a half warp works on it, all of it gets the result. `lane_max` becomes the lane's.
DEV Block block_sums(const float* z, int count, float inverse, float& lane_max) {
    const int lane = LANE & 15;
    lane_max = NEGATIVE_INFINITY;
    bool nan = false;
    for (int i = lane; i < count; i += 16) {
        const float v = z[i];
        if (v > lane_max) lane_max = v;
        nan = nan || v != v;
    }
    Block b;
    b.max = lane_max;
#pragma unroll
    for (int mask = 8; mask; mask >>= 1) {
        const float other = shuffle_xor(b.max, mask);
        if (other > b.max) b.max = other;
    }
    float sum = 0.0f, weighted = 0.0f;
    if (b.max == NEGATIVE_INFINITY) {
        sum = nan ? bits_float(0x7fc00000u) : 0.0f;
    } else {
        for (int i = lane; i < count; i += 16) {
            const float d = (z[i] - b.max) * inverse, power = exp_lanes(d);
            sum = sum + power;
            weighted = weighted + (d < EXP_LOWEST ? EXP_LOWEST : d) * power;
        }
    }
    // Lane i + lane i + 8, then + 4, + 2, + 1: sums of two, whichever lane has them, have the same bits.
#pragma unroll
    for (int mask = 8; mask; mask >>= 1) sum = sum + shuffle_xor(sum, mask), weighted = weighted + shuffle_xor(weighted, mask);
    b.sum = sum, b.weighted = weighted;
    return b;
}

// The sums of a row, joined block by block.
struct Joined {
    float max;
    double sum, weighted;
    DEV void start() { max = NEGATIVE_INFINITY, sum = 0.0, weighted = 0.0; }
    DEV static void around(float to, float from, float inverse, double& sum, double& weighted) {
        float shift = (from - to) * inverse;
        const double scale = exp_lanes(shift);
        if (shift < EXP_LOWEST) shift = EXP_LOWEST;
        weighted = (weighted + (double)shift * sum) * scale;
        sum = sum * scale;
    }
    DEV void join(const Block& b, float inverse) {
        double other = b.sum, other_weighted = b.weighted;
        if (b.max == NEGATIVE_INFINITY) {
            sum = sum + other;
            return;
        }
        const float to = b.max > max ? b.max : max;
        around(to, max, inverse, sum, weighted);
        around(to, b.max, inverse, other, other_weighted);
        max = to, sum = sum + other, weighted = weighted + other_weighted;
    }
    // 0, or which LogitsError it is: 1 NotANumber, 2 PositiveInfinity, 3 AllNegativeInfinity.
    DEV u32 status() const {
        if (max == bits_float(0x7f800000u)) return 2;
        if (sum != sum) return 1;
        return max == NEGATIVE_INFINITY ? 3 : 0;
    }
};
