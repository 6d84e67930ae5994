// What Hopper's tensor cores need beside device.cuh: thin wrappers of the PTX instructions of sm_90a. Matrices in shared memory
// lie as the tensor cores want them with a swizzle of 128 bytes: rows of 64 elements, 128 bytes apart, eight of them in 1024
// bytes that begin at a multiple of 1024, and in row r the 16-byte chunk c at place c ^ (r % 8).
#pragma once

// ---- barriers in shared memory --------------------------------------------------------------------------------------------
// A barrier goes from one phase to the next when `num_arrivals` threads have arrived; who waits names the parity of the phase
// that must be over.
__device__ __forceinline__ void init_barrier(u32 barrier, int num_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(num_arrivals) : "memory");
}
__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives when all copies that the thread has asked for so far have come.
__device__ __forceinline__ void arrive_with_copies(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void wait_for_phase(u32 barrier, u32 parity) {
    u32 is_over = 0;
    while (!is_over)
        asm volatile(
            "{\n.reg .pred over;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
            "selp.u32 %0, 1, 0, over;\n}"
            : "=r"(is_over)
            : "r"(barrier), "r"(parity)
            : "memory");
}
// The block's barriers by number, for some of its threads.
__device__ __forceinline__ void sync_threads(int id, int num_threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
__device__ __forceinline__ void arrive_threads(int id, int num_threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
// What ordinary writes (copy16_async's too) have put into shared memory, and this thread may see, the tensor cores see as well.
__device__ __forceinline__ void show_to_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- registers ------------------------------------------------------------------------------------------------------------
template <int NUM> __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(NUM));
}
template <int NUM> __device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(NUM));
}

// ---- products of a warpgroup ----------------------------------------------------------------------------------------------
// They run behind the threads' back: registers that one reads or writes are not to be touched from `begin_products` to the
// `wait_for_products` that ends it, and `pin` keeps the compiler from moving what uses them across these.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `N` committed groups are on their way.
template <int N> __device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N> __device__ __forceinline__ void pin(float (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(values[i])::"memory");
}

// A matrix in shared memory whose rows lie along the products' sum (queries, keys): each group of eight rows 1024 bytes after the
// last. `address` may be 32, 64 or 96 bytes into the rows.
__device__ __forceinline__ u64 rows_descriptor(u32 address) {
    return u64(1) << 62 | u64(1024 >> 4) << 32 | u64(1) << 16 | (address & 0x3ffff) >> 4;
}
// One whose rows lie across the sum (values): each 64 columns are `panel_bytes` after the last.
__device__ __forceinline__ u64 columns_descriptor(u32 address, int panel_bytes) {
    return u64(1) << 62 | u64(1024 >> 4) << 32 | u64(panel_bytes >> 4) << 16 | (address & 0x3ffff) >> 4;
}

// d[64 x N] (+)= a[64 x 16] b[16 x N], in f32, N = 2 NUM. A thread has rows lane / 4 and lane / 4 + 8 of its warp's sixteen, of
// them columns 8 n + lane % 4 * 2 and the next: d[4 n], d[4 n + 1] of the first row, d[4 n + 2], d[4 n + 3] of the second.
#define FLOATS4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FLOATS16(d, i) FLOATS4(d, i), FLOATS4(d, i + 4), FLOATS4(d, i + 8), FLOATS4(d, i + 12)
#define FLOATS32(d) FLOATS16(d, 0), FLOATS16(d, 16)
#define FLOATS64(d) FLOATS16(d, 0), FLOATS16(d, 16), FLOATS16(d, 32), FLOATS16(d, 48)
#define FLOATS96(d) FLOATS16(d, 0), FLOATS16(d, 16), FLOATS16(d, 32), FLOATS16(d, 48), FLOATS16(d, 64), FLOATS16(d, 80)

#define REGISTERS32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
    "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
    "%62, %63"
#define REGISTERS96 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
    "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
    "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
    "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"

// `a` in registers, as multiply() of device.cuh has it; `b` in shared memory, with rows `ACROSS` the sum or along it. Without
// `ADDS`, what was in `d` is forgotten.
template <class T, bool ADDS, bool ACROSS, int NUM> struct Product;

// P0 to P6 are the numbers of the operands behind d's.
#define PRODUCTS(T, NAME, N, NUM, P0, P1, P2, P3, P4, P5, P6)                                                     \
    template <bool ADDS, bool ACROSS> struct Product<T, ADDS, ACROSS, NUM> {                                      \
        static __device__ __forceinline__ void add(float (&d)[NUM], const u32 a[4], u64 b) {                      \
            asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %" #P5 ", 0;\n"                                  \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" REGISTERS##NUM      \
                         "}, {%" #P0 ", %" #P1 ", %" #P2 ", %" #P3 "}, %" #P4 ", adds, 1, 1, %" #P6 ";\n}"        \
                         : FLOATS##NUM(d)                                                                         \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int(ADDS)), "n"(int(ACROSS))); \
        }                                                                                                         \
    };

PRODUCTS(Bf16, "bf16", 64, 32, 32, 33, 34, 35, 36, 37, 38)
PRODUCTS(F16, "f16", 64, 32, 32, 33, 34, 35, 36, 37, 38)
PRODUCTS(Bf16, "bf16", 128, 64, 64, 65, 66, 67, 68, 69, 70)
PRODUCTS(F16, "f16", 128, 64, 64, 65, 66, 67, 68, 69, 70)
PRODUCTS(Bf16, "bf16", 192, 96, 96, 97, 98, 99, 100, 101, 102)
PRODUCTS(F16, "f16", 192, 96, 96, 97, 98, 99, 100, 101, 102)

template <class T, bool ADDS, bool ACROSS, int NUM>
__device__ __forceinline__ void multiply_registers(float (&d)[NUM], const u32 a[4], u64 b) {
    Product<T, ADDS, ACROSS, NUM>::add(d, a, b);
}
