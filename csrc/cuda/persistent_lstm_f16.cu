#include "cuda/persistent.cuh"

namespace varlen_rnn::cuda {

PersistentKernels persistent_lstm_f16() {
  return persistent_kernels<LstmForward, LstmBackward, F16>();
}

}  // namespace varlen_rnn::cuda
