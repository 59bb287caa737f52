// Rows of a layer's tensors, for kernels that know bytes only.
#pragma once

#include "cuda/layer.h"

namespace varlen_rnn::cuda {

inline int64_t row_bytes(const Layer& layer, int64_t columns) {
  return columns * static_cast<int64_t>(layer.input.x.element_size());
}

// Of the rows of x, as many bytes apart as they are, and tokens side by side.
inline TokenRows token_rows(const Layer& layer, const void* from, int64_t pitch, void* to) {
  return {layer.layout.layout, from, to, row_bytes(layer, layer.call.input_size),
          row_bytes(layer, pitch)};
}

// The tokens of x side by side, [N, I], once a kernel has gathered them.
inline Tensor room_for_tokens(const Layer& layer) {
  const Tensor& x = layer.input.x;
  return layer.layout.rows
             ? torch::stable::new_empty(x, {layer.layout.layout.num_tokens, x.size(1)})
             : x;
}

// A tensor's rows as a piece of another one, from one of its rows on.
inline void add_rows(Pieces& pieces, const Tensor& to, int64_t to_row, const Tensor& from,
                     int64_t from_row, int64_t rows) {
  const int64_t columns = to.dim() == 2 ? to.size(1) : 1;
  pieces.add(advance(device_pointer(to), to_row * columns, to),
             advance(device_pointer(from), from_row * columns, from),
             rows * columns * static_cast<int64_t>(to.element_size()));
}

// Whether rows of the flat tensors may belong to no token.
inline bool has_padding(const Layer& layer) {
  const DeviceLayout& l = layer.layout.layout;
  return !layer.layout.exact || l.num_tokens < l.num_flat_rows;
}

}  // namespace varlen_rnn::cuda
