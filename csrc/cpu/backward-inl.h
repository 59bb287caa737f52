// The backward pass of either cell, from the last step to the first: the gates' gradients, and
// through them the state's. The gradients of x and of the weights are large products of d_gates
// that the caller computes.
//
// A Cell has kGates and differentiate(...), which handles one token.
#pragma once

#include "cpu/pack-inl.h"
#include "cpu/plan-inl.h"
#include "cpu/tile-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// One token. Each pointer is a row of H values, gates and d_gates of 4H.
template <class T>
struct TokenArgs {
  const T* gates;       // in: as saved
  const T* c;           // in: c_t                            (LSTM)
  const T* c_previous;  // in: c_{t-1}                        (LSTM)
  const T* h_previous;  // in: h_{t-1}                        (GRU)
  T* d_h;               // in: gradient of h_t, not projected; out, GRU: z times it
  T* d_c;               // in: gradient of c_t; out: of c_{t-1} (LSTM)
  T* hidden;            // out: o * tanh(c), or null          (LSTM)
  T* d_gates;           // out: the first kGates * H go through weight_hh to h_{t-1}
  int64_t hidden_size;
};

template <class T>
struct BackwardWorkspace {
  int64_t output_blocks;  // of kProductWidth columns: h_{t-1} from gates
  int64_t hidden_blocks;  // the same: o * tanh(c) from a projected h
  int64_t ldg, ldu, ldp;
  Plan split;
  int64_t* counters;
  T* w_hh[2];
  T* w_hr[2];
  char* workers;
  size_t worker_bytes;

  struct Worker {
    T *d_h, *d_c, *d_hidden, *d_gates, *previous, *hidden;
  };

  template <class Cell>
  void plan(const Backward& p, Arena& arena) {
    const Call& call = p.call;
    const bool projected = p.d_h != nullptr;
    const int64_t H = call.hidden_size;
    constexpr int kWidth = kProductWidth<T>;
    output_blocks = ceil_div(call.output_size, kWidth);
    hidden_blocks = ceil_div(H, kWidth);
    ldg = leading<T>(4 * H);
    ldu = leading<T>(hidden_blocks * kWidth);
    ldp = leading<T>(output_blocks * kWidth);
    split = make_plan(call, {output_blocks, kProductVectors, 0, Cell::kGates * H, false});
    counters = arena.take<int64_t>(call.num_workers * 8);
    for (int64_t d = 0; d < call.num_directions; ++d) {
      w_hh[d] = arena.take<T>(output_blocks * kWidth * Cell::kGates * H);
      w_hr[d] = arena.take<T>(projected ? hidden_blocks * kWidth * call.output_size : 0);
    }
    Arena one(nullptr);
    worker(one);
    worker_bytes = one.used();
    workers = arena.take<char>(call.num_workers * static_cast<int64_t>(worker_bytes));
  }

  Worker worker(Arena& arena) const {
    Worker own;
    own.d_h = arena.take<T>(split.max_rows * ldp);
    own.d_c = arena.take<T>(split.max_rows * ldu);
    own.d_hidden = arena.take<T>(split.max_rows * ldu);
    own.d_gates = arena.take<T>(split.max_rows * ldg);
    own.previous = arena.take<T>(ldu > ldp ? ldu : ldp);
    own.hidden = arena.take<T>(ldu);
    return own;
  }
};

template <class Cell, class T>
void pack_backward(const Backward& p, const BackwardWorkspace<T>& space) {
  const Call& call = p.call;
  const int64_t H = call.hidden_size, P = call.output_size;
  const int64_t hr_blocks = p.d_h == nullptr ? 0 : space.hidden_blocks;
  const int64_t per_direction = space.output_blocks + hr_blocks;
  in_parallel(call, call.num_directions * per_direction, [&](int64_t i) {
    const int64_t d = i / per_direction;
    constexpr int kWidth = kProductWidth<T>;
    int64_t b = i % per_direction;
    if (b < space.output_blocks) {
      const int64_t K = Cell::kGates * H;
      pack_columns(space.w_hh[d] + b * K * kWidth, K, kWidth, b * kWidth, p.weights[d].weight_hh,
                   call.dtype, P);
      return;
    }
    b -= space.output_blocks;
    pack_columns(space.w_hr[d] + b * P * kWidth, P, kWidth, b * kWidth, p.weights[d].weight_hr,
                 call.dtype, H);
  });
}

template <class Cell, class T>
void backward_part(const Backward& p, const BackwardWorkspace<T>& space, int64_t worker,
                   const Part& part) {
  const Call& call = p.call;
  const Layout& layout = call.layout;
  const Dtype dtype = call.dtype;
  const int64_t H = call.hidden_size, P = call.output_size, D = call.num_directions;
  const int64_t d = part.direction, first_state = d * layout.num_rows;
  const bool projected = p.d_h != nullptr, has_cells = p.cells != nullptr;
  Arena arena(space.workers + worker * static_cast<int64_t>(space.worker_bytes));
  const typename BackwardWorkspace<T>::Worker own = space.worker(arena);

  int64_t s = 0;
  while (part.active(s) > 0) ++s;
  while (s-- > 0) {
    const int64_t active = part.active(s), staying = part.active(s + 1);
    for (int64_t i = staying; i < active; ++i) {
      const int64_t row = layout.final_row[part.segment(i)];
      const int64_t state = first_state + row;
      load_row_or_zeros(own.d_h + i * space.ldp, row < 0 ? nullptr : p.d_h_n, dtype, state * P, P);
      if (has_cells) {
        load_row_or_zeros(own.d_c + i * space.ldu, row < 0 ? nullptr : p.d_c_n, dtype, state * H,
                          H);
      }
    }
    for (int64_t i = 0; i < active; ++i) {
      T* d_h = own.d_h + i * space.ldp;
      if (p.d_out != nullptr) {
        load_row(own.previous, at(p.d_out, dtype, (part.row(s, i) * D + d) * P), dtype, P);
        for (int64_t u = 0; u < P; ++u) d_h[u] += own.previous[u];
      }
      if (projected) store_row(at(p.d_h, dtype, (part.token(s, i) * D + d) * P), d_h, dtype, P);
    }
    if (projected) {
      product<T>(own.d_h, space.ldp, active, space.w_hr[d], P, space.hidden_blocks, {nullptr, 0},
                 own.d_hidden, space.ldu);
    }

    for (int64_t i = 0; i < active; ++i) {
      const int64_t token = part.token(s, i), place = d * layout.num_tokens + part.place(s, i);
      const int64_t initial = layout.initial_row[part.segment(i)];
      const int64_t state = first_state + initial;
      const void* h_0 = initial < 0 || p.h_0 == nullptr ? nullptr : at(p.h_0, dtype, state * P);
      const void* h_previous = s == 0 ? h_0 : at(p.out, dtype, (part.row(s - 1, i) * D + d) * P);
      void* h_previous_out = at(p.h_previous, dtype, (token * D + d) * P);
      const size_t h_bytes = static_cast<size_t>(P) * element_size(dtype);
      if (h_previous == nullptr) {
        std::memset(h_previous_out, 0, h_bytes);
      } else {
        std::memcpy(h_previous_out, h_previous, h_bytes);
      }

      TokenArgs<T> args{};
      args.gates = static_cast<const T*>(p.gates) + place * 4 * H;
      args.d_h = projected ? own.d_hidden + i * space.ldu : own.d_h + i * space.ldp;
      args.d_gates = own.d_gates + i * space.ldg;
      args.hidden_size = H;
      if (has_cells) {
        args.c = static_cast<const T*>(p.cells) + place * H;
        args.d_c = own.d_c + i * space.ldu;
        args.hidden = projected ? own.hidden : nullptr;
        if (s == 0) {
          load_row_or_zeros(own.previous, initial < 0 ? nullptr : p.c_0, dtype, state * H, H);
          args.c_previous = own.previous;
        } else {
          const int64_t before = d * layout.num_tokens + part.place(s - 1, i);
          args.c_previous = static_cast<const T*>(p.cells) + before * H;
        }
      } else {
        load_row(own.previous, h_previous_out, dtype, P);
        args.h_previous = own.previous;
      }
      Cell::differentiate(args);
      Cell::store_d_gates(p.d_gates, dtype, (token * D + d) * 4 * H, args.d_gates, H);
      if (projected) store_row(at(p.hidden, dtype, (token * D + d) * H), own.hidden, dtype, H);
    }

    const Start<T> start = {Cell::kKeepsStateGradient ? own.d_h : nullptr, space.ldp};
    product<T>(own.d_gates, space.ldg, active, space.w_hh[d], Cell::kGates * H, space.output_blocks,
               start, own.d_h, space.ldp);
  }

  for (int64_t i = 0; i < part.active(0); ++i) {
    const int64_t row = layout.initial_row[part.segment(i)];
    if (row < 0) continue;
    const int64_t state = first_state + row;
    store_row(at(p.d_h_0, dtype, state * P), own.d_h + i * space.ldp, dtype, P);
    if (has_cells) store_row(at(p.d_c_0, dtype, state * H), own.d_c + i * space.ldu, dtype, H);
  }
}

template <class Cell, class T>
size_t backward_scratch(const Backward& p) {
  BackwardWorkspace<T> space;
  Arena arena(nullptr);
  space.template plan<Cell>(p, arena);
  return arena.used();
}

template <class Cell, class T>
void backward(const Backward& p) {
  BackwardWorkspace<T> space;
  Arena arena(p.call.scratch);
  space.template plan<Cell>(p, arena);
  pack_backward<Cell>(p, space);
  for_each_part(p.call, space.split, space.counters,
                [&](int64_t worker, int64_t, Team&, const Part& part) {
                  backward_part<Cell>(p, space, worker, part);
                });
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
