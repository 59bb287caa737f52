// All that kernels see of a GPU, in two implementations: this file for nvcc, cuda/emulator/ for g++
// (-x c++ -DVARLEN_RNN_EMULATE), where every CUDA thread is a fiber and races, deadlocks and stray
// accesses are errors. tests/cpp/simt_test.cu compares both with plain loops.
//
// Kernels hold no asm, no <<<>>>, no threadIdx or blockIdx and no static __shared__. Global memory
// is touched by load, load_fresh and store only, shared memory through Shared<T> only, and warp
// collectives stand in warp-uniform control flow only. All of it compiles for every architecture
// from sm_75 on: what an architecture lacks stops the kernel, so hosts must not launch it there.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef VARLEN_RNN_EMULATE

#define VARLEN_RNN_DEVICE inline
#define VARLEN_RNN_HOST_DEVICE inline
#define VARLEN_RNN_KERNEL static void
#define VARLEN_RNN_BOUNDS(threads, blocks)
#define VARLEN_RNN_UNROLL

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>

#define VARLEN_RNN_DEVICE __device__ __forceinline__
#define VARLEN_RNN_HOST_DEVICE __host__ __device__ __forceinline__
#define VARLEN_RNN_KERNEL static __global__ void
#define VARLEN_RNN_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define VARLEN_RNN_UNROLL _Pragma("unroll")

#endif

namespace varlen_rnn::simt {

// 16-bit storage types; arithmetic is done in compute_t.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Vectors for one access of 8 or 16 bytes, in global or shared memory.
struct alignas(8) Words2 {
  uint32_t w[2];
};
struct alignas(16) Words4 {
  uint32_t w[4];
};

template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

}  // namespace varlen_rnn::simt

#ifdef VARLEN_RNN_EMULATE

#include "cuda/emulator/simt.h"

#else

namespace varlen_rnn::simt {

// ---- numbers

VARLEN_RNN_DEVICE uint32_t float_as_word(float v) { return __float_as_uint(v); }
VARLEN_RNN_DEVICE float word_as_float(uint32_t word) { return __uint_as_float(word); }

VARLEN_RNN_DEVICE float to_float(bf16 v) { return word_as_float(uint32_t{v.bits} << 16); }
// cvt.f32.f16
VARLEN_RNN_DEVICE float to_float(f16 v) { return __half2float(__ushort_as_half(v.bits)); }
VARLEN_RNN_DEVICE float to_float(float v) { return v; }

template <class T>
VARLEN_RNN_DEVICE compute_t<T> to_compute(T v) {
  return to_float(v);
}
template <>
VARLEN_RNN_DEVICE double to_compute(double v) {
  return v;
}

// Rounds to nearest even; NaN stays NaN, and what is too large becomes infinity.
template <class T>
VARLEN_RNN_DEVICE T from_compute(compute_t<T> v) {
  return v;
}
// cvt.rn.bf16.f32 (sm_75: integer operations)
template <>
VARLEN_RNN_DEVICE bf16 from_compute<bf16>(float v) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
}
// cvt.rn.f16.f32
template <>
VARLEN_RNN_DEVICE f16 from_compute<f16>(float v) {
  return {__half_as_ushort(__float2half_rn(v))};
}

// Two 16-bit values in a word, the first in the low half, as matrix fragments want them.
VARLEN_RNN_DEVICE uint32_t pack(bf16 low, bf16 high) {
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
}
VARLEN_RNN_DEVICE uint32_t pack(f16 low, f16 high) {
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
}
template <class T>
VARLEN_RNN_DEVICE void unpack(uint32_t word, T& low, T& high) {
  low.bits = static_cast<uint16_t>(word);
  high.bits = static_cast<uint16_t>(word >> 16);
}

// cvt.rna.tf32.f32 (sm_75: integer operations): to nearest, ties away from zero; the low 13 bits of
// the result are zero. Infinities and NaN are kept.
VARLEN_RNN_DEVICE uint32_t to_tf32(float v) {
#if __CUDA_ARCH__ >= 800
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(v));
#else
  uint32_t word = float_as_word(v);
  const uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) word |= 0x00400000u;
  if (magnitude < 0x7f800000u) word += 0x1000u;
#endif
  return word & 0xffffe000u;
}

VARLEN_RNN_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
VARLEN_RNN_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
VARLEN_RNN_DEVICE float tanh(float x) { return tanhf(x); }
VARLEN_RNN_DEVICE double tanh(double x) { return ::tanh(x); }
// Absolute error about 1e-6 (ex2.approx.f32); never NaN but for NaN: 1 / infinity is 0.
VARLEN_RNN_DEVICE float fast_sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
VARLEN_RNN_DEVICE float fast_tanh(float x) {
  return __fdividef(2.0f, 1.0f + __expf(-2.0f * x)) - 1.0f;
}

// ---- failures

// A failed check: prints the message and stops the kernel (trap).
VARLEN_RNN_DEVICE void trap(const char* message) {
  printf("%s (block %u, thread %u)\n", message, blockIdx.x, threadIdx.x);
  __trap();
}

// ---- identity

VARLEN_RNN_DEVICE unsigned thread() { return threadIdx.x; }
VARLEN_RNN_DEVICE unsigned lane() { return threadIdx.x & 31u; }
VARLEN_RNN_DEVICE unsigned warp() { return threadIdx.x >> 5; }
VARLEN_RNN_DEVICE unsigned num_threads() { return blockDim.x; }
VARLEN_RNN_DEVICE unsigned block() { return blockIdx.x; }
VARLEN_RNN_DEVICE unsigned num_blocks() { return gridDim.x; }

// Where there are no clusters (below sm_90), and in a launch without, every block is one.
// mov.u32 %clusterid.x
VARLEN_RNN_DEVICE unsigned cluster() {
#if __CUDA_ARCH__ >= 900
  unsigned r;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(r));
  return r;
#else
  return blockIdx.x;
#endif
}
// mov.u32 %cluster_ctarank
VARLEN_RNN_DEVICE unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
#else
  return 0;
#endif
}
// mov.u32 %cluster_nctarank
VARLEN_RNN_DEVICE unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
  unsigned r;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return r;
#else
  return 1;
#endif
}

// ---- global memory

template <size_t size>
struct Carrier;
template <>
struct Carrier<2> {
  using type = unsigned short;
};
template <>
struct Carrier<4> {
  using type = unsigned;
};
template <>
struct Carrier<8> {
  using type = uint2;
};
template <>
struct Carrier<16> {
  using type = uint4;
};

template <class U, class T>
VARLEN_RNN_DEVICE U bit_cast(T from) {
  static_assert(sizeof(U) == sizeof(T));
  U to;
  memcpy(&to, &from, sizeof(U));
  return to;
}

// ld.global.nc: memory that nobody writes while the kernel runs
template <class T>
VARLEN_RNN_DEVICE T load(const T* p) {
  using Word = typename Carrier<sizeof(T)>::type;
  return bit_cast<T>(__ldg(reinterpret_cast<const Word*>(p)));
}
// ld.global: memory that this kernel writes, too
template <class T>
VARLEN_RNN_DEVICE T load_fresh(const T* p) {
  using Word = typename Carrier<sizeof(T)>::type;
  return bit_cast<T>(*reinterpret_cast<const Word*>(p));
}
// st.global
template <class T>
VARLEN_RNN_DEVICE void store(T* p, T v) {
  using Word = typename Carrier<sizeof(T)>::type;
  *reinterpret_cast<Word*>(p) = bit_cast<Word>(v);
}

// ---- shared memory: the one dynamic blob of a block

template <class T>
using Shared = T*;

template <class T>
VARLEN_RNN_DEVICE Shared<T> shared(size_t byte_offset) {
  extern __shared__ uint4 varlen_rnn_shared[];
  return reinterpret_cast<T*>(reinterpret_cast<char*>(varlen_rnn_shared) + byte_offset);
}
template <class U, class T>
VARLEN_RNN_DEVICE Shared<U> recast(Shared<T> p) {
  return reinterpret_cast<U*>(p);
}
VARLEN_RNN_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- barriers of threads

// bar.sync 0
VARLEN_RNN_DEVICE void sync_block() { __syncthreads(); }
// bar.warp.sync of all lanes
VARLEN_RNN_DEVICE void sync_warp() { __syncwarp(); }
// barrier.cluster: what any thread of the cluster wrote before, all of them see after
VARLEN_RNN_DEVICE void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();  // .aligned: all lanes together
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

// ---- warp collectives: all 32 lanes

// shfl.sync.bfly
VARLEN_RNN_DEVICE uint32_t shuffle_xor(uint32_t v, unsigned mask) {
  return __shfl_xor_sync(0xffffffffu, v, static_cast<int>(mask));
}
VARLEN_RNN_DEVICE float shuffle_xor(float v, unsigned mask) {
  return __shfl_xor_sync(0xffffffffu, v, static_cast<int>(mask));
}

// ldmatrix.x4: lane 8 m + i gives row i of the m-th 8 x 8 matrix of 16-bit elements, 16 aligned
// bytes; r[m] is the word lane % 4 of that matrix's row lane / 4.
VARLEN_RNN_DEVICE void ldmatrix_x4(uint32_t (&r)[4], Shared<const uint32_t> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Matrix products of a warp, d [16, 8] += a [16, K] b [K, 8], from sm_80 on. With g = lane / 4 and
// t = lane % 4, a lane holds
//                          d[0..1]         d[2..3]
//                          [g][2t..2t+1]   [g+8][2t..2t+1]
//   K = 16, 16-bit pairs:  a[0] [g][2t..]  a[1] [g+8][2t..]  a[2] [g][2t+8..]  a[3] [g+8][2t+8..]
//                          b0 [2t..][g]    b1 [2t+8..][g]
//   K = 8, tf32 words:     a[0] [g][t]     a[1] [g+8][t]     a[2] [g][t+4]     a[3] [g+8][t+4]
//                          b0 [t][g]       b1 [t+4][g]
#if __CUDA_ARCH__ >= 800
#define VARLEN_RNN_MMA(instruction, d, a, b0, b1)                                             \
  asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#else
#define VARLEN_RNN_MMA(instruction, d, a, b0, b1) __trap()
#endif
// mma.m16n8k16 of bf16
VARLEN_RNN_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  VARLEN_RNN_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", d, a, b0, b1);
}
// mma.m16n8k16 of f16, accumulated in f32
VARLEN_RNN_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  VARLEN_RNN_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", d, a, b0, b1);
}
// mma.m16n8k8 of tf32
VARLEN_RNN_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  VARLEN_RNN_MMA("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", d, a, b0, b1);
}
#undef VARLEN_RNN_MMA

// ---- mbarriers and stores into other blocks of the cluster, from sm_90 on

// mbarrier.init
VARLEN_RNN_DEVICE void mbarrier_init(Shared<uint64_t> bar, unsigned arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals)
               : "memory");
#else
  __trap();
#endif
}
// fence.mbarrier_init: before the sync_cluster that lets other blocks use this thread's mbarriers
VARLEN_RNN_DEVICE void mbarrier_fence_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  __trap();
#endif
}
// mbarrier.arrive.expect_tx: one arrival; the phase takes this many bytes more to complete
VARLEN_RNN_DEVICE void mbarrier_arrive_expect(Shared<uint64_t> bar, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(bar)),
               "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}
// mbarrier.try_wait.parity: returns once the phase of that parity is complete (the first has parity
// 0). What the cluster wrote before completing it is seen after.
VARLEN_RNN_DEVICE void mbarrier_wait(Shared<uint64_t> bar, unsigned parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t done;
  do {
    asm volatile(
        "{\n\t"
        ".reg .pred done;\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, done;\n\t"
        "}"
        : "=r"(done)
        : "r"(shared_address(bar)), "r"(parity)
        : "memory");
  } while (done == 0);
  __syncwarp();  // the lanes may have left the loop one by one
#else
  __trap();
#endif
}

// mapa: an address of this block's shared memory in the block of another rank
VARLEN_RNN_DEVICE uint32_t remote_address(const void* p, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  uint32_t r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(shared_address(p)), "r"(rank));
  return r;
#else
  __trap();
  return 0;
#endif
}
// st.async: stores n words at dst in the block of that rank (its own included), some time, and then
// completes 4 n bytes on its mbarrier. dst is aligned to 4 n bytes.
template <int n>
VARLEN_RNN_DEVICE void st_async(Shared<uint32_t> dst, Shared<uint64_t> bar, unsigned rank,
                                const uint32_t (&v)[n]) {
  static_assert(n == 1 || n == 2 || n == 4, "st.async stores 1, 2 or 4 words");
#if __CUDA_ARCH__ >= 900
  const uint32_t to = remote_address(dst, rank);
  const uint32_t completes = remote_address(bar, rank);
  if constexpr (n == 1) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
        "r"(v[0]), "r"(completes)
        : "memory");
  } else if constexpr (n == 2) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
            to),
        "r"(v[0]), "r"(v[1]), "r"(completes)
        : "memory");
  } else {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
        "[%5];" ::"r"(to),
        "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]), "r"(completes)
        : "memory");
  }
#else
  __trap();
#endif
}

// ---- asynchronous copies from global to shared memory

// cp.async.cg (sm_75: a plain copy): 16 bytes, both sides aligned to 16
VARLEN_RNN_DEVICE void copy_async(Shared<uint32_t> dst, const void* src) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(dst)), "l"(src)
               : "memory");
#else
  *reinterpret_cast<uint4*>(dst) = *static_cast<const uint4*>(src);
#endif
}
// cp.async.commit_group: closes a group, all copies of this thread since the last one
VARLEN_RNN_DEVICE void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// cp.async.wait_group: until at most n groups of this thread are still under way
template <int n>
VARLEN_RNN_DEVICE void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#endif
}

}  // namespace varlen_rnn::simt

#endif
