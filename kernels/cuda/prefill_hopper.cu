// Prefill attention for Hopper: out = softmax(scale · q kᵀ) v, as `prefill` of attention.cu has it, with the products of
// warpgroups that sm_90a has (FlashAttention-3, arXiv 2407.08608). For other architectures this file has no kernels.
//
// qkv T [rows, (heads + 2 kv_heads) · dim]; out T [rows, heads · dim]; positions [rows]; slots [rows]: device addresses.
// An item of work is a tile, up to 128 rows of one sequence, and a head. grid: a block for each multiprocessor, which has one
// item after the other, the longest first, as soon as it is done with the last. Two of its warpgroups compute, 64 rows each:
// the scores of a block of keys, from queries in registers and keys in shared memory; their softmax in registers; and the
// weights, as 16-bit fragments, times the values in shared memory. The third one loads: queries, and keys and values of one
// block after the other, in rings of `STAGES`, the next item's while this one's are computed with. It copies 16 bytes at a time,
// because a slot may lie anywhere and behind its last token there may be no page: nothing is read there, and zeros stand in
// shared memory instead.
// The scores of the next block are asked for before the product of this one's weights, so that a warpgroup's softmax runs while
// the tensor cores are busy: with its own values, and with the other warpgroup's products, whose turn it is then (two barriers
// see to that: 602 TFLOP/s instead of 568). Blocks go from the last to the first: those with masks come first.
//
// Flops: 4 · dim a query, key and head. Bytes: keys and values once a tile and head, mostly from the cache. How it got here, on
// an H100, 8192 tokens of dim 128: a block for each item, one head after the other, 602 TFLOP/s; the longest tiles of all heads
// first 619; queries in registers, not shared memory, 2 % more; a block for many items 649; sums that seldom shrink 670.
#include "device.cuh"
#include "hopper.cuh"

// AttentionParams of attention.cu, as far as they are needed here.
struct PrefillParams {
    const void* qkv;
    void* out;
    const int* positions;
    const u64* slots;
    u64 token_stride;
    u64 keys_offset;
    int num_heads;
    int num_kv_heads;
    float scale;       // times log2(e), and more than 0
    int window;        // 0: all
    const int* tiles;  // {first row, rows} of each
    int num_tiles;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int ROWS = 128;
constexpr int LINE_BYTES = 128;  // of shared memory: 64 elements
constexpr int NUM_COMPUTING = 256;
constexpr int NUM_THREADS = 384;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000); }

// Two to the power of `x`, of which denormal results are 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// A warpgroup has `NUM` rows of DIM elements copied to panels of 64 columns, swizzled: row i is at `source + i · stride`; those
// from `num_there` on are zeros, for which nothing is read, from `nowhere`.
template <int DIM, int NUM>
__device__ __forceinline__ void load_rows(u32 shared, const char* source, u64 stride, int num_there, const void* nowhere) {
    constexpr int CHUNKS = DIM / 8, STEP = 128 / CHUNKS;
    int chunk = threadIdx.x % CHUNKS, row = threadIdx.x % 128 / CHUNKS;
    u32 target = shared + chunk / 8 * (NUM * LINE_BYTES) + row * LINE_BYTES + (chunk % 8 ^ row % 8) * 16;
    const char* line = source + row * stride + chunk * 16;
#pragma unroll
    for (int i = 0; i < NUM / STEP; i++) {
        bool is_there = row + i * STEP < num_there;
        copy16_async(target + i * STEP * LINE_BYTES, is_there ? line : nowhere, is_there);
        line += STEP * stride;
    }
}

// What the loading warpgroup tells the others of a tile and head.
struct alignas(16) Item { int first_row, num_rows, position, head; };

// Which item the next block to ask gets, beside the first of each, and how many blocks have got none; both 0 between launches, of
// which one at a time is at work.
__device__ u32 num_taken, num_idle;

template <class T, int DIM, int KEYS, int STAGES>
__device__ __forceinline__ void prefill_hopper(const PrefillParams& p) {
    extern __shared__ __align__(1024) char shared[];
    constexpr int BLOCK_BYTES = KEYS * DIM * sizeof(T);
    constexpr int PANEL_BYTES = KEYS * LINE_BYTES;
    u32 queries = shared_address(shared), keys = queries + ROWS * DIM * sizeof(T), values = keys + STAGES * BLOCK_BYTES;
    u32 has_item = values + STAGES * BLOCK_BYTES, has_queries = has_item + 8, frees_queries = has_queries + 8;
    u32 has_keys = frees_queries + 8, has_values = has_keys + 8 * STAGES;
    u32 frees_keys = has_values + 8 * STAGES, frees_values = frees_keys + 8 * STAGES;
    constexpr int BARRIERS = ROWS * DIM * sizeof(T) + 2 * STAGES * BLOCK_BYTES;
    // Behind the barriers.
    volatile Item* shared_item = (volatile Item*)(shared + BARRIERS + 8 * (4 + 4 * STAGES));
    volatile u32* shared_next = (volatile u32*)(shared_item + 1);
    if (threadIdx.x == 0) {
        init_barrier(has_item, 1);
        init_barrier(has_queries, 128);
        init_barrier(frees_queries, NUM_COMPUTING / 32);
        for (int i = 0; i < STAGES; i++) {
            init_barrier(has_keys + 8 * i, 128);
            init_barrier(has_values + 8 * i, 128);
            init_barrier(frees_keys + 8 * i, NUM_COMPUTING / 32);
            init_barrier(frees_values + 8 * i, NUM_COMPUTING / 32);
        }
    }
    let_next_begin();
    wait_for_earlier();
    __syncthreads();
    int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
    // A ring's place, and the parity of its phase.
    auto advance = [](int& stage, int& phase) {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    };
    auto first_block = [&](int position) {
        return p.window > 0 && position + 1 > p.window ? (position + 1 - p.window) / KEYS : 0;
    };

    if (warpgroup == NUM_COMPUTING / 128) {
        give_registers<56>();
        int thread = threadIdx.x % 128;
        u32 num_items = p.num_tiles * p.num_heads;
        u64 plane = u64(p.num_kv_heads) * DIM * sizeof(T), block_stride = KEYS * p.token_stride;
        u64 query_stride = u64(p.num_heads + 2 * p.num_kv_heads) * DIM * sizeof(T);
        int keys_stage = 0, keys_phase = 1, values_stage = 0, values_phase = 1, item_phase = 1, parity = 0;
        for (u32 index = blockIdx.x; index < num_items;) {
            // The last tiles of a prompt see most keys: they go first, so that the short ones fill the gaps at the end.
            int tile = p.num_tiles - 1 - index / p.num_heads, head = index % p.num_heads;
            int first_row = p.tiles[2 * tile], num_rows = p.tiles[2 * tile + 1];
            int position = p.positions[first_row], end = position + num_rows, start = first_block(position);
            int block = (end + KEYS - 1) / KEYS - 1;
            const char* slot = (const char*)p.slots[first_row] + p.keys_offset
                + head / (p.num_heads / p.num_kv_heads) * (DIM * sizeof(T));
            wait_for_phase(frees_queries, item_phase);
            item_phase ^= 1;
            u32 next = 0;
            if (thread == 0) {
                shared_item->first_row = first_row, shared_item->num_rows = num_rows;
                shared_item->position = position, shared_item->head = head;
                arrive(has_item);
                next = gridDim.x + atomicAdd(&num_taken, 1);
            }
            load_rows<DIM, ROWS>(queries, (const char*)p.qkv + first_row * query_stride + head * (DIM * sizeof(T)), query_stride,
                                 num_rows, p.qkv);
            arrive_with_copies(has_queries);
            auto load_keys = [&] {
                wait_for_phase(frees_keys + 8 * keys_stage, keys_phase);
                load_rows<DIM, KEYS>(keys + keys_stage * BLOCK_BYTES, slot + block * block_stride, p.token_stride,
                                     end - block * KEYS, p.qkv);
                arrive_with_copies(has_keys + 8 * keys_stage);
                advance(keys_stage, keys_phase);
            };
            load_keys();
            // The values of a block are asked for behind the keys of the next, as they are needed.
            while (true) {
                int its = block;
                if (block > start) {
                    block--;
                    load_keys();
                }
                wait_for_phase(frees_values + 8 * values_stage, values_phase);
                load_rows<DIM, KEYS>(values + values_stage * BLOCK_BYTES, slot + plane + its * block_stride, p.token_stride,
                                     end - its * KEYS, p.qkv);
                arrive_with_copies(has_values + 8 * values_stage);
                advance(values_stage, values_phase);
                if (its == start) break;
            }
            if (thread == 0) shared_next[parity] = next;
            sync_threads(3, 128);
            index = __shfl_sync(0xffffffff, shared_next[parity], 0);
            parity ^= 1;
        }
        wait_for_phase(frees_queries, item_phase);
        if (thread == 0) {
            shared_item->num_rows = 0;
            arrive(has_item);
            // The last block to end leaves the counters as it found them.
            if (atomicInc(&num_idle, gridDim.x - 1) == gridDim.x - 1) num_taken = 0;
        }
        wait_for_copies<0>();
    } else {
        take_registers<224>();
        int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
        int first_of_group = warpgroup * 64, line = first_of_group + warp * 16 + lane / 4;
        u32 group_queries = queries + first_of_group * LINE_BYTES;
        Item item{};
        float s[KEYS / 2], out[DIM / 2], max[2], sum[2], shrink[2];
        u32 weights[KEYS / 16][4], q[DIM / 16][4];

        auto ask_for_scores = [&](int stage) {
#pragma unroll
            for (int k = 0; k < DIM / 16; k++) {
                u64 b = rows_descriptor(keys + stage * BLOCK_BYTES + k / 4 * PANEL_BYTES + k % 4 * 32);
                if (k == 0) multiply_registers<T, false, false>(s, q[k], b);
                else multiply_registers<T, true, false>(s, q[k], b);
            }
            commit_products();
        };
        auto ask_for_values = [&](int stage) {
#pragma unroll
            for (int k = 0; k < KEYS / 16; k++)
                multiply_registers<T, true, true>(
                    out, weights[k], columns_descriptor(values + stage * BLOCK_BYTES + k * 16 * LINE_BYTES, PANEL_BYTES));
            commit_products();
        };
        // The softmax of a block's scores, without the sums' reciprocal, relative to a maximum of the rows' scores so far. That one
        // stays as long as no weight comes to more than 256: such weights are as exact as those up to 1, and most blocks need not
        // shrink what was summed up before. Tells whether it must shrink, by `shrink`.
        auto weigh = [&](int block) -> bool {
            int first = block * KEYS, group_position = item.position + first_of_group;
            bool is_masked = first + KEYS - 1 > group_position || (p.window > 0 && first + p.window <= group_position + 63);
            if (is_masked) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int at = item.position + line + 8 * r - first - lane % 4 * 2;
                    int from = p.window > 0 ? at - p.window : -KEYS;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int i = 0; i < 2; i++)
                            if (n * 8 + i > at || n * 8 + i <= from) s[4 * n + 2 * r + i] = minus_infinity();
                }
            }
            float new_max[2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float top[2] = {max[r], s[2 * r]};
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) top[i] = fmaxf(top[i], s[4 * n + 2 * r + i]);
                new_max[r] = fmaxf(top[0], top[1]);
                // A row's scores are spread over four threads.
                new_max[r] = fmaxf(new_max[r], __shfl_xor_sync(0xffffffff, new_max[r], 1));
                new_max[r] = fmaxf(new_max[r], __shfl_xor_sync(0xffffffff, new_max[r], 2));
            }
            bool is_higher = new_max[0] * p.scale > max[0] * p.scale + 8.0f || new_max[1] * p.scale > max[1] * p.scale + 8.0f;
            bool shrinks = __any_sync(0xffffffff, is_higher);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (shrinks) {
                    // A row that has seen no key as yet has no maximum.
                    shrink[r] = max[r] == minus_infinity() ? 0.0f : exp2_fast((max[r] - new_max[r]) * p.scale);
                    max[r] = new_max[r];
                    sum[r] *= shrink[r];
                }
                float offset = max[r] == minus_infinity() ? 0.0f : max[r] * p.scale, total[2] = {sum[r], 0.0f};
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float& score = s[4 * n + 2 * r + i];
                        score = exp2_fast(score * p.scale - offset);
                        total[i] += score;
                    }
                sum[r] = total[0] + total[1];
            }
            return shrinks;
        };
        auto narrow_weights = [&] {
#pragma unroll
            for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
                for (int i = 0; i < 4; i++) weights[k][i] = pack<T>(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
        };
        auto free = [&](u32 barrier) {
            __syncwarp();
            if (lane == 0) arrive(barrier);
        };

        // The first warpgroup's products go first.
        if (warpgroup == 1) arrive_threads(1, NUM_COMPUTING);
        int keys_stage = 0, keys_phase = 0, values_stage = 0, values_phase = 0;
        for (int item_phase = 0;; item_phase ^= 1) {
            wait_for_phase(has_item, item_phase);
            // The same for all threads: so that the compiler knows.
            item = {__shfl_sync(0xffffffff, shared_item->first_row, 0), __shfl_sync(0xffffffff, shared_item->num_rows, 0),
                    __shfl_sync(0xffffffff, shared_item->position, 0), __shfl_sync(0xffffffff, shared_item->head, 0)};
            if (item.num_rows == 0) break;
            int block = (item.position + item.num_rows + KEYS - 1) / KEYS - 1, start = first_block(item.position);
#pragma unroll
            for (int i = 0; i < DIM / 2; i++) out[i] = 0.0f;
#pragma unroll
            for (int r = 0; r < 2; r++) max[r] = minus_infinity(), sum[r] = 0.0f;

            wait_for_phase(has_queries, item_phase);
#pragma unroll
            for (int k = 0; k < DIM / 16; k++) {
                int row = warp * 16 + lane % 16, chunk = k % 4 * 2 + lane / 16;
                load_matrices(q[k], group_queries + k / 4 * (ROWS * LINE_BYTES) + row * LINE_BYTES + (chunk ^ row % 8) * 16);
            }
            free(frees_queries);
            wait_for_phase(has_keys + 8 * keys_stage, keys_phase);
            show_to_tensor_cores();
            begin_products();
            ask_for_scores(keys_stage);
            wait_for_products<0>();
            pin(s);
            free(frees_keys + 8 * keys_stage);
            weigh(block);
            narrow_weights();
            advance(keys_stage, keys_phase);
            while (block > start) {
                block--;
                wait_for_phase(has_keys + 8 * keys_stage, keys_phase);
                sync_threads(1 + warpgroup, NUM_COMPUTING);
                show_to_tensor_cores();
                pin(s);
                pin(out);
                begin_products();
                ask_for_scores(keys_stage);
                wait_for_phase(has_values + 8 * values_stage, values_phase);
                show_to_tensor_cores();
                ask_for_values(values_stage);
                arrive_threads(2 - warpgroup, NUM_COMPUTING);
                wait_for_products<1>();
                pin(s);
                free(frees_keys + 8 * keys_stage);
                bool shrinks = weigh(block);
                wait_for_products<0>();
                pin(out);
                free(frees_values + 8 * values_stage);
                narrow_weights();
                if (shrinks)
#pragma unroll
                    for (int i = 0; i < DIM / 2; i++) out[i] *= shrink[i / 2 % 2];
                advance(keys_stage, keys_phase);
                advance(values_stage, values_phase);
            }
            wait_for_phase(has_values + 8 * values_stage, values_phase);
            show_to_tensor_cores();
            pin(out);
            begin_products();
            ask_for_values(values_stage);
            wait_for_products<0>();
            pin(out);
            free(frees_values + 8 * values_stage);
            advance(values_stage, values_phase);

#pragma unroll
            for (int r = 0; r < 2; r++) {
                float total = sum[r];
                total += __shfl_xor_sync(0xffffffff, total, 1);
                total += __shfl_xor_sync(0xffffffff, total, 2);
                float scale = 1.0f / fmaxf(total, 1e-30f);
                int row = line + 8 * r, part = lane % 4;
                T* to = (T*)p.out + (u64(item.first_row + row) * p.num_heads + item.head) * DIM;
#pragma unroll
                for (int d = 0; d < DIM / 8; d += 4) {
                    // A thread has the same two columns of four eights; exchanged among the four threads of the row, they become
                    // all eight columns of one.
                    u32 words[4];
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        words[i] = pack<T>(out[4 * (d + i) + 2 * r] * scale, out[4 * (d + i) + 2 * r + 1] * scale);
#pragma unroll
                    for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            if (i & bit) continue;
                            bool is_upper = part & bit;
                            u32 other = __shfl_xor_sync(0xffffffff, is_upper ? words[i] : words[i + bit], bit);
                            (is_upper ? words[i] : words[i + bit]) = other;
                        }
                    if (row < item.num_rows) *(Pack8*)(to + (d + part) * 8) = Pack8{words[0], words[1], words[2], words[3]};
                }
            }
        }
    }
}

#define PREFILL(NAME, T, DIM, KEYS, STAGES)                                      \
    extern "C" __global__ void __launch_bounds__(NUM_THREADS, 1)                 \
        prefill_hopper_##NAME##_##DIM(const __grid_constant__ PrefillParams p) { \
        prefill_hopper<T, DIM, KEYS, STAGES>(p);                                 \
    }

// On an H100 192 keys of dim 64 at a time had 487 TFLOP/s at 8192 tokens, 128 had 424 (but 220 instead of 196 at 16 times 512);
// two stages instead of three had as much for long prompts and 5 % less for short ones.
PREFILL(bf16, Bf16, 64, 192, 3)
PREFILL(bf16, Bf16, 128, 128, 3)
PREFILL(f16, F16, 64, 192, 3)
PREFILL(f16, F16, 128, 128, 3)

#endif
