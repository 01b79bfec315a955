// Draws a token from each row of logits; reference: cpu/sample.rs: temperature, top-k, top-p, min-p, then the inverse of the
// cumulative distribution at a number drawn by Philox. Sums have the reference's order, so the same logits give the same
// token, log-probability and entropy, bit for bit.
// What is kept is a prefix of one ranking (logit, then id). Its last token is found by bisecting the bits of the logit
// over a list of candidates: counts and masses are integers, whose sums have no order.
// Layout: logits [rows, stride] f32, of which vocab are tokens; a row's parameters are 12 words (Request below); scratch [rows, vocab] of candidates:
// id, logit as an ordered integer, weight. Out [rows, 4]: token, log-probability, entropy, and 0 or what is wrong.
// Launch: one block of 512 threads per row. Bound: latency; without truncation bytes of logits, which are read twice.
#include "log_prob.cuh"

constexpr int THREADS = 512, HALF_WARPS = THREADS / 16;
constexpr double MASS_UNIT = 1099511627776.0;  // 2^40

struct Request {
    float inverse;      // 1 / T
    u32 greedy, top_k;  // top_k 0 keeps all
    float top_p, lowest;  // ln min_p, or -inf
    u32 seed0, seed1, stream, sequence0, sequence1, position, unused;
};

// Integers in the order of floats; both zeros are equal.
DEV u32 ordered(float z) {
    const u32 b = float_bits(z + 0.0f);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

// The sum over the block, in every thread. `shared` has 16 places; barriers before and after use are this function's.
template <class T> DEV T total_of(T v, T* shared) {
    sync_block();
    v = block_sum<THREADS / 32>(v, shared);
    return v;
}

struct Candidates {
    u32 *ids, *keys;
    float* weights;
    u32 count;
};

// A cut of the ranking: tokens up to this one, in rank, are kept.
struct Cut {
    u32 key, id;
    DEV bool keeps(u32 k, u32 i) const { return k > key || (k == key && i <= id); }
};

DEV u64 mass_of(float weight) { return (u64)((double)weight * MASS_UNIT); }

// The shortest prefix of the ranking within `cut` that measures `target`; `cut` itself if all measures less.
DEV Cut shortest(const Candidates& c, Cut cut, bool masses, u64 target, u64* shared) {
    auto measure = [&](u32 from, bool above) {
        u64 sum = 0;
        for (u32 i = THREAD; i < c.count; i += THREADS) {
            const u32 key = c.keys[i];
            if ((above ? key > from : key >= from) && cut.keeps(key, c.ids[i])) sum += masses ? mass_of(c.weights[i]) : 1;
        }
        return total_of(sum, shared);
    };
    if (measure(0, false) < target) return cut;
    Cut out = {0, 0};
    for (int bit = 31; bit >= 0; --bit)
        if (measure(out.key | 1u << bit, false) >= target) out.key |= 1u << bit;
    const u64 left = target - measure(out.key, true);
    // Of the tokens with this logit, which weigh the same, the lowest ids that measure what is left.
    auto ties = [&](u32 up_to) {
        u64 sum = 0;
        for (u32 i = THREAD; i < c.count; i += THREADS)
            if (c.keys[i] == out.key && c.ids[i] <= up_to && cut.keeps(c.keys[i], c.ids[i])) sum += masses ? mass_of(c.weights[i]) : 1;
        return total_of(sum, shared);
    };
    // The largest id at which they do not yet measure it, and one more.
    u32 below = 0;
    if (ties(0) >= left) return out;
    for (int bit = 23; bit >= 0; --bit)
        if (ties(below | 1u << bit) < left) below |= 1u << bit;
    out.id = below + 1;
    return out;
}

// The tokens with d >= lowest, in the order of the vocabulary.
DEV void gather(Candidates& c, const float* z, u32 vocab, float max, float inverse, float lowest, u32* shared) {
    c.count = 0;
    for (u32 first = 0; first < vocab; first += THREADS) {
        const u32 i = first + THREAD;
        const float logit = i < vocab ? z[i] : NEGATIVE_INFINITY, d = (logit - max) * inverse;
        const bool kept = d >= lowest && logit > NEGATIVE_INFINITY;
        // How many of the threads before this one keep theirs.
        u32 before = kept ? 1 : 0;
#pragma unroll
        for (int offset = 1; offset < 32; offset <<= 1) {
            const u32 other = shuffle_bits(before, (LANE - offset) & 31);
            if (LANE >= offset) before += other;
        }
        sync_block();
        if (LANE == 31) shared[WARP] = before;
        sync_block();
        u32 of_warps = 0, all = 0;
#pragma unroll
        for (int w = 0; w < THREADS / 32; ++w) {
            if (w < WARP) of_warps += shared[w];
            all += shared[w];
        }
        if (kept) {
            const u32 at = c.count + of_warps + before - 1;
            c.ids[at] = i, c.keys[at] = ordered(logit), c.weights[at] = exp_lanes(d);
        }
        c.count += all;
    }
    sync_block();
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) sample_draw(u32* out, const float* logits, const u32* requests, u32* ids, u32* keys, float* weights, float* lane_maxima, u32 vocab, u32 stride) {
    // Blocks of the row; later weights of a part of it.
    extern __shared__ __attribute__((aligned(16))) u8 dynamic[];
    Block* blocks = (Block*)dynamic;
    __shared__ u64 sums[THREADS / 32];
    __shared__ double of_thread_0[3];
    __shared__ u32 found;
    const float* z = logits + (u64)BLOCK_X * stride;
    const Request r = ((const Request*)requests)[BLOCK_X];
    const int count = (vocab + VOCAB_BLOCK - 1) / VOCAB_BLOCK, half = THREAD >> 4;
    float* maxima = lane_maxima + (u64)BLOCK_X * count * 16;
    for (int done = 0; done < count; done += HALF_WARPS) {
        const int index = done + half, at = index * VOCAB_BLOCK;
        float lane_max;
        const Block b = block_sums(z + at, larger(0, smaller(VOCAB_BLOCK, (int)vocab - at)), r.inverse, lane_max);
        if (index < count) {
            if ((LANE & 15) == 0) blocks[index] = b;
            maxima[index * 16 + (LANE & 15)] = lane_max;
        }
    }
    sync_block();
    Joined joined;
    joined.start();
    for (int i = 0; i < count; ++i) joined.join(blocks[i], r.inverse);
    const u32 wrong = joined.status();
    if (wrong) {
        if (THREAD == 0) out[4 * BLOCK_X + 3] = wrong;
        return;
    }
    const float max = joined.max;
    u32 words[4] = {r.position, r.stream, r.sequence0, r.sequence1};
    philox(words, r.seed0, r.seed1);
    const double uniform = (double)((u64)words[0] << 21 | words[1] >> 11) * 1.1102230246251565e-16;  // 2^-53
    if (THREAD == 0) found = 0xffffffffu;
    sync_block();

    const u32 top_k = r.top_k < vocab ? r.top_k : 0;
    if (r.greedy) {
        // The first of the largest: of a thread's own, then of the block's.
        u32 first = 0xffffffffu;
        for (u32 i = THREAD; i < vocab; i += THREADS)
            if (z[i] == max) { first = i; break; }
        u32* shared = (u32*)sums;
#pragma unroll
        for (int mask = 16; mask; mask >>= 1) {
            const u32 other = shuffle_xor_bits(first, mask);
            if (other < first) first = other;
        }
        if (LANE == 0) shared[WARP] = first;
        sync_block();
        if (THREAD == 0) {
            for (int w = 1; w < THREADS / 32; ++w)
                if (shared[w] < first) first = shared[w];
            found = first;
        }
    } else if (top_k == 0 && r.top_p == 1.0f && r.lowest == NEGATIVE_INFINITY) {
        // First the block, then the place in it.
        if (THREAD == 0) {
            double all = 0.0, below = 0.0;
            for (int i = 0; i < count; ++i) all = all + (double)exp_lanes((blocks[i].max - max) * r.inverse) * (double)blocks[i].sum;
            const double target = uniform * all;
            for (int i = 0; i < count; ++i) {
                const double scale = exp_lanes((blocks[i].max - max) * r.inverse), mass = scale * (double)blocks[i].sum;
                if (!(mass > 0.0)) continue;
                of_thread_0[0] = (target - below) / scale, found = i;
                below = below + mass;
                if (below > target) break;
            }
        }
        sync_block();
        const u32 start = found * VOCAB_BLOCK, end = start + VOCAB_BLOCK < vocab ? start + VOCAB_BLOCK : vocab;
        const float around = blocks[found].max;
        const double target = of_thread_0[0];
        sync_block();
        float* place = (float*)dynamic;
        for (u32 i = start + THREAD; i < end; i += THREADS) place[i - start] = exp_lanes((z[i] - around) * r.inverse);
        sync_block();
        if (THREAD == 0) {
            double sum = 0.0;
            u32 last = 0;
            for (u32 i = 0; i < end - start; ++i) {
                if (!(place[i] > 0.0f)) continue;
                sum = sum + (double)place[i];
                last = i;
                if (sum > target) break;
            }
            found = start + last;
        }
    } else {
        Candidates c = {ids + (u64)BLOCK_X * vocab, keys + (u64)BLOCK_X * vocab, weights + (u64)BLOCK_X * vocab, 0};
        float lowest = r.lowest;
        if (top_k > 0) {
            // A logit that k tokens reach: the k-th largest of the lanes' maxima, if there are as many.
            lowest = NEGATIVE_INFINITY;
            if (top_k <= count * 16) {
                u32 key = 0;
                for (int bit = 31; bit >= 0; --bit) {
                    const u32 tried = key | 1u << bit;
                    u64 reach = 0;
                    for (int i = THREAD; i < count * 16; i += THREADS) reach += ordered(maxima[i]) >= tried;
                    if (total_of(reach, sums) >= top_k) key = tried;
                }
                lowest = (bits_float(key & 0x80000000u ? key ^ 0x80000000u : ~key) - max) * r.inverse;
            }
        } else if (r.top_p < 1.0f) {
            const double share = (1.0 - (double)r.top_p) * joined.sum / (double)vocab;
            const float for_top_p = (float)(ln_exact(share) - 1e-3);
            lowest = lowest > for_top_p ? lowest : for_top_p;
        }
        gather(c, z, vocab, max, r.inverse, lowest, (u32*)sums);
        Cut cut = {0, 0xffffffffu};
        if (top_k > 0) cut = shortest(c, cut, false, top_k, sums);
        if (r.top_p < 1.0f) {
            double all = joined.sum * MASS_UNIT;
            if (top_k > 0) {
                u64 mass = 0;
                for (u32 i = THREAD; i < c.count; i += THREADS)
                    if (cut.keeps(c.keys[i], c.ids[i])) mass += mass_of(c.weights[i]);
                all = (double)total_of(mass, sums);
            }
            const double wanted = all * (double)r.top_p;
            u64 target = (u64)wanted;
            if ((double)target < wanted) target += 1;
            cut = shortest(c, cut, true, target > 1 ? target : 1, sums);
        }
        // In the order of the vocabulary, first for the total, then to where the sum exceeds its share.
        float* part = (float*)dynamic;
        double target = 0.0;
        for (int pass = 0; pass < 2; ++pass) {
            double sum = 0.0;
            bool over = false;
            for (u32 first = 0; first < c.count; first += THREADS) {
                const u32 i = first + THREAD;
                bool kept = i < c.count && cut.keeps(c.keys[i], c.ids[i]);
                if (kept && top_k > 0) kept = (z[c.ids[i]] - max) * r.inverse >= r.lowest;
                sync_block();
                part[THREAD] = kept ? c.weights[i] : 0.0f;
                sync_block();
                if (THREAD == 0 && !over)
                    for (u32 j = 0; j < THREADS; ++j) {
                        if (part[j] == 0.0f) continue;
                        sum = sum + (double)part[j];
                        if (pass == 1 && sum > target) {
                            found = c.ids[first + j], over = true;
                            break;
                        }
                    }
            }
            target = uniform * sum;
        }
    }
    sync_block();
    if (THREAD == 0) {
        const double log_sum = ln_exact(joined.sum), entropy = log_sum - joined.weighted / joined.sum;
        u32* to = out + 4 * BLOCK_X;
        to[0] = found;
        to[1] = float_bits((float)((double)((z[found] - max) * r.inverse) - log_sum));
        to[2] = float_bits((float)entropy);
        to[3] = 0;
    }
}
