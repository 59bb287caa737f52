// The table of persistent kernels that a .cu file makes for its cell and number format.
#pragma once

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/persistent_backward.cuh"
#include "cuda/persistent_forward.cuh"

namespace varlen_rnn::cuda {

template <class Forward, class Backward, class E, int kIndex>
PersistentKernel make_persistent_kernel() {
  constexpr Variant f = kVariants[0][kIndex], b = kVariants[1][kIndex];
  constexpr auto forward = persistent_forward<Forward, E, f.tiles, f.resident, f.max_warps>;
  constexpr auto backward = persistent_backward<Backward, E, b.tiles, b.resident, b.max_warps>;
  return {[](const simt::Launch& l, const PersistentForward& p) { simt::launch(l, forward, p); },
          [](const simt::Launch& l, const PersistentBackward& p) { simt::launch(l, backward, p); },
          [](const simt::Launch& l) { return simt::max_active_clusters(l, forward); },
          [](const simt::Launch& l) { return simt::max_active_clusters(l, backward); }};
}

template <class Forward, class Backward, class E>
const PersistentKernel* persistent_kernels() {
  static_assert(kNumVariants == 8, "one line below for each");
  static const PersistentKernel kernels[] = {make_persistent_kernel<Forward, Backward, E, 0>(),
                                             make_persistent_kernel<Forward, Backward, E, 1>(),
                                             make_persistent_kernel<Forward, Backward, E, 2>(),
                                             make_persistent_kernel<Forward, Backward, E, 3>(),
                                             make_persistent_kernel<Forward, Backward, E, 4>(),
                                             make_persistent_kernel<Forward, Backward, E, 5>(),
                                             make_persistent_kernel<Forward, Backward, E, 6>(),
                                             make_persistent_kernel<Forward, Backward, E, 7>()};
  return kernels;
}

}  // namespace varlen_rnn::cuda
