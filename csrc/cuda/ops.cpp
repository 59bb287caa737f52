// The ops on CUDA tensors: check, allocate, the products of whole layers by torch, and between them
// one of the two paths through the steps.
#include "cuda/gradients.h"
#include "cuda/products.h"
#include "cuda/tokens.h"

#ifndef VARLEN_RNN_EMULATE
#include <dlfcn.h>
#endif

namespace varlen_rnn::cuda {

#ifdef VARLEN_RNN_EMULATE

void* current_stream(int32_t) { return nullptr; }

OnDevice::OnDevice(int32_t) : stream_(nullptr) { emulator::forget_memory(); }

#else

void* torch_cuda_symbol(const char* name) {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  return library == nullptr ? nullptr : dlsym(library, name);
}

void* current_stream(int32_t device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get =
      reinterpret_cast<Get>(torch_cuda_symbol("aoti_torch_get_current_cuda_stream"));
  STD_TORCH_CHECK(get != nullptr,
                  "varlen_rnn: libtorch_cuda.so must be loaded and know "
                  "aoti_torch_get_current_cuda_stream, got neither");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return stream;
}

OnDevice::OnDevice(int32_t device) : guard_(device), stream_(current_stream(device)) {
  use_device(device);
}

#endif

namespace {

// b_ih + b_hh of all directions, but of GRU's gate n only b_ih: [D * gates * H].
Biases biases_of(const Layer& layer, const Tensor& to) {
  const int64_t rows = layer.num_gates() * layer.call.hidden_size;
  Biases biases{layer.call.dtype,
                static_cast<int>(layer.call.num_directions),
                rows,
                layer.is_lstm ? rows : 2 * layer.call.hidden_size,
                {},
                {},
                device_pointer(to)};
  for (int64_t d = 0; d < layer.call.num_directions; ++d) {
    biases.bias_ih[d] = device_pointer(layer.weight(d, kBiasIh));
    biases.bias_hh[d] = device_pointer(layer.bias_hh(d));
  }
  return biases;
}

bool is_on_device(const Tensor& x) {
  const Place place(x);
#ifdef VARLEN_RNN_EMULATE
  return place.is_cpu();
#else
  return place.type == aoti_torch_device_type_cuda();
#endif
}

// Runs one path; a pass has the same arguments on either.
template <class Tensors>
void run(const Layer& layer, const Tensors& t, const OnDevice& device, int32_t index) {
  if (!run_persistent(layer, t, index, device.stream())) run_generic(layer, t, device.stream());
}

ForwardResult run_forward(const char* op, int64_t num_gates, bool training, const Tensor& x,
                          const OptionalTensor& h_0, const OptionalTensor& c_0,
                          const WeightTensors& weights, const Tensor& batch_sizes,
                          const OptionalTensor& rows, const OptionalTensor& reverse,
                          const Tensor& initial_row, const Tensor& final_segment, bool allow_tf32) {
  STD_TORCH_CHECK(is_on_device(x), op, ": x must be on a CUDA device, got ", Place(x).name());
  const bool is_lstm = num_gates == 4;
  const ScalarType dtype = x.scalar_type();
  const Place place(x);
  Call call{};
  const CheckedInput input(op, num_gates, x, weights, call);
  const int64_t D = call.num_directions, H = call.hidden_size, P = call.output_size;
  const OnDevice device(place.index);
  const Layer layer{
      is_lstm,
      allow_tf32,
      call,
      input,
      {op, x, D, batch_sizes, rows, reverse, initial_row, final_segment, device.stream()}};
  const DeviceLayout& l = layer.layout.layout;
  const int64_t B = l.num_rows;

  ForwardTensors t{x, {}, {}, x, x, {}, {}, {}};
  t.h_0 = checked_optional(op, "h_0", h_0, dtype, place, "[D, B, P]", {D, B, P});
  t.c_0 = checked_optional(op, "c_0", c_0, dtype, place, "[D, B, H]", {D, B, H});
  t.out = torch::stable::new_empty(x, {x.size(0), D * P});
  t.h_n = torch::stable::new_empty(x, {D, B, P});
  if (is_lstm) t.c_n = torch::stable::new_empty(x, {D, B, H});
  const int64_t capacity = rows ? rows->numel() : x.size(0);
  if (training) {
    const ScalarType compute = compute_dtype(dtype);
    t.gates = torch::stable::new_empty(x, {D, capacity, 4 * H}, compute);
    if (is_lstm) t.cells = torch::stable::new_empty(x, {D, capacity, H}, compute);
  }
  // Paths write h_n and c_n of rows with tokens only.
  ForwardStart start{};
  //~ padding
  if (has_padding(layer)) start.pieces.add(device_pointer(t.out), nullptr, bytes_of(t.out));
  start.pieces.add(device_pointer(t.h_n), device_pointer(t.h_0), bytes_of(t.h_n));
  if (is_lstm) start.pieces.add(device_pointer(*t.c_n), device_pointer(t.c_0), bytes_of(*t.c_n));
  if (layer.layout.is_empty()) {
    start_forward(start, device.stream());
  } else {
    const Tensor tokens = room_for_tokens(layer);
    if (rows) {
      start.tokens =
          token_rows(layer, device_pointer(input.x), input.x.stride(0), device_pointer(tokens));
    }
    Tensor weight_ih = layer.weight(0, kWeightIh);
    const int64_t gate_rows = weight_ih.size(0);
    if (D > 1) {
      weight_ih = torch::stable::new_empty(x, {D * gate_rows, x.size(1)});
      for (int64_t d = 0; d < D; ++d) {
        add_rows(start.pieces, weight_ih, d * gate_rows, layer.weight(d, kWeightIh), 0, gate_rows);
      }
    }
    OptionalTensor biases;
    if (layer.bias_hh(0)) {
      biases = torch::stable::new_empty(x, {D * gate_rows});
      start.biases = biases_of(layer, *biases);
    }
    start_forward(start, device.stream());
    t.inputs = linear(layer, tokens, weight_ih, biases, device.stream());
    run(layer, t, device, place.index);
  }
  return {t.out, t.h_n, t.c_n, t.gates, t.cells};
}

BackwardResult run_backward(const char* op, int64_t num_gates, const OptionalTensor& d_out,
                            const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
                            const OptionalTensor& d_cells, const Tensor& x,
                            const OptionalTensor& h_0, const OptionalTensor& c_0,
                            const WeightTensors& weights, const Tensor& batch_sizes,
                            const OptionalTensor& rows, const OptionalTensor& reverse,
                            const Tensor& initial_row, const Tensor& final_segment, bool allow_tf32,
                            const Tensor& out, const Tensor& gates, const OptionalTensor& cells,
                            bool needs_x, bool needs_weights) {
  STD_TORCH_CHECK(is_on_device(x), op, ": x must be on a CUDA device, got ", Place(x).name());
  const bool is_lstm = num_gates == 4;
  const ScalarType dtype = x.scalar_type();
  const ScalarType compute = compute_dtype(dtype);
  const Place place(x);
  Call call{};
  const CheckedInput input(op, num_gates, x, weights, call);
  const int64_t D = call.num_directions, H = call.hidden_size;
  const int64_t P = call.output_size, R = x.size(0), N = rows ? rows->numel() : R;
  const OnDevice device(place.index);
  const Layer layer{
      is_lstm,
      allow_tf32,
      call,
      input,
      {op, x, D, batch_sizes, rows, reverse, initial_row, final_segment, device.stream()}};
  const DeviceLayout& l = layer.layout.layout;
  const int64_t B = l.num_rows;
  void* const stream = device.stream();

  BackwardTensors t{{}, {}, {}, {}, {}, {}, x, x, {}, x, x, {}, {}};
  t.d_out = checked_optional(op, "d_out", d_out, dtype, place, "[R, D * P]", {R, D * P});
  t.d_h_n = checked_optional(op, "d_h_n", d_h_n, dtype, place, "[D, B, P]", {D, B, P});
  t.d_c_n = checked_optional(op, "d_c_n", d_c_n, dtype, place, "[D, B, H]", {D, B, H});
  t.d_cells = checked_optional(op, "d_cells", d_cells, compute, place, "[D, N, H]", {D, N, H});
  t.h_0 = checked_optional(op, "h_0", h_0, dtype, place, "[D, B, P]", {D, B, P});
  t.c_0 = checked_optional(op, "c_0", c_0, dtype, place, "[D, B, H]", {D, B, H});
  t.out = *checked_optional(op, "out", out, dtype, place, "[R, D * P]", {R, D * P});
  t.gates = *checked_optional(op, "gates", gates, compute, place, "[D, N, 4H]", {D, N, 4 * H});
  t.cells = checked_optional(op, "cells", cells, compute, place, "[D, N, H]", {D, N, H});

  t.d_h_0 = torch::stable::new_empty(x, {D, B, P});
  if (is_lstm) t.d_c_0 = torch::stable::new_empty(x, {D, B, H});
  BackwardStart start{};
  start.num_directions = static_cast<int>(D);
  start.h_bytes = row_bytes(layer, P);
  start.c_bytes = row_bytes(layer, H);
  start.d_h_n = device_pointer(t.d_h_n);
  start.d_c_n = device_pointer(t.d_c_n);
  start.d_h_0 = device_pointer(t.d_h_0);
  start.d_c_0 = device_pointer(t.d_c_0);

  const bool is_empty = layer.layout.is_empty();
  BackwardResult result = room_for_gradients(layer, needs_x, needs_weights);
  result.d_h_0 = t.d_h_0;
  result.d_c_0 = t.d_c_0;
  if (is_empty) {
    start.layout.num_rows = l.num_rows;
    start_backward(start, stream);
    return result;
  }
  start.layout = l;
  const Tensor final_segments = dense(final_segment);
  start.final_segment = static_cast<const int64_t*>(device_pointer(final_segments));
  OptionalTensor weight_ih;
  if (needs_x) {
    weight_ih = weight_of_columns(layer, start.pieces);
    if (rows && has_padding(layer)) {
      start.pieces.add(device_pointer(result.d_x), nullptr, bytes_of(result.d_x));
    }
  }
  start_backward(start, stream);

  t.d_gates = torch::stable::new_empty(x, {N, D * 4 * H});
  if (layer.projected()) t.d_projected = torch::stable::new_empty(x, {D, N, P});
  run(layer, t, device, place.index);
  if (!layer.layout.exact) clear_surplus(layer, t, stream);
  if (needs_x) input_gradient(layer, t, *weight_ih, stream, result.d_x);
  if (needs_weights) weight_gradients(layer, t, stream, result);
  return result;
}

struct Cuda {
  static constexpr auto forward = run_forward;
  static constexpr auto backward = run_backward;
};

}  // namespace

#ifdef VARLEN_RNN_EMULATE
STABLE_TORCH_LIBRARY_IMPL(varlen_rnn_emulated, CPU, m) { implement<Cuda>(m); }
#else
STABLE_TORCH_LIBRARY_IMPL(varlen_rnn, CUDA, m) { implement<Cuda>(m); }
#endif

}  // namespace varlen_rnn::cuda
