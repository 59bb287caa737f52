#include "cuda/persistent.cuh"

namespace varlen_rnn::cuda {

PersistentKernels persistent_lstm_bf16() {
  return persistent_kernels<LstmForward, LstmBackward, Bf16>();
}

}  // namespace varlen_rnn::cuda
