#include "cuda/gradients.h"

#include "cuda/products.h"
#include "cuda/tokens.h"

namespace varlen_rnn::cuda {

// A GRU's gates have the order r, z, n in weights and n, r, z in d_gates, where the input's product takes
// its columns.
void weight_gradients(const Layer& layer, const BackwardTensors& t, void* stream,
                      const BackwardResult& result) {
  const DeviceLayout& l = layer.layout.layout;
  const Tensor& x = layer.input.x;
  const int64_t D = layer.call.num_directions, H = layer.call.hidden_size;
  const int64_t P = layer.call.output_size, N = l.num_tokens, rows = layer.num_gates() * H;
  const int directions = static_cast<int>(D);
  const Tensor tokens = room_for_tokens(layer);
  const Tensor previous = torch::stable::new_empty(x, {D * N, P});
  PreviousRows gathered{l,
                        {},
                        directions,
                        row_bytes(layer, P),
                        device_pointer(t.out),
                        device_pointer(t.h_0),
                        device_pointer(previous)};
  if (layer.layout.rows) {
    gathered.tokens = token_rows(layer, device_pointer(x), x.stride(0), device_pointer(tokens));
  }
  gather_previous(gathered, stream);
  OptionalTensor hidden;
  if (layer.projected()) {
    hidden = torch::stable::new_empty(x, {D * N, H});
    gather_hidden(layer.call.dtype,
                  {l, directions, H, device_pointer(t.gates), device_pointer(*t.cells),
                   device_pointer(*hidden)},
                  stream);
  }
  const Tensor sums = column_sums(t.d_gates);
  Pieces pieces;
  std::vector<Tensor> n_firsts;  // until they are copied
  for (int64_t d = 0; d < D; ++d) {
    const int64_t first = d * 4 * H, from_h = layer.is_lstm ? first : first + H;
    const std::vector<Tensor>& to = result.d_weights[static_cast<size_t>(d)];
    const Tensor from_x = transposed(slice(t.d_gates, 1, first, rows));
    product(layer, transposed(slice(t.d_gates, 1, from_h, rows)), slice(previous, 0, d * N, N),
            to[kWeightHh]);
    add_rows(pieces, to[kBiasHh], 0, sums, from_h, rows);
    if (layer.is_lstm) {
      product(layer, from_x, tokens, to[kWeightIh]);
      add_rows(pieces, to[kBiasIh], 0, sums, first, rows);
    } else {
      const Tensor n_first = torch::stable::new_empty(x, {rows, x.size(1)});
      product(layer, from_x, tokens, n_first);
      n_firsts.push_back(n_first);
      add_rows(pieces, to[kWeightIh], 0, n_first, H, 2 * H);
      add_rows(pieces, to[kWeightIh], 2 * H, n_first, 0, H);
      //~ bias of a GRU
      add_rows(pieces, to[kBiasIh], 0, sums, first + H, 2 * H);
      add_rows(pieces, to[kBiasIh], 2 * H, sums, first, H);
    }
    if (!layer.projected()) continue;
    const Tensor d_projected = torch::stable::view(*t.d_projected, {D * N, P});
    product(layer, transposed(slice(d_projected, 0, d * N, N)), slice(*hidden, 0, d * N, N),
            to[kWeightHr]);
  }
  set_pieces(pieces, stream);
}

Tensor weight_of_columns(const Layer& layer, Pieces& pieces) {
  const int64_t D = layer.call.num_directions, H = layer.call.hidden_size;
  const int64_t I = layer.call.input_size;
  if (layer.is_lstm && D == 1) return layer.weight(0, kWeightIh);
  const Tensor all =
      torch::stable::new_empty(layer.input.x, {layer.is_lstm ? D * 4 * H : D * 4 * H - H, I});
  for (int64_t d = 0; d < D; ++d) {
    const Tensor& weight = layer.weight(d, kWeightIh);
    const int64_t first = d * 4 * H;
    if (layer.is_lstm) {
      add_rows(pieces, all, first, weight, 0, 4 * H);
      continue;
    }
    add_rows(pieces, all, first, weight, 2 * H, H);
    add_rows(pieces, all, first + H, weight, 0, 2 * H);
    if (d > 0)
      pieces.add(advance(device_pointer(all), (first - H) * I, all), nullptr,
                 row_bytes(layer, H * I));
  }
  return all;
}

void input_gradient(const Layer& layer, const BackwardTensors& t, const Tensor& weight,
                    void* stream, const Tensor& d_x) {
  const Tensor d_gates = slice(t.d_gates, 1, 0, weight.size(0));
  if (!layer.layout.rows) return product(layer, d_gates, weight, d_x);
  const Tensor d_tokens = room_for_tokens(layer);
  product(layer, d_gates, weight, d_tokens);
  scatter_tokens(token_rows(layer, device_pointer(d_tokens), d_x.size(1), device_pointer(d_x)),
                 stream);
}

void clear_surplus(const Layer& layer, const BackwardTensors& t, void* stream) {
  const int64_t D = layer.call.num_directions, N = layer.layout.layout.num_tokens;
  const int64_t P = layer.call.output_size;
  Surplus surplus{layer.layout.layout, 1, {device_pointer(t.d_gates)}, {}};
  surplus.row_bytes[0] = row_bytes(layer, D * 4 * layer.call.hidden_size);
  for (int64_t d = 0; d < D && t.d_projected; ++d) {
    surplus.to[surplus.count] = advance(device_pointer(*t.d_projected), d * N * P, *t.d_projected);
    surplus.row_bytes[surplus.count++] = row_bytes(layer, P);
  }
  zero_surplus_tokens(surplus, stream);
}

BackwardResult room_for_gradients(const Layer& layer, bool needs_x, bool needs_weights) {
  const Tensor& x = layer.input.x;
  const Call& call = layer.call;
  const auto room = [&](bool wanted, std::initializer_list<int64_t> shape) {
    return wanted && layer.layout.is_empty() ? torch::stable::new_zeros(x, shape)
                                             : torch::stable::new_empty(x, shape);
  };
  BackwardResult result{room(needs_x, {needs_x ? x.size(0) : 0, call.input_size}), x, {}, {}};
  for (int64_t d = 0; d < 2; ++d) {
    const bool wanted = needs_weights && d < call.num_directions;
    const int64_t rows = wanted ? layer.num_gates() * call.hidden_size : 0;
    result.d_weights.push_back({room(wanted, {rows, call.input_size}),
                                room(wanted, {rows, call.output_size}), room(wanted, {rows}),
                                room(wanted, {rows})});
    if (!layer.is_lstm) continue;
    const bool projected = wanted && layer.projected();
    result.d_weights.back().push_back(
        room(projected, {projected ? call.output_size : 0, call.hidden_size}));
  }
  return result;
}

}  // namespace varlen_rnn::cuda
