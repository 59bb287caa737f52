// The ops on CPU tensors: check everything, allocate, fill the kernels' structs, run.
#include <cstring>

#include "cpu/call.h"
#include "op_table.h"

namespace varlen_rnn {
namespace {

// The gradient of h_0 or c_0 of rows that have a segment: zero, until the kernel writes what it
// finds. Rows without a segment keep the gradient of the final state, which is a copy of the
// initial one.
void zero_rows_with_segments(const Layout& layout, const Tensor& d_state) {
  const size_t bytes = static_cast<size_t>(d_state.size(2)) * d_state.element_size();
  char* data = static_cast<char*>(d_state.mutable_data_ptr());
  for (int64_t d = 0; d < d_state.size(0); ++d) {
    for (int64_t j = 0; j < layout.num_segments; ++j) {
      const int64_t row = layout.final_row[j];
      if (row >= 0) std::memset(data + (d * layout.num_rows + row) * bytes, 0, bytes);
    }
  }
}

ForwardResult run_forward(const char* op, int64_t num_gates, bool training, const Tensor& x,
                          const OptionalTensor& h_0, const OptionalTensor& c_0,
                          const WeightTensors& weights, const Tensor& batch_sizes,
                          const OptionalTensor& rows, const OptionalTensor& reverse,
                          const Tensor& initial_row, const Tensor& final_segment,
                          bool /*allow_tf32*/) {
  Forward p{};
  const CheckedInput input(op, num_gates, x, weights, p.call);
  for (int64_t d = 0; d < p.call.num_directions; ++d) p.weights[d] = input.pointers(d);
  return forward_of_layer(op, num_gates, training, p, input.x, h_0, c_0, batch_sizes, rows, reverse,
                          initial_row, final_segment);
}

BackwardResult run_backward(const char* op, int64_t num_gates, const OptionalTensor& d_out,
                            const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
                            const OptionalTensor& d_cells, const Tensor& x,
                            const OptionalTensor& h_0, const OptionalTensor& c_0,
                            const WeightTensors& weights, const Tensor& batch_sizes,
                            const OptionalTensor& rows, const OptionalTensor& reverse,
                            const Tensor& initial_row, const Tensor& final_segment,
                            bool /*allow_tf32*/, const Tensor& out, const Tensor& gates,
                            const OptionalTensor& cells, bool needs_x, bool needs_weights) {
  const bool is_lstm = num_gates == 4;
  const ScalarType dtype = x.scalar_type();
  const ScalarType compute = compute_dtype(dtype);
  const Place place(x);

  Backward p{};
  Call& call = p.call;
  const CheckedInput input(op, num_gates, x, weights, call);
  const int64_t D = call.num_directions, I = call.input_size;
  const int64_t H = call.hidden_size, P = call.output_size, R = x.size(0);
  const bool projected = weights[0][kWeightHr].has_value();
  for (int64_t d = 0; d < D; ++d) p.weights[d] = input.pointers(d);
  const CheckedLayout checked(op, place, R, D, batch_sizes, rows, reverse, initial_row,
                              final_segment);
  call.layout = checked.layout;
  const int64_t B = call.layout.num_rows, N = call.layout.num_tokens;
  const int64_t places = call.layout.num_places;
  const OptionalTensor d_output =
      checked_optional(op, "d_out", d_out, dtype, place, "[R, D * P]", {R, D * P});
  const OptionalTensor d_h =
      checked_optional(op, "d_h_n", d_h_n, dtype, place, "[D, B, P]", {D, B, P});
  const OptionalTensor d_c =
      checked_optional(op, "d_c_n", d_c_n, dtype, place, "[D, B, H]", {D, B, H});
  const OptionalTensor d_states =
      checked_optional(op, "d_cells", d_cells, compute, place, "[D, N, H]", {D, places, H});
  const OptionalTensor h = checked_optional(op, "h_0", h_0, dtype, place, "[D, B, P]", {D, B, P});
  const OptionalTensor c = checked_optional(op, "c_0", c_0, dtype, place, "[D, B, H]", {D, B, H});
  const OptionalTensor output =
      checked_optional(op, "out", out, dtype, place, "[R, D * P]", {R, D * P});
  const OptionalTensor saved_gates =
      checked_optional(op, "gates", gates, compute, place, "[D, N, 4H]", {D, places, 4 * H});
  const OptionalTensor saved_cells =
      checked_optional(op, "cells", cells, compute, place, "[D, N, H]", {D, places, H});

  BackwardResult result{
      torch::stable::new_empty(x, {needs_x ? R : 0, I}), states_like(x, d_h, {D, B, P}), {}, {}};
  zero_rows_with_segments(call.layout, result.d_h_0);
  if (is_lstm) {
    result.d_c_0 = states_like(x, d_c, {D, B, H});
    zero_rows_with_segments(call.layout, *result.d_c_0);
  }
  const int64_t rows_of_weights = num_gates * H;
  for (int64_t d = 0; d < 2; ++d) {
    const int64_t some = needs_weights && d < D ? rows_of_weights : 0;
    result.d_weights.push_back(
        {torch::stable::new_empty(x, {some, I}), torch::stable::new_empty(x, {some, P}),
         torch::stable::new_empty(x, {some}), torch::stable::new_empty(x, {some})});
    if (is_lstm) {
      const int64_t outputs = some > 0 && projected ? P : 0;
      result.d_weights[d].push_back(torch::stable::new_empty(x, {outputs, H}));
    }
  }
  if (needs_x) zero_padding(checked, result.d_x);
  if (N == 0) {
    for (auto& direction : result.d_weights) {
      for (Tensor& d_weight : direction) torch::stable::zero_(d_weight);
    }
    return result;
  }

  p.d_out = pointer(d_output);
  p.d_h_n = pointer(d_h);
  p.d_c_n = pointer(d_c);
  p.d_cells = pointer(d_states);
  p.x = input.x.const_data_ptr();
  p.x_stride = input.x.stride(0);
  p.h_0 = pointer(h);
  p.c_0 = pointer(c);
  p.out = pointer(output);
  p.gates = pointer(saved_gates);
  p.cells = pointer(saved_cells);
  if (needs_x) p.d_x = result.d_x.mutable_data_ptr();
  p.d_h_0 = result.d_h_0.mutable_data_ptr();
  if (is_lstm) p.d_c_0 = result.d_c_0->mutable_data_ptr();
  for (int64_t d = 0; d < D && needs_weights; ++d) {
    const std::vector<Tensor>& to = result.d_weights[d];
    p.d_weights[d] = {to[kWeightIh].mutable_data_ptr(), to[kWeightHh].mutable_data_ptr(),
                      to[kBiasIh].mutable_data_ptr(), to[kBiasHh].mutable_data_ptr(),
                      projected ? to[kWeightHr].mutable_data_ptr() : nullptr};
  }

  const double products = static_cast<double>(P) + (needs_x ? static_cast<double>(I) : 0.0) +
                          (needs_weights ? static_cast<double>(I + P) : 0.0);
  const double flops = 2.0 * static_cast<double>(N * D * rows_of_weights) * products;
  const Kernels& k = kernels();
  run_kernel(p, flops, is_lstm ? k.lstm_backward_scratch : k.gru_backward_scratch,
             is_lstm ? k.lstm_backward : k.gru_backward);
  return result;
}

struct Cpu {
  static constexpr auto forward = run_forward;
  static constexpr auto backward = run_backward;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(varlen_rnn, CPU, m) { implement<Cpu>(m); }

}  // namespace varlen_rnn
