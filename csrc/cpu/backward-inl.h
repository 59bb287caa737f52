// The backward pass of either cell: step by step, from the last to the first, the gradients of the
// gates before activation, and through them those of the state; then those of input and weights.
//
// A Cell has kGates, kKeepsStateGradient, where its gates' gradients lie in a row of d_gates
// (input_row, hidden_column), and differentiate(...), which handles one token.
#pragma once

#include "cpu/backward-products-inl.h"

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
