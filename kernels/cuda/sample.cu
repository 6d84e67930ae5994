// Samples a token from each row of logits, and says how likely tokens are: what src/sample does, with the same bits.
//
// A token's weight is exp((logit − largest) / temperature) as a whole number of 2⁻⁴⁴, and sums are of whole numbers: they are
// the same in whatever order threads come. The filters keep the logits from a cut on. The token drawn is the first by id at
// which the running sum of kept weights passes a share of their sum.
//
// logits f32 [rows, vocab], changed where a row has penalties or biases; rows [rows]; tokens i32 [rows];
// logprobs [rows, 1 + 2 · max_top]: the token's, then {id, log-probability} of the likeliest in descending order.
//
// A block has a row, which it reads as often as what is asked for takes, the first time from memory and then mostly from the
// second cache: once for the likeliest token; twice for a draw, with filters that keep some hundred tokens at most as well (the
// largest; then sums and what is near it); five times where they keep more, and seven where both top_k and top_p do
// (a histogram and the members of the cut's bin for each, and sums). Log-probabilities take one more. Bytes: 4 a number, as
// often. A weight is some 30 instructions, and what all but the first pass takes most time for.
#include "device.cuh"

struct RowSampling {
    u64 random;
    u64 occurrences;
    u64 biases;
    u32 num_occurrences;
    u32 num_biases;
    float temperature;
    float top_p;
    float log_min_p;
    u32 top_k;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    u32 flags;
    u32 token;
    u32 num_top;
    u32 batch_row;
    u32 changed_place;
    u32 changed_token;
    u32 changed_count;
};
constexpr u32 WANTS_LOGPROBS = 1, IS_GIVEN = 2, FOLLOWS = 4, CHANGES = 8;

struct Occurrence {
    u32 token;
    u32 count;
    float untouched;
};

struct Bias {
    u32 token;
    float bias;
    float untouched;
};

struct SampleParams {
    float* logits;
    const RowSampling* rows;
    const int* last_tokens;
    int* tokens;
    float* logprobs;
    int vocab;
    int num_last_tokens;
    int max_top;
};

constexpr int THREADS = 1024, WARPS = THREADS / 32;
// Digits of a histogram: two a thread.
constexpr int BINS = 2048;
// Tokens that are sorted: two a thread.
constexpr int CAPACITY = 2048;
constexpr float ONE = 17592186044416.0f;  // 2^44
constexpr float TWO_TO_64 = 18446744073709551616.0f;
// Bins for each unit below the largest logit (over the temperature): 31 units, in which every weight over 0 is, have bins of
// their own; the last bin is for all that is further down.
constexpr float BINS_A_UNIT = 66.0f;
constexpr int LAST_BIN = BINS - 1;
// Bits of an id in an order.
constexpr int ID_BITS = 20;
constexpr u64 ID_MASK = (1 << ID_BITS) - 1;

// Where a search for a token in descending order has come to: it is among those in a bin whose order begins with a prefix.
struct Place {
    int bin;
    int shift;   // of the prefix
    u64 prefix;
    u64 wanted;  // by number or by weight: it is the first with which those here are so much
};

// What a row's penalties and biases are of.
struct Adjustments {
    Occurrence* occurrences;
    Bias* biases;
    int num_occurrences;
    int num_biases;
    int latest;  // the token that the occurrences lack, negative if none
    int is_latest_listed;
    float untouched;  // the latest token's logit, where it is not listed
};

// Everything that a row needs and no thread has to keep in registers.
struct Shared {
    // By digit: a number, or a weight's sum in two halves.
    u32 low[BINS], high[BINS];
    u64 list[CAPACITY];
    u64 warp_sums[WARPS];
    u64 total;
    double normaliser;
    u64 rest;
    RowSampling row;
    float largest[WARPS], fronts[WARPS];
    int ids[WARPS];
    int digit;
    u64 before;
    u32 num_listed;
    float cut;
    int segment;
    int token;
    Adjustments adjustments;
    Place place;
};

struct Row {
    float* logits;
    int vocab;
    // Numbers before the first at a multiple of 16 bytes, and pieces of four from there on.
    int head;
    int num_quads;
};

// Calls f(logit, id) for the four of a piece.
template <class F> __device__ __forceinline__ void each_of_quad(const Row& row, float4 quad, int i, F f) {
    int id = row.head + 4 * i;
    f(quad.x, id);
    f(quad.y, id + 1);
    f(quad.z, id + 2);
    f(quad.w, id + 3);
}

// Calls f(logit, id) for pieces `first`, `first + stride` … before `end`, of which the next are on their way meanwhile.
template <class F>
__device__ __forceinline__ void each_quad(const Row& row, int first, int end, int stride, F f) {
    constexpr int AHEAD = 2;
    const float4* quads = (const float4*)(row.logits + row.head);
    float4 ahead[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; j++)
        if (first + j * stride < end) ahead[j] = quads[first + j * stride];
    for (int i = first; i < end; i += stride) {
        float4 quad = ahead[0];
#pragma unroll
        for (int j = 1; j < AHEAD; j++) ahead[j - 1] = ahead[j];
        if (i + AHEAD * stride < end) ahead[AHEAD - 1] = quads[i + AHEAD * stride];
        each_of_quad(row, quad, i, f);
    }
}

// Calls f(logit, id) for the few numbers before and behind the pieces: the first warp has those before, the last those behind.
template <class F> __device__ __forceinline__ void each_edge(const Row& row, F f) {
    int before = threadIdx.x, behind = row.head + 4 * row.num_quads + int(threadIdx.x) - (THREADS - 32);
    if (before < row.head) f(row.logits[before], before);
    if (threadIdx.x >= THREADS - 32 && behind < row.vocab) f(row.logits[behind], behind);
}

template <class F> __device__ __forceinline__ void each(const Row& row, F f) {
    each_edge(row, f);
    each_quad(row, threadIdx.x, row.num_quads, THREADS, f);
}

// How a logit weighs.
struct Scale {
    float largest;
    float scale;  // 1 / temperature
};

// The exponential of src/simd/math.rs, operation by operation; what is a whole number there and a power of two here is cut to
// 2⁻⁴⁴ by a shift, since some GPUs convert to 64 bits as slowly as anything they do.
__device__ __forceinline__ u64 weigh(float logit, const Scale& scale) {
    const float ROUND = 12582912.0f;
    float x = fmaxf(__fmul_rn(__fsub_rn(logit, scale.largest), scale.scale), -87.3f);
    float rounded = __fmaf_rn(x, 1.44269504f, ROUND);
    float n = __fsub_rn(rounded, ROUND);
    float r = __fmaf_rn(n, 2.1219444e-4f, __fmaf_rn(n, -0.6933594f, x));
    float sum = 1.0f / 5040.0f;
    sum = __fmaf_rn(sum, r, 1.0f / 720.0f);
    sum = __fmaf_rn(sum, r, 1.0f / 120.0f);
    sum = __fmaf_rn(sum, r, 1.0f / 24.0f);
    sum = __fmaf_rn(sum, r, 1.0f / 6.0f);
    sum = __fmaf_rn(sum, r, 0.5f);
    u32 bits = __float_as_uint(__fadd_rn(__fmaf_rn(__fmul_rn(r, r), sum, r), 1.0f));
    // x is never over 0, so 2^n · (1.mantissa · 2^(exponent − 127)) is 1 at most.
    u32 shift = 127 - (bits >> 23) + __float_as_uint(ROUND) - __float_as_uint(rounded);
    return u64(bits & 0x7fffff | 0x800000) << 21 >> min(shift, 63u);
}

// How far a logit is below the largest; a lower one is never in a lower bin. NaN is in the last.
__device__ __forceinline__ int bin_of(float logit, const Scale& scale) {
    float distance = (scale.largest - logit) * scale.scale * BINS_A_UNIT;
    // Adding 2^23 rounds to a whole number and leaves it in the low bits.
    return __float_as_uint(fminf(distance, float(LAST_BIN)) + 8388608.0f) & LAST_BIN;
}

// A whole number for a logit, in the same order; NaN is where minus infinity is, and both zeros are one.
__device__ __forceinline__ u32 key_of(float logit) {
    logit = logit == logit ? __fadd_rn(logit, 0.0f) : __int_as_float(0xff800000);
    u32 bits = __float_as_uint(logit);
    return bits >> 31 ? ~bits : bits | 0x80000000;
}
__device__ __forceinline__ float logit_of(u32 key) { return __uint_as_float(key >> 31 ? key & 0x7fffffff : ~key); }

// Larger for a larger logit, and for a lower id among equals.
__device__ __forceinline__ u64 order_of(float logit, int id) {
    return u64(key_of(logit)) << ID_BITS | (ID_MASK - id);
}
__device__ __forceinline__ u32 key_in(u64 order) { return u32(order >> ID_BITS); }
__device__ __forceinline__ int id_in(u64 order) { return int(ID_MASK - (order & ID_MASK)); }

// The sum of the values of the threads before this one; `shared.total` is that of all.
__device__ __forceinline__ u64 sum_before(Shared& shared, u64 value) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    auto scan = [&](u64 sum) {
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            u64 other = __shfl_up_sync(0xffffffff, sum, offset);
            if (lane >= offset) sum += other;
        }
        return sum;
    };
    u64 sum = scan(value);
    // Whoever used it last may still be at it.
    __syncthreads();
    if (lane == 31) shared.warp_sums[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        u64 own = shared.warp_sums[lane], all = scan(own);
        shared.warp_sums[lane] = all - own;
        if (lane == 31) shared.total = all;
    }
    __syncthreads();
    return shared.warp_sums[warp] + sum - value;
}

// What one pass tells of a row: the largest logit and its id, the lowest among equals (minus infinity and 0 where none is a
// number above that); and a logit that at least 64 tokens reach, some hundreds in most rows: the smallest of what sixteen
// threads each have as their largest.
struct Likeliest {
    float logit;
    int id;
    float front;
};
__device__ __forceinline__ Likeliest likeliest(Shared& shared, const Row& row) {
    const float LOWEST = __int_as_float(0xff800000);
    float value = LOWEST;
    int id = 0x7fffffff;
    auto take = [&](float other, int other_id) {
        if (other > value || (other == value && other_id < id)) value = other, id = other_id;
    };
    auto take_from = [&](int offset) {
        take(__shfl_xor_sync(0xffffffff, value, offset), __shfl_xor_sync(0xffffffff, id, offset));
    };
    // From memory, and with next to nothing to do: four pieces at a time. A thread's ids ascend.
    const float4* quads = (const float4*)(row.logits + row.head);
    for (int i = threadIdx.x; i < row.num_quads; i += 4 * THREADS) {
        float4 loaded[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (i + j * THREADS < row.num_quads) loaded[j] = quads[i + j * THREADS];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (i + j * THREADS >= row.num_quads) break;
            each_of_quad(row, loaded[j], i + j * THREADS, [&](float logit, int at) {
                if (logit > value) value = logit, id = at;
            });
        }
    }
    each_edge(row, take);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int offset = 1; offset < 16; offset *= 2) take_from(offset);
    float front = fminf(value, __shfl_xor_sync(0xffffffff, value, 16));
    take_from(16);
    if (lane == 0) shared.largest[warp] = value, shared.ids[warp] = id, shared.fronts[warp] = front;
    __syncthreads();
    value = shared.largest[lane], id = shared.ids[lane], front = shared.fronts[lane];
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        take_from(offset);
        front = fminf(front, __shfl_xor_sync(0xffffffff, front, offset));
    }
    __syncthreads();
    return {value, value > LOWEST ? id : 0, front};
}

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) < __int_as_float(0x7f800000); }

__device__ __forceinline__ bool has_repetition_penalty(const RowSampling& sampling) {
    return sampling.repetition_penalty != 0.0f && sampling.repetition_penalty != 1.0f;
}

__device__ __forceinline__ float penalise(float logit, u32 count, const RowSampling& sampling) {
    if (has_repetition_penalty(sampling)) {
        logit = logit > 0.0f ? __fdiv_rn(logit, sampling.repetition_penalty)
                             : __fmul_rn(logit, sampling.repetition_penalty);
    }
    if (count == 0) return logit;
    return __fsub_rn(logit, __fadd_rn(sampling.presence_penalty, __fmul_rn(float(count), sampling.frequency_penalty)));
}

__device__ __forceinline__ Adjustments adjustments_of(const SampleParams& p, const RowSampling& sampling) {
    bool has_penalty = has_repetition_penalty(sampling) || sampling.presence_penalty != 0.0f ||
                       sampling.frequency_penalty != 0.0f;
    Adjustments out = {(Occurrence*)sampling.occurrences, (Bias*)sampling.biases, 0, int(sampling.num_biases), -1};
    if (has_penalty) {
        out.num_occurrences = int(sampling.num_occurrences);
        if (sampling.flags & FOLLOWS)
            out.latest = p.last_tokens[min(sampling.batch_row, u32(p.num_last_tokens - 1))];
        if (out.latest >= p.vocab) out.latest = -1;
    }
    return out;
}

// Penalties, then biases. The lists keep what was there.
__device__ __forceinline__ void adjust(Shared& shared, const Row& row) {
    Adjustments& by = shared.adjustments;
    // The list stays where it is from step to step; what is new comes with the row.
    if (threadIdx.x == 0 && shared.row.flags & CHANGES && shared.row.changed_place < u32(by.num_occurrences))
        by.occurrences[shared.row.changed_place] = {shared.row.changed_token, shared.row.changed_count, 0.0f};
    __syncthreads();
    for (int i = threadIdx.x; i < by.num_occurrences; i += THREADS) {
        Occurrence occurrence = by.occurrences[i];
        if (occurrence.token >= u32(row.vocab)) continue;
        bool is_latest = int(occurrence.token) == by.latest;
        if (is_latest) by.is_latest_listed = 1;
        float logit = row.logits[occurrence.token];
        by.occurrences[i].untouched = logit;
        row.logits[occurrence.token] = penalise(logit, occurrence.count + is_latest, shared.row);
    }
    __syncthreads();
    if (threadIdx.x == 0 && by.latest >= 0 && !by.is_latest_listed) {
        by.untouched = row.logits[by.latest];
        row.logits[by.latest] = penalise(by.untouched, 1, shared.row);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < by.num_biases; i += THREADS) {
        Bias bias = by.biases[i];
        if (bias.token >= u32(row.vocab)) continue;
        float logit = row.logits[bias.token];
        by.biases[i].untouched = logit;
        row.logits[bias.token] = __fadd_rn(logit, bias.bias);
    }
    __syncthreads();
}

// Takes back what `adjust` did, last things first.
__device__ __forceinline__ void restore(Shared& shared, const Row& row) {
    const Adjustments& by = shared.adjustments;
    for (int i = threadIdx.x; i < by.num_biases; i += THREADS)
        if (by.biases[i].token < u32(row.vocab)) row.logits[by.biases[i].token] = by.biases[i].untouched;
    __syncthreads();
    for (int i = threadIdx.x; i < by.num_occurrences; i += THREADS)
        if (by.occurrences[i].token < u32(row.vocab))
            row.logits[by.occurrences[i].token] = by.occurrences[i].untouched;
    if (threadIdx.x == 0 && by.latest >= 0 && !by.is_latest_listed) row.logits[by.latest] = by.untouched;
    __syncthreads();
}

// Which tokens are kept: the logits from a cut on.
struct Kept {
    Scale scale;
    float min_logit;
};

// 0 for what is not kept. Without a branch: the weights of four logits are then computed side by side.
__device__ __forceinline__ u64 weigh_kept(float logit, const Kept& kept) {
    return weigh(logit >= kept.min_logit ? logit : __int_as_float(0xff800000), kept.scale);
}

// Counts, or weighs, by one digit what is in a place and kept, and narrows the place to the digit in which the wanted token is.
// False where there is none, which only the first digit can show, and only by number.
//
// The first digit is the bin, and most searches need no other; then come those of the order: 11, 11 and 10 bits of the key, 11
// and 9 of the id. `wanted` counts for the first digit, by weight as a part of 2⁶⁴ of all.
__device__ __forceinline__ bool narrow(Shared& shared, const Row& row, const Kept& kept, int level, bool by_weight,
                                       u64 wanted) {
    Place& place = shared.place;
    int bits = level == 3 ? 10 : level == 5 ? 9 : 11;
    for (int i = threadIdx.x; i < BINS; i += THREADS) shared.low[i] = shared.high[i] = 0;
    if (threadIdx.x == 0) shared.digit = -1;
    __syncthreads();
    each(row, [&](float logit, int id) {
        if (logit < kept.min_logit) return;
        int digit = bin_of(logit, kept.scale);
        if (level > 0) {
            if (digit != place.bin) return;
            u64 order = order_of(logit, id);
            if (order >> place.shift != place.prefix) return;
            digit = (1 << bits) - 1 - int(order >> (place.shift - bits) & ((1 << bits) - 1));
        } else if (digit == LAST_BIN) {
            // Without weight, and maybe so many that they would stand in line.
            return;
        }
        if (!by_weight) {
            atomicAdd(&shared.low[digit], 1);
            return;
        }
        u64 weight = weigh(logit, kept.scale);
        u32 low = u32(weight), high = u32(weight >> 32);
        high += atomicAdd(&shared.low[digit], low) + low < low;
        if (high > 0) atomicAdd(&shared.high[digit], high);
    });
    __syncthreads();
    int first = 2 * threadIdx.x;
    u64 values[2];
#pragma unroll
    for (int j = 0; j < 2; j++) values[j] = u64(shared.high[first + j]) << 32 | shared.low[first + j];
    u64 before = sum_before(shared, values[0] + values[1]);
    if (level > 0) wanted = place.wanted;
    else if (by_weight) wanted = max(__umul64hi(shared.total, wanted), 1ull);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        if (before < wanted && wanted <= before + values[j]) shared.digit = first + j, shared.before = before;
        before += values[j];
    }
    __syncthreads();
    int digit = shared.digit;
    if (threadIdx.x == 0) {
        bool is_far = digit < 0;
        place.wanted = wanted - (is_far ? shared.total : shared.before);
        place.shift = level > 0 ? place.shift - bits : 32 + ID_BITS;
        place.prefix = level > 0 ? place.prefix << bits | ((1 << bits) - 1 - digit) : 0;
        if (level == 0) place.bin = is_far ? LAST_BIN : digit;
    }
    __syncthreads();
    return digit >= 0;
}

// Appends to the list, whose length goes on counting where it is full.
__device__ __forceinline__ void append(Shared& shared, u64 order) {
    u32 at = atomicAdd(&shared.num_listed, 1);
    if (at < CAPACITY) shared.list[at] = order;
}

// Sorts the list, the largest first, and puts zeros behind its end.
__device__ __forceinline__ void sort(Shared& shared) {
    int num = 2;
    while (num < shared.num_listed) num *= 2;
    for (int i = shared.num_listed + threadIdx.x; i < num; i += THREADS) shared.list[i] = 0;
    __syncthreads();
    // Bitonic: a thread has a pair.
    for (int size = 2; size <= num; size *= 2)
        for (int apart = size / 2; apart > 0; apart /= 2) {
            int i = 2 * threadIdx.x - threadIdx.x % apart;
            if (i < num) {
                u64 a = shared.list[i], b = shared.list[i + apart];
                if ((a < b) == ((i & size) == 0)) shared.list[i] = b, shared.list[i + apart] = a;
            }
            // A warp has 64 of its own, which it needs no other for.
            int next = apart > 1 ? apart / 2 : size;
            if (apart > 32 || next > 32) __syncthreads();
            else __syncwarp();
        }
    __syncthreads();
}

// Writes the orders of the tokens of a place to the list, with `with_above` also of those that come before them. False where
// they do not fit.
__device__ __forceinline__ bool gather(Shared& shared, const Row& row, const Kept& kept, bool with_above) {
    const Place& place = shared.place;
    if (threadIdx.x == 0) shared.num_listed = 0;
    __syncthreads();
    each(row, [&](float logit, int id) {
        int bin = bin_of(logit, kept.scale);
        if (bin > place.bin || (bin < place.bin && !with_above)) return;
        u64 order = order_of(logit, id);
        if (bin == place.bin) {
            u64 prefix = order >> place.shift;
            if (prefix < place.prefix || (prefix > place.prefix && !with_above)) return;
        }
        // What is not kept comes last among those with the same bin, and so cannot displace anything.
        append(shared, order);
    });
    __syncthreads();
    return shared.num_listed <= CAPACITY;
}

// The logit of the `wanted`-th token in descending order, or of the first with which the weights are the `wanted`-th part of
// 2⁶⁴ of all that are kept; the old cut where there are not so many.
__device__ __forceinline__ float find_cut(Shared& shared, const Row& row, const Kept& kept, bool by_weight, u64 wanted) {
    for (int level = 0; level < 4; level++) {
        if (!narrow(shared, row, kept, level, by_weight, wanted)) return kept.min_logit;
        if (gather(shared, row, kept, false)) break;
        // So many of one value that they do not fit: it is the cut.
        if (level == 3) return logit_of(u32(shared.place.prefix));
    }
    sort(shared);
    int first = 2 * threadIdx.x;
    u64 values[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        values[j] = first + j < shared.num_listed ? 1 : 0;
        if (by_weight && values[j]) values[j] = weigh(logit_of(key_in(shared.list[first + j])), kept.scale);
    }
    u64 before = sum_before(shared, values[0] + values[1]);
    wanted = shared.place.wanted;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        if (before < wanted && wanted <= before + values[j]) shared.cut = logit_of(key_in(shared.list[first + j]));
        before += values[j];
    }
    __syncthreads();
    return shared.cut;
}

// The first token by id at which the running sum of the weights that are kept passes a share of their sum; negative where
// nothing weighs anything. A warp sums a stretch of the row; the whole block then looks into the stretch where the token is.
__device__ __forceinline__ int draw(Shared& shared, const Row& row, const Kept& kept, u64 random) {
    auto weight = [&](float logit) { return weigh_kept(logit, kept); };
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int stretch = (row.num_quads + WARPS - 1) / WARPS;
    auto start = [&](int warp) { return min(warp * stretch, row.num_quads); };
    u64 sum = 0;
    auto add = [&](float logit, int) { sum += weight(logit); };
    each_edge(row, add);
    each_quad(row, start(warp) + lane, start(warp + 1), 32, add);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffff, sum, offset);

    if (threadIdx.x == 0) shared.segment = -1;
    u64 before = sum_before(shared, lane == 0 ? sum : 0);
    u64 threshold = __umul64hi(shared.total, random);
    if (lane == 0 && before <= threshold && threshold < before + sum)
        shared.segment = warp, shared.rest = threshold - before;
    __syncthreads();
    int segment = shared.segment;
    if (segment < 0) return -1;
    threshold = shared.rest;
    int first = segment == 0 ? 0 : row.head + 4 * start(segment);
    int end = segment == WARPS - 1 ? row.vocab : row.head + 4 * start(segment + 1);
    int num = (end - first + THREADS - 1) / THREADS;
    int from = min(first + int(threadIdx.x) * num, end), to = min(from + num, end);
    sum = 0;
    for (int id = from; id < to; id++) sum += weight(row.logits[id]);
    before = sum_before(shared, sum);
    if (before <= threshold && threshold < before + sum)
        for (int id = from; id < to; id++) {
            before += weight(row.logits[id]);
            if (before > threshold) {
                shared.token = id;
                break;
            }
        }
    __syncthreads();
    return shared.token;
}

// What most filters keep is among the few hundred tokens from the front on: draws from those, after one pass more. Negative
// where they are too many or not enough to tell.
__device__ __forceinline__ int draw_from_front(Shared& shared, const Row& row, const Kept& kept, float front) {
    const RowSampling& sampling = shared.row;
    bool has_top_k = sampling.top_k > 0, has_top_p = sampling.top_p > 0.0f && sampling.top_p < 1.0f;
    // Whether all that is kept so far is listed.
    bool is_whole = front <= kept.min_logit;
    if (!has_top_k && !has_top_p && !is_whole) return -1;
    if (threadIdx.x == 0) shared.num_listed = 0, shared.token = -1;
    __syncthreads();
    bool is_summed = has_top_p && !has_top_k;
    float from = fmaxf(front, kept.min_logit);
    u64 sum = 0;
    each(row, [&](float logit, int id) {
        if (is_summed) sum += weigh_kept(logit, kept);
        if (logit >= from) append(shared, order_of(logit, id));
    });
    sum_before(shared, sum);
    u64 all = shared.total;
    u32 num = shared.num_listed;
    if (num > CAPACITY || (has_top_k && num < sampling.top_k && !is_whole)) return -1;
    sort(shared);

    int first = 2 * threadIdx.x;
    u32 min_key = has_top_k && sampling.top_k <= num ? key_in(shared.list[sampling.top_k - 1]) : 0;
    u64 values[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        u32 key = first + j < num ? key_in(shared.list[first + j]) : 0;
        values[j] = first + j < num && key >= min_key ? weigh(logit_of(key), kept.scale) : 0;
    }
    if (has_top_p) {
        u64 before = sum_before(shared, values[0] + values[1]);
        u64 listed = shared.total;
        u64 wanted = __umul64hi(is_summed ? all : listed, __float2ull_rz(__fmul_rn(sampling.top_p, TWO_TO_64)));
        wanted = max(wanted, 1ull);
        if (wanted > listed) return -1;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            if (before < wanted && wanted <= before + values[j]) shared.cut = logit_of(key_in(shared.list[first + j]));
            before += values[j];
        }
        __syncthreads();
        min_key = key_of(shared.cut);
    }
    // The kept ones again, by id.
    u64 orders[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        u64 order = first + j < num ? shared.list[first + j] : 0;
        bool is_kept = first + j < num && key_in(order) >= min_key;
        bool is_last = is_kept && (first + j + 1 == num || key_in(shared.list[first + j + 1]) < min_key);
        if (is_last) shared.num_listed = first + j + 1;
        orders[j] = is_kept ? (order & ID_MASK) << 32 | key_in(order) : 0;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 2; j++) shared.list[first + j] = orders[j];
    __syncthreads();
    sort(shared);
#pragma unroll
    for (int j = 0; j < 2; j++)
        values[j] = first + j < shared.num_listed ? weigh(logit_of(u32(shared.list[first + j])), kept.scale) : 0;
    u64 before = sum_before(shared, values[0] + values[1]);
    u64 threshold = __umul64hi(shared.total, sampling.random);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        if (before <= threshold && threshold < before + values[j])
            shared.token = id_in(shared.list[first + j] >> 32);
        before += values[j];
    }
    __syncthreads();
    return shared.token;
}

// Draws from a row whose penalties are applied.
__device__ __forceinline__ int draw_filtered(Shared& shared, const Row& row, const Likeliest& best) {
    const RowSampling& sampling = shared.row;
    Kept kept = {{best.logit, __fdiv_rn(1.0f, sampling.temperature)}, __int_as_float(0xff800000)};
    if (sampling.log_min_p < 0.0f)
        kept.min_logit = __fadd_rn(best.logit, __fmul_rn(sampling.temperature, sampling.log_min_p));
    int token = draw_from_front(shared, row, kept, best.front);
    if (token >= 0) return token;
    // One loop, so that the search is there once.
    for (int is_top_p = 0; is_top_p < 2; is_top_p++) {
        bool is_on = is_top_p ? sampling.top_p > 0.0f && sampling.top_p < 1.0f : sampling.top_k > 0;
        if (!is_on) continue;
        u64 wanted = is_top_p ? __float2ull_rz(__fmul_rn(sampling.top_p, TWO_TO_64)) : sampling.top_k;
        kept.min_logit = find_cut(shared, row, kept, is_top_p, wanted);
    }
    token = draw(shared, row, kept, sampling.random);
    return token < 0 ? best.id : token;
}

// Infinite logits, where `largest` is, share all probability evenly; what is not a number has none.
__device__ __forceinline__ float logprob_of(float logit, float largest, double normaliser) {
    const float infinity = __int_as_float(0x7f800000);
    if (largest == infinity) return logit == infinity ? float(-normaliser) : -infinity;
    return logit == logit ? float(double(logit) - normaliser) : -infinity;
}

// Log-probabilities from an untouched row: of `token`, and of the likeliest, which most rows have from the front on.
__device__ __forceinline__ void tell(Shared& shared, const Row& row, const Likeliest& best, u32 token, int num_top,
                                     float* out) {
    // Where the largest is not finite, so that what is infinite is in the first bin and all else in the last.
    Kept all = {{is_finite(best.logit) ? best.logit : 3.4028235e38f, 1.0f}, __int_as_float(0xff800000)};
    if (threadIdx.x == 0) shared.num_listed = 0;
    __syncthreads();
    u64 sum = 0;
    bool is_infinite = best.logit == __int_as_float(0x7f800000);
    each(row, [&](float logit, int id) {
        sum += is_infinite ? u64(logit == best.logit) : weigh(logit, all.scale);
        if (num_top > 0 && logit >= best.front) append(shared, order_of(logit, id));
    });
    sum_before(shared, sum);
    if (threadIdx.x == 0) {
        double total = log(double(shared.total));
        bool is_sum = is_finite(best.logit);
        shared.normaliser = is_infinite ? total : is_sum ? double(best.logit) + total - log(double(ONE)) : 0.0;
        bool is_known = token < u32(row.vocab);
        out[0] = is_known ? logprob_of(row.logits[token], best.logit, shared.normaliser) : __int_as_float(0xff800000);
    }
    if (num_top == 0) return;
    // From minus infinity on, what is not a number counts as well.
    bool is_listed = best.front > __int_as_float(0xff800000) && shared.num_listed >= num_top;
    if (!is_listed || shared.num_listed > CAPACITY)
        for (int level = 0; level < 6; level++) {
            narrow(shared, row, all, level, false, num_top);
            if (gather(shared, row, all, true)) break;
        }
    __syncthreads();
    sort(shared);
    for (int i = threadIdx.x; i < num_top; i += THREADS) {
        u64 order = shared.list[i];
        out[1 + 2 * i] = __int_as_float(id_in(order));
        out[2 + 2 * i] = logprob_of(logit_of(key_in(order)), best.logit, shared.normaliser);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) sample(const __grid_constant__ SampleParams p) {
    __shared__ Shared shared;
    let_next_begin();
    wait_for_earlier();
    if (threadIdx.x < sizeof(RowSampling) / 4)
        ((u32*)&shared.row)[threadIdx.x] = ((const u32*)(p.rows + blockIdx.x))[threadIdx.x];
    Row row;
    row.logits = p.logits + u64(blockIdx.x) * p.vocab;
    row.vocab = p.vocab;
    row.head = min(int(-(u64(row.logits) / 4) & 3), p.vocab);
    row.num_quads = (p.vocab - row.head) / 4;
    __syncthreads();
    u32 flags = shared.row.flags;
    Likeliest best;
    u32 token = shared.row.token;
    bool is_untouched = true;
    if (!(flags & IS_GIVEN)) {
        Adjustments by = adjustments_of(p, shared.row);
        is_untouched = by.num_occurrences == 0 && by.num_biases == 0 && by.latest < 0;
        if (!is_untouched) {
            if (threadIdx.x == 0) shared.adjustments = by;
            __syncthreads();
            adjust(shared, row);
        }
        best = likeliest(shared, row);
        token = best.id;
        if (shared.row.temperature > 0.0f && is_finite(best.logit)) token = draw_filtered(shared, row, best);
    }
    if (threadIdx.x == 0) p.tokens[blockIdx.x] = token;
    if (!(flags & WANTS_LOGPROBS) || !p.logprobs) return;
    if (!is_untouched) restore(shared, row);
    if (!is_untouched || flags & IS_GIVEN) best = likeliest(shared, row);
    int num_top = min(min(shared.row.num_top, u32(p.max_top)), u32(p.vocab));
    tell(shared, row, best, token, num_top, p.logprobs + u64(blockIdx.x) * (1 + 2 * p.max_top));
}
