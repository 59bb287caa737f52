#include <map>
#include <mutex>
#include <new>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace varlen_rnn::cuda {

simt::Device device_properties(int index) { return simt::device_properties(index); }

#ifdef VARLEN_RNN_EMULATE

void use_device(int) {}
bool is_capturing(void*) { return emulator::settings().is_capturing; }

WaitStatus* wait_status(int, bool) {
  static WaitStatus of_device[2];
  return of_device;
}

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
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  // What the legacy stream, which cannot be captured, answers while another stream is: that one is
  // left as it was.
  if (simt::is_answer(error, {cudaErrorStreamCaptureImplicit})) return false;
  simt::check(error, "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

WaitStatus* wait_status(int index, bool make) {
  static std::mutex mutex;
  static std::map<int, WaitStatus*> all;
  const std::lock_guard<std::mutex> lock(mutex);
  WaitStatus*& status = all[index];
  if (status != nullptr || !make) return status;
  // As torch does around its allocations: what is being captured, by whomever, stays valid.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  simt::check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  void* memory = nullptr;
  const cudaError_t error =
      cudaHostAlloc(&memory, 2 * sizeof(WaitStatus), cudaHostAllocPortable | cudaHostAllocMapped);
  cudaThreadExchangeStreamCaptureMode(&mode);
  simt::check(error, "cudaHostAlloc");
  return status = new (memory) WaitStatus[2]();  // the same address on the device
}

#endif

}  // namespace varlen_rnn::cuda
