// Repetition penalty p: of every token that a row's sequence holds the logit z becomes z p where z < 0, else z / p.
// Reference: cpu/repetition_penalty.rs, bit for bit.
// Layout: logits [rows, stride] f32, changed where they lie. Words: the rows' penalties, then rows + 1 places in the list of
// ids where each row's begin and the last ends, then that list, each id once per row and below the vocabulary.
// Launch: one block of 256 threads per row. Bound: latency; each id costs a load and a store at a random address.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) repetition_penalty_apply(float* logits, const u32* words, u32 rows, u32 stride) {
    const float penalty = bits_float(words[BLOCK_X]);
    const u32 first = words[rows + BLOCK_X], end = words[rows + BLOCK_X + 1];
    const u32* ids = words + 2 * (u64)rows + 1;
    float* row = logits + (u64)BLOCK_X * stride;
    for (u32 i = first + THREAD; i < end; i += 256) {
        float* to = row + ids[i];
        const float z = *to;
        *to = z < 0.0f ? z * penalty : z / penalty;
    }
}
