// What device.cu makes of CUDA's answers, which the linker takes from here (tests/cuda/test_device_answers.py).
// Needs no GPU.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/kernels.h"

namespace {
cudaError_t answer;
cudaStreamCaptureStatus status;
cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
int failures, allocations;

void expect(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  std::printf("failed: %s\n", what);
}

// -1: an exception
int capturing(cudaError_t error, cudaStreamCaptureStatus found) {
  answer = error;
  status = found;
  try {
    return varlen_rnn::cuda::is_capturing(nullptr);
  } catch (const std::exception& e) {
    return std::string(e.what()).find("cudaStreamIsCapturing: ") == 0 ? -1 : -2;
  }
}
}  // namespace

extern "C" cudaError_t __wrap_cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* found) {
  *found = status;
  return answer;
}
extern "C" cudaError_t __wrap_cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* with) {
  std::swap(*with, mode);
  return cudaSuccess;
}
extern "C" cudaError_t __wrap_cudaHostAlloc(void** memory, size_t bytes, unsigned flags) {
  ++allocations;
  expect(mode == cudaStreamCaptureModeRelaxed, "memory is allocated in the relaxed mode");
  expect(flags == (cudaHostAllocPortable | cudaHostAllocMapped), "mapped, for every device");
  *memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  return answer;
}

int main() {
  const auto none = cudaStreamCaptureStatusNone, active = cudaStreamCaptureStatusActive;
  expect(capturing(cudaSuccess, none) == 0, "a stream that does not capture");
  expect(capturing(cudaSuccess, active) == 1, "a stream that captures");
  expect(capturing(cudaErrorStreamCaptureImplicit, none) == 0, "the legacy stream beside another");
  expect(capturing(cudaErrorInvalidValue, none) == -1, "an error is an exception with its call");

  namespace cuda = varlen_rnn::cuda;
  expect(cuda::wait_status(1, false) == nullptr, "there is none yet");
  answer = cudaErrorMemoryAllocation;
  try {
    cuda::wait_status(1, true);
    expect(false, "no memory is an exception");
  } catch (const std::exception&) {
  }
  expect(mode == cudaStreamCaptureModeGlobal, "the mode is as before");
  answer = cudaSuccess;
  const cuda::WaitStatus* made = cuda::wait_status(1, true);
  expect(made[0].expired == 0 && made[1].expired == 0, "zeros at first");
  expect(cuda::wait_status(1, true) == made && cuda::wait_status(1, false) == made, "one a device");
  expect(cuda::wait_status(0, true) != made && allocations == 3, "of its own");
  expect(mode == cudaStreamCaptureModeGlobal, "the mode is as before");
  return failures;
}
