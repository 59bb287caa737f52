// The ops on CUDA tensors: check, allocate, the products of whole layers by torch, and between them
// one of the two paths through the steps.
#include "cuda/layer.h"

#ifndef VARLEN_RNN_EMULATE
#include <dlfcn.h>
#endif

namespace varlen_rnn::cuda {

#ifdef VARLEN_RNN_EMULATE

void* current_stream(int32_t) { return nullptr; }

OnDevice::OnDevice(int32_t) : stream_(nullptr) { emulator::forget_memory(); }

#else

// Torch's CUDA library is not there in builds for the CPU, so it is asked at run time.
void* current_stream(int32_t device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    void* found =
        library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Get>(found);
  }();
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

// GRU's gradients and weights have the gate n in front, where the input's product takes its columns:
// r, z, n to n, r, z.
Tensor n_first(const Tensor& weight, int64_t H) {
  return stack_rows({slice(weight, 0, 2 * H, H), slice(weight, 0, 0, 2 * H)});
}
// And back.
Tensor n_last(const Tensor& weight, int64_t H) {
  return stack_rows({slice(weight, 0, H, 2 * H), slice(weight, 0, 0, H)});
}

// The tokens of the flat tensor side by side: [N, columns].
Tensor tokens_of(const Layer& layer, const Tensor& x, void* stream) {
  const LayoutTensors& l = layer.layout;
  if (!l.rows) return x;
  const Tensor tokens = torch::stable::new_empty(x, {l.layout.num_tokens, x.size(1)});
  gather_tokens(layer.call.dtype, l.layout, device_pointer(x), x.stride(0), x.size(1),
                device_pointer(tokens), stream);
  return tokens;
}

// b_ih + b_hh of all directions, but of GRU's gate n only b_ih: [D * gates * H].
OptionalTensor biases_of(const Layer& layer, void* stream) {
  const int64_t D = layer.call.num_directions, rows = layer.num_gates() * layer.call.hidden_size;
  if (!layer.bias_hh(0)) return {};
  const Tensor biases = torch::stable::new_empty(layer.input.x, {D * rows});
  for (int64_t d = 0; d < D; ++d) {
    add_biases(layer.call.dtype, device_pointer(layer.weight(d, kBiasIh)),
               device_pointer(*layer.bias_hh(d)), rows,
               layer.is_lstm ? rows : 2 * layer.call.hidden_size,
               advance(device_pointer(biases), d * rows, biases), stream);
  }
  return biases;
}

Tensor all_weight_ih(const Layer& layer) {
  std::vector<Tensor> parts;
  for (int64_t d = 0; d < layer.call.num_directions; ++d) {
    parts.push_back(layer.weight(d, kWeightIh));
  }
  return stack_rows(parts);
}

// [D, B, *] that kernels write only in part: a copy of `from`, or zeros.
Tensor states_like(const Tensor& like, const OptionalTensor& from,
                   std::initializer_list<int64_t> shape) {
  if (from) return torch::stable::clone(*from);
  return torch::stable::new_zeros(like, shape);
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
  const bool has_padding = !layer.layout.exact || l.num_tokens < l.num_flat_rows;
  t.out = has_padding ? torch::stable::new_zeros(x, {x.size(0), D * P})
                      : torch::stable::new_empty(x, {x.size(0), D * P});
  t.h_n = states_like(x, t.h_0, {D, B, P});
  if (is_lstm) t.c_n = states_like(x, t.c_0, {D, B, H});
  const int64_t capacity = rows ? rows->numel() : x.size(0);
  if (training) {
    const ScalarType compute = compute_dtype(dtype);
    t.gates = torch::stable::new_empty(x, {D, capacity, 4 * H}, compute);
    if (is_lstm) t.cells = torch::stable::new_empty(x, {D, capacity, H}, compute);
  }
  if (!layer.layout.is_empty()) {
    const Tensor tokens = tokens_of(layer, layer.input.x, device.stream());
    t.inputs = linear(tokens, all_weight_ih(layer), biases_of(layer, device.stream()));
    run(layer, t, device, place.index);
  }
  return {t.out, t.h_n, t.c_n, t.gates, t.cells};
}

// Gradients of a layer's weights, from those of its gates. Torch's products, in one go for all tokens.
void weight_gradients(const Layer& layer, const BackwardTensors& t, void* stream,
                      BackwardResult& result) {
  const DeviceLayout& l = layer.layout.layout;
  const Tensor& x = layer.input.x;
  const int64_t D = layer.call.num_directions, H = layer.call.hidden_size;
  const int64_t P = layer.call.output_size, N = l.num_tokens;
  const Dtype dtype = layer.call.dtype;
  const Tensor tokens = tokens_of(layer, x, stream);
  const Tensor previous = torch::stable::new_empty(x, {N, P});
  for (int64_t d = 0; d < D; ++d) {
    const Tensor d_gates = slice(t.d_gates, 1, d * 4 * H, 4 * H);
    const Tensor from_x = layer.is_lstm ? d_gates : slice(d_gates, 1, 0, 3 * H);
    const Tensor from_h = layer.is_lstm ? d_gates : slice(d_gates, 1, H, 3 * H);
    const void* h_0 = t.h_0 ? advance(device_pointer(*t.h_0), d * l.num_rows * P, x) : nullptr;
    gather_previous(dtype, l, static_cast<int>(d), advance(device_pointer(t.out), d * P, x), D * P,
                    h_0, P, device_pointer(previous), stream);
    std::vector<Tensor>& to = result.d_weights[static_cast<size_t>(d)];
    to[kWeightIh] = mm(transposed(from_x), tokens);
    to[kWeightHh] = mm(transposed(from_h), previous);
    to[kBiasIh] = column_sums(from_x);
    if (layer.is_lstm) {
      to[kBiasHh] = torch::stable::clone(to[kBiasIh]);
    } else {
      to[kBiasHh] = column_sums(from_h);
      to[kWeightIh] = n_last(to[kWeightIh], H);
      const Tensor bias = torch::stable::view(to[kBiasIh], {3 * H, 1});
      to[kBiasIh] = torch::stable::view(n_last(bias, H), {3 * H});
    }
    if (!layer.projected()) continue;
    const Tensor hidden = torch::stable::new_empty(x, {N, H});
    gather_hidden(
        dtype, l, static_cast<int>(d), H, advance(device_pointer(t.gates), d * N * 4 * H, t.gates),
        advance(device_pointer(*t.cells), d * N * H, *t.cells), device_pointer(hidden), stream);
    to[kWeightHr] = mm(transposed(t.d_projected[static_cast<size_t>(d)]), hidden);
  }
}

Tensor input_gradient(const Layer& layer, const BackwardTensors& t, void* stream) {
  const LayoutTensors& l = layer.layout;
  const Tensor& x = layer.input.x;
  const int64_t D = layer.call.num_directions, H = layer.call.hidden_size, I = x.size(1);
  std::vector<Tensor> parts;
  for (int64_t d = 0; d < D; ++d) {
    const Tensor& weight = layer.weight(d, kWeightIh);
    parts.push_back(layer.is_lstm ? weight : n_first(weight, H));
    // Between the directions stand GRU's columns that are none of the input's.
    if (!layer.is_lstm && D > 1) parts.push_back(torch::stable::new_zeros(x, {H, I}));
  }
  const Tensor weight = stack_rows(parts);
  const Tensor d_tokens = mm(slice(t.d_gates, 1, 0, weight.size(0)), weight);
  if (!l.rows) return d_tokens;
  const Tensor d_x = torch::stable::new_zeros(x, {x.size(0), I});
  scatter_tokens(layer.call.dtype, l.layout, device_pointer(d_tokens), I, device_pointer(d_x),
                 stream);
  return d_x;
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
  const int64_t D = call.num_directions, I = call.input_size, H = call.hidden_size;
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

  const bool is_empty = layer.layout.is_empty();
  t.d_h_0 = states_like(x, t.d_h_n, {D, B, P});
  if (is_lstm) t.d_c_0 = states_like(x, t.d_c_n, {D, B, H});
  // Rows with a segment have another gradient than the final state's, which the others keep.
  if (!is_empty) {
    zero_final_rows(call.dtype, l, D, P, device_pointer(t.d_h_0), stream);
    if (t.d_c_0) zero_final_rows(call.dtype, l, D, H, device_pointer(*t.d_c_0), stream);
  }

  BackwardResult result{
      torch::stable::new_zeros(x, {needs_x && is_empty ? R : 0, I}), t.d_h_0, t.d_c_0, {}};
  for (int64_t d = 0; d < 2; ++d) {
    const int64_t some = needs_weights && is_empty && d < D ? num_gates * H : 0;
    result.d_weights.push_back(
        {torch::stable::new_zeros(x, {some, I}), torch::stable::new_zeros(x, {some, P}),
         torch::stable::new_zeros(x, {some}), torch::stable::new_zeros(x, {some})});
    if (is_lstm) {
      const int64_t outputs = some > 0 && layer.projected() ? P : 0;
      result.d_weights.back().push_back(torch::stable::new_zeros(x, {outputs, H}));
    }
  }
  if (is_empty) return result;

  t.d_gates = torch::stable::new_empty(x, {N, D * 4 * H});
  for (int64_t d = 0; d < D && layer.projected(); ++d) {
    t.d_projected.push_back(torch::stable::new_empty(x, {N, P}));
  }
  run(layer, t, device, place.index);
  if (!layer.layout.exact) {
    zero_surplus_tokens(call.dtype, l, D * 4 * H, device_pointer(t.d_gates), stream);
    for (const Tensor& d_projected : t.d_projected) {
      zero_surplus_tokens(call.dtype, l, P, device_pointer(d_projected), stream);
    }
  }
  if (needs_x) result.d_x = input_gradient(layer, t, stream);
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
