// The backward pass of either cell: step by step, from the last to the first, the gradients of the
// gates before activation, and through them those of the state; then those of input and weights,
// which are products over all tokens.
//
// A Cell has kGates, kKeepsStateGradient, where its gates' gradients lie in a row of d_gates
// (input_row, hidden_column), and differentiate(...), which handles one token.
#pragma once

#include "cpu/gradients-inl.h"
#include "cpu/plan-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// Some units of one token. Each pointer is at the first of them; in gates and d_gates the four
// values of a unit are `hidden_size` apart.
template <class T>
struct TokenArgs {
  const T* gates;       // in: as saved
  const T* c;           // in: c_t                            (LSTM)
  const T* c_previous;  // in: c_{t-1}                        (LSTM)
  const T* h_previous;  // in: h_{t-1}                        (GRU)
  T* d_h;               // in: gradient of h_t, not projected; out, GRU: z times it
  T* d_c;               // in: gradient of c_t; out: of c_{t-1} (LSTM)
  T* hidden;            // out: o * tanh(c), or null          (LSTM)
  T* d_gates;           // out, in the Cell's order
  int64_t hidden_size;
  int64_t num_units;
};

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
  static constexpr int64_t kInputRows = 8 * kMaxTileRows<kProductVectors>;

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

// Asks for what a worker reads of the i-th segment's gates at step s: it lies far from what it reads
// of other steps, and the processor does not foresee it.
template <class T>
void prefetch_gates(const Backward& p, const Part& part, int64_t s, int64_t i, Range units) {
  const int64_t H = p.call.hidden_size;
  const int64_t place = part.direction * p.call.layout.num_places + part.place(s, i);
  const T* gates = static_cast<const T*>(p.gates) + place * 4 * H;
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t gate = 0; gate < 4; ++gate) {
    for (int64_t u = units.begin; u < units.end; u += kLine) {
      __builtin_prefetch(gates + gate * H + u);
    }
  }
}

// The recurrence of one part, or of a part the units that this thread of the team takes.
template <class Cell, class T>
void backward_part(const Backward& p, const BackwardWorkspace<T>& space, int64_t worker, Team& team,
                   const Part& part) {
  const Call& call = p.call;
  const Layout& layout = call.layout;
  const Dtype dtype = call.dtype;
  const int64_t H = call.hidden_size, P = call.output_size, D = call.num_directions;
  const int64_t d = part.direction, first_state = d * layout.num_rows;
  const bool has_cells = p.cells != nullptr;
  Arena arena = space.worker(worker);
  const typename BackwardWorkspace<T>::Recurrence own = space.take_recurrence(arena);

  constexpr int kWidth = kProductWidth<T>;
  const Range blocks = team.share(space.output_blocks);
  const int64_t end = blocks.end * kWidth;
  const Range outputs = {blocks.begin * kWidth, end < P ? end : P};
  const Range units = space.projected ? Range{0, H} : outputs;
  const int64_t num_outputs = outputs.end - outputs.begin, num_units = units.end - units.begin;

  int64_t s = 0;
  while (part.active(s) > 0) ++s;
  while (s-- > 0) {
    const int64_t active = part.active(s), staying = part.active(s + 1);
    // In this call's own arrays, and in those that the forward pass saved.
    const int64_t first_place = d * layout.num_tokens + part.place(s, 0);
    const int64_t first_saved = d * layout.num_places + part.place(s, 0);
    for (int64_t i = staying; i < active; ++i) {
      const int64_t row = layout.final_row[part.segment(i)];
      const int64_t state = first_state + row;
      load_row_or_zeros(own.d_h + i * space.ldp + outputs.begin, row < 0 ? nullptr : p.d_h_n, dtype,
                        state * P + outputs.begin, num_outputs);
      if (has_cells) {
        load_row_or_zeros(own.d_c + i * space.ldu + units.begin, row < 0 ? nullptr : p.d_c_n, dtype,
                          state * H + units.begin, num_units);
      }
    }
    for (int64_t i = 0; i < active && p.d_out != nullptr; ++i) {
      T* d_h = own.d_h + i * space.ldp + outputs.begin;
      const int64_t index = (part.row(s, i) * D + d) * P + outputs.begin;
      load_row(own.previous, at(p.d_out, dtype, index), dtype, num_outputs);
      for (int64_t u = 0; u < num_outputs; ++u) d_h[u] += own.previous[u];
    }
    if (space.projected) {
      product<T>(own.d_h, space.ldp, active, space.w_hr[d], P, space.hidden_blocks, {nullptr, 0},
                 own.d_hidden, space.ldu);
      for (int64_t i = 0; i < active; ++i) {
        std::memcpy(space.d_h + (first_place + i * part.stride) * space.ldp,
                    own.d_h + i * space.ldp, static_cast<size_t>(P) * sizeof(T));
      }
    }

    for (int64_t i = 0; i < active; ++i) {
      const int64_t place = first_place + i * part.stride;
      const int64_t saved = first_saved + i * part.stride;
      if (s > 0) prefetch_gates<T>(p, part, s - 1, i, units);
      TokenArgs<T> args{};
      args.gates = static_cast<const T*>(p.gates) + saved * 4 * H + units.begin;
      args.d_h =
          (space.projected ? own.d_hidden + i * space.ldu : own.d_h + i * space.ldp) + units.begin;
      args.d_gates = space.d_gates + place * space.ldg + units.begin;
      args.hidden_size = H;
      args.num_units = num_units;
      if (has_cells) {
        const T* cells = static_cast<const T*>(p.cells) + units.begin;
        args.c = cells + saved * H;
        args.d_c = own.d_c + i * space.ldu + units.begin;
        if (p.d_cells != nullptr) {
          const T* d_cells = static_cast<const T*>(p.d_cells) + saved * H + units.begin;
          for (int64_t u = 0; u < num_units; ++u) args.d_c[u] += d_cells[u];
        }
        args.hidden = space.projected ? space.hidden + place * space.ldu : nullptr;
        if (s == 0) {
          const int64_t row = layout.initial_row[part.segment(i)];
          load_row_or_zeros(own.previous, row < 0 ? nullptr : p.c_0, dtype,
                            (first_state + row) * H + units.begin, num_units);
          args.c_previous = own.previous;
        } else {
          args.c_previous = cells + (d * layout.num_places + part.place(s - 1, i)) * H;
        }
      } else {
        load_row_or_zeros(own.previous, previous_h(p, part, s, i), dtype, units.begin, num_units);
        args.h_previous = own.previous;
      }
      Cell::differentiate(args);
    }

    team.wait();
    const int64_t column = blocks.begin * kWidth, K = Cell::kGates * H;
    const Start<T> start = {Cell::kKeepsStateGradient ? own.d_h + column : nullptr, space.ldp};
    product<T>(space.d_gates + first_place * space.ldg + Cell::hidden_column(H),
               part.stride * space.ldg, active, space.w_hh[d] + column * K, K,
               blocks.end - blocks.begin, start, own.d_h + column, space.ldp);
  }

  for (int64_t i = 0; i < part.active(0); ++i) {
    const int64_t row = layout.initial_row[part.segment(i)];
    if (row < 0) continue;
    const int64_t state = first_state + row;
    store_row(at(p.d_h_0, dtype, state * P + outputs.begin),
              own.d_h + i * space.ldp + outputs.begin, dtype, num_outputs);
    if (has_cells) {
      store_row(at(p.d_c_0, dtype, state * H + units.begin), own.d_c + i * space.ldu + units.begin,
                dtype, num_units);
    }
  }
}

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

template <class Cell, class T>
size_t backward_scratch(const Backward& p) {
  BackwardWorkspace<T> space;
  Arena arena(nullptr);
  space.template arrange<Cell>(p, arena);
  return arena.used();
}

template <class Cell, class T>
void backward(const Backward& p) {
  const Call& call = p.call;
  BackwardWorkspace<T> space;
  Arena arena(call.scratch);
  space.template arrange<Cell>(p, arena);
  pack_backward<Cell>(p, space);
  for_each_part(call, space.plan, space.counters,
                [&](int64_t worker, int64_t, Team& team, const Part& part) {
                  backward_part<Cell>(p, space, worker, team, part);
                });
  in_parallel(call, call.num_workers, [&](int64_t worker) { products<Cell>(p, space, worker); });
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
