// Torch's side of the CUDA ops: pointers, the stream, and the few operators of torch's that they use.
// Each helper names the ATen schema it stands for.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <cstdint>

#include "torch_stable.h"

#ifdef VARLEN_RNN_EMULATE
#include "cuda/emulator/memory.h"
#endif

namespace varlen_rnn::cuda {

// Where kernels read and write. The emulator learns what memory they may touch.
inline void* device_pointer(const Tensor& tensor) {
  void* data = tensor.mutable_data_ptr();
#ifdef VARLEN_RNN_EMULATE
  size_t elements = tensor.numel() == 0 ? 0 : 1;  // a view's memory ends with its last element
  for (int64_t d = 0; elements > 0 && d < tensor.dim(); ++d) {
    elements += static_cast<size_t>((tensor.size(d) - 1) * tensor.stride(d));
  }
  emulator::register_memory(data, elements * tensor.element_size());
#endif
  return data;
}
// The same of a part of an allocation.
inline void* device_part(const Tensor& tensor, int64_t first, [[maybe_unused]] int64_t count) {
  const auto bytes = static_cast<int64_t>(tensor.element_size());
  void* data = static_cast<char*>(tensor.mutable_data_ptr()) + first * bytes;
#ifdef VARLEN_RNN_EMULATE
  emulator::register_memory(data, static_cast<size_t>(count * bytes));
#endif
  return data;
}
inline void* device_pointer(const OptionalTensor& tensor) {
  return tensor.has_value() ? device_pointer(*tensor) : nullptr;
}

// A tensor's data some elements further on; null stays null.
inline const void* advance(const void* data, int64_t elements, const Tensor& like) {
  if (data == nullptr) return nullptr;
  return static_cast<const char*>(data) + elements * static_cast<int64_t>(like.element_size());
}
inline void* advance(void* data, int64_t elements, const Tensor& like) {
  return const_cast<void*>(advance(static_cast<const void*>(data), elements, like));
}

inline int64_t bytes_of(const Tensor& tensor) {
  return tensor.numel() * static_cast<int64_t>(tensor.element_size());
}

// Contiguous, and aligned as vector loads want it.
inline Tensor aligned(const Tensor& tensor) {
  const Tensor t = dense(tensor);
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 ? t : torch::stable::clone(t);
}
inline OptionalTensor aligned(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(aligned(*tensor)) : tensor;
}

template <size_t n>
Tensor call(const char* op, const char* overload, std::array<StableIValue, n> stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Products and sums go to tensors of ours: where autocast is on, torch's own would have its dtype.

// linear.out(Tensor input, Tensor weight, Tensor? bias=None, *, Tensor(a!) out) -> Tensor(a!)
inline void linear_out(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       const Tensor& out) {
  using torch::stable::detail::from;
  call<4>("aten::linear", "out", {from(input), from(weight), from(bias), from(out)});
}
// mm.out(Tensor self, Tensor mat2, *, Tensor(a!) out) -> Tensor(a!)
inline void mm_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  call<3>("aten::mm", "out", {from(a), from(b), from(out)});
}
// bmm.out(Tensor self, Tensor mat2, *, Tensor(a!) out) -> Tensor(a!)
inline void bmm_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  call<3>("aten::bmm", "out", {from(a), from(b), from(out)});
}
// Tensor.cpu(): waits for the device
inline Tensor to_host(const Tensor& t) {
  return torch::stable::to(t, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}
// Tensor.t()
inline Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }
// Tensor[first : first + size] of a dimension
inline Tensor slice(Tensor t, int64_t dim, int64_t first, int64_t size) {
  return torch::stable::narrow(t, dim, first, size);
}
// Tensor.sum(0)
inline Tensor column_sums(const Tensor& matrix) {
  const std::array<int64_t, 1> dims = {0};
  Tensor sums = torch::stable::new_empty(matrix, {matrix.size(1)});
  torch::stable::sum_out(sums, matrix, torch::headeronly::IntHeaderOnlyArrayRef(dims.data(), 1));
  return sums;
}
#ifndef VARLEN_RNN_EMULATE
// A symbol of torch's CUDA library or of what that was linked with, or null. Builds for the CPU have no
// such library, so it is asked at run time.
void* torch_cuda_symbol(const char* name);
#endif

// torch.cuda.current_stream(device).cuda_stream
void* current_stream(int32_t device);

// torch.cuda.device(device), for torch and for this library's CUDA runtime.
class OnDevice {
 public:
  explicit OnDevice(int32_t device);

  void* stream() const { return stream_; }

 private:
#ifndef VARLEN_RNN_EMULATE
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  void* stream_;
};

}  // namespace varlen_rnn::cuda
