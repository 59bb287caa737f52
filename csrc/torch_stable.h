// The only shim over torch's stable ABI: checks that say what they got, and tensors as pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "params.h"

// torch 2.10's headers have its older name only.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

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
inline void check_shape(const char* op, const char* name, const Tensor& tensor, const char* symbols,
                        std::initializer_list<int64_t> expected) {
  const auto sizes = tensor.sizes();
  STD_TORCH_CHECK(std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()), op,
                  ": ", name, " must be ", symbols, " = ", to_string(expected), ", got ",
                  to_string(sizes));
}

// Of an array that may be longer than what counts of it.
inline void check_longer(const char* op, const char* name, const Tensor& tensor,
                         const char* symbols, int64_t least) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) >= least, op, ": ", name, " must be ",
                  symbols, " with at least ", least, " elements, got ", to_string(tensor.sizes()));
}

// Tensor.dtype as torch numbers them, which scalar_type() finds by trying one after the other.
inline int32_t dtype_number(const Tensor& tensor) {
  int32_t number;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &number));
  return number;
}

// Tensor.dtype
inline void check_dtype(const char* op, const char* name, const Tensor& tensor,
                        ScalarType expected) {
  namespace detail = torch::stable::detail;
  STD_TORCH_CHECK(dtype_number(tensor) == detail::to<int32_t>(detail::from(expected)), op, ": ",
                  name, " must be ", torch::headeronly::toString(expected), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

// Tensor.device, as ops write it; the CPU has index -1.
struct Place {
  int32_t type, index;

  Place() : type(aoti_torch_device_type_cpu()), index(-1) {}
  explicit Place(const Tensor& tensor) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
    if (is_cpu()) index = -1;
  }
  bool is_cpu() const { return type == aoti_torch_device_type_cpu(); }
  bool operator==(const Place& other) const { return type == other.type && index == other.index; }
  std::string name() const {
    if (is_cpu()) return "the CPU";
    if (type == aoti_torch_device_type_cuda()) return "CUDA device " + std::to_string(index);
    return "a device of type " + std::to_string(type);
  }
};

inline void check_place(const char* op, const char* name, const Tensor& tensor, Place expected) {
  const Place place(tensor);
  STD_TORCH_CHECK(place == expected, op, ": ", name, " must be on ", expected.name(), ", got ",
                  place.name());
}

// Tensor.contiguous()
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// torch.empty, for values that are written at once: past the dispatcher, which costs as much as a
// small layer, and with it past torch.utils.deterministic's filling.
inline Tensor unfilled(Place place, int32_t dtype, std::initializer_list<int64_t> sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= sizes.begin()[i]) strides[i] = stride;
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.begin(), strides.data(), dtype,
                                                         place.type, place.index, &handle));
  return Tensor(handle);
}
inline Tensor unfilled(int32_t dtype, std::initializer_list<int64_t> sizes) {
  return unfilled(Place(), dtype, sizes);
}

// Tensor.new_empty, likewise.
inline Tensor new_unfilled(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return unfilled(dtype_number(like), sizes);
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
