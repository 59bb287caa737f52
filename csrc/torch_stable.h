// The only shim over torch's stable ABI: checks that say what they got, and tensors as pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "params.h"

namespace varlen_rnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using TensorList = std::vector<Tensor>;

template <class Sizes>
std::string to_string(const Sizes& sizes) {
  std::string text = "[";
  for (int64_t size : sizes) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

// Tensor.shape
inline void check_shape(const char* op, const std::string& name, const Tensor& tensor,
                        const char* symbols, std::initializer_list<int64_t> expected) {
  bool same = tensor.dim() == static_cast<int64_t>(expected.size());
  for (int64_t i = 0; same && i < tensor.dim(); ++i) same = tensor.size(i) == expected.begin()[i];
  STD_TORCH_CHECK(same, op, ": ", name, " must be ", symbols, " = ", to_string(expected), ", got ",
                  to_string(tensor.sizes()));
}

// Tensor.dtype, Tensor.device
inline void check_dtype(const char* op, const std::string& name, const Tensor& tensor,
                        ScalarType expected) {
  STD_TORCH_CHECK(tensor.scalar_type() == expected, op, ": ", name, " must be ",
                  torch::headeronly::toString(expected), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU, got device type ",
                  static_cast<int>(tensor.device().type()));
}

// Tensor.contiguous()
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline const void* pointer(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

// The kernels' ParallelFor on torch's threads, so that torch.set_num_threads holds.
inline void parallel_for(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  torch::stable::parallel_for(0, n, 1,
                              [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

}  // namespace varlen_rnn
