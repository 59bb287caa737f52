#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace varlen_rnn::cuda {

simt::Device device_properties(int index) { return simt::device_properties(index); }

#ifdef VARLEN_RNN_EMULATE

void use_device(int) {}
bool runs_on(int) { return true; }

#else

void use_device(int index) { simt::check(cudaSetDevice(index), "cudaSetDevice"); }

namespace {
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(32, 1) any_kernel(int) {}
}  // namespace

bool runs_on(int index) {
  int before = 0;
  simt::check(cudaGetDevice(&before), "cudaGetDevice");
  use_device(index);
  cudaFuncAttributes attributes;
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&any_kernel));
  cudaGetLastError();  // not an error of the next call
  use_device(before);
  return error == cudaSuccess;
}

#endif

}  // namespace varlen_rnn::cuda
