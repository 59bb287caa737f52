// What CUDA answers to a call, for the host's side of both compilers.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace varlen_rnn::simt {

inline void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here, so not by whoever asks next
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}

// Whether an error is one of these, which answer a question; then it is forgotten.
inline bool is_answer(cudaError_t error, std::initializer_list<cudaError_t> answers) {
  if (std::find(answers.begin(), answers.end(), error) == answers.end()) return false;
  cudaGetLastError();
  return true;
}

}  // namespace varlen_rnn::simt
