#include "cuda/persistent.cuh"

namespace varlen_rnn::cuda {

PersistentKernels persistent_lstm_tf32() {
  return persistent_kernels<LstmForward, LstmBackward, Tf32>();
}

}  // namespace varlen_rnn::cuda
