// Mbarriers, and stores into other blocks of the cluster, from sm_90 on. Included by simt.cuh alone.
#pragma once

#include "cuda/gpu/memory.cuh"

namespace varlen_rnn::simt {

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

}  // namespace varlen_rnn::simt
