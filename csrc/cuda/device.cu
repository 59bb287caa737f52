#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace varlen_rnn::cuda {

simt::Device device_properties(int index) { return simt::device_properties(index); }

#ifdef VARLEN_RNN_EMULATE

void use_device(int) {}
bool is_capturing(void*) { return emulator::settings().is_capturing; }

#else

void use_device(int index) { simt::check(cudaSetDevice(index), "cudaSetDevice"); }

namespace {
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(32, 1) any_kernel(int) {}
}  // namespace

std::string why_not_on(int index) {
  const char* call = "cudaSetDevice";
  cudaError_t error = cudaSetDevice(index);
  if (error == cudaSuccess) {
    call = "cudaFuncGetAttributes";
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&any_kernel));
  }
  cudaGetLastError();  // not an error of the next call
  return error == cudaSuccess ? "" : std::string(call) + ": " + cudaGetErrorString(error);
}

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  simt::check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status),
              "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

#endif

}  // namespace varlen_rnn::cuda
