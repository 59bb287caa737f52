// The tables of persistent kernels that a .cu file makes for its cell and number format.
#pragma once

#include <utility>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/persistent_backward.cuh"
#include "cuda/persistent_forward.cuh"

namespace varlen_rnn::cuda {

template <class P, void (*kernel)(P)>
constexpr PersistentKernel<P> persistent_kernel() {
  return {[](const simt::Launch& l, const P& p) { simt::launch(l, kernel, p); },
          [](const simt::Launch& l) { return simt::max_active_clusters(l, kernel); }};
}

template <class Cell, class E, int... kIndex>
const PersistentKernel<PersistentForward>* forward_kernels(std::integer_sequence<int, kIndex...>) {
  static const PersistentKernel<PersistentForward> kernels[] = {
      persistent_kernel<PersistentForward, persistent_forward<Cell, E, kIndex>>()...};
  return kernels;
}

template <class Cell, class E, int... kIndex>
const PersistentKernel<PersistentBackward>* backward_kernels(
    std::integer_sequence<int, kIndex...>) {
  static const PersistentKernel<PersistentBackward> kernels[] = {
      persistent_kernel<PersistentBackward, persistent_backward<Cell, E, kIndex>>()...};
  return kernels;
}

template <class Forward, class Backward, class E>
PersistentKernels persistent_kernels() {
  return {forward_kernels<Forward, E>(std::make_integer_sequence<int, kForwardKernels>()),
          backward_kernels<Backward, E>(std::make_integer_sequence<int, kBackwardKernels>())};
}

}  // namespace varlen_rnn::cuda
