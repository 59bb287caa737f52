// What the backward pass works in: its scratch memory, cut into arrays, and the packed weights.
#pragma once

#include "cpu/gradients-inl.h"
#include "cpu/plan-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

template <class T>
struct BackwardWorkspace {
  int64_t input_blocks;   // of kProductWidth columns: x from gates
  int64_t output_blocks;  // the same: h_{t-1} from gates
  int64_t hidden_blocks;  // the same: o * tanh(c) from a projected h
  int64_t ldg, ldx, ldu, ldp;
  bool projected, wants_x, wants_weights;
  Plan plan;
  int64_t chunk, tiles;  // of the weights' gradients
  int64_t* counters;
  T* w_ih[2];
  T* w_hh[2];
  T* w_hr[2];
  T* d_gates;  // [D, N, ldg], in the direction's order
  T* d_h;      // [D, N, ldp], the same: of the projected h; only with projection
  T* hidden;   // [D, N, ldu], the same: o * tanh(c); only with projection
  T *d_bias, *sums_ih, *sums_hh, *sums_hr;
  char* workers;
  size_t worker_bytes;

  // What a worker has for itself: in the recurrence, and for the products behind it.
  struct Recurrence {
    T *d_h, *d_c, *d_hidden, *previous;
  };
  struct InputGradient {
    T *d_gates, *d_x;
  };
  struct WeightGradient {
    const void **x, **h, **hidden;
    T *left, *panel, *span, *sum;
  };

  // Rows of the input's gradient that are computed at a time: whole tiles.
  static constexpr int64_t kInputRows = 8 * Tiles<kProductVectors>::kRows;

  template <class Cell>
  void arrange(const Backward& p, Arena& arena) {
    const Call& call = p.call;
    const int64_t H = call.hidden_size, P = call.output_size, I = call.input_size;
    const int64_t N = call.layout.num_tokens, D = call.num_directions;
    constexpr int kWidth = kProductWidth<T>;
    projected = p.weights[0].weight_hr != nullptr;
    wants_x = p.d_x != nullptr;
    wants_weights = p.d_weights[0].weight_ih != nullptr;
    input_blocks = wants_x ? ceil_div(I, kWidth) : 0;
    output_blocks = ceil_div(P, kWidth);
    hidden_blocks = projected ? ceil_div(H, kWidth) : output_blocks;
    ldg = leading<T>(4 * H);
    ldx = leading<T>(input_blocks * kWidth);
    ldu = leading<T>(hidden_blocks * kWidth);
    ldp = leading<T>(output_blocks * kWidth);
    plan = make_plan(call, {output_blocks, 1, kProductVectors, 0, Cell::kGates * H, !projected});
    chunk = N < kChunk ? N : kChunk;
    const int64_t widest = projected && P > 4 * H ? P : 4 * H;
    tiles = ceil_div(widest, kOuterRows);
    counters = arena.take<int64_t>(call.num_workers * 8);
    for (int64_t d = 0; d < D; ++d) {
      w_ih[d] = arena.take<T>(input_blocks * kWidth * Cell::kGates * H);
      w_hh[d] = arena.take<T>(output_blocks * kWidth * Cell::kGates * H);
      w_hr[d] = arena.take<T>(projected ? hidden_blocks * kWidth * P : 0);
    }
    d_gates = arena.take<T>(D * N * ldg);
    d_h = arena.take<T>(projected ? D * N * ldp : 0);
    hidden = arena.take<T>(projected ? D * N * ldu : 0);
    const bool rounded = wants_weights && element_size(call.dtype) != sizeof(T);
    d_bias = arena.take<T>(wants_weights ? tiles * kOuterRows : 0);
    sums_ih = arena.take<T>(rounded ? Cell::kGates * H * I : 0);
    sums_hh = arena.take<T>(rounded ? Cell::kGates * H * P : 0);
    sums_hr = arena.take<T>(rounded && projected ? P * H : 0);
    Arena recurrence(nullptr), products(nullptr);
    take_recurrence(recurrence);
    if (wants_x) take_input_gradient(products);
    if (wants_weights) take_weight_gradient(products, call.num_workers);
    worker_bytes = recurrence.used() > products.used() ? recurrence.used() : products.used();
    workers = arena.take<char>(call.num_workers * static_cast<int64_t>(worker_bytes));
  }

  Arena worker(int64_t index) const {
    return Arena(workers + index * static_cast<int64_t>(worker_bytes));
  }

  Recurrence take_recurrence(Arena& arena) const {
    Recurrence own;
    own.d_h = arena.take<T>(plan.max_rows * ldp);
    own.d_c = arena.take<T>(plan.max_rows * ldu);
    own.d_hidden = arena.take<T>(projected ? plan.max_rows * ldu : 0);
    own.previous = arena.take<T>(ldu > ldp ? ldu : ldp);
    return own;
  }

  InputGradient take_input_gradient(Arena& arena) const {
    InputGradient own;
    own.d_gates = arena.take<T>(kInputRows * ldg);
    own.d_x = arena.take<T>(kInputRows * ldx);
    return own;
  }

  WeightGradient take_weight_gradient(Arena& arena, int64_t num_workers) const {
    WeightGradient own;
    own.x = arena.take<const void*>(chunk);
    own.h = arena.take<const void*>(chunk);
    own.hidden = arena.take<const void*>(chunk);
    own.left = arena.take<T>(ceil_div(tiles, num_workers) * LeftColumns<T>::tile_size(chunk));
    own.panel = arena.take<T>(chunk * kProductWidth<T>);
    own.span = arena.take<T>(tiles * kOuterRows);
    own.sum = arena.take<T>(tiles * kOuterRows);
    return own;
  }
};

template <class Cell, class T>
void pack_backward(const Backward& p, const BackwardWorkspace<T>& space) {
  const Call& call = p.call;
  const int64_t H = call.hidden_size, P = call.output_size, K = Cell::kGates * H;
  const int64_t hr_blocks = space.projected ? space.hidden_blocks : 0;
  const int64_t per_direction = space.input_blocks + space.output_blocks + hr_blocks;
  in_parallel(call, call.num_directions * per_direction, [&](int64_t i) {
    const int64_t d = i / per_direction;
    constexpr int kWidth = kProductWidth<T>;
    const auto same = [](int64_t k) { return k; };
    int64_t b = i % per_direction;
    if (b < space.input_blocks) {
      pack_columns(space.w_ih[d] + b * K * kWidth, K, kWidth, b * kWidth, p.weights[d].weight_ih,
                   call.dtype, call.input_size, [H](int64_t k) { return Cell::input_row(k, H); });
      return;
    }
    b -= space.input_blocks;
    if (b < space.output_blocks) {
      pack_columns(space.w_hh[d] + b * K * kWidth, K, kWidth, b * kWidth, p.weights[d].weight_hh,
                   call.dtype, P, same);
      return;
    }
    b -= space.output_blocks;
    pack_columns(space.w_hr[d] + b * P * kWidth, P, kWidth, b * kWidth, p.weights[d].weight_hr,
                 call.dtype, H, same);
  });
}

// What the i-th segment of a part started step s from, or null for zeros: h_0, or the step before.
inline const void* previous_h(const Backward& p, const Part& part, int64_t s, int64_t i) {
  const Call& call = p.call;
  const int64_t d = part.direction, P = call.output_size;
  if (s > 0) return at(p.out, call.dtype, (part.row(s - 1, i) * call.num_directions + d) * P);
  const int64_t row = call.layout.initial_row[part.segment(i)];
  if (row < 0 || p.h_0 == nullptr) return nullptr;
  return at(p.h_0, call.dtype, (d * call.layout.num_rows + row) * P);
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
