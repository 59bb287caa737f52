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

// What was loaded ahead for a step: float32 rows [pieces, kSlots, units], then rows in storage.
template <class W>
struct Inputs {
  const W& w;
  int step;

  VARLEN_RNN_DEVICE size_t float_row(int piece, int slot) const {
    return w.inputs(step) + static_cast<size_t>((piece * kSlots + slot) * w.team.units) * 4;
  }
  VARLEN_RNN_DEVICE size_t storage_row(int floats, int piece, int slot) const {
    return float_row(floats, 0) +
           static_cast<size_t>((piece * kSlots + slot) * w.team.units * W::kSize);
  }
  VARLEN_RNN_DEVICE void float_pair(int piece, const Pair& pair, float (&v)[2]) const {
    Tf32::load_pair(simt::shared<const float>(float_row(piece, pair.slot)), pair.unit, v);
  }
};

// The cell state's gradient stays in the block's state.
struct LstmBackward {
  static constexpr int kGates = 4;
  static constexpr int kFloats = 7;            // loaded ahead: 4 gates, c, the c before it, d_cells
  static constexpr int kPieces = kFloats + 1;  // and d_out, in storage

  // Column of W_hh's gradient that a stored gradient belongs to.
  static VARLEN_RNN_DEVICE int stored(int gate) { return gate; }

  template <class W>
  static VARLEN_RNN_DEVICE void copy_input(const W& w, const PersistentBackward& p, int step,
                                           int piece, int slot) {
    using Storage = typename W::Storage;
    const Turn turn = w.turn(step, slot);
    if (turn.place < 0) return;
    const int64_t H = p.hidden_size, first = w.direction * p.num_tokens;
    const Inputs<W> to{w, step};
    if (piece < 4) {
      const float* from = p.gates + ((first + turn.place) * 4 + piece) * H;
      w.copy_row(to.float_row(piece, slot), from, H);
    } else if (piece == 4) {
      w.copy_row(to.float_row(4, slot), p.cells + (first + turn.place) * H, H);
    } else if (piece == 5) {
      if (turn.starts != Turn::kContinues) return;
      w.copy_row(to.float_row(5, slot), p.cells + (first + w.turn(step + 1, slot).place) * H, H);
    } else if (piece == 6) {
      if (p.d_cells == nullptr) return;
      w.copy_row(to.float_row(6, slot), p.d_cells + (first + turn.place) * H, H);
    } else if (p.d_out != nullptr) {
      w.copy_row(to.storage_row(kFloats, 0, slot),
                 static_cast<const Storage*>(p.d_out) +
                     (int64_t{turn.row} * p.num_directions + w.direction) * H,
                 H);
    }
  }

  // d_h: of this step's output, from the next step and the loss.
  template <class E, class W>
  static VARLEN_RNN_DEVICE void step(const W& w, const PersistentBackward& p, const Turn& turn,
                                     const Inputs<W>& inputs, const Pair& pair, int64_t unit,
                                     const float (&d_h)[2], Shared<float> state, BackwardStep& s) {
    float gates[4][2], c[2], before[2], d_cell[2] = {};
    VARLEN_RNN_UNROLL
    for (int gate = 0; gate < 4; ++gate) inputs.float_pair(gate, pair, gates[gate]);
    inputs.float_pair(4, pair, c);
    if (turn.starts == Turn::kContinues) {
      inputs.float_pair(5, pair, before);
    } else {
      state_pair<E>(p.c_0, p, w.direction, turn.starts, unit, before);
    }
    if (p.d_cells != nullptr) inputs.float_pair(6, pair, d_cell);
    float d_c[2] = {state[0], state[1]};
    if (turn.ends != Turn::kContinues) {
      state_pair<E>(p.d_c_n, p, w.direction, turn.ends, unit, d_c);
    }
    VARLEN_RNN_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float i = gates[0][e], f = gates[1][e], g = gates[2][e], o = gates[3][e];
      const float tanh_c = simt::fast_tanh(c[e]);
      const float d = d_c[e] + d_cell[e] + d_h[e] * o * (1.0f - tanh_c * tanh_c);
      s.d_gates[0][e] = d * g * i * (1.0f - i);
      s.d_gates[1][e] = d * before[e] * f * (1.0f - f);
      s.d_gates[2][e] = d * i * (1.0f - g * g);
      s.d_gates[3][e] = d_h[e] * tanh_c * o * (1.0f - o);
      s.d_state[e] = state[e] = d * f;
    }
  }

  // What the step before gets of d_h beside the product.
  static VARLEN_RNN_DEVICE float direct(Shared<const float>, int) { return 0.0f; }
};

// The part of h's gradient that does not go through W_hh, z d_h, stays in the block's state.
struct GruBackward {
  static constexpr int kGates = 3;
  static constexpr int kFloats = 4;            // loaded ahead: r, z, n, W_hn h + b_hn
  static constexpr int kPieces = kFloats + 2;  // and the out before it, d_out, in storage

  static VARLEN_RNN_DEVICE int stored(int gate) { return gate + 1; }

  template <class W>
  static VARLEN_RNN_DEVICE void copy_input(const W& w, const PersistentBackward& p, int step,
                                           int piece, int slot) {
    using Storage = typename W::Storage;
    const Turn turn = w.turn(step, slot);
    if (turn.place < 0) return;
    const int64_t H = p.hidden_size, D = p.num_directions, d = w.direction;
    const Inputs<W> to{w, step};
    if (piece < kFloats) {
      const int64_t row = (d * p.num_tokens + turn.place) * 4 + piece;
      w.copy_row(to.float_row(piece, slot), p.gates + row * H, H);
    } else if (piece == kFloats) {
      if (turn.starts != Turn::kContinues) return;
      const int64_t row = int64_t{w.turn(step + 1, slot).row} * D + d;
      w.copy_row(to.storage_row(kFloats, 0, slot), static_cast<const Storage*>(p.out) + row * H, H);
    } else if (p.d_out != nullptr) {
      const int64_t row = int64_t{turn.row} * D + d;
      w.copy_row(to.storage_row(kFloats, 1, slot), static_cast<const Storage*>(p.d_out) + row * H,
                 H);
    }
  }

  template <class E, class W>
  static VARLEN_RNN_DEVICE void step(const W& w, const PersistentBackward& p, const Turn& turn,
                                     const Inputs<W>& inputs, const Pair& pair, int64_t unit,
                                     const float (&d_h)[2], Shared<float> state, BackwardStep& s) {
    float gates[4][2], before[2];
    VARLEN_RNN_UNROLL
    for (int gate = 0; gate < 4; ++gate) inputs.float_pair(gate, pair, gates[gate]);
    if (turn.starts == Turn::kContinues) {
      E::load_pair(
          simt::shared<const typename E::Storage>(inputs.storage_row(kFloats, 0, pair.slot)),
          pair.unit, before);
    } else {
      state_pair<E>(p.h_0, p, w.direction, turn.starts, unit, before);
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

  static VARLEN_RNN_DEVICE float direct(Shared<const float> state, int e) { return state[e]; }
};

template <class Cell, class W>
VARLEN_RNN_DEVICE void copy_inputs(const W& w, const PersistentBackward& p, int step) {
  if (step >= w.num_steps) return;
  const int warps = w.team.threads / 32;
  for (int i = static_cast<int>(simt::warp()); i < Cell::kPieces * kSlots; i += warps) {
    Cell::copy_input(w, p, step, i / kSlots, i % kSlots);
  }
}

// The gradient of a step's output.
template <class Cell, class E, class W>
VARLEN_RNN_DEVICE void output_gradient(const W& w, const PersistentBackward& p, const Turn& turn,
                                       const Inputs<W>& inputs, const Pair& pair, int64_t unit,
                                       const float (&from_next)[2], float (&d_h)[2]) {
  if (turn.ends == Turn::kContinues) {
    d_h[0] = from_next[0];
    d_h[1] = from_next[1];
  } else {
    state_pair<E>(p.d_h_n, p, w.direction, turn.ends, unit, d_h);
  }
  if (p.d_out == nullptr) return;
  constexpr int kLast = Cell::kPieces - Cell::kFloats - 1;
  float d_out[2];
  E::load_pair(
      simt::shared<const typename E::Storage>(inputs.storage_row(Cell::kFloats, kLast, pair.slot)),
      pair.unit, d_out);
  d_h[0] += d_out[0];
  d_h[1] += d_out[1];
}

template <class Cell, class E, int kTiles, int kResident, int kMaxWarps>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kMaxWarps * 32, 1) persistent_backward(PersistentBackward p) {
  using W = Worker<E, kTiles, kResident>;
  using Storage = typename E::Storage;
  W w(p, /*walk_backwards=*/true);
  const int64_t H = p.hidden_size, D = p.num_directions, d = w.direction;
  const int units = p.team.units;
  if (w.num_steps == 0) return;

  // Row u of the block is column first_unit + u of W_hh, its columns the rows of W_hh.
  const Storage* weight_hh = static_cast<const Storage*>(p.weight_hh[w.direction]);
  w.load_weights([&](int row, int word) -> uint32_t {
    const int64_t unit = w.first_unit + row, column = int64_t{word} * E::kPerWord;
    if (row >= units || unit >= H || column >= Cell::kGates * H) return 0;
    const Storage* from = weight_hh + column * H + unit;
    if constexpr (E::kPerWord == 2) {
      return E::matrix_word(simt::load(from), simt::load(from + H));
    } else {
      return E::matrix_word(simt::load(from));
    }
  });
  w.load_first_turns();
  for (int step = 0; step < kInputsAhead; ++step) {
    copy_inputs<Cell>(w, p, step);
    simt::copy_async_commit();
  }
  w.init_exchange();

  // Exchange `step` brings what the step found to the one after it, which comes before it in time.
  for (int step = 0; step <= w.num_steps; ++step) {
    const bool is_step = step < w.num_steps;
    if (is_step) w.expect(step, Cell::kGates * H);
    if (step > 0) {
      w.wait(step - 1);
      w.multiply(step - 1);
    }
    simt::copy_async_wait<kInputsAhead - 1>();
    simt::sync_block();

    w.for_pairs([&](const Pair& pair) {
      const int64_t unit = w.unit(pair);
      if (unit >= H) return;
      const Shared<float> state = w.state() + pair.slot * units + pair.unit;
      float from_next[2] = {};
      if (step > 0) {
        const Turn next = w.turn(step - 1, pair.slot);
        if (next.place >= 0) {
          w.product(pair.slot, pair.unit, from_next);
          from_next[0] += Cell::direct(state, 0);
          from_next[1] += Cell::direct(state, 1);
          if (next.starts >= 0) {
            E::store_pair(
                static_cast<Storage*>(p.d_h_0) + (d * p.num_rows + next.starts) * H + unit,
                from_next);
          }
        }
      }
      if (!is_step) return;
      const Turn turn = w.turn(step, pair.slot);
      BackwardStep s = {};
      if (turn.place >= 0) {
        const Inputs<W> inputs{w, step};
        float d_h[2];
        output_gradient<Cell, E>(w, p, turn, inputs, pair, unit, from_next, d_h);
        Cell::template step<E>(w, p, turn, inputs, pair, unit, d_h, state, s);
      }
      VARLEN_RNN_UNROLL
      for (int gate = 0; gate < Cell::kGates; ++gate) {
        w.send(step, pair.slot, gate * H + unit, s.d_gates[Cell::stored(gate)]);
      }
      if (turn.place < 0) return;
      Storage* d_gates =
          static_cast<Storage*>(p.d_gates) + (int64_t{turn.token} * D + d) * 4 * H + unit;
      VARLEN_RNN_UNROLL
      for (int column = 0; column < 4; ++column) {
        E::store_pair(d_gates + column * H, s.d_gates[column]);
      }
      if (p.d_c_0 != nullptr && turn.starts >= 0) {
        E::store_pair(static_cast<Storage*>(p.d_c_0) + (d * p.num_rows + turn.starts) * H + unit,
                      s.d_state);
      }
    });

    copy_inputs<Cell>(w, p, step + kInputsAhead);
    w.copy_turns(step + kTurnsAhead);
    simt::copy_async_commit();
  }
}

}  // namespace varlen_rnn::cuda
