// Causal attention over keys and values that are contiguous in a slot: out = softmax(scale · q kᵀ) v.
//
// A query at position p sees the keys at max(0, p + 1 − window) … p. Softmax is computed online (arXiv 1805.02867), in base 2;
// products in 16-bit elements with f32 sums (FlashAttention-2, arXiv 2307.08691). Keys and values of one token are apart from
// the next token's by `token_stride` bytes (64-bit offsets: a slot may have gigabytes). Behind a sequence's last token there
// may be no page: nothing is read there, and zeros stand in shared memory instead.
//
// qkv T [rows, (heads + 2 kv_heads) · dim]; out T [rows, heads · dim]; positions [rows]; slots [rows]: device addresses.
#include "device.cuh"

struct AttentionParams {
    const void* qkv;
    void* out;
    const int* positions;
    const u64* slots;
    u64 token_stride;
    u64 keys_offset;
    int num_heads;
    int num_kv_heads;
    float scale;       // times log2(e)
    int window;        // 0: all
    const int* tiles;    // prefill: {first row, rows} of each
    const int4* pieces;  // decode: {row, which piece of its sequence, of how many, the first one's part} of each; row < 0: none
    float* partial;      // decode: sums [part, head, dim], then {max, sum} of each; a piece of several has a part
    u32* counters;       // decode: blocks of each [first part, kv head] that have ended; 0 before and behind
    int num_parts;
    int num_pieces;  // decode, where one head comes behind all pieces of another; 0: one piece behind all heads of another
};

constexpr float NEGATIVE_INFINITY = -1e30f;

// Fragments of 16 rows of queries: row i of the warp's is at `rows + i · stride`; those from `num_rows` on are zero.
template <class T, int DIM>
__device__ __forceinline__ void load_queries(u32 q[DIM / 16][4], const T* rows, u64 stride, int num_rows) {
    int lane = threadIdx.x % 32, row = lane / 4, col = lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < DIM / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = row + (i % 2) * 8, c = k * 16 + col + (i / 2) * 8;
            q[k][i] = r < num_rows ? *(const u32*)(rows + r * stride + c) : 0;
        }
}

// Has `NUM` keys and values from position `first` on copied to shared memory by `NUM_THREADS` threads, zeros from `end` on.
// Rows are padded by 16 bytes, so that the eight rows of a matrix lie in different banks.
template <class T, int DIM, int NUM, int NUM_THREADS>
__device__ __forceinline__ void load_block(T* keys, T* values, const char* slot, u64 plane, u64 stride, int first, int end,
                                           int thread) {
    constexpr int CHUNKS = DIM / 8;
#pragma unroll
    for (int i = thread; i < NUM * CHUNKS; i += NUM_THREADS) {
        int token = i / CHUNKS, chunk = i % CHUNKS;
        bool is_there = first + token < end;
        const char* source = slot + (is_there ? u64(first + token) * stride : 0) + chunk * 16;
        copy16_async(shared_address(keys + token * (DIM + 8) + chunk * 8), source, is_there);
        copy16_async(shared_address(values + token * (DIM + 8) + chunk * 8), source + plane, is_there);
    }
    commit_copies();
}

// One block of keys and values for the 16 rows of a warp. `last[i]` is the position of row i's query (rows lane / 4 and
// lane / 4 + 8 of this thread).
template <class T, int DIM, int NUM>
__device__ __forceinline__ void attend(const u32 q[DIM / 16][4], const T* keys, const T* values, int first, const int last[2],
                                       int window, bool is_masked, float scale, float out[DIM / 8][4], float max[2],
                                       float sum[2]) {
    int lane = threadIdx.x % 32, matrix = lane / 8, line = lane % 8;
    float s[NUM / 8][4];
#pragma unroll
    for (int n = 0; n < NUM / 8; n += 2) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] = s[n + 1][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < DIM / 16; k++) {
            u32 b[4];
            load_matrices(b, shared_address(keys + ((n + matrix / 2) * 8 + line) * (DIM + 8) + k * 16 + matrix % 2 * 8));
            multiply<T>(s[n], q[k], b[0], b[1]);
            multiply<T>(s[n + 1], q[k], b[2], b[3]);
        }
    }
    float new_max[2] = {max[0], max[1]};
#pragma unroll
    for (int n = 0; n < NUM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = first + n * 8 + lane % 4 * 2 + i % 2, at = last[i / 2];
            s[n][i] *= scale;
            if (is_masked && (key > at || (window > 0 && key + window <= at))) s[n][i] = NEGATIVE_INFINITY;
            new_max[i / 2] = fmaxf(new_max[i / 2], s[n][i]);
        }
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        // A row's scores are spread over four threads.
        new_max[r] = fmaxf(new_max[r], __shfl_xor_sync(0xffffffff, new_max[r], 1));
        new_max[r] = fmaxf(new_max[r], __shfl_xor_sync(0xffffffff, new_max[r], 2));
        shrink[r] = exp2f(max[r] - new_max[r]);
        max[r] = new_max[r];
        sum[r] *= shrink[r];
    }
#pragma unroll
    for (int n = 0; n < NUM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // A row that has seen no key as yet has the maximum of a masked one.
            s[n][i] = s[n][i] <= NEGATIVE_INFINITY ? 0.0f : exp2f(s[n][i] - max[i / 2]);
            sum[i / 2] += s[n][i];
        }
#pragma unroll
    for (int d = 0; d < DIM / 8; d++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[d][i] *= shrink[i / 2];
#pragma unroll
    for (int k = 0; k < NUM / 16; k++) {
        u32 p[4] = {pack<T>(s[2 * k][0], s[2 * k][1]), pack<T>(s[2 * k][2], s[2 * k][3]),
                    pack<T>(s[2 * k + 1][0], s[2 * k + 1][1]), pack<T>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
        for (int d = 0; d < DIM / 8; d += 2) {
            u32 b[4];
            load_matrices_transposed(
                b, shared_address(values + (k * 16 + matrix % 2 * 8 + line) * (DIM + 8) + (d + matrix / 2) * 8));
            multiply<T>(out[d], p, b[0], b[1]);
            multiply<T>(out[d + 1], p, b[2], b[3]);
        }
    }
}

// The sum over the four threads that share a row.
__device__ __forceinline__ float row_sum(float value) {
    value += __shfl_xor_sync(0xffffffff, value, 1);
    return value + __shfl_xor_sync(0xffffffff, value, 2);
}

// ---- prefill ------------------------------------------------------------------------------------------------------------
// Chunks of several prompts in one launch. grid: (tiles, heads); a tile is up to 128 rows of one sequence, a warp has 16 of
// them, and all eight read the same keys and values, 64 at a time, of which the next are loaded while these are computed with.
// Flops: 4 · dim a query, key and head. Bytes: the keys and values once a tile and head, mostly from the cache.
constexpr int PREFILL_KEYS = 64;

template <class T, int DIM> __device__ void prefill(const AttentionParams& p) {
    extern __shared__ __align__(16) char shared[];
    constexpr int BLOCK = PREFILL_KEYS * (DIM + 8);
    let_next_begin();
    wait_for_earlier();
    T* keys = (T*)shared;
    T* values = keys + 2 * BLOCK;
    // The last tiles of a prompt see most keys: they go first, so that the short ones fill the gaps at the end.
    int tile = gridDim.x - 1 - blockIdx.x, head = blockIdx.y;
    int first_row = p.tiles[2 * tile], num_rows = p.tiles[2 * tile + 1];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int kv_head = head / (p.num_heads / p.num_kv_heads);
    int position = p.positions[first_row], end = position + num_rows;
    u64 plane = u64(p.num_kv_heads) * DIM * sizeof(T);
    const char* slot = (const char*)p.slots[first_row] + p.keys_offset + u64(kv_head) * DIM * sizeof(T);
    u64 query_stride = u64(p.num_heads + 2 * p.num_kv_heads) * DIM;

    u32 q[DIM / 16][4];
    int warp_row = first_row + warp * 16, warp_rows = num_rows - warp * 16;
    load_queries<T, DIM>(q, (const T*)p.qkv + u64(warp_row) * query_stride + head * DIM, query_stride, warp_rows);
    float out[DIM / 8][4] = {}, max[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {};
    int last[2] = {position + warp * 16 + lane / 4, position + warp * 16 + lane / 4 + 8};

    int start = p.window > 0 && position + 1 > p.window ? (position + 1 - p.window) / PREFILL_KEYS * PREFILL_KEYS : 0;
    load_block<T, DIM, PREFILL_KEYS, 256>(keys, values, slot, plane, p.token_stride, start, end, threadIdx.x);
    for (int first = start, stage = 0; first < end; first += PREFILL_KEYS, stage ^= 1) {
        int next = first + PREFILL_KEYS;
        if (next < end) {
            load_block<T, DIM, PREFILL_KEYS, 256>(keys + (stage ^ 1) * BLOCK, values + (stage ^ 1) * BLOCK, slot, plane,
                                                  p.token_stride, next, end, threadIdx.x);
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        __syncthreads();
        int warp_position = position + warp * 16;
        bool is_seen = first <= warp_position + 15 && warp_rows > 0;
        bool is_masked = next > warp_position + 1 || p.window > 0;
        if (is_seen)
            attend<T, DIM, PREFILL_KEYS>(q, keys + stage * BLOCK, values + stage * BLOCK, first, last, p.window, is_masked,
                                         p.scale, out, max, sum);
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = lane / 4 + 8 * r;
        float scale = 1.0f / fmaxf(row_sum(sum[r]), 1e-30f);
        if (row >= warp_rows) continue;
        T* line = (T*)p.out + (u64(warp_row + row) * p.num_heads + head) * DIM;
#pragma unroll
        for (int d = 0; d < DIM / 8; d++)
            *(u32*)(line + d * 8 + lane % 4 * 2) = pack<T>(out[d][2 * r] * scale, out[d][2 * r + 1] * scale);
    }
}

// ---- decode -------------------------------------------------------------------------------------------------------------
// One query token a sequence. grid: pieces of contexts · kv heads, the longest pieces first, as src/cuda/attention/split.rs lists
// them: in device memory, so that a graph serves any lengths. A block has the query heads that share a kv head, as the up to 16
// rows of one fragment, and a piece, of which its four warps take 32 (16) tokens in turn, each with its own two buffers: nobody
// waits for another warp before the end, where they put their results together. So does the last block of a sequence and kv head
// with those of all its pieces. Bytes: the keys and values once; that is all its time.
constexpr int DECODE_WARPS = 4;
// Where a multiprocessor has 100 KiB of shared memory instead of 164 or more, half as many keys at a time.
#if __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
constexpr int DECODE_KEYS = 16;
#else
constexpr int DECODE_KEYS = 32;
#endif

template <class T, int DIM> __device__ void decode(const AttentionParams& p) {
    extern __shared__ __align__(16) char shared[];
    constexpr int BLOCK = DECODE_KEYS * (DIM + 8);
    let_next_begin();
    int kv_head = p.num_pieces ? blockIdx.x / p.num_pieces : blockIdx.x % p.num_kv_heads;
    int4 piece = p.pieces[p.num_pieces ? blockIdx.x % p.num_pieces : blockIdx.x / p.num_kv_heads];
    int row = piece.x, split = piece.y, first_part = piece.w;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u64 address = row < 0 ? 0 : p.slots[row];
    int position = row < 0 ? 0 : p.positions[row], end = position + 1;
    wait_for_earlier();
    if (address == 0) return;  // It fills up the list, or pads the batch.
    int group = p.num_heads / p.num_kv_heads;
    int start = p.window > 0 && end > p.window ? end - p.window : 0;
    // No more than there are tokens for all warps of: the fewer, the sooner they are put together.
    int num_splits = min(piece.z, (end - start + DECODE_WARPS * DECODE_KEYS - 1) / (DECODE_WARPS * DECODE_KEYS));
    int span = (end - start + num_splits * DECODE_KEYS - 1) / (num_splits * DECODE_KEYS) * DECODE_KEYS;
    // Each has at least a token.
    num_splits = (end - start + span - 1) / span;
    if (split >= num_splits) return;
    int split_start = start + split * span, split_end = min(end, split_start + span);
    u64 plane = u64(p.num_kv_heads) * DIM * sizeof(T);
    const char* slot = (const char*)address + p.keys_offset + u64(kv_head) * DIM * sizeof(T);
    const T* query = (const T*)p.qkv + u64(row) * (p.num_heads + 2 * p.num_kv_heads) * DIM + kv_head * group * DIM;

    u32 q[DIM / 16][4];
    load_queries<T, DIM>(q, query, DIM, group);
    float out[DIM / 8][4] = {}, max[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {};

    T* keys = (T*)shared + warp * 4 * BLOCK;
    T* values = keys + 2 * BLOCK;
    constexpr int STRIDE = DECODE_WARPS * DECODE_KEYS;
    int first = split_start + warp * DECODE_KEYS;
    if (first < split_end)
        load_block<T, DIM, DECODE_KEYS, 32>(keys, values, slot, plane, p.token_stride, first, split_end, lane);
    for (int stage = 0; first < split_end; first += STRIDE, stage ^= 1) {
        int next = first + STRIDE;
        if (next < split_end) {
            load_block<T, DIM, DECODE_KEYS, 32>(keys + (stage ^ 1) * BLOCK, values + (stage ^ 1) * BLOCK, slot, plane,
                                                p.token_stride, next, split_end, lane);
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        __syncwarp();
        // The query is the last token: only what lies behind the split is masked.
        int seen[2] = {split_end - 1, split_end - 1};
        attend<T, DIM, DECODE_KEYS>(q, keys + stage * BLOCK, values + stage * BLOCK, first, seen, 0,
                                    first + DECODE_KEYS > split_end, p.scale, out, max, sum);
        __syncwarp();
    }
    // The warps' parts are put together in shared memory, which nobody needs for keys any more.
    __syncthreads();
    float* maxima = (float*)shared;
    float* sums = maxima + DECODE_WARPS * 16;
    float* parts = sums + DECODE_WARPS * 16;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float total = row_sum(sum[r]);
        int line = lane / 4 + 8 * r;
        if (lane % 4 == 0) maxima[warp * 16 + line] = max[r], sums[warp * 16 + line] = total;
        if (line < group)
#pragma unroll
            for (int d = 0; d < DIM / 8; d++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    parts[(warp * 16 + line) * DIM + d * 8 + lane % 4 * 2 + i] = out[d][2 * r + i];
    }
    __syncthreads();
    u64 first_line = u64(first_part) * p.num_heads + kv_head * group;
    float2* weights = (float2*)(p.partial + u64(p.num_parts) * p.num_heads * DIM);
    for (int i = threadIdx.x; i < group * DIM; i += blockDim.x) {
        int line = i / DIM, d = i % DIM;
        float top = NEGATIVE_INFINITY, value = 0.0f, total = 0.0f;
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) top = fmaxf(top, maxima[w * 16 + line]);
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) {
            float weight = exp2f(maxima[w * 16 + line] - top);
            total += weight * sums[w * 16 + line];
            value += weight * parts[(w * 16 + line) * DIM + d];
        }
        if (num_splits == 1) {
            ((T*)p.out)[(u64(row) * p.num_heads + kv_head * group + line) * DIM + d] = narrow<T>(value / total);
        } else {
            u64 part = first_line + u64(split) * p.num_heads + line;
            p.partial[part * DIM + d] = value;
            if (d == 0) weights[part] = make_float2(top, total);
        }
    }
    if (num_splits == 1) return;

    // The block that ends last puts the pieces together: it sees all of them.
    __shared__ bool is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* counter = p.counters + u64(first_part) * p.num_kv_heads + kv_head;
        is_last = atomicAdd(counter, 1) == num_splits - 1;
        // For the next launch.
        if (is_last) *counter = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    for (int i = threadIdx.x; i < group * DIM; i += blockDim.x) {
        int line = i / DIM, d = i % DIM;
        float top = NEGATIVE_INFINITY, value = 0.0f, total = 0.0f;
#pragma unroll 4
        for (int s = 0; s < num_splits; s++) top = fmaxf(top, __ldcg(weights + first_line + u64(s) * p.num_heads + line).x);
#pragma unroll 4
        for (int s = 0; s < num_splits; s++) {
            u64 part = first_line + u64(s) * p.num_heads + line;
            float2 its = __ldcg(weights + part);
            float weight = exp2f(its.x - top);
            total += weight * its.y;
            value += weight * __ldcg(p.partial + part * DIM + d);
        }
        ((T*)p.out)[(u64(row) * p.num_heads + kv_head * group + line) * DIM + d] = narrow<T>(value / total);
    }
}

// A decode's registers are for as many blocks as there is shared memory for on Hopper, 227 KiB of it.
#define ATTENTION(NAME, T, DIM)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256) prefill_##NAME##_##DIM(const __grid_constant__ AttentionParams p) { \
        prefill<T, DIM>(p);                                                                                            \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 227 / (DIM + 8))                                                 \
        decode_##NAME##_##DIM(const __grid_constant__ AttentionParams p) {                                             \
        decode<T, DIM>(p);                                                                                             \
    }

ATTENTION(bf16, Bf16, 32)
ATTENTION(bf16, Bf16, 64)
ATTENTION(bf16, Bf16, 96)
ATTENTION(bf16, Bf16, 128)
ATTENTION(f16, F16, 32)
ATTENTION(f16, F16, 64)
ATTENTION(f16, F16, 96)
ATTENTION(f16, F16, 128)
