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
#if __CUDA_ARCH__ >= 900
// mbarrier.try_wait.parity: whether the phase of that parity is complete; the hardware may wait for a while
// before it says no.
VARLEN_RNN_DEVICE bool mbarrier_try_wait(Shared<uint64_t> bar, unsigned parity) {
  uint32_t done;
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 8)
#define VARLEN_RNN_TRY_WAIT \
  "mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 done, [%1], %2;\n\t"
#else
#define VARLEN_RNN_TRY_WAIT \
  "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n\t"
#endif
  asm volatile(
      "{\n\t"
      ".reg .pred done;\n\t" VARLEN_RNN_TRY_WAIT
      "selp.u32 %0, 1, 0, done;\n\t"
      "}"
      : "=r"(done)
      : "r"(shared_address(bar)), "r"(parity)
      : "memory");
#undef VARLEN_RNN_TRY_WAIT
  return done != 0;
}
// What lanes do that did not find the phase complete at once.
VARLEN_RNN_DEVICE bool mbarrier_poll(Shared<uint64_t> bar, unsigned parity, uint32_t limit) {
  Patience patience;
  for (unsigned polls = 1;; ++polls) {
    if (mbarrier_try_wait(bar, parity)) return true;
    if (polls % 16 != 0) continue;  // the clock is far away
    uint32_t now;
    asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(now));
    if (patience.ends(now, limit)) return false;
  }
}
#endif
// Waits until the phase of that parity is complete (the first has parity 0), at most about the
// limit; returns whether it is, the same to all lanes. What other blocks stored by st_async to
// complete it is seen after. Acquires with a fence for shared memory alone (PTX 8.6), where the other
// form also empties the first-level cache.
VARLEN_RNN_DEVICE bool mbarrier_wait(Shared<uint64_t> bar, unsigned parity,
                                     uint32_t limit = kForever) {
#if __CUDA_ARCH__ >= 900
  bool done = mbarrier_try_wait(bar, parity);
  if (!done) done = mbarrier_poll(bar, parity, limit);
  done = __all_sync(0xffffffffu, done);  // the lanes may have left the loop one by one
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 8)
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
#endif
  return done;
#else
  __trap();
  return false;
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
