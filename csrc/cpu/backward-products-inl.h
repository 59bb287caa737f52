// The products over all tokens that end the backward pass: the gradients of input and weights, from
// the gates' gradients that the recurrence has left.
#pragma once

#include "cpu/backward-workspace-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// d_x of the tokens [n, end), from both directions.
template <class Cell, class T>
void input_gradient(const Backward& p, const BackwardWorkspace<T>& space,
                    const typename BackwardWorkspace<T>::InputGradient& own, int64_t n,
                    int64_t end) {
  const Call& call = p.call;
  const Layout& layout = call.layout;
  const int64_t I = call.input_size, N = layout.num_tokens, K = Cell::kGates * call.hidden_size;
  for (; n < end; n += space.kInputRows) {
    const int64_t count = end - n < space.kInputRows ? end - n : space.kInputRows;
    product<T>(space.d_gates + n * space.ldg, space.ldg, count, space.w_ih[0], K,
               space.input_blocks, {nullptr, 0}, own.d_x, space.ldx);
    if (call.num_directions == 2) {
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(own.d_gates + i * space.ldg,
                    space.d_gates + (N + layout.reverse[n + i]) * space.ldg,
                    static_cast<size_t>(K) * sizeof(T));
      }
      product<T>(own.d_gates, space.ldg, count, space.w_ih[1], K, space.input_blocks,
                 {own.d_x, space.ldx}, own.d_x, space.ldx);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = layout.rows == nullptr ? n + i : layout.rows[n + i];
      store_row(at(p.d_x, call.dtype, row * I), own.d_x + i * space.ldx, call.dtype, I);
    }
  }
}

// One worker's rows of one direction's weight gradients. Calls chunk(begin, end) before it reads the
// gates' gradients of these places.
template <class Cell, class T, class Chunk>
void weight_gradients(const Backward& p, const BackwardWorkspace<T>& space,
                      const typename BackwardWorkspace<T>::WeightGradient& own, int64_t d,
                      int64_t worker, const Chunk& chunk) {
  const Call& call = p.call;
  const Layout& layout = call.layout;
  const Dtype dtype = call.dtype;
  const Dtype compute = sizeof(T) == sizeof(double) ? Dtype::kFloat64 : Dtype::kFloat32;
  const int64_t H = call.hidden_size, P = call.output_size, I = call.input_size;
  const int64_t N = layout.num_tokens, num_rows = Cell::kGates * H;
  const WeightGradients& to = p.d_weights[d];
  const bool rounded = element_size(dtype) != sizeof(T);
  const auto sums = [rounded](T* sums, void* to) { return rounded ? sums : static_cast<T*>(to); };
  const OuterProduct<T> ih = {
      to.weight_ih, sums(space.sums_ih, to.weight_ih), num_rows, I, 0, Cell::input_row(0, H)};
  const OuterProduct<T> hh = {
      to.weight_hh, sums(space.sums_hh, to.weight_hh), num_rows, P, Cell::hidden_column(H), 0};
  const OuterProduct<T> hr = {to.weight_hr, sums(space.sums_hr, to.weight_hr), P, H, 0, 0};

  const auto share = [&](int64_t columns) {
    const int64_t tiles = ceil_div(columns, kOuterRows);
    return Range{tiles * worker / call.num_workers, tiles * (worker + 1) / call.num_workers};
  };
  LeftColumns<T> gates = {share(4 * H), 0, own.left};
  const int64_t begin = gates.tiles.begin * kOuterRows, last = gates.tiles.end * kOuterRows;
  const int64_t end = last < 4 * H ? last : 4 * H;
  for (int64_t j = begin; j < end; ++j) space.d_bias[j] = T{0};

  const Part all{layout, d, 0, 1, layout.num_segments};
  int64_t s = 0;
  for (int64_t n = 0; n < N; n += space.chunk) {
    gates.count = N - n < space.chunk ? N - n : space.chunk;
    chunk(n, n + gates.count);
    for (int64_t k = 0; k < gates.count; ++k) {
      if (n + k == layout.first_token[s] + layout.batch_sizes[s]) ++s;
      const int64_t segment = n + k - layout.first_token[s];
      own.x[k] = at(p.x, dtype, all.row(s, segment) * p.x_stride);
      own.h[k] = previous_h(p, all, s, segment);
    }
    const T* d_gates = space.d_gates + (d * N + n) * space.ldg;
    gates.pack(d_gates, space.ldg, 4 * H);
    gates.multiply(own.x, dtype, ih, n > 0, own.panel);
    gates.multiply(own.h, dtype, hh, n > 0, own.panel);

    add_rows(space.d_bias, own.span, own.sum, d_gates, space.ldg, gates.count, begin, end);

    if (space.projected) {
      LeftColumns<T> outputs = {share(P), gates.count, own.left};
      for (int64_t k = 0; k < gates.count; ++k) {
        own.hidden[k] = space.hidden + (d * N + n + k) * space.ldu;
      }
      outputs.pack(space.d_h + (d * N + n) * space.ldp, space.ldp, P);
      outputs.multiply(own.hidden, compute, hr, n > 0, own.panel);
    }
  }

  for (int64_t j = begin; j < end; ++j) {
    if (ih.row(j) >= 0) store_row(at(to.bias_ih, dtype, ih.row(j)), space.d_bias + j, dtype, 1);
    if (hh.row(j) >= 0) store_row(at(to.bias_hh, dtype, hh.row(j)), space.d_bias + j, dtype, 1);
  }
  gates.finish(ih, dtype);
  gates.finish(hh, dtype);
  if (space.projected) LeftColumns<T>{share(P), 0, nullptr}.finish(hr, dtype);
}

// One worker's share of the products. Chunk by chunk both gradients are computed, so that the gates'
// gradients come from memory once.
template <class Cell, class T>
void products(const Backward& p, const BackwardWorkspace<T>& space, int64_t worker) {
  const int64_t num_workers = p.call.num_workers;
  Arena arena = space.worker(worker);
  typename BackwardWorkspace<T>::InputGradient input{};
  if (space.wants_x) input = space.take_input_gradient(arena);
  const auto share_of_x = [&](int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    input_gradient<Cell>(p, space, input, begin + count * worker / num_workers,
                         begin + count * (worker + 1) / num_workers);
  };
  if (!space.wants_weights) {
    if (space.wants_x) share_of_x(0, p.call.layout.num_tokens);
    return;
  }
  const auto weight = space.take_weight_gradient(arena, num_workers);
  for (int64_t d = 0; d < p.call.num_directions; ++d) {
    weight_gradients<Cell>(p, space, weight, d, worker, [&](int64_t begin, int64_t end) {
      if (space.wants_x && d == 0) share_of_x(begin, end);
    });
  }
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
