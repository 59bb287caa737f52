// The generic path: a step at a time, one product of the active segments' h and one kernel, for both
// directions together.
#include <algorithm>
#include <vector>

#include "cuda/products.h"

namespace varlen_rnn::cuda {
namespace {

void fill_in(const Layer& layer, Generic& p) {
  p.layout = layer.layout.layout;
  p.dtype = layer.call.dtype;
  p.is_lstm = layer.is_lstm;
  p.num_directions = static_cast<int>(layer.call.num_directions);
  p.hidden_size = layer.call.hidden_size;
  p.output_size = layer.call.output_size;
}

// Weights of one kind of all directions, [D, *, *]: what a product of both takes.
Tensor weights_of(const Layer& layer, int kind, void* stream) {
  const Tensor& first = layer.weight(0, kind);
  const int64_t D = layer.call.num_directions, rows = first.size(0), columns = first.size(1);
  if (D == 1) return torch::stable::view(first, {1, rows, columns});
  const Tensor all = torch::stable::new_empty(first, {D, rows, columns});
  Pieces pieces;
  for (int64_t d = 0; d < D; ++d) {
    pieces.add(advance(device_pointer(all), d * rows * columns, all),
               device_pointer(layer.weight(d, kind)), bytes_of(first));
  }
  set_pieces(pieces, stream);
  return all;
}

Tensor transposes(const Tensor& matrices) { return torch::stable::transpose(matrices, 1, 2); }

// The segments that each step has, or may have. Waits for the device only if it alone knows how many
// steps there are: rows that lie back to back, of which nothing but N is known, would cost
// launches for N steps.
std::vector<int64_t> segments_of_steps(const LayoutTensors& l, void* stream) {
  if (!l.host_batch_sizes.empty()) return l.host_batch_sizes;
  const int64_t N = l.layout.num_tokens, G = l.layout.num_segments;
  std::vector<int64_t> segments(static_cast<size_t>(l.layout.num_steps));
  if (l.layout.num_steps == N && l.layout.num_rows > 1 && !is_capturing(stream)) {
    Tensor sizes = to_host(l.derived->batch_sizes());
    const int64_t* values = sizes.const_data_ptr<int64_t>();
    const int64_t* end = std::find(values, values + N, 0);
    return {values, end};
  }
  for (int64_t s = 0; s < l.layout.num_steps; ++s) {
    segments[static_cast<size_t>(s)] = std::min(G, N / (s + 1));  // N is not enough for more
  }
  return segments;
}

}  // namespace

void run_generic(const Layer& layer, const ForwardTensors& t, void* stream) {
  const Tensor& x = layer.input.x;
  const int64_t D = layer.call.num_directions, H = layer.call.hidden_size;
  const int64_t P = layer.call.output_size, G = layer.layout.layout.num_segments;
  const Tensor h = torch::stable::new_empty(x, {D, G, P});
  const Tensor products = torch::stable::new_empty(x, {D, G, layer.num_gates() * H});
  const ScalarType compute = compute_dtype(x.scalar_type());
  OptionalTensor c, hidden;
  if (layer.is_lstm) c = torch::stable::new_empty(x, {D, G, H}, compute);
  if (layer.projected()) hidden = torch::stable::new_empty(x, {D, G, H});

  GenericForward p{};
  fill_in(layer, p);
  p.inputs = device_pointer(t.inputs);
  p.products = device_pointer(products);
  for (int64_t d = 0; d < D && !layer.is_lstm; ++d) {
    const OptionalTensor& bias = layer.bias_hh(d);
    if (bias) p.bias_hn[d] = advance(device_pointer(*bias), 2 * H, *bias);
  }
  p.h_0 = device_pointer(t.h_0);
  p.c_0 = device_pointer(t.c_0);
  p.h = device_pointer(h);
  p.c = device_pointer(c);
  p.hidden = device_pointer(hidden);
  p.out = device_pointer(t.out);
  p.h_n = device_pointer(t.h_n);
  p.c_n = device_pointer(t.c_n);
  p.gates = device_pointer(t.gates);
  p.cells = device_pointer(t.cells);

  const std::vector<int64_t> segments_of = segments_of_steps(layer.layout, stream);
  const Tensor weight_hh = weights_of(layer, kWeightHh, stream);
  OptionalTensor weight_hr;
  if (hidden) weight_hr = weights_of(layer, kWeightHr, stream);
  StepProducts of_h(layer, h, transposes(weight_hh), products);
  std::optional<StepProducts> projections;
  if (hidden) projections.emplace(layer, *hidden, transposes(*weight_hr), h);
  generic_start(p, stream);
  const int64_t num_steps = static_cast<int64_t>(segments_of.size());
  for (int64_t step = 0; step < num_steps; ++step) {
    const int64_t segments = segments_of[static_cast<size_t>(step)];
    of_h.run(segments);
    generic_step(p, step, segments, stream);
    if (!projections) continue;
    projections->run(segments);
    generic_emit(p, step, segments, stream);
  }
}

void run_generic(const Layer& layer, const BackwardTensors& t, void* stream) {
  const Tensor& x = layer.input.x;
  const int64_t D = layer.call.num_directions, H = layer.call.hidden_size;
  const int64_t P = layer.call.output_size, G = layer.layout.layout.num_segments;
  const Tensor products = torch::stable::new_empty(x, {D, G, P});
  const Tensor direct = torch::stable::new_empty(x, {D, G, H}, t.gates.scalar_type());
  const Tensor step_gates = torch::stable::new_empty(x, {D, G, 4 * H});
  OptionalTensor step_projected, d_hidden;
  if (layer.projected()) {
    step_projected = torch::stable::new_empty(x, {D, G, P});
    d_hidden = torch::stable::new_empty(x, {D, G, H});
  }

  GenericBackward p{};
  fill_in(layer, p);
  p.d_out = device_pointer(t.d_out);
  p.d_h_n = device_pointer(t.d_h_n);
  p.d_c_n = device_pointer(t.d_c_n);
  p.d_cells = device_pointer(t.d_cells);
  p.h_0 = device_pointer(t.h_0);
  p.c_0 = device_pointer(t.c_0);
  p.out = device_pointer(t.out);
  p.gates = device_pointer(t.gates);
  p.cells = device_pointer(t.cells);
  p.products = device_pointer(products);
  p.d_hidden = device_pointer(d_hidden);
  p.d_projected = device_pointer(t.d_projected);
  p.step_projected = device_pointer(step_projected);
  p.direct = device_pointer(direct);
  p.d_gates = device_pointer(t.d_gates);
  p.step_gates = device_pointer(step_gates);
  p.d_h_0 = device_pointer(t.d_h_0);
  p.d_c_0 = device_pointer(t.d_c_0);

  const std::vector<int64_t> segments_of = segments_of_steps(layer.layout, stream);
  // The columns that W_hh's product takes: of a GRU those behind the first n.
  const Tensor to_h = layer.is_lstm ? step_gates : slice(step_gates, 2, H, 3 * H);
  const Tensor weight_hh = weights_of(layer, kWeightHh, stream);
  OptionalTensor weight_hr;
  if (d_hidden) weight_hr = weights_of(layer, kWeightHr, stream);
  StepProducts to_states(layer, to_h, weight_hh, products);
  std::optional<StepProducts> to_hidden;
  if (d_hidden) to_hidden.emplace(layer, *step_projected, *weight_hr, *d_hidden);
  for (int64_t step = static_cast<int64_t>(segments_of.size()) - 1; step >= 0; --step) {
    const int64_t segments = segments_of[static_cast<size_t>(step)];
    if (to_hidden) {
      generic_collect(p, step, segments, stream);
      to_hidden->run(segments);
    }
    generic_back(p, step, segments, stream);
    to_states.run(segments);
  }
  generic_finish(p, stream);
}

}  // namespace varlen_rnn::cuda
