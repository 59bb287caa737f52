// The generic path: a step at a time, one product of the active segments' h and one kernel each.
#include <algorithm>
#include <vector>

#include "cuda/layer.h"

namespace varlen_rnn::cuda {
namespace {

void fill_in(const Layer& layer, int64_t direction, Generic& p) {
  p.layout = layer.layout.layout;
  p.dtype = layer.call.dtype;
  p.is_lstm = layer.is_lstm;
  p.direction = static_cast<int>(direction);
  p.num_directions = static_cast<int>(layer.call.num_directions);
  p.hidden_size = layer.call.hidden_size;
  p.output_size = layer.call.output_size;
}

// The segments that each step has, or may have. Waits for the device only if it alone knows how many
// steps there are: rows that lie back to back, of which nothing but N is known, would cost
// launches for N steps.
std::vector<int64_t> segments_of_steps(const LayoutTensors& l, void* stream) {
  if (!l.host_batch_sizes.empty()) return l.host_batch_sizes;
  const int64_t N = l.layout.num_tokens, G = l.layout.num_segments;
  std::vector<int64_t> segments(static_cast<size_t>(l.layout.num_steps));
  if (l.layout.num_steps == N && l.layout.num_rows > 1 && !is_capturing(stream)) {
    Tensor sizes = to_host(l.batch_sizes);
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
  const DeviceLayout& l = layer.layout.layout;
  const Tensor& x = layer.input.x;
  const int64_t D = layer.call.num_directions, H = layer.call.hidden_size;
  const int64_t P = layer.call.output_size, G = l.num_segments, rows = layer.num_gates() * H;
  const Tensor h = torch::stable::new_empty(x, {G, P});
  const Tensor products = torch::stable::new_empty(x, {G, rows});
  const ScalarType compute = compute_dtype(x.scalar_type());
  const Tensor c = torch::stable::new_empty(x, {layer.is_lstm ? G : 0, H}, compute);
  OptionalTensor hidden;
  if (layer.projected()) hidden = torch::stable::new_empty(x, {G, H});

  const std::vector<int64_t> segments_of = segments_of_steps(layer.layout, stream);
  const int64_t num_steps = static_cast<int64_t>(segments_of.size());

  for (int64_t d = 0; d < D; ++d) {
    GenericForward p{};
    fill_in(layer, d, p);
    p.inputs = device_pointer(t.inputs);
    p.products = device_pointer(products);
    const OptionalTensor& bias = layer.bias_hh(d);
    if (!layer.is_lstm && bias) p.bias_hn = advance(device_pointer(*bias), 2 * H, *bias);
    if (t.h_0) p.h_0 = advance(device_pointer(*t.h_0), d * l.num_rows * P, x);
    if (t.c_0) p.c_0 = advance(device_pointer(*t.c_0), d * l.num_rows * H, x);
    p.h = device_pointer(h);
    p.c = device_pointer(c);
    p.hidden = device_pointer(hidden);
    p.out = device_pointer(t.out);
    p.h_n = advance(device_pointer(t.h_n), d * l.num_rows * P, x);
    if (t.c_n) p.c_n = advance(device_pointer(*t.c_n), d * l.num_rows * H, x);
    if (t.gates) p.gates = advance(device_pointer(*t.gates), d * l.num_tokens * 4 * H, *t.gates);
    if (t.cells) p.cells = advance(device_pointer(*t.cells), d * l.num_tokens * H, *t.cells);

    generic_start(p, stream);
    const Tensor weight_hh = transposed(layer.weight(d, kWeightHh));
    for (int64_t step = 0; step < num_steps; ++step) {
      const int64_t segments = segments_of[static_cast<size_t>(step)];
      const Tensor active = slice(h, 0, 0, segments);
      mm_out(active, weight_hh, slice(products, 0, 0, segments));
      generic_step(p, step, segments, stream);
      if (!hidden) continue;
      mm_out(slice(*hidden, 0, 0, segments), transposed(layer.weight(d, kWeightHr)), active);
      generic_emit(p, step, segments, stream);
    }
  }
}

void run_generic(const Layer& layer, const BackwardTensors& t, void* stream) {
  const DeviceLayout& l = layer.layout.layout;
  const Tensor& x = layer.input.x;
  const int64_t D = layer.call.num_directions, H = layer.call.hidden_size;
  const int64_t P = layer.call.output_size, G = l.num_segments;
  const ScalarType compute = t.gates.scalar_type();
  const Tensor products = torch::stable::new_empty(x, {G, P});
  const Tensor direct = torch::stable::new_empty(x, {G, H}, compute);
  const Tensor step_gates = torch::stable::new_empty(x, {G, 4 * H});
  OptionalTensor step_projected, d_hidden;
  if (layer.projected()) {
    step_projected = torch::stable::new_empty(x, {G, P});
    d_hidden = torch::stable::new_empty(x, {G, H});
  }
  const std::vector<int64_t> segments_of = segments_of_steps(layer.layout, stream);
  const int64_t num_steps = static_cast<int64_t>(segments_of.size());

  for (int64_t d = 0; d < D; ++d) {
    GenericBackward p{};
    fill_in(layer, d, p);
    p.d_out = device_pointer(t.d_out);
    if (t.d_h_n) p.d_h_n = advance(device_pointer(*t.d_h_n), d * l.num_rows * P, x);
    if (t.d_c_n) p.d_c_n = advance(device_pointer(*t.d_c_n), d * l.num_rows * H, x);
    if (t.d_cells) {
      p.d_cells = advance(device_pointer(*t.d_cells), d * l.num_tokens * H, *t.d_cells);
    }
    if (t.h_0) p.h_0 = advance(device_pointer(*t.h_0), d * l.num_rows * P, x);
    if (t.c_0) p.c_0 = advance(device_pointer(*t.c_0), d * l.num_rows * H, x);
    p.out = device_pointer(t.out);
    p.gates = advance(device_pointer(t.gates), d * l.num_tokens * 4 * H, t.gates);
    if (t.cells) p.cells = advance(device_pointer(*t.cells), d * l.num_tokens * H, *t.cells);
    p.products = device_pointer(products);
    p.d_hidden = device_pointer(d_hidden);
    if (d_hidden) p.d_projected = device_pointer(t.d_projected[static_cast<size_t>(d)]);
    p.step_projected = device_pointer(step_projected);
    p.direct = device_pointer(direct);
    p.d_gates = device_pointer(t.d_gates);
    p.step_gates = device_pointer(step_gates);
    p.d_h_0 = advance(device_pointer(t.d_h_0), d * l.num_rows * P, x);
    if (t.d_c_0) p.d_c_0 = advance(device_pointer(*t.d_c_0), d * l.num_rows * H, x);

    // The columns that W_hh's product takes: of a GRU those behind the first n.
    const Tensor to_h = layer.is_lstm ? step_gates : slice(step_gates, 1, H, 3 * H);
    for (int64_t step = num_steps - 1; step >= 0; --step) {
      const int64_t segments = segments_of[static_cast<size_t>(step)];
      if (d_hidden) {
        generic_collect(p, step, segments, stream);
        mm_out(slice(*step_projected, 0, 0, segments), layer.weight(d, kWeightHr),
               slice(*d_hidden, 0, 0, segments));
      }
      generic_back(p, step, segments, stream);
      mm_out(slice(to_h, 0, 0, segments), layer.weight(d, kWeightHh),
             slice(products, 0, 0, segments));
    }
    generic_finish(p, stream);
  }
}

}  // namespace varlen_rnn::cuda
