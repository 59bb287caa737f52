#include "cuda/persistent.cuh"

namespace varlen_rnn::cuda {

PersistentKernels persistent_gru_f16() {
  return persistent_kernels<GruForward, GruBackward, F16>();
}

}  // namespace varlen_rnn::cuda
