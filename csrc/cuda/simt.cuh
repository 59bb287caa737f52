// All that kernels see of a GPU, in two implementations: cuda/gpu/ for nvcc, cuda/emulator/ for g++
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

#include "cuda/device.h"

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

// <cassert> has it without NDEBUG only.
extern "C" __host__ __device__ void __assert_fail(const char* assertion, const char* file,
                                                  unsigned line, const char* function) noexcept;

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

// How long a wait has lasted, by readings of a clock in nanoseconds, its low 32 bits. Between two of them
// the whole device may have been somebody else's, or stopped, and nobody could end the wait: so at most
// an eighth of the limit counts (and of the time before the first reading, which nobody knows, too).
struct Patience {
  uint32_t waited = 0, last = 0;  // in units of wait_limit

  VARLEN_RNN_HOST_DEVICE bool ends(uint32_t now, uint32_t limit) {
    const uint32_t reading = now >> 16, passed = (reading - last) & 0xffffu;
    const uint32_t most = limit / 8 + 1;
    waited += passed < most ? passed : most;
    last = reading;
    return waited > limit;
  }
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

#include "cuda/gpu/cluster.cuh"
#include "cuda/gpu/memory.cuh"
#include "cuda/gpu/numbers.cuh"
#include "cuda/gpu/threads.cuh"
#include "cuda/gpu/warp.cuh"

#endif
