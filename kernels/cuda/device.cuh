// What every kernel here stands on: the two 16-bit element types, wide loads, warp reductions, and thin wrappers of the PTX
// instructions that CUDA C++ has no name for. No other header is included anywhere, so that NVRTC needs none.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct Bf16 { u16 bits; };
struct F16 { u16 bits; };

template <class T> __device__ __forceinline__ float widen(T value);
template <> __device__ __forceinline__ float widen(Bf16 value) { return __uint_as_float(u32(value.bits) << 16); }
template <> __device__ __forceinline__ float widen(F16 value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}

template <class T> __device__ __forceinline__ T narrow(float value);
template <> __device__ __forceinline__ Bf16 narrow(float value) {
    Bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
    return out;
}
template <> __device__ __forceinline__ F16 narrow(float value) {
    F16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
    return out;
}

// Two elements in one register, `low` in the lower half.
template <class T> __device__ __forceinline__ u32 pack(float low, float high);
template <> __device__ __forceinline__ u32 pack<Bf16>(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
template <> __device__ __forceinline__ u32 pack<F16>(float low, float high) {
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

// Eight 16-bit elements: one access of 16 bytes.
struct alignas(16) Pack8 { u32 words[4]; };

template <class T> __device__ __forceinline__ void unpack8(const Pack8& pack, float out[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        T low{u16(pack.words[i] & 0xffff)}, high{u16(pack.words[i] >> 16)};
        out[2 * i] = widen(low);
        out[2 * i + 1] = widen(high);
    }
}

// Eight consecutive numbers from a multiple of 16 bytes.
__device__ __forceinline__ void load8(const float* address, float out[8]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float4 quad = ((const float4*)address)[i];
        out[4 * i] = quad.x, out[4 * i + 1] = quad.y, out[4 * i + 2] = quad.z, out[4 * i + 3] = quad.w;
    }
}

template <class T> __device__ __forceinline__ Pack8 pack8(const float in[8]) {
    Pack8 out;
#pragma unroll
    for (int i = 0; i < 4; i++) out.words[i] = pack<T>(in[2 * i], in[2 * i + 1]);
    return out;
}

// Programmatic dependent launch: a kernel's blocks may begin while those of the kernel before are still at work, as soon as
// all of these have said so, and there is room. Before Hopper every kernel begins after the last one's end.
//
// Lets the next kernel begin: it waits by itself for what it needs.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Waits until all kernels before this one have ended, and what they wrote can be seen. Every kernel does before it touches
// anything but weights and what the host has copied for the step; and before it ends, since the kernel after it counts on it.
__device__ __forceinline__ void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
    return value;
}

// The sums over a warp of each of a lane's NUM values, a power of two up to 32: lane l has that of value l / (32 / NUM). Each
// exchange halves the values that a lane still has, so that there are about NUM of them instead of five for every value.
template <int NUM, int OFFSET = 16> __device__ __forceinline__ float warp_sums(float* values) {
    if constexpr (OFFSET == 0) {
        return values[0];
    } else if constexpr (NUM == 1) {
        values[0] += __shfl_xor_sync(0xffffffff, values[0], OFFSET);
        return warp_sums<1, OFFSET / 2>(values);
    } else {
        bool is_upper = threadIdx.x & OFFSET;
#pragma unroll
        for (int i = 0; i < NUM / 2; i++) {
            float kept = is_upper ? values[i + NUM / 2] : values[i], sent = is_upper ? values[i] : values[i + NUM / 2];
            values[i] = kept + __shfl_xor_sync(0xffffffff, sent, OFFSET);
        }
        return warp_sums<NUM / 2, OFFSET / 2>(values);
    }
}

// The sum over a block of up to 1024 threads, for all of them. `shared` has 32 floats; the caller synchronises before it
// uses them again.
__device__ __forceinline__ float block_sum(float value, float* shared) {
    value = warp_sum(value);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) shared[warp] = value;
    __syncthreads();
    int num_warps = blockDim.x / 32;
    return warp_sum(lane < num_warps ? shared[lane] : 0.0f);
}

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return u32(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory behind the thread's back; zeros where `is_there` is not set, and nothing is read then.
__device__ __forceinline__ void copy16_async(u32 shared, const void* global, bool is_there) {
    int num_bytes = is_there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(num_bytes) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `N` of the thread's committed groups are on their way.
template <int N> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 matrices of 16-bit elements from shared memory into fragments; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(u32 out[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 out[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

// d[16x8] += a[16x16] b[16x8], in f32.
template <class T> __device__ __forceinline__ void multiply(float d[4], const u32 a[4], u32 b0, u32 b1);
template <> __device__ __forceinline__ void multiply<Bf16>(float d[4], const u32 a[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ __forceinline__ void multiply<F16>(float d[4], const u32 a[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
