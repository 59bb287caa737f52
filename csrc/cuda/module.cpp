// The Python module _C_cuda: importing it registers the CUDA ops; what it holds itself is about the build.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <string>

#include "cuda/kernels.h"
#include "cuda/python_self_check.h"
#include "cuda/python_settings.h"

namespace py = pybind11;

namespace {

std::string version_string(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Starts the driver if nothing else did, but makes no context.
std::string device() {
  int current = 0;
  cudaError_t error = cudaGetDevice(&current);
  cudaDeviceProp properties;
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, current);
  if (error != cudaSuccess) {
    cudaGetLastError();  // not an error of the next call
    return std::string("no device (") + cudaGetErrorString(error) + ")";
  }
  return std::string(properties.name) + " (sm_" + std::to_string(properties.major) +
         std::to_string(properties.minor) + ")";
}

std::string compiled_for() {
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  return VARLEN_RNN_ARCHITECTURES " by nvcc " VARLEN_RNN_NVCC " with runtime " +
         version_string(runtime);
}

}  // namespace

// Whatever calls and settings share is atomic or behind a lock.
PYBIND11_MODULE(_C_cuda, m, py::mod_gil_not_used()) {
  varlen_rnn::cuda::define_settings(m);
  varlen_rnn::cuda::define_self_check(m);
  m.def("compiled_for", &compiled_for);
  m.def("device", &device);
  m.def("why_not_on", &varlen_rnn::cuda::why_not_on, py::arg("device"));
}
