// Samples a token from each row of logits, and says how likely tokens are: what src/sample does, with the same bits.
//
// A token's weight is exp((logit − largest) / temperature) as a whole number of 2⁻⁴⁴, and sums are of whole numbers: they are
// the same in whatever order threads come. The filters keep the tokens from a cut on: a logit (top_k, top_p) and a least
// weight (min_p). The token drawn is the first by id at which the running sum of kept weights passes a share of their sum.
//
// logits f32 [rows, vocab], changed where a row has penalties or biases; rows [rows]; tokens i32 [rows];
// logprobs [rows, 1 + 2 · max_top]: the token's, then {id, log-probability} of the likeliest in descending order.
//
// A block has a row, which it reads from the second cache as often as what is asked for takes: once for the likeliest token,
// twice for a draw, four times with a filter (largest, histogram, members of the cut's bin, sums). Bytes: 4 a number, as often.
#include "device.cuh"

struct RowSampling {
    u64 random;
    u64 occurrences;
    u64 biases;
    u32 num_occurrences;
    u32 num_biases;
    float temperature;
    float top_p;
    float min_p;
    u32 top_k;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    u32 flags;
    u32 token;
    u32 num_top;
    u32 batch_row;
    u32 padding;
};
constexpr u32 WANTS_LOGPROBS = 1, IS_GIVEN = 2, FOLLOWS = 4;

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
// Bins for each unit below the largest logit (over the temperature): 31 units, and so every weight there is, have bins of
// their own. The last bin is for all that is further down.
constexpr float BINS_A_UNIT = 66.0f;
constexpr int LAST_BIN = BINS - 1;
// Bits of an id in an order.
constexpr int ID_BITS = 20;

// Where a search for a token in descending order has come to: it is among those in a bin whose order begins with a prefix.
struct Place {
    int bin;
    int shift;   // of the prefix
    u64 prefix;
    u64 wanted;  // of those here, by number or by weight: it is the first with which they are so much
    u32 above;   // how many come before all of them
    u32 num;     // how many there are
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
    // By digit; a weight's sum in two halves.
    u32 counts[BINS], low[BINS], high[BINS];
    u64 list[CAPACITY];
    u64 warp_sums[WARPS];
    u64 total;
    double normaliser;
    u64 rest;
    RowSampling row;
    float largest[WARPS];
    int ids[WARPS];
    int digit;
    u64 before;
    u64 wanted;
    u32 num_listed;
    u32 cut;
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

// Calls f(logit, id) for pieces `first`, `first + stride` … before `end`, `IN_FLIGHT` of them on their way at a time.
template <int IN_FLIGHT, class F>
__device__ __forceinline__ void each_quad(const Row& row, int first, int end, int stride, F f) {
    const float4* quads = (const float4*)(row.logits + row.head);
    for (int i = first; i < end; i += IN_FLIGHT * stride) {
        float4 loaded[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++)
            if (i + j * stride < end) loaded[j] = quads[i + j * stride];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++) {
            if (i + j * stride >= end) break;
            int id = row.head + 4 * (i + j * stride);
            f(loaded[j].x, id);
            f(loaded[j].y, id + 1);
            f(loaded[j].z, id + 2);
            f(loaded[j].w, id + 3);
        }
    }
}

// Calls f(logit, id) for the few numbers before and behind the pieces: the first warp has those before, the last those behind.
template <class F> __device__ __forceinline__ void each_edge(const Row& row, F f) {
    int before = threadIdx.x, behind = row.head + 4 * row.num_quads + int(threadIdx.x) - (THREADS - 32);
    if (before < row.head) f(row.logits[before], before);
    if (threadIdx.x >= THREADS - 32 && behind < row.vocab) f(row.logits[behind], behind);
}

template <int IN_FLIGHT, class F> __device__ __forceinline__ void each(const Row& row, F f) {
    each_edge(row, f);
    each_quad<IN_FLIGHT>(row, threadIdx.x, row.num_quads, THREADS, f);
}

// How a logit weighs.
struct Scale {
    float largest;
    float scale;  // 1 / temperature
};

// The exponential of src/simd/math.rs, operation by operation.
__device__ __forceinline__ u64 weigh(float logit, const Scale& scale) {
    const float ROUND = 12582912.0f;
    float x = __fmul_rn(__fsub_rn(logit, scale.largest), scale.scale);
    x = fmaxf(x, -87.3f);
    float rounded = __fmaf_rn(x, 1.44269504f, ROUND);
    float n = __fsub_rn(rounded, ROUND);
    float r = __fmaf_rn(n, -0.6933594f, x);
    r = __fmaf_rn(n, 2.1219444e-4f, r);
    float sum = 1.0f / 5040.0f;
    sum = __fmaf_rn(sum, r, 1.0f / 720.0f);
    sum = __fmaf_rn(sum, r, 1.0f / 120.0f);
    sum = __fmaf_rn(sum, r, 1.0f / 24.0f);
    sum = __fmaf_rn(sum, r, 1.0f / 6.0f);
    sum = __fmaf_rn(sum, r, 0.5f);
    float tail = __fmaf_rn(__fmul_rn(r, r), sum, r);
    float power = __uint_as_float((__float_as_uint(rounded) << 23) + 0x3f800000);
    return __float2ull_rz(__fmul_rn(__fmaf_rn(tail, power, power), ONE));
}

// How far a logit is below the largest; a lower one is never in a lower bin.
__device__ __forceinline__ int bin_of(float logit, const Scale& scale) {
    float distance = __fmul_rn(__fmul_rn(__fsub_rn(scale.largest, logit), scale.scale), BINS_A_UNIT);
    return distance < float(LAST_BIN) ? max(int(distance), 0) : LAST_BIN;
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
    return u64(key_of(logit)) << ID_BITS | ((1 << ID_BITS) - 1 - id);
}
__device__ __forceinline__ u32 key_in(u64 order) { return u32(order >> ID_BITS); }
__device__ __forceinline__ int id_in(u64 order) { return (1 << ID_BITS) - 1 - int(order & ((1 << ID_BITS) - 1)); }

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

// The largest logit and its id, the lowest among equals; minus infinity and 0 where none is a number above that.
struct Likeliest {
    float logit;
    int id;
};
__device__ __forceinline__ Likeliest likeliest(Shared& shared, const Row& row) {
    const float LOWEST = __int_as_float(0xff800000);
    float value = LOWEST;
    int id = 0x7fffffff;
    auto take = [&](float other, int other_id) {
        if (other > value || (other == value && other_id < id)) value = other, id = other_id;
    };
    // A thread's ids ascend.
    each_quad<4>(row, threadIdx.x, row.num_quads, THREADS, [&](float logit, int at) {
        if (logit > value) value = logit, id = at;
    });
    each_edge(row, take);
    auto take_warps = [&] {
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2)
            take(__shfl_xor_sync(0xffffffff, value, offset), __shfl_xor_sync(0xffffffff, id, offset));
    };
    take_warps();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) shared.largest[warp] = value, shared.ids[warp] = id;
    __syncthreads();
    value = shared.largest[lane], id = shared.ids[lane];
    take_warps();
    __syncthreads();
    return {value, value > LOWEST ? id : 0};
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

// Which tokens a search is among: all of them, or those that weigh enough and are not below a cut.
struct Among {
    Scale scale;
    bool is_weighed;
    u64 min_weight;
    u32 min_key;
};

// Calls f(logit, id, bin, weight) for each token that a search is among.
template <class F> __device__ __forceinline__ void each_among(const Row& row, const Among& among, F f) {
    each<1>(row, [&](float logit, int id) {
        u64 weight = 0;
        if (among.is_weighed) {
            weight = weigh(logit, among.scale);
            if (weight < among.min_weight || key_of(logit) < among.min_key) return;
        }
        f(logit, id, bin_of(logit, among.scale), weight);
    });
}

// Narrows a search, digit by digit, until what is in its place, and with `is_gathered_above` what is above as well, fits the
// list, or nothing more tells those in it apart: by number the `wanted`-th token, by weight the first with which the sum is
// the `wanted`-th part of 2⁶⁴. False where there are not so many among those of them that have a weight.
//
// The first digit is the bin, in which most searches end; then come those of the order: 11, 11 and 10 bits of the key, 11 and
// 9 of the id.
template <bool IS_TOP>
__device__ __forceinline__ bool narrow(Shared& shared, const Row& row, const Among& among, bool by_weight, u64 wanted) {
    Place& place = shared.place;
    for (int level = 0; level < (IS_TOP ? 6 : 4); level++) {
        int bits = level == 3 ? 10 : level == 5 ? 9 : 11;
        for (int i = threadIdx.x; i < BINS; i += THREADS) shared.counts[i] = shared.low[i] = shared.high[i] = 0;
        if (threadIdx.x == 0) shared.digit = -1;
        __syncthreads();
        each_among(row, among, [&](float logit, int id, int bin, u64 weight) {
            int digit = bin;
            if (level > 0) {
                u64 order = order_of(logit, id);
                if (bin != place.bin || order >> place.shift != place.prefix) return;
                digit = (1 << bits) - 1 - int(order >> (place.shift - bits) & ((1 << bits) - 1));
            } else if (IS_TOP && bin == LAST_BIN) {
                // Most tokens may be so unlikely, and would stand in line to be counted.
                return;
            }
            atomicAdd(&shared.counts[digit], 1);
            if (!by_weight) return;
            u32 low = u32(weight), high = u32(weight >> 32);
            high += atomicAdd(&shared.low[digit], low) + low < low;
            if (high > 0) atomicAdd(&shared.high[digit], high);
        });
        __syncthreads();
        int first = 2 * threadIdx.x;
        u64 values[2];
#pragma unroll
        for (int j = 0; j < 2; j++)
            values[j] = by_weight ? u64(shared.high[first + j]) << 32 | shared.low[first + j]
                                  : u64(shared.counts[first + j]);
        u64 before = sum_before(shared, values[0] + values[1]);
        u64 here = level > 0 ? place.wanted : by_weight ? max(__umul64hi(shared.total, wanted), 1ull) : wanted;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            if (before < here && here <= before + values[j]) shared.digit = first + j, shared.before = before;
            before += values[j];
        }
        __syncthreads();
        // By number alone there can be fewer, and that shows in the first level.
        if (!IS_TOP && shared.digit < 0) return false;
        if (threadIdx.x == 0) {
            bool is_far = shared.digit < 0;
            int digit = is_far ? LAST_BIN : shared.digit;
            u64 passed = is_far ? shared.total : shared.before;
            place.num = is_far ? row.vocab - u32(passed) : shared.counts[digit];
            place.wanted = here - passed;
            place.above = (level > 0 ? place.above : 0) + u32(passed);
            place.shift = level > 0 ? place.shift - bits : 32 + ID_BITS;
            place.prefix = level > 0 ? place.prefix << bits | ((1 << bits) - 1 - digit) : 0;
            if (level == 0) place.bin = digit;
        }
        __syncthreads();
        if ((IS_TOP ? place.above : 0) + place.num <= CAPACITY) break;
    }
    return true;
}

// Sorts the list, the largest first. What is behind its end becomes 0.
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
            __syncthreads();
        }
}

// Writes the orders of the tokens of a place to the list, with those above where the top is wanted, and sorts it.
template <bool IS_TOP>
__device__ __forceinline__ void gather(Shared& shared, const Row& row, const Among& among) {
    const Place& place = shared.place;
    if (threadIdx.x == 0) shared.num_listed = 0;
    __syncthreads();
    each_among(row, among, [&](float logit, int id, int bin, u64) {
        if (IS_TOP ? bin > place.bin : bin != place.bin) return;
        u64 order = order_of(logit, id), prefix = order >> place.shift;
        if (bin == place.bin && (IS_TOP ? prefix < place.prefix : prefix != place.prefix)) return;
        u32 at = atomicAdd(&shared.num_listed, 1);
        // Always; it costs nothing to be sure.
        if (at < CAPACITY) shared.list[at] = order;
    });
    __syncthreads();
    sort(shared);
}

// The key of the `wanted`-th token in descending order, or of the first with which the weights are the `wanted`-th part of 2⁶⁴
// of all; the old cut where there are not so many.
__device__ __forceinline__ u32 find_cut(Shared& shared, const Row& row, const Among& among, bool by_weight, u64 wanted) {
    const Place& place = shared.place;
    if (!narrow<false>(shared, row, among, by_weight, wanted)) return among.min_key;
    // So many of one value that they do not fit: it is the cut.
    if (place.num > CAPACITY) return u32(place.prefix);
    gather<false>(shared, row, among);
    int first = 2 * threadIdx.x;
    u64 values[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        values[j] = first + j >= place.num ? 0 : 1;
        if (by_weight && values[j]) values[j] = weigh(logit_of(key_in(shared.list[first + j])), among.scale);
    }
    u64 before = sum_before(shared, values[0] + values[1]);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        if (before < place.wanted && place.wanted <= before + values[j]) shared.cut = key_in(shared.list[first + j]);
        before += values[j];
    }
    __syncthreads();
    return shared.cut;
}

// The first token by id at which the running sum of the weights that are kept passes a share of their sum; negative where
// nothing weighs anything. A warp sums a stretch of the row; the whole block then looks into the stretch where the token is.
__device__ __forceinline__ int draw(Shared& shared, const Row& row, const Among& among, u64 random) {
    auto kept = [&](float logit) {
        u64 weight = weigh(logit, among.scale);
        return weight >= among.min_weight && key_of(logit) >= among.min_key ? weight : 0;
    };
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int stretch = (row.num_quads + WARPS - 1) / WARPS;
    auto start = [&](int warp) { return min(warp * stretch, row.num_quads); };
    u64 sum = 0;
    auto add = [&](float logit, int) { sum += kept(logit); };
    each_edge(row, add);
    each_quad<1>(row, start(warp) + lane, start(warp + 1), 32, add);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffff, sum, offset);

    if (threadIdx.x == 0) shared.segment = shared.token = -1;
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
    for (int id = from; id < to; id++) sum += kept(row.logits[id]);
    before = sum_before(shared, sum);
    if (before <= threshold && threshold < before + sum)
        for (int id = from; id < to; id++) {
            before += kept(row.logits[id]);
            if (before > threshold) {
                shared.token = id;
                break;
            }
        }
    __syncthreads();
    return shared.token;
}

// Draws from a row whose penalties are applied.
__device__ __forceinline__ int draw_filtered(Shared& shared, const Row& row, const Likeliest& best) {
    const RowSampling& sampling = shared.row;
    Among among = {{best.logit, __fdiv_rn(1.0f, sampling.temperature)},
                   true,
                   max(__float2ull_rz(__fmul_rn(sampling.min_p, ONE)), 1ull),
                   0};
    // One loop, so that the search is there once.
    for (int is_top_p = 0; is_top_p < 2; is_top_p++) {
        bool is_on = is_top_p ? sampling.top_p > 0.0f && sampling.top_p < 1.0f : sampling.top_k > 0;
        if (!is_on) continue;
        u64 wanted = is_top_p ? __float2ull_rz(__fmul_rn(sampling.top_p, 18446744073709551616.0f)) : sampling.top_k;
        among.min_key = find_cut(shared, row, among, is_top_p, wanted);
    }
    int token = draw(shared, row, among, sampling.random);
    return token < 0 ? best.id : token;
}

__device__ __forceinline__ float logprob_of(float logit, double normaliser) {
    return logit == logit ? float(double(logit) - normaliser) : __int_as_float(0xff800000);
}

// Log-probabilities from an untouched row: of `token`, and of the likeliest.
__device__ __forceinline__ void tell(Shared& shared, const Row& row, float largest, u32 token, int num_top, float* out) {
    Scale scale = {is_finite(largest) ? largest : 0.0f, 1.0f};
    u64 sum = 0;
    if (is_finite(largest)) each<1>(row, [&](float logit, int) { sum += weigh(logit, scale); });
    sum_before(shared, sum);
    if (threadIdx.x == 0) {
        shared.normaliser = shared.total ? double(scale.largest) + log(double(shared.total)) - log(double(ONE)) : 0.0;
        out[0] = token < u32(row.vocab) ? logprob_of(row.logits[token], shared.normaliser) : __int_as_float(0xff800000);
    }
    if (num_top == 0) return;
    Among among = {scale, false, 0, 0};
    narrow<true>(shared, row, among, false, num_top);
    gather<true>(shared, row, among);
    for (int i = threadIdx.x; i < num_top; i += THREADS) {
        u64 order = shared.list[i];
        out[1 + 2 * i] = __int_as_float(id_in(order));
        out[2 + 2 * i] = logprob_of(logit_of(key_in(order)), shared.normaliser);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) sample(const __grid_constant__ SampleParams p) {
    __shared__ Shared shared;
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
    tell(shared, row, best.logit, token, num_top, p.logprobs + u64(blockIdx.x) * (1 + 2 * p.max_top));
}
