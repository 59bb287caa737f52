#include "cuda/persistent.cuh"

namespace varlen_rnn::cuda {

PersistentKernels persistent_gru_bf16() {
  return persistent_kernels<GruForward, GruBackward, Bf16>();
}

}  // namespace varlen_rnn::cuda
