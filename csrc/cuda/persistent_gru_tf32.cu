#include "cuda/persistent.cuh"

namespace varlen_rnn::cuda {

PersistentKernels persistent_gru_tf32() {
  return persistent_kernels<GruForward, GruBackward, Tf32>();
}

}  // namespace varlen_rnn::cuda
