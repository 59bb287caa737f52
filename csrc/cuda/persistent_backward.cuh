// The persistent backward pass of either cell, through the forward pass's turns from the last to the
// first. A block computes the gradients of its own hidden units' gates; these go to every block of the
// team, and the product of all of them with the block's columns of W_hh is what the previous step's h
// gets of its own units.
#pragma once

#include "cuda/worker.cuh"

namespace varlen_rnn::cuda {

// A step's values of two units.
struct BackwardStep {
  float d_gates[4][2];  // as they are stored, see params.h
  float d_state[2];     // of the initial state, if the segment starts here
};

// Of a [D, B, H] array, zeros without it or without a row.
template <class E>
VARLEN_RNN_DEVICE void state_pair(const void* states, const PersistentBackward& p, int direction,
                                  int32_t row, int64_t unit, float (&v)[2]) {
  v[0] = v[1] = 0.0f;
  if (states == nullptr || row < 0) return;
  E::load_pair(static_cast<const typename E::Storage*>(states) +
                   (direction * p.num_rows + row) * p.hidden_size + unit,
               v);
}

// What was loaded ahead for a step: float32 rows [floats, kSlots, float_pitch], then rows in storage,
// [.., kSlots, input_pitch].
template <class W>
struct Inputs {
  const W& w;
  int first;  // where they begin in shared memory

  VARLEN_RNN_DEVICE Inputs(const W& worker, int ring) : w(worker), first(worker.inputs(ring)) {}
  // Of this lane's slot.
  VARLEN_RNN_DEVICE int float_row(int piece) const {
    return first + (piece * kSlots + w.slot) * w.team.float_pitch;
  }
  VARLEN_RNN_DEVICE int storage_row(int floats, int piece) const {
    return first + floats * kSlots * w.team.float_pitch +
           (piece * kSlots + w.slot) * w.team.input_pitch;
  }
  VARLEN_RNN_DEVICE void float_pair(int piece, int unit, float (&v)[2]) const {
    Tf32::load_pair(simt::shared<const float>(static_cast<size_t>(float_row(piece))), unit, v);
  }
  template <class E>
  VARLEN_RNN_DEVICE void storage_pair(int floats, int piece, int unit, float (&v)[2]) const {
    using Storage = typename E::Storage;
    E::load_pair(simt::shared<const Storage>(static_cast<size_t>(storage_row(floats, piece))), unit,
                 v);
  }
};

// Where a turn's row of out and d_out begins.
template <class W>
VARLEN_RNN_DEVICE int64_t out_row(const W& w, const PersistentBackward& p, const Turn& turn) {
  return int64_t{turn.row} * (p.num_directions * w.hidden_size) + w.direction * w.hidden_size;
}

// The four saved rows of a turn, of a chunk: two lanes copy one, the other two the next.
template <class W>
VARLEN_RNN_DEVICE void copy_gates(const W& w, const PersistentBackward& p, const Turn& turn,
                                  const Inputs<W>& to, int chunk) {
  const int H = w.hidden_size, piece = w.quarter % 2;
  const float* from =
      p.gates + (w.direction * p.num_tokens + turn.place) * (4 * H) + (w.first_unit + chunk);
  VARLEN_RNN_UNROLL
  for (int gate = w.quarter / 2, i = 0; i < 2; gate += 2, ++i) {
    w.copy_chunk(to.float_row(gate) + chunk * 4, from + gate * H, piece, 2);
  }
}

// The cell state's gradient is the state.
struct LstmBackward {
  static constexpr int kGates = 4;
  static constexpr int kFloats = 7;  // loaded ahead: 4 gates, c, the c before it, d_cells
  static constexpr int kOut = 0;     // of the rows in storage d_out

  // Column of W_hh's gradient that a stored gradient belongs to.
  static VARLEN_RNN_DEVICE int stored(int gate) { return gate; }

  // Of the turn and the one before it in time, the chunk that begins with this unit of H. Two lanes
  // copy eight floats, the other two those of another row.
  template <class W>
  static VARLEN_RNN_DEVICE void copy(const W& w, const PersistentBackward& p, const Turn& turn,
                                     const Turn& before, const Inputs<W>& to, int chunk) {
    using Storage = typename W::Storage;
    const int H = w.hidden_size, unit = w.first_unit + chunk;
    const int64_t first = w.direction * p.num_tokens;
    const int piece = w.quarter % 2, other = w.quarter / 2;
    copy_gates(w, p, turn, to, chunk);
    const float* cells = p.cells + first * H + unit;
    if (other == 0) {
      w.copy_chunk(to.float_row(4) + chunk * 4, cells + int64_t{turn.place} * H, piece, 2);
    } else if (turn.starts == Turn::kContinues) {
      //~ c before
      w.copy_chunk(to.float_row(5) + chunk * 4, cells + int64_t{before.place} * H, piece, 2);
    }
    if (other == 0) {
      if (p.d_cells == nullptr) return;
      w.copy_chunk(to.float_row(6) + chunk * 4,
                   p.d_cells + first * H + int64_t{turn.place} * H + unit, piece, 2);
    } else if (p.d_out != nullptr) {
      w.copy_chunk(to.storage_row(kFloats, kOut) + chunk * W::kSize,
                   static_cast<const Storage*>(p.d_out) + out_row(w, p, turn) + unit, piece, 2);
    }
  }

  // d_h: of this step's output, from the next step and the loss.
  template <class E, class W>
  static VARLEN_RNN_DEVICE void step(const W& w, const PersistentBackward& p, const Turn& turn,
                                     const Inputs<W>& inputs, int unit, const float (&d_h)[2],
                                     float (&state)[2], BackwardStep& s) {
    float gates[4][2], c[2], before[2], d_cell[2] = {};
    VARLEN_RNN_UNROLL
    for (int gate = 0; gate < 4; ++gate) inputs.float_pair(gate, unit, gates[gate]);
    inputs.float_pair(4, unit, c);
    if (turn.starts == Turn::kContinues) {
      inputs.float_pair(5, unit, before);
    } else {
      //~ c_0
      state_pair<E>(p.c_0, p, w.direction, turn.starts, w.first_unit + unit, before);
    }
    if (p.d_cells != nullptr) inputs.float_pair(6, unit, d_cell);
    //~ end of c
    if (turn.ends != Turn::kContinues) {
      state_pair<E>(p.d_c_n, p, w.direction, turn.ends, w.first_unit + unit, state);
    }
    VARLEN_RNN_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float i = gates[0][e], f = gates[1][e], g = gates[2][e], o = gates[3][e];
      const float tanh_c = simt::fast_tanh(c[e]);
      const float d = state[e] + d_cell[e] + d_h[e] * o * (1.0f - tanh_c * tanh_c);
      s.d_gates[0][e] = d * g * i * (1.0f - i);
      s.d_gates[1][e] = d * before[e] * f * (1.0f - f);
      s.d_gates[2][e] = d * i * (1.0f - g * g);
      s.d_gates[3][e] = d_h[e] * tanh_c * o * (1.0f - o);
      s.d_state[e] = state[e] = d * f;
    }
  }

  // What the step before gets of d_h beside the product.
  static VARLEN_RNN_DEVICE float direct(const float (&)[2], int) { return 0.0f; }
};

// The part of h's gradient that does not go through W_hh, z d_h, is the state.
struct GruBackward {
  static constexpr int kGates = 3;
  static constexpr int kFloats = 4;  // loaded ahead: r, z, n, W_hn h + b_hn
  static constexpr int kOut = 1;     // of the rows in storage the out before it, d_out

  static VARLEN_RNN_DEVICE int stored(int gate) { return gate + 1; }

  template <class W>
  static VARLEN_RNN_DEVICE void copy(const W& w, const PersistentBackward& p, const Turn& turn,
                                     const Turn& before, const Inputs<W>& to, int chunk) {
    using Storage = typename W::Storage;
    const int unit = w.first_unit + chunk;
    const int piece = w.quarter % 2, other = w.quarter / 2;
    copy_gates(w, p, turn, to, chunk);
    if (other == 0) {
      if (turn.starts != Turn::kContinues) return;
      //~ h before
      w.copy_chunk(to.storage_row(kFloats, 0) + chunk * W::kSize,
                   static_cast<const Storage*>(p.out) + out_row(w, p, before) + unit, piece, 2);
    } else if (p.d_out != nullptr) {
      w.copy_chunk(to.storage_row(kFloats, kOut) + chunk * W::kSize,
                   static_cast<const Storage*>(p.d_out) + out_row(w, p, turn) + unit, piece, 2);
    }
  }

  template <class E, class W>
  static VARLEN_RNN_DEVICE void step(const W& w, const PersistentBackward& p, const Turn& turn,
                                     const Inputs<W>& inputs, int unit, const float (&d_h)[2],
                                     float (&state)[2], BackwardStep& s) {
    float gates[4][2], before[2];
    VARLEN_RNN_UNROLL
    for (int gate = 0; gate < 4; ++gate) inputs.float_pair(gate, unit, gates[gate]);
    if (turn.starts == Turn::kContinues) {
      inputs.template storage_pair<E>(kFloats, 0, unit, before);
    } else {
      state_pair<E>(p.h_0, p, w.direction, turn.starts, w.first_unit + unit, before);
    }
    VARLEN_RNN_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float r = gates[0][e], z = gates[1][e], n = gates[2][e], from_h = gates[3][e];
      const float d_n = d_h[e] * (1.0f - z) * (1.0f - n * n);
      s.d_gates[0][e] = d_n;
      s.d_gates[1][e] = d_n * from_h * r * (1.0f - r);
      s.d_gates[2][e] = d_h[e] * (before[e] - n) * z * (1.0f - z);
      s.d_gates[3][e] = d_n * r;
      state[e] = d_h[e] * z;
    }
  }

  //~ direct term
  static VARLEN_RNN_DEVICE float direct(const float (&state)[2], int e) { return state[e]; }
};

// Inputs of a step, of the warp's chunks.
template <class Cell, int kTurns, class W>
VARLEN_RNN_DEVICE void copy_inputs(const W& w, const PersistentBackward& p, int step, int ring) {
  if (step >= w.num_steps) return;
  const Turn turn = *w.turn(step);
  if (turn.place < 0) return;
  Turn before = turn;
  if (turn.starts == Turn::kContinues) before = *w.turn(step + 1);
  w.template for_pairs<kTurns>([&](int, int unit) {
    Cell::copy(w, p, turn, before, Inputs<W>(w, ring), unit - 2 * w.quarter);
  });
}

// Of two units what a step leaves in memory but for the gradient of h_0.
template <class E, class W>
VARLEN_RNN_DEVICE void save(const W& w, const PersistentBackward& p, const Turn& turn, int unit,
                            const BackwardStep& s) {
  using Storage = typename E::Storage;
  const int H = w.hidden_size, D = p.num_directions, d = w.direction;
  Storage* d_gates =
      static_cast<Storage*>(p.d_gates) + int64_t{turn.token} * (D * 4 * H) + (d * 4 * H + unit);
  VARLEN_RNN_UNROLL
  for (int column = 0; column < 4; ++column) {
    E::store_pair(d_gates + column * H, s.d_gates[column]);
  }
  if (p.d_c_0 != nullptr && turn.starts >= 0) {
    E::store_pair(static_cast<Storage*>(p.d_c_0) + (d * p.num_rows + turn.starts) * H + unit,
                  s.d_state);
  }
}

// The gradient of the h that a segment started from.
template <class E, class W>
VARLEN_RNN_DEVICE void save_initial(const W& w, const PersistentBackward& p, int32_t starts,
                                    int unit, const float (&d_h)[2]) {
  if (starts < 0) return;
  E::store_pair(static_cast<typename E::Storage*>(p.d_h_0) +
                    (w.direction * p.num_rows + starts) * p.hidden_size + unit,
                d_h);
}

// NaN for what these steps would have computed, and the step before them for the initial states.
template <class E, int kTurns, class W>
VARLEN_RNN_DEVICE void abandon(const W& w, const PersistentBackward& p, int step) {
  const float nan = simt::word_as_float(0x7fc00000u);
  BackwardStep s;
  for (int e = 0; e < 2; ++e) {
    for (float (&gate)[2] : s.d_gates) gate[e] = nan;
    s.d_state[e] = nan;
  }
  for (int at = step > 0 ? step - 1 : 0; at < w.num_steps; ++at) {
    const Turn turn = w.global_turn(at);
    w.template for_pairs<kTurns>([&](int, int unit) {
      if (turn.place < 0) return;
      if (at >= step) save<E>(w, p, turn, w.first_unit + unit, s);
      save_initial<E>(w, p, turn.starts, w.first_unit + unit, s.d_state);
    });
  }
}

// The gradient of a step's output.
template <class Cell, class E, class W>
VARLEN_RNN_DEVICE void output_gradient(const W& w, const PersistentBackward& p, const Turn& turn,
                                       const Inputs<W>& inputs, int unit,
                                       const float (&from_next)[2], float (&d_h)[2]) {
  if (turn.ends == Turn::kContinues) {
    d_h[0] = from_next[0];
    d_h[1] = from_next[1];
  } else {
    state_pair<E>(p.d_h_n, p, w.direction, turn.ends, w.first_unit + unit, d_h);
  }
  if (p.d_out == nullptr) return;
  float d_out[2];
  inputs.template storage_pair<E>(Cell::kFloats, Cell::kOut, unit, d_out);
  d_h[0] += d_out[0];
  d_h[1] += d_out[1];
}

template <class Cell, class E, int kIndex>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kBackwardVariants[kIndex].max_warps * 32, 1)
    persistent_backward(PersistentBackward p) {
  constexpr Variant v = kBackwardVariants[kIndex];
  // Chunks of a warp: its 32 rows are those of four, which as many warps share as there are parts.
  constexpr int kTurns = v.k_parts == 0 ? 1 : (4 + v.k_parts - 1) / v.k_parts;
  //~ worker
  using W = Worker<E, v.tiles, v.resident, v.k_parts, v.alone>;
  using Storage = typename E::Storage;
  W w(p, /*walk_backwards=*/true);
  const int H = w.hidden_size;
  if (w.num_steps == 0) return;

  // Row u of the block is column first_unit + u of W_hh, its columns the rows of W_hh.
  const int rows_left = w.num_units - w.first_row();
  const Storage* column =
      static_cast<const Storage*>(p.weight_hh[w.direction]) + (w.first_unit + w.first_row());
  w.load_weights(Cell::kGates * H / E::kPerWord, [&](int word, uint32_t (&a)[4]) {
    const Storage* at = column + int64_t{word} * (E::kPerWord * H);
    VARLEN_RNN_UNROLL
    for (int r = 0; r < 4; ++r) {
      if (8 * r >= rows_left) continue;
      if constexpr (E::kPerWord == 2) {
        a[r] = E::matrix_word(simt::load(at + 8 * r), simt::load(at + H + 8 * r));
      } else {
        a[r] = E::matrix_word(simt::load(at + 8 * r));
      }
    }
  });
  w.load_first_turns();
  for (int step = 0; step < kInputsAhead; ++step) {
    copy_inputs<Cell, kTurns>(w, p, step, step);
    simt::copy_async_commit();
  }
  w.init_exchange();

  // Exchange `step` brings what the step found to the one after it, which comes before it in time.
  float state[kTurns][2] = {};
  int32_t next_place = -1, next_starts = Turn::kContinues;
  int ring = 0;
  for (int step = 0; step <= w.num_steps; ++step) {
    const bool is_step = step < w.num_steps;
    if (is_step) w.expect(step, Cell::kGates * H);
    if (step > 0) {
      //~ wait
      w.wait(step - 1);
      w.multiply(step - 1);
    }
    //~ inputs are there
    simt::copy_async_wait<kInputsAhead - 1>();
    //~ sums are there
    simt::sync_block();
    //~ gave up
    if (step > 0 && w.gave_up(step - 1)) {
      //~ abandon
      abandon<E, kTurns>(w, p, step);
      return w.leave();
    }

    Turn turn{};
    turn.place = -1;
    if (is_step) turn = *w.turn(step);
    w.template for_pairs<kTurns>([&](int t, int unit) {
      float from_next[2] = {};
      if (next_place >= 0) {
        w.product(unit, from_next);
        from_next[0] += Cell::direct(state[t], 0);
        from_next[1] += Cell::direct(state[t], 1);
        //~ d_h_0
        save_initial<E>(w, p, next_starts, w.first_unit + unit, from_next);
      }
      if (!is_step) return;
      BackwardStep s = {};
      if (turn.place >= 0) {
        const Inputs<W> inputs(w, ring);
        float d_h[2];
        output_gradient<Cell, E>(w, p, turn, inputs, unit, from_next, d_h);
        Cell::template step<E>(w, p, turn, inputs, unit, d_h, state[t], s);
      }
      VARLEN_RNN_UNROLL
      for (int gate = 0; gate < Cell::kGates; ++gate) {
        w.send(step, gate * H + w.first_unit + unit, s.d_gates[Cell::stored(gate)]);
      }
      if (turn.place >= 0) save<E>(w, p, turn, w.first_unit + unit, s);
    });
    next_place = turn.place;
    next_starts = turn.starts;

    copy_inputs<Cell, kTurns>(w, p, step + kInputsAhead, last_in_ring(ring));
    w.copy_turns(step + kTurnsAhead);
    simt::copy_async_commit();
    ring = next_in_ring(ring);
  }
}

}  // namespace varlen_rnn::cuda
