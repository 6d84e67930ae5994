// The kernels between the matrix products, each of which works on rows, a token a row; and the product of few rows.
//
// T: Bf16 or F16, the type of weights, keys and values, and of what goes into a product. The residual stream is f32.
#include "device.cuh"

// ---- embed --------------------------------------------------------------------------------------------------------------
// residual[row] = embedding[tokens[row]] (+ learned[positions[row]]).
// embedding T [vocab, width], learned f32 [positions, width] or null, residual f32 [rows, width]. A token that the step before
// drew, and nobody has read as yet, is given as ~i, and is drawn[i]; it is put into its place. A block has a row; width is a
// multiple of 8. Bytes: 6 (10) a number. No id can make the GPU fault, and so end everybody's requests: one that is too high
// counts as the last.
struct EmbedParams {
    const void* embedding;
    const float* learned;
    int* tokens;
    const int* drawn;
    const int* positions;
    float* residual;
    int width;
    int num_tokens;
    int num_drawn;
    int num_positions;
};

template <class T> __device__ void embed(const EmbedParams& p) {
    let_next_begin();
    wait_for_earlier();
    int given = p.tokens[blockIdx.x];
    if (given < 0) {
        given = int(min(u32(p.drawn[min(~given, p.num_drawn - 1)]), u32(p.num_tokens - 1)));
        // Whoever of the block reads it only now finds the same token, which is none to look up again.
        if (threadIdx.x == 0) p.tokens[blockIdx.x] = given;
    }
    u32 token = min(u32(given), u32(p.num_tokens - 1));
    const Pack8* source = (const Pack8*)((const T*)p.embedding + u64(token) * p.width);
    const float4* learned = nullptr;
    if (p.learned)
        learned = (const float4*)(p.learned + u64(min(u32(p.positions[blockIdx.x]), u32(p.num_positions - 1))) * p.width);
    float4* out = (float4*)(p.residual + u64(blockIdx.x) * p.width);
    for (int i = threadIdx.x; i < p.width / 8; i += blockDim.x) {
        float x[8];
        unpack8<T>(source[i], x);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float4 a = learned ? learned[2 * i + j] : make_float4(0, 0, 0, 0);
            out[2 * i + j] = make_float4(x[4 * j] + a.x, x[4 * j + 1] + a.y, x[4 * j + 2] + a.z, x[4 * j + 3] + a.w);
        }
    }
}
extern "C" __global__ void embed_bf16(const __grid_constant__ EmbedParams p) { embed<Bf16>(p); }
extern "C" __global__ void embed_f16(const __grid_constant__ EmbedParams p) { embed<F16>(p); }

// ---- norm ---------------------------------------------------------------------------------------------------------------
// residual[row] += added (where given, once: the bias of the product that was added to it before);
// out[i] = norm(residual[rows[i]]) · weight (+ bias), RMSNorm or, where `bias` is given, LayerNorm.
// residual f32 [*, width]; added, weight, bias f32 [width]; rows null: i itself; out T [grid, width]. A block has a row and
// reads it twice, the second time from the cache. Bytes: 6 a number.
struct NormParams {
    float* residual;
    const float* added;
    const float* weight;
    const float* bias;
    const int* rows;
    void* out;
    int width;
    float epsilon;
    int num_residual_rows;
};

template <class T> __device__ void norm(const NormParams& p) {
    __shared__ float shared[32], shared_2[32];
    let_next_begin();
    wait_for_earlier();
    u32 row = min(p.rows ? u32(p.rows[blockIdx.x]) : blockIdx.x, u32(p.num_residual_rows - 1));
    float* x = p.residual + u64(row) * p.width;
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x * 4; i < p.width; i += blockDim.x * 4) {
        float4 v = *(float4*)(x + i);
        if (p.added) {
            float4 a = *(const float4*)(p.added + i);
            v = make_float4(v.x + a.x, v.y + a.y, v.z + a.z, v.w + a.w);
            *(float4*)(x + i) = v;
        }
        sum += v.x + v.y + v.z + v.w;
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    float mean = 0.0f, variance;
    if (p.bias) {
        mean = block_sum(sum, shared) / p.width;
        // The second pass about the mean: the difference of squares would lose what a large mean hides.
        float about = 0.0f;
        for (int i = threadIdx.x * 4; i < p.width; i += blockDim.x * 4) {
            float4 v = *(float4*)(x + i);
            float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
            about += a * a + b * b + c * c + d * d;
        }
        variance = block_sum(about, shared_2) / p.width;
    } else {
        variance = block_sum(squares, shared) / p.width;
    }
    float scale = rsqrtf(variance + p.epsilon);
    T* out = (T*)p.out + u64(blockIdx.x) * p.width;
    for (int i = threadIdx.x * 4; i < p.width; i += blockDim.x * 4) {
        float4 v = *(float4*)(x + i);
        float4 w = *(const float4*)(p.weight + i);
        float4 b = p.bias ? *(const float4*)(p.bias + i) : make_float4(0, 0, 0, 0);
        uint2 packed;
        packed.x = pack<T>((v.x - mean) * scale * w.x + b.x, (v.y - mean) * scale * w.y + b.y);
        packed.y = pack<T>((v.z - mean) * scale * w.z + b.z, (v.w - mean) * scale * w.w + b.w);
        *(uint2*)(out + i) = packed;
    }
}
extern "C" __global__ void norm_bf16(const __grid_constant__ NormParams p) { norm<Bf16>(p); }
extern "C" __global__ void norm_f16(const __grid_constant__ NormParams p) { norm<F16>(p); }

// ---- heads --------------------------------------------------------------------------------------------------------------
// For each head of qkv[row] = [queries | keys | values]: + bias; queries and keys normed (where weights are given) and turned
// by their position (where angles are given); queries back in place, keys and values into the row's slot.
// qkv T [rows, (heads + 2 kv_heads) · dim], bias f32 or null, query_norm / key_norm f32 [dim] or null,
// angles f32 [positions, dim]: cosines, then sines; slots: the device address of each row's slot, of which a token's
// keys of this layer begin `keys_offset` bytes behind `position · token_stride`, and its values `plane` bytes behind those.
// grid: (rows, pieces of eight heads). A warp has a head; dim is up to 128. Bytes: 4 a number, and 2 more of keys and values.
struct HeadsParams {
    void* qkv;
    const float* bias;
    const float* query_norm;
    const float* key_norm;
    const float* angles;
    const int* positions;
    const u64* slots;
    u64 token_stride;
    u64 keys_offset;
    int num_heads;
    int num_kv_heads;
    int dim;
    float epsilon;
    int num_positions;
};

// Where a head of a row goes; null for keys and values of a row that pads a batch, which has no slot.
template <class T> __device__ __forceinline__ T* place_of(const HeadsParams& p, int row, int head) {
    if (head < p.num_heads) return (T*)p.qkv + (u64(row) * (p.num_heads + 2 * p.num_kv_heads) + head) * p.dim;
    u64 slot = p.slots[row];
    bool is_value = head >= p.num_heads + p.num_kv_heads;
    int kv_head = head - p.num_heads - (is_value ? p.num_kv_heads : 0);
    u64 plane = u64(p.num_kv_heads) * p.dim * sizeof(T);
    u64 address = slot + u64(p.positions[row]) * p.token_stride + p.keys_offset + (is_value ? plane : 0);
    return slot ? (T*)address + kv_head * p.dim : nullptr;
}

// By what element i of the first half is turned, together with that of the second.
__device__ __forceinline__ float2 turn_of(const HeadsParams& p, int row, int i) {
    const float* angles = p.angles + u64(min(u32(p.positions[row]), u32(p.num_positions - 1))) * p.dim;
    return make_float2(angles[i], angles[p.dim / 2 + i]);
}

template <class T> __device__ void heads(const HeadsParams& p) {
    let_next_begin();
    wait_for_earlier();
    int row = blockIdx.x, lane = threadIdx.x % 32;
    int num_all = p.num_heads + 2 * p.num_kv_heads, half = p.dim / 2;
    int head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    if (head >= num_all) return;
    T* x = (T*)p.qkv + u64(row) * num_all * p.dim + head * p.dim;
    bool is_query = head < p.num_heads, is_value = head >= p.num_heads + p.num_kv_heads;
    const float* weight = is_value ? nullptr : is_query ? p.query_norm : p.key_norm;
    // Element i of the first half belongs to element i of the second; a lane has up to two pairs.
    float first[2], second[2], squares = 0.0f;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        int i = lane + 32 * j;
        first[j] = second[j] = 0.0f;
        if (i < half) {
            first[j] = widen(x[i]) + (p.bias ? p.bias[head * p.dim + i] : 0.0f);
            second[j] = widen(x[i + half]) + (p.bias ? p.bias[head * p.dim + i + half] : 0.0f);
            squares += first[j] * first[j] + second[j] * second[j];
        }
    }
    float scale = weight ? rsqrtf(warp_sum(squares) / p.dim + p.epsilon) : 1.0f;
    T* kept = place_of<T>(p, row, head);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        int i = lane + 32 * j;
        if (i >= half || !kept) continue;
        float a = first[j], b = second[j];
        if (weight) {
            a *= scale * weight[i];
            b *= scale * weight[i + half];
        }
        if (p.angles && !is_value) {
            float2 turn = turn_of(p, row, i);
            float turned = a * turn.x - b * turn.y;
            b = b * turn.x + a * turn.y;
            a = turned;
        }
        kept[i] = narrow<T>(a);
        kept[i + half] = narrow<T>(b);
    }
}
extern "C" __global__ void heads_bf16(const __grid_constant__ HeadsParams p) { heads<Bf16>(p); }
extern "C" __global__ void heads_f16(const __grid_constant__ HeadsParams p) { heads<F16>(p); }

// ---- activation ---------------------------------------------------------------------------------------------------------
// out[row] = f(gate + bias) · (up + bias) where gated, f(up + bias) where plain.
// x T [rows, width or 2 · width] (gate, then up), bias f32 or null, out T [rows, width]. grid: rows · pieces of a row,
// in the one direction that has room for any number of rows. Bytes: 6 (4) a number.
struct ActivationParams {
    const void* x;
    const float* bias;
    void* out;
    int width;
    int kind;  // 0 SiLU, 1 GELU, 2 GELU by tanh, 3 ReLU
    int is_gated;
};

__device__ __forceinline__ float activate(float x, int kind) {
    switch (kind) {
        case 0: return x / (1.0f + __expf(-x));
        case 1: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
        case 2: return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
        default: return fmaxf(x, 0.0f);
    }
}

template <class T> __device__ void activation(const ActivationParams& p) {
    let_next_begin();
    wait_for_earlier();
    int num_pieces = (p.width / 8 + blockDim.x - 1) / blockDim.x;
    int i = blockIdx.x % num_pieces * blockDim.x + threadIdx.x;
    if (i >= p.width / 8) return;
    u64 row = blockIdx.x / num_pieces;
    const T* x = (const T*)p.x + row * p.width * (p.is_gated ? 2 : 1);
    float a[8], b[8];
    unpack8<T>(((const Pack8*)x)[i], a);
    if (p.is_gated) unpack8<T>(((const Pack8*)(x + p.width))[i], b);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float bias = p.bias ? p.bias[8 * i + j] : 0.0f;
        a[j] = activate(a[j] + bias, p.kind);
        if (p.is_gated) a[j] *= b[j] + (p.bias ? p.bias[p.width + 8 * i + j] : 0.0f);
    }
    ((Pack8*)((T*)p.out + row * p.width))[i] = pack8<T>(a);
}
extern "C" __global__ void activation_bf16(const __grid_constant__ ActivationParams p) { activation<Bf16>(p); }
extern "C" __global__ void activation_f16(const __grid_constant__ ActivationParams p) { activation<F16>(p); }

// ---- few ----------------------------------------------------------------------------------------------------------------
// y[rows, outputs] = x[rows, inputs] · weight[outputs, inputs]ᵀ for one to four rows, and with it what stands before and
// behind a product in a layer: all the time goes into reading the weight once, and a launch for anything else would be time in
// which nothing of it is read. (A library's tiles of many rows read it no faster and begin later.)
//
// x T [rows, inputs]; or, normed, RMSNorm(x) · norm of x f32 [rows, inputs], norm f32 [inputs], of which the scale of a row is
// only multiplied with its sums at the end. weight T. What becomes of y:
// - kept: out T or f32 [rows, outputs], or f32 that y is added to;
// - activated: out T [rows, width] = f(y + bias), or f(gate + bias) · (up + bias) where y = [gate | up];
// - heads: as the kernel of that name does, without norms.
//
// A block has eight outputs: two runs of four, which lie `distance` apart, so that both halves of what is turned, or gate and
// up, are the same block's. Its threads share the inputs in pieces of eight; inputs is a multiple of 8. Bytes: 2 a weight.
struct FewParams {
    const void* x;
    const float* norm;
    const void* weight;
    void* out;
    int num_rows;
    int num_inputs;
    int num_outputs;
    int kind;        // 0: T, 1: f32, 2: added to f32, 3: activated, 4: heads
    int num_blocks;  // The runs of this many blocks are one behind the other,
    int span;        // and the first run of the next so many begins here;
    int distance;    // a block's second run begins so far behind its first.
    float epsilon;
    ActivationParams activation;
    HeadsParams heads;
};
constexpr int FEW_RUN = 4;
constexpr int FEW_OUTPUTS = 2 * FEW_RUN;
constexpr int FEW_MAX_WARPS = 8;

// Read once, by one block: it need not stay in the first cache.
__device__ __forceinline__ Pack8 load_once(const Pack8* address) {
    Pack8 out;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out.words[0]), "=r"(out.words[1]), "=r"(out.words[2]), "=r"(out.words[3])
                 : "l"(address));
    return out;
}

template <class T, int ROWS, bool IS_NORMED> __device__ void few(const FewParams& p) {
    constexpr int NUM = FEW_OUTPUTS * ROWS;
    __shared__ float shared[FEW_MAX_WARPS][NUM + ROWS];
    let_next_begin();
    int num_pieces = p.num_inputs / 8, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int begin = blockIdx.x / p.num_blocks * p.span + blockIdx.x % p.num_blocks * FEW_RUN;
    // The last block has whole runs too: of outputs of the block before, which are not written, and its own.
    int first = min(begin, p.num_outputs - p.distance - FEW_RUN);
    auto output_of = [&](int o) { return first + (o < FEW_RUN ? o : p.distance + o - FEW_RUN); };
    const char* runs = (const char*)p.weight + u64(first) * p.num_inputs * sizeof(T);
    u64 run_distance = u64(p.distance) * p.num_inputs * sizeof(T);
    u32 row_bytes = p.num_inputs * sizeof(T);
    auto load = [&](int o, int i) {
        const char* run = runs + i * sizeof(Pack8) + (o < FEW_RUN ? 0 : run_distance);
        return load_once((const Pack8*)(run + o % FEW_RUN * row_bytes));
    };
    // The first weights are on their way before the kernel that makes x has ended.
    Pack8 packs[FEW_OUTPUTS];
    if (threadIdx.x < num_pieces) {
#pragma unroll
        for (int o = 0; o < FEW_OUTPUTS; o++) packs[o] = load(o, threadIdx.x);
    }
    // In the end, a lane of the first warp has one output of one row. What it needs for that is asked for now.
    int output = output_of(lane / ROWS % FEW_OUTPUTS), row = lane % ROWS;
    bool is_mine = lane < NUM && output >= begin && row < p.num_rows;
    float bias = 0.0f, before = 0.0f;
    float2 turn = make_float2(1.0f, 0.0f);
    u64 place = u64(row) * p.num_outputs + output;
    if (warp == 0 && is_mine) {
        if (p.kind == 3 && p.activation.bias) bias = p.activation.bias[output];
        if (p.kind == 4 && p.heads.bias) bias = p.heads.bias[output];
        if (p.kind == 4 && p.heads.angles && output / p.heads.dim < p.heads.num_heads + p.heads.num_kv_heads)
            turn = turn_of(p.heads, row, output % (p.heads.dim / 2));
    }
    wait_for_earlier();
    if (warp == 0 && is_mine && p.kind == 2) before = ((const float*)p.out)[place];

    float sums[NUM] = {}, squares[ROWS] = {};
#pragma unroll 1
    for (int i = threadIdx.x; i < num_pieces; i += blockDim.x) {
        float x[ROWS][8];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            u64 at = u64(min(r, p.num_rows - 1)) * p.num_inputs;
            if constexpr (IS_NORMED) load8((const float*)p.x + at + 8 * i, x[r]);
            else unpack8<T>(((const Pack8*)((const T*)p.x + at))[i], x[r]);
        }
        if constexpr (IS_NORMED) {
            float norm[8];
            load8(p.norm + 8 * i, norm);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    squares[r] += x[r][j] * x[r][j];
                    x[r][j] *= norm[j];
                }
        }
#pragma unroll
        for (int o = 0; o < FEW_OUTPUTS; o++) {
            float weight[8];
            unpack8<T>(packs[o], weight);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int j = 0; j < 8; j++) sums[o * ROWS + r] += weight[j] * x[r][j];
            // As many loads as ever are on their way while the sums are made.
            if (i + blockDim.x < num_pieces) packs[o] = load(o, i + blockDim.x);
        }
    }
    float sum = warp_sums<NUM>(sums);
    if (lane % (32 / NUM) == 0) shared[warp][lane / (32 / NUM)] = sum;
    if constexpr (IS_NORMED) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float all = warp_sum(squares[r]);
            if (lane == 0) shared[warp][NUM + r] = all;
        }
    }
    __syncthreads();
    if (warp > 0) return;
    float y = 0.0f, square = 0.0f;
    for (int w = 0; w < blockDim.x / 32; w++) {
        y += shared[w][lane % NUM];
        if constexpr (IS_NORMED) square += shared[w][NUM + row];
    }
    if constexpr (IS_NORMED) y *= rsqrtf(square / p.num_inputs + p.epsilon);
    y += bias;
    // The same output of the other run.
    float other = __shfl_xor_sync(0xffffffff, y, FEW_RUN * ROWS);
    if (!is_mine) return;
    bool is_first = lane < FEW_RUN * ROWS;
    switch (p.kind) {
        case 0: ((T*)p.out)[place] = narrow<T>(y); break;
        case 1: ((float*)p.out)[place] = y; break;
        case 2: ((float*)p.out)[place] = before + y; break;
        case 3: {
            if (p.activation.is_gated && !is_first) return;
            float active = activate(y, p.activation.kind) * (p.activation.is_gated ? other : 1.0f);
            ((T*)p.activation.out)[u64(row) * p.activation.width + output] = narrow<T>(active);
            break;
        }
        case 4: {
            T* head = place_of<T>(p.heads, row, output / p.heads.dim);
            if (head) head[output % p.heads.dim] = narrow<T>(y * turn.x + (is_first ? -other : other) * turn.y);
        }
    }
}

// Bounds under which nothing spills: a multiprocessor has three blocks of one row, or two of more, and 64 to 96 KiB of weights on
// their way. Tried on an H100 (Llama-1B, one request, 1.00 ms a step): runs of two outputs and five blocks, 1.03; blocks of 128
// threads, 1.09; the last blocks bringing 16 MiB of the next product's weight to the second cache, 1.11.
#define FEW(NAME, T, ROWS)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256, ROWS == 1 ? 3 : 2)                                               \
        few_##NAME##_##ROWS(const __grid_constant__ FewParams p) {                                                     \
        few<T, ROWS, false>(p);                                                                                        \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, ROWS == 1 ? 3 : 2)                                               \
        few_normed_##NAME##_##ROWS(const __grid_constant__ FewParams p) {                                              \
        few<T, ROWS, true>(p);                                                                                         \
    }
FEW(bf16, Bf16, 1)
FEW(bf16, Bf16, 2)
FEW(bf16, Bf16, 4)
FEW(f16, F16, 1)
FEW(f16, F16, 2)
FEW(f16, F16, 4)
